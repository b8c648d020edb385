"""What a simulation says and promises: its limit, its end, its costs, its worth."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privacy.accounting.epsilon import spent
from privacy.accounting.rounding import left_text, spent_text
from privacy.contract.plan import Plan, PlanError
from privacy.contract.plan_file import load_plan
from privacy.ledger.ledger import Ledger
from server.rounds.run_folder import FolderError, resumed_plan
from simulations.display import sentence, verdict
from simulations.run import Result, simulate

SITES = ("site-0", "site-1", "site-2")


def small(*sets: str) -> Plan:
    base = ("rounds=5", "sites=3", "epsilon=2", "rate=1.0", "delta=3e-4")
    return load_plan("digits", [*base, *sets])


def ledger(folder: Path, site: str) -> Ledger:
    return Ledger.open(folder / "ledgers" / f"{site}.jsonl")


def after(rounds: int) -> Any:
    """A stop that is asked for once so many rounds are complete."""
    asked = [0]

    def stop() -> bool:
        asked[0] += 1
        return asked[0] > rounds

    return stop


@pytest.mark.parametrize(
    "extra", [{"site-0": 1}, {"site-0": 2, "site-1": 1}, dict.fromkeys(SITES, 2)]
)
def test_no_site_passes_epsilon_however_often_a_round_was_cut_and_paid_again(
    tmp_path: Path, extra: dict[str, int]
) -> None:
    folder = tmp_path / "run"
    first = simulate(small(), folder, stop=after(2))
    assert (first.outcome.reason, first.summary["rounds"]) == ("stopped", 2)
    plan = resumed_plan(folder, None)
    run = json.loads((folder / "run.json").read_text())["id"]
    for site, rounds in extra.items():  # a kill between a spend and its round's end
        for _ in range(rounds):
            events = plan.events_of_round(site)
            ledger(folder, site).spend_all(events, None, run=run, round=3, plan=plan.digest)
    second = simulate(plan, folder, resume=True)
    cut = len(extra) == len(SITES)
    assert second.outcome.reason == ("budget" if cut else "done")
    assert second.summary["rounds"] == (3 if cut else 5)
    for site in SITES:
        total = spent(ledger(folder, site).events(), 3e-4)
        assert 1.9 < total <= 2.0
        assert second.summary["sites"][site]["epsilon"] == pytest.approx(total, abs=1e-9)


def test_a_run_that_is_stopped_and_resumed_pays_for_no_round_twice(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert simulate(small(), folder, stop=after(1)).summary["rounds"] == 1
    result = simulate(resumed_plan(folder, "digits"), folder, resume=True)
    assert (result.outcome.reason, result.summary["rounds"]) == ("done", 5)
    for site in SITES:
        assert len(ledger(folder, site).events()) == 5


def test_a_stored_plan_of_0_1_0_took_epsilon_for_an_aim_and_not_for_a_limit() -> None:
    plan = small()
    assert plan.limit_of("site-0") is not None
    assert replace(plan, format=1).limit_of("site-0") is None
    assert small("limit=1").limit_of("site-0") == small("limit=1").nominal_limit()
    limits = {name: small("limit=9", "site.a.epsilon=1").limit_of(name) for name in ("a", "b")}
    assert {name: one and one.epsilon for name, one in limits.items()} == {"a": 1, "b": 2}


def test_the_client_units_coordinator_never_passes_epsilon(tmp_path: Path) -> None:
    plan = small("unit=client", "rounds=3", "epsilon=8")
    simulate(plan, tmp_path / "run", stop=after(1))
    plan = resumed_plan(tmp_path / "run", None)
    run = json.loads((tmp_path / "run" / "run.json").read_text())["id"]
    book = ledger(tmp_path / "run", "coordinator")
    book.spend_all(plan.nominal_events(), None, run=run, round=2, plan=plan.digest)
    result = simulate(plan, tmp_path / "run", resume=True)
    assert (result.outcome.reason, result.summary["rounds"]) == ("budget", 2)
    assert result.summary["epsilon"] <= 8


def test_a_failed_run_says_what_the_ledgers_paid(tmp_path: Path) -> None:
    plan = small("simulation.slow=0.9999", "rounds=1")  # every reply is paid for and comes too late
    result = simulate(plan, tmp_path / "run")
    assert (result.outcome.reason, result.summary["rounds"]) == ("failed", 0)
    paid = {site: spent(ledger(tmp_path / "run", site).events(), 3e-4) for site in SITES}
    assert result.summary["epsilon"] == max(paid.values()) > 1.9
    assert {s: v["epsilon"] for s, v in result.summary["sites"].items()} == paid


def test_a_run_that_diverges_is_called_so_and_keeps_the_rest_of_its_budget(tmp_path: Path) -> None:
    result = simulate(small("lr=100000", "average=false", "rounds=9"), tmp_path / "run")
    assert result.outcome.reason == "failed"
    assert "the model diverged in round" in result.summary["detail"]
    assert result.summary["rounds"] < 9
    assert result.summary["epsilon"] < 1.9
    assert "the model diverged" in sentence(result.summary)
    for file in (tmp_path / "run").rglob("*.json*"):
        assert "NaN" not in file.read_text()
        assert "Infinity" not in file.read_text()


def test_a_plan_of_which_no_finite_epsilon_is_known_is_refused_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("privacy.contract.plan.spent", lambda *_: float("inf"))
    with pytest.raises(PlanError, match="no finite epsilon"):
        simulate(small(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


SCHEMA = """
label = "sick"
{roles}
[columns.age]
type = "number"
min = 0
max = 100
[columns.sick]
type = "category"
values = ["no", "yes"]
"""


def table(folder: Path, *sets: str, sick: float, person: bool) -> Result:
    """A simulation of 600 made-up people-years, so many of them sick; four years a person."""
    draw = np.random.default_rng(0)
    lines = ["person,age,sick"]
    for i in range(600):
        answer = "yes" if draw.random() < sick else "no"
        lines.append(f"{i // 4},{draw.integers(20, 90)},{answer}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    roles = 'subject = "person"' if person else ""
    (folder / "schema.toml").write_text(SCHEMA.format(roles=roles))
    text = load_plan("digits", ["rounds=2", "sites=2", "epsilon=2", "delta=1e-4"]).to_toml()
    text = text.replace('task = "digits"', 'task = "table"\nschema = "schema.toml"')
    (folder / "plan.toml").write_text(text)
    plan = load_plan(folder / "plan.toml", list(sets))
    return simulate(plan, folder / "run", data=folder / "table.csv")


def test_where_a_schema_knows_persons_their_epsilon_is_said(tmp_path: Path) -> None:
    result = table(tmp_path, sick=0.5, person=True)
    most = result.summary["records_per_person"]
    assert 1 < most <= 4
    worst = result.summary["epsilon_person"]
    assert worst > 1.5 * result.summary["epsilon"]
    line = json.loads((tmp_path / "run" / "history.jsonl").read_text().splitlines()[-1])
    for site, entry in line["sites"].items():
        events = ledger(tmp_path / "run", site).events()
        again = spent(events, 1e-4, records=entry["records_per_person"])
        assert entry["epsilon_person"] == again
    assert f"for any one person (who has up to {most} records)" in sentence(result.summary)
    (tmp_path / "more").mkdir()
    without = table(tmp_path / "more", sick=0.5, person=False)
    assert "person" not in sentence(without.summary)


def test_with_skewed_labels_the_sentence_says_what_no_data_would_reach(tmp_path: Path) -> None:
    result = table(tmp_path, sick=0.05, person=False)
    text = sentence(result.summary)
    assert "balanced accuracy 0.5" in text
    assert "always 'no' would have 0.9" in text
    assert "This model is useless: always 'no' has accuracy" in text
    assert verdict(simulate(small("rounds=3"), tmp_path / "good").summary) is None


def test_a_table_without_a_plan_of_its_folder_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="run to resume"):
        resumed_plan(tmp_path / "never", None)


@pytest.mark.parametrize(
    ("value", "up", "down"),
    [
        (0.0, "0.0000", "0.0000"),
        (3.0, "3.0000", "3.0000"),
        (2.99991, "3.0000", "2.9999"),
        (1e-9, "0.0001", "0.0000"),
        (float("inf"), "infinite", "infinite"),
        (None, "-", "-"),
    ],
)
def test_what_is_spent_is_rounded_up_and_what_is_left_down(
    value: float | None, up: str, down: str
) -> None:
    assert spent_text(value) == up
    assert left_text(value) == down
