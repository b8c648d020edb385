"""tacit-client's own side: the people in the data, the policy, the plans asked, what is left."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from client.agent import populations, received_plans
from client.agent.populations import PopulationError
from client.agent.process import again
from client.commands import ledgers, plans
from privacy.accounting.epsilon import spent
from privacy.contract.plan import Plan, PlanError
from privacy.contract.plan_file import parse
from privacy.contract.policy import PolicyError, load_policy
from privacy.identity.keys import new_signing_key, sign, signing_public
from privacy.ledger.heads import GENESIS, accept, payload
from privacy.ledger.ledger import Ledger, LedgerError, log_path
from privacy.ledger.recovery import RecoveryError

app = typer.Typer()
ledgers.register(app)
plans.register(app)


def plan(**changes: Any) -> Plan:
    table = {
        "task": "digits",
        "sites": 2,
        "rounds": 8,
        "rate": 0.2,
        "rows": 300,
        "lr": 1.0,
        "clip": 1.0,
        "sigma": 3.0,
        "delta": 1e-5,
        "purpose": "a trial",
    }
    return parse(table | changes)


class Desk:
    """A site's folder and its commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.policy = folder / "policy.toml"
        self.ledger = folder / "ledgers" / "people.jsonl"

    def __call__(self, *arguments: str, where: str = "--dir") -> str:
        done = CliRunner().invoke(app, [*arguments, where, str(self.folder)])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))

    def add(self, name: str = "people", **more: str) -> Ledger:
        options = [part for key, value in more.items() for part in (f"--{key}", value)]
        self("data", "add", name, "--ledger", str(self.ledger), *options)
        return Ledger.open(self.ledger)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "site")


def spend(ledger: Ledger, rounds: int = 1) -> None:
    for number in range(rounds):
        (event,) = plan().events_of_round("site")
        ledger.spend(event, None, run="run", round=number, plan="p")


def test_a_population_is_named_once_and_keeps_its_ledger(desk: Desk, tmp_path: Path) -> None:
    spend(desk.add())
    assert "found, with 1 entries" in desk("data", "add", "people", "--ledger", str(desk.ledger))
    again = Desk(tmp_path / "installed again")
    again.ledger = desk.ledger
    assert again.add().head.n == 1
    with pytest.raises(PopulationError, match="is there already"):
        desk("data", "add", "people", "--ledger", str(tmp_path / "fresh.jsonl"))
    with pytest.raises(PopulationError, match="is the ledger of 'people'"):
        desk("data", "add", "others", "--ledger", str(desk.ledger))
    assert not (tmp_path / "fresh.jsonl").exists()
    (one,) = desk.json("data", "list")["populations"]
    place = {"name": "people", "ledger": str(desk.ledger), "data": None, "schema": None}
    assert one == place | {"tasks": []}


def test_a_lost_or_broken_ledger_is_not_started_again_by_adding_it(desk: Desk) -> None:
    desk.add()
    desk.ledger.unlink()
    with pytest.raises(LedgerError):
        desk("data", "add", "people", "--ledger", str(desk.ledger))
    desk.ledger.write_bytes(b"broken\n")
    with pytest.raises(LedgerError):
        desk("data", "add", "people", "--ledger", str(desk.ledger))


