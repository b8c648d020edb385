"""One client, several data sets: a plan goes to one population, and its ledger alone pays."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict

from client.agent import populations
from client.agent.credentials import Enrolled
from client.agent.populations import PopulationError
from client.agent.residents import Residents, residents
from client.proposal import answer_proposal
from client.site import KeptReplies, SiteError
from privacy.accounting.events import Event
from privacy.contract.plan import Plan
from privacy.contract.plan_file import parse
from privacy.event_log import EventLog
from privacy.identity.keys import sign, verify
from privacy.ledger.recovery import known_events
from server.registry import heads
from server.registry.heads import HeadBook, followed, last_head
from server.registry.sites import Home
from server.rounds.messages import Answer
from tests.support.federation import coordinator

SCHEMAS = {
    name: f'label = "ill"\n\n[columns.{column}]\ntype = "number"\nmin = 0\nmax = 100\n\n'
    '[columns.ill]\ntype = "category"\nvalues = ["no", "yes"]\n'
    for name, column in (("heart", "age"), ("lung", "smoked"))
}


def plan(schema: str, **changes: Any) -> Plan:
    table = {
        "task": "table",
        "schema": schema,
        "sites": 1,
        "rounds": 3,
        "rate": 0.2,
        "rows": 100,
        "lr": 1.0,
        "clip": 1.0,
        "sigma": 5.0,
        "delta": 1e-5,
    }
    return parse(table | changes)


@pytest.fixture
def hospital(tmp_path: Path) -> tuple[Path, Path]:
    """A coordinator's folder, and a site's with two populations."""
    home, sites = coordinator(tmp_path, "north")
    site = sites["north"]
    (site / "policy.toml").write_text(
        'epsilon = 5.0\ndelta = 1e-4\napprove = "within-limits"\nmin_sigma = 0.5\n'
    )
    for name, column in (("heart", "age"), ("lung", "smoked")):
        data = tmp_path / f"{name}.csv"
        rows = "".join(f"{n % 100},{'yes' if n % 3 else 'no'}\n" for n in range(120))
        data.write_text(f"{column},ill\n{rows}")
        populations.add(site, name, site / f"{name}.jsonl", data, SCHEMAS[name])
    return home, site


def served(site: Path, population: str | None = None) -> Residents:
    log = EventLog(as_json=False)
    return residents(
        Enrolled(site),
        None,
        log,
        policy=None,
        population=population,
        where="cpu",
        on_fault=lambda: None,
    )


def asked(schema: str, head: object = None, **changes: Any) -> RecordDict:
    fields: dict[str, Any] = {
        "run": "r1",
        "round": 1,
        "site": "north",
        "plan": plan(schema, **changes).to_json(),
    }
    if head is not None:
        fields["head"] = json.dumps(head)
    return RecordDict({"request": ConfigRecord(fields)})


def test_a_plan_goes_to_the_population_whose_schema_it_has(hospital: tuple[Path, Path]) -> None:
    here = served(hospital[1])
    for name, schema in SCHEMAS.items():
        site = here.site_for(asked(schema))
        assert site.ledger is not None
        assert site.ledger.population == name
        assert site.accepts(plan(schema))
    stranger = here.site_for(asked(SCHEMAS["heart"].replace("max = 100", "max = 99")))
    assert not stranger.accepts(plan(SCHEMAS["heart"].replace("max = 100", "max = 99")))
    assert here.site_for(RecordDict()) is here.sites[0]


def test_the_named_population_alone_is_served(hospital: tuple[Path, Path]) -> None:
    here = served(hospital[1], "lung")
    assert [one.ledger.population for one in here.sites if one.ledger] == ["lung"]


def test_where_one_plan_could_be_for_two_the_client_does_not_start(
    hospital: tuple[Path, Path], tmp_path: Path
) -> None:
    site = hospital[1]
    populations.add(
        site, "heart2", site / "heart2.jsonl", tmp_path / "heart.csv", SCHEMAS["heart"],
        separate=True,
    )  # fmt: skip
    with pytest.raises(SiteError, match="heart and heart2: one plan could be for both"):
        served(site)
    assert served(site, "heart2").sites


def test_the_owners_tasks_keep_two_populations_apart(tmp_path: Path) -> None:
    _, sites = coordinator(tmp_path, "north")
    site = sites["north"]
    (site / "policy.toml").write_text("epsilon = 5.0\ndelta = 1e-4\n")
    for name, task in (("ours", "heart-disease"), ("others", "adult")):
        data = tmp_path / name
        data.mkdir()
        populations.add(site, name, site / f"{name}.jsonl", data, tasks=[task])
    here = served(site)
    other = parse(
        {"task": "adult", "sites": 1, "rounds": 1, "rate": 0.1, "rows": 100, "lr": 1.0}
        | {"clip": 1.0, "sigma": 5.0, "delta": 1e-5}
    )
    found = here.of({"plan": other.to_json()})
    assert found.ledger is not None and found.ledger.population == "others"


def test_each_ledger_is_followed_by_itself_and_recovered_from_its_own_record(
    hospital: tuple[Path, Path], tmp_path: Path
) -> None:
    home, folder = hospital
    key = Home(home).signing_key
    first, second = served(folder).sites
    assert (first.ledger_id, len(second.ledger_id)) == ("", 16)
    book = HeadBook(
        tmp_path / "heads",
        "r1",
        tmp_path / "copy",
        lambda payload: sign(key, payload),
        lambda site: second.ledger_id,
    )
    head = json.dumps(book.last("north"))
    assert second.follows(head) and second.is_addressed_by(head)
    assert not first.follows(head) and not first.is_addressed_by(head)
    assert second.ledger is not None
    event = Event("record", 5.0, 0.2, 1, 1)
    for number in (1, 2):
        second.ledger.spend(event, None, run="r1", round=number, plan="p")
        proof = second.proof(json.dumps(book.last("north")))
        assert proof is not None
        events = (replace(event, count=number),)
        answer = Answer("north", "trained", None, events=events, proof=proof.to_dict())
        book.accept("north", number, answer)
    name = followed("north", second.ledger_id)
    assert last_head(tmp_path / "heads", "north") is None
    assert (last_head(tmp_path / "heads", "north", second.ledger_id) or {})["n"] == 2
    record = heads.read_lines(tmp_path / "heads" / f"{name}.jsonl")
    assert heads.read_lines(tmp_path / "copy" / "north.jsonl") == record
    public = Enrolled(folder).verify
    assert known_events([record], lambda p, s: verify(public, p, s)) == (
        ("r1", replace(event, count=2)),
    )


def test_a_run_goes_on_with_the_ledger_that_it_began_with(
    hospital: tuple[Path, Path], tmp_path: Path
) -> None:
    test_each_ledger_is_followed_by_itself_and_recovered_from_its_own_record(hospital, tmp_path)
    key = Home(hospital[0]).signing_key
    again = HeadBook(
        tmp_path / "heads", "r1", tmp_path / "copy", lambda payload: sign(key, payload)
    )
    assert again.last("north")["n"] == 2
    other = HeadBook(tmp_path / "heads", "r2", tmp_path / "other", lambda payload: b"")
    assert other.last("north")["n"] == 0


def test_a_proposal_says_which_ledger_pays_whatever_head_it_came_with(
    hospital: tuple[Path, Path],
) -> None:
    here = served(hospital[1])
    second = here.sites[1]
    head = {"n": 7, "digest": "ab" * 32, "signature": "00" * 64}  # of the first ledger
    reply = answer_proposal(second, asked(SCHEMAS["lung"], head)).config_records["reply"]
    assert (reply["status"], reply["ledger"]) == ("approved", second.ledger_id)
    own = head | {"ledger": second.ledger_id}
    reply = answer_proposal(second, asked(SCHEMAS["lung"], own)).config_records["reply"]
    assert (reply["status"], reply["reason"]) == ("declined", "ledger-untrusted")


def test_files_that_moved_are_named_with_the_command_that_helps(
    hospital: tuple[Path, Path], tmp_path: Path
) -> None:
    site = hospital[1]
    shutil.move(tmp_path / "lung.csv", tmp_path / "new.csv")
    with pytest.raises(SiteError, match="tacit-client data move lung --data PATH"):
        served(site)
    populations.move(site, "lung", data=tmp_path / "new.csv")
    (tmp_path / "disk").mkdir()
    for path in site.glob("lung.jsonl*"):
        shutil.move(path, tmp_path / "disk" / path.name)
    with pytest.raises(ValueError, match="no such file"):
        served(site)
    populations.move(site, "lung", ledger=tmp_path / "disk" / "lung.jsonl")
    assert len(served(site).sites) == 2


def test_a_move_to_another_ledger_or_to_nothing_is_refused(
    hospital: tuple[Path, Path], tmp_path: Path
) -> None:
    site = hospital[1]
    before = (site / populations.FILE).read_bytes()
    for change in (
        {"data": tmp_path / "absent.csv"},
        {"ledger": tmp_path / "absent.jsonl"},
        {"ledger": site / "heart.jsonl"},
    ):
        with pytest.raises(ValueError):
            populations.move(site, "lung", **change)
    with pytest.raises(PopulationError, match="got other"):
        populations.move(site, "other", data=tmp_path)
    assert (site / populations.FILE).read_bytes() == before


def test_a_list_of_before_there_were_tasks_and_ids_is_read(hospital: tuple[Path, Path]) -> None:
    site = hospital[1]
    old = [
        {key: one[key] for key in ("name", "ledger", "data", "schema")}
        for one in json.loads((site / populations.FILE).read_text())
    ]
    (site / populations.FILE).write_text(json.dumps(old))
    assert [(one.tasks, one.id) for one in populations.known(site)] == [((), "")] * 2
    first, second = served(site).sites
    assert (first.ledger_id, len(second.ledger_id)) == ("", 16)
    assert served(site).sites[1].ledger_id == second.ledger_id


def test_replies_are_kept_up_to_a_number_and_a_size_the_latest_always(tmp_path: Path) -> None:
    kept = KeptReplies(tmp_path / "many", most=3)
    for number in range(5):
        kept.put(str(number), [b"x"])
        os.utime(kept._path(str(number)), ns=(number, number))
    assert [kept.get(str(n)) is not None for n in range(5)] == [False, False, True, True, True]
    small = KeptReplies(tmp_path / "small", most_bytes=10)
    for number in range(3):
        small.put(str(number), [b"x" * 6])
        os.utime(small._path(str(number)), ns=(number, number))
    assert [small.get(str(n)) is not None for n in range(3)] == [False, False, True]
    small.put("large", [b"x" * 100])
    assert small.get("large") is not None