def test_changed_contents_keep_the_population_and_are_logged(desk: Desk, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("a,b\n1,2\n")
    desk.add(data=str(rows))
    chosen = populations.choose(desk.folder, rows)
    for content in ("a,b\n1,2\n", "a,b\n1,3\n", "a,b\n1,3\n"):
        rows.write_text(content)
        opened = populations.open_ledger(chosen, populations.fingerprint(rows))
    assert [note.what for note in opened.notes()] == ["created", "anchored", "contents", "contents"]
    assert b"1,3" not in log_path(desk.ledger).read_bytes()


def test_a_folders_fingerprint_knows_names_and_contents(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a").write_text("1")
    seen = {populations.fingerprint(folder)}
    (folder / "deep" / "a").write_text("2")
    seen.add(populations.fingerprint(folder))
    (folder / "deep" / "a").rename(folder / "a")
    seen.add(populations.fingerprint(folder))
    assert len(seen) == 3


def test_the_population_meant_is_the_only_one_the_datas_or_the_named(
    desk: Desk, tmp_path: Path
) -> None:
    with pytest.raises(PopulationError, match="data add"):
        populations.choose(desk.folder)
    desk.add()
    assert populations.choose(desk.folder, tmp_path).name == "people"
    desk("data", "add", "more", "--ledger", str(tmp_path / "m.jsonl"), "--data", str(tmp_path))
    assert populations.choose(desk.folder, tmp_path).name == "more"
    assert populations.choose(desk.folder, name="people").name == "people"
    for wrong in ({"data": tmp_path / "x"}, {"name": "nobody"}, {}):
        with pytest.raises(PopulationError, match="people, more"):
            populations.choose(desk.folder, **wrong)  # type: ignore[arg-type]


def test_a_new_policy_allows_little_and_can_be_read(desk: Desk) -> None:
    desk.folder.mkdir()
    desk("policy", "new")
    rules = load_policy(desk.policy)
    assert (rules.epsilon, rules.approve, rules.trust_coordinator) == (1.0, "list", False)
    with pytest.raises(PolicyError, match="--force"):
        desk("policy", "new")
    desk.add()
    desk(
        *("policy", "new", "--force", "--epsilon", "4", "--delta", "1e-6", "--min-sigma", "1"),
        *("--task", "digits", "--output", "loss", "--approve", "within-limits"),
    )
    rules = load_policy(desk.policy)
    assert (rules.epsilon, rules.delta, rules.tasks) == (4.0, 1e-6, ("digits",))
    assert rules.outputs == ("update", "loss")
    last = Ledger.open(desk.ledger).notes()[-1]
    assert (last.what, last.details["epsilon"]) == ("policy", "4.0")
    with pytest.raises(PolicyError, match="epsilon"):
        desk("policy", "new", "--force", "--epsilon", "nan")
    assert load_policy(desk.policy) == rules


def test_a_running_client_reads_what_its_owner_says_meanwhile(desk: Desk) -> None:
    ledger, heard = desk.add(), list[dict[str, Any]]()

    def log(event: str, **facts: Any) -> None:
        heard.append(facts)

    desk("policy", "new", "--epsilon", "2")
    rules = load_policy(desk.policy)
    desk("approve", "b" * 64)
    rules = again(desk.policy, rules, ledger, log)  # type: ignore[arg-type]
    assert rules.plans == ("b" * 64,)
    assert heard == []
    desk.policy.write_text(desk.policy.read_text().replace("epsilon = 2.0", "epsilon = 3.0"))
    rules = again(desk.policy, rules, ledger, log)  # type: ignore[arg-type]
    assert rules.epsilon == 3.0
    limits = [note.details["epsilon"] for note in ledger.notes() if note.what == "policy"]
    assert limits == ["2.0", "3.0"]
    desk.policy.write_text("epsilon = ")
    rules = again(desk.policy, rules, ledger, log)  # type: ignore[arg-type]
    assert (rules.approve, rules.plans, rules.epsilon) == ("list", (), 3.0)


def test_plans_are_asked_approved_and_denied_by_hash(desk: Desk) -> None:
    desk.add()
    desk("policy", "new", "--epsilon", "3")
    assert desk.json("plans") == {"plans": []}
    first, second = plan(), plan(rounds=9, lr=0.5)
    received_plans.remember(desk.folder, first)
    received_plans.remember(desk.folder, first)
    received_plans.remember(desk.folder, second)
    assert {one["plan"] for one in desk.json("plans")["plans"]} == {first.digest, second.digest}
    assert {one["state"] for one in desk.json("plans")["plans"]} == {"asked"}
    told = desk.json("approve", first.digest[:12])
    assert told["state"] == "approved"
    assert told["since_plan"] is None
    whole = [replace(e, count=8) for e in first.events_of_round("site")]
    assert told["asks"] == spent(whole, 1e-5)
    assert told["left"] == 3.0
    assert load_policy(desk.policy).plans == (first.digest,)
    told = desk.json("approve", second.digest)
    assert told["since_plan"] == first.digest
    assert told["changes"] == {"rounds": [8, 9], "lr": [1.0, 0.5]}
    assert desk.json("deny", first.digest)["state"] == "denied"
    rules = load_policy(desk.policy)
    assert (rules.plans, rules.denied) == ((second.digest,), (first.digest,))
    assert "rounds: 8 -> 9" not in desk("approve", first.digest)
    assert "rounds: 8 -> 9" not in desk("plans")


def test_approving_changes_nothing_else_in_the_owners_file(desk: Desk) -> None:
    desk.folder.mkdir()
    text = '# mine\nepsilon = 2.0 # no more\ndelta = 1e-5\nplans = [\n  "%s", # old\n]\n' % (
        "a" * 64
    )
    desk.policy.write_text(text)
    desk("approve", "b" * 64)
    desk("deny", "c" * 64)
    rules = load_policy(desk.policy)
    assert (rules.plans, rules.denied) == (("a" * 64, "b" * 64), ("c" * 64,))
    for kept in ("# mine", "epsilon = 2.0 # no more", "delta = 1e-5"):
        assert kept in desk.policy.read_text()


@pytest.mark.parametrize("text", ["", "abc", "zzzzzzzz", "A" * 64, "0" * 63])
def test_a_hash_that_means_no_plan_is_refused(desk: Desk, text: str) -> None:
    desk.folder.mkdir()
    desk("policy", "new")
    received_plans.remember(desk.folder, plan())
    with pytest.raises(PlanError):
        desk("approve", text)


def test_a_kept_plan_that_was_changed_is_refused(desk: Desk) -> None:
    desk.folder.mkdir()
    desk("policy", "new")
    path = received_plans.remember(desk.folder, plan())
    path.write_text(plan(rounds=9).to_json())
    with pytest.raises(PlanError, match="another plan"):
        desk("plans")


def test_the_budget_says_what_is_spent_left_and_how_many_rounds_fit(desk: Desk) -> None:
    ledger = desk.add()
    desk("policy", "new", "--epsilon", "1.5")
    spend(ledger, 3)
    received_plans.remember(desk.folder, plan())
    (one,) = desk.json("budget")["populations"]
    assert one["spent"] == ledger.spent(1e-5)
    assert one["spent"] + one["left"] == pytest.approx(1.5)
    (fits,) = one["plans"]
    assert fits["code"] == "plan-not-approved"
    (event,) = plan().events_of_round("site")
    assert spent([replace(event, count=3 + fits["rounds_left"])], 1e-5) <= 1.5
    assert spent([replace(event, count=4 + fits["rounds_left"])], 1e-5) > 1.5
    shown = desk("budget")
    assert f"{fits['rounds_left']} more rounds of digits" in shown
    assert desk.json("budget", "--plan", "digits")["populations"][0]["plans"][0]["rounds_left"] >= 0


def test_a_budget_that_is_spent_without_end_is_still_json_and_still_text(desk: Desk) -> None:
    ledger = desk.add()
    desk("policy", "new", "--epsilon", "1.5")
    ledger.close_fully_spent("lost")
    (one,) = desk.json("budget")["populations"]
    assert (one["spent"], one["left"]) == ("infinite", 0.0)
    assert "infinite" in desk("budget")


def test_an_older_copy_is_gone_on_with_only_when_acknowledged(desk: Desk) -> None:
    ledger = desk.add()
    spend(ledger, 2)
    older = desk.ledger.read_bytes()
    spend(ledger, 2)
    ledger.note("contents", sha256="0" * 64)
    desk.ledger.write_bytes(older)
    desk("policy", "new", "--force")
    assert "acknowledge" in desk("budget")
    with pytest.raises(LedgerError, match="older copy"):
        spend(Ledger.open(desk.ledger))
    assert "goes on from 2 entries" in desk("ledger", "acknowledge", "--reason", "restored")
    spend(Ledger.open(desk.ledger))
    notes = [n for n in Ledger.open(desk.ledger).notes() if n.what == "acknowledged"]
    assert notes[0].details["reason"] == "restored"


def test_a_lost_ledger_is_recovered_from_a_record_or_fully_spent(
    desk: Desk, tmp_path: Path
) -> None:
    ledger, key = desk.add(), new_signing_key()
    spend(ledger, 3)
    epsilon = ledger.spent(1e-5)
    with pytest.raises(LedgerError, match="nothing to recover"):
        desk("ledger", "recover")
    proof = ledger.proof(GENESIS)
    head = accept(GENESIS, proof)
    line = {
        "v": 1,
        "site": "site",
        "run": "run",
        "round": 3,
        "acknowledged": False,
        "base": proof.base.to_dict(),
        "leaves": list(proof.leaves),
        "events": [event.to_dict() for event in ledger.merged()],
        **head.to_dict(),
        "signature": sign(key, payload("site", head)).hex(),
    }
    record = tmp_path / "site.jsonl"
    record.write_text(json.dumps(line) + "\n")
    desk.ledger.unlink()
    log_path(desk.ledger).unlink()
    asking = ("ledger", "recover", "--record", str(record))
    with pytest.raises(RecoveryError, match="--key"):
        desk(*asking)
    with pytest.raises(RecoveryError, match="signature"):
        desk(*asking, "--key", signing_public(new_signing_key()))
    assert not desk.ledger.exists()
    assert "from the coordinator's record" in desk(*asking, "--key", signing_public(key))
    assert Ledger.open(desk.ledger).spent(1e-5) == epsilon
    desk.ledger.unlink()
    assert "fully spent" in desk("ledger", "recover")
    assert Ledger.open(desk.ledger).spent(1e-5) == float("inf")


def test_a_schema_is_registered_with_its_people_and_a_changed_copy_is_not_taken(
    desk: Desk, tmp_path: Path
) -> None:
    text = 'label = "ill"\n[columns.ill]\ntype = "category"\nvalues = ["no", "yes"]\n'
    text += '[columns.age]\ntype = "number"\nmin = 0\nmax = 120\n'
    (tmp_path / "s.toml").write_text(text)
    ledger = desk.add(schema=str(tmp_path / "s.toml"))
    assert populations.schema_of(desk.folder) == text
    desk.add()
    assert populations.schema_of(desk.folder) == text
    (note,) = [note for note in ledger.notes() if note.what == "schema"]
    assert note.details["sha256"] == populations.known(desk.folder)[0].schema
    (desk.folder / "schemas" / "people.toml").write_text(text.replace("120", "60"))
    with pytest.raises(PopulationError, match="is not the schema that was registered"):
        populations.schema_of(desk.folder)
    (tmp_path / "s.toml").write_text("label = 3\n")
    with pytest.raises(ValueError, match="columns"):
        desk.add(schema=str(tmp_path / "s.toml"))


def test_an_approval_says_where_no_rows_are_for_the_plan(desk: Desk, tmp_path: Path) -> None:
    schema = (
        'label = "ill"\n[columns.age]\ntype = "number"\nmin = 0\nmax = 9\n'
        '[columns.ill]\ntype = "category"\nvalues = ["no", "yes"]\n'
    )
    asked = plan(task="table", schema=schema)
    desk.add()
    desk("policy", "new", "--epsilon", "9", "--delta", "1e-4", "--task", "table")
    received_plans.remember(desk.folder, asked)
    words = " ".join(desk("approve", asked.digest).split())
    assert "no rows of this site are for it" in words
    assert "data add NAME --ledger PATH --data PATH --schema FILE" in words
    (tmp_path / "s.toml").write_text(schema)
    (tmp_path / "d.csv").write_text("age,ill\n" + "3,no\n" * 30)
    data = ("--data", str(tmp_path / "d.csv"), "--schema", str(tmp_path / "s.toml"))
    desk("data", "add", "others", "--ledger", str(tmp_path / "o.jsonl"), *data)
    assert desk.json("approve", asked.digest)["rows"] == ["others"]
    assert "no rows of this site" not in desk("approve", asked.digest)
