"""A cohort: so many of the sites a round, drawn from what everybody may know."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.accounting.epsilon import spent
from privacy.accounting.events import Event
from privacy.contract.plan import Plan, PlanError
from privacy.contract.plan_file import load_plan
from privacy.ledger.ledger import Ledger
from privacy.report.report import build
from privacy.report.sources import read
from server.commands.running import requested
from server.rounds import checkpoint
from server.rounds.aggregation import cohort
from simulations.run import simulate
from tests.support.run_folders import with_heads

NAMES = [f"site-{i}" for i in range(200)]


def quick(*overrides: str) -> Plan:
    base = ("rounds=4", "sites=6", "cohort=2", "sigma=2.0", "rate=0.2", "delta=3e-4")
    return load_plan("digits", [*base, *overrides])


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_without_a_cohort_every_site_is_asked_in_the_order_of_their_names() -> None:
    assert cohort(["b", "a"], load_plan("digits"), 1) == ["a", "b"]
    assert cohort(["b", "a"], load_plan("digits", ["cohort=3"]), 1) == ["a", "b"]


@given(st.integers(1, 200), st.integers(1, 10**6), st.integers(0, 2**63 - 1))
def test_a_cohort_is_so_many_sites_whatever_their_order(size: int, number: int, seed: int) -> None:
    plan = load_plan("digits", ["sites=200", f"cohort={size}", f"seed={seed}"])
    drawn = cohort(NAMES, plan, number)
    assert len(set(drawn)) == size
    assert drawn == sorted(drawn)
    assert drawn == cohort(NAMES[::-1], plan, number)


def test_who_leaves_changes_the_place_of_nobody_else() -> None:
    plan = load_plan("digits", ["sites=200", "cohort=20"])
    drawn = cohort(NAMES, plan, 7)
    without = cohort([n for n in NAMES if n != drawn[0]], plan, 7)
    assert set(drawn[1:]) < set(without)
    stayed = [n for n in NAMES if n in drawn or n > "site-15"]
    assert cohort(stayed, plan, 7) == drawn


def test_every_site_and_every_pair_is_drawn_as_often_as_chance_has_it() -> None:
    plan = load_plan("digits", ["sites=200", "cohort=20"])
    rounds = 4000
    drawn = np.zeros((rounds, len(NAMES)))
    for i in range(rounds):
        drawn[i, [NAMES.index(n) for n in cohort(NAMES, plan, i + 1)]] = 1
    each = drawn.sum(0)
    assert abs(each - rounds / 10).max() < 6 * np.sqrt(rounds * 0.1 * 0.9)
    pairs = (drawn.T @ drawn)[np.triu_indices(len(NAMES), 1)]
    share = 20 * 19 / (200 * 199)
    assert abs(pairs - rounds * share).max() < 7 * np.sqrt(rounds * share)
    after = (drawn[1:] * drawn[:-1]).sum() / (rounds - 1)  # who was drawn a round before as well
    assert after == pytest.approx(2.0, abs=0.15)


def test_a_round_asks_its_cohort_and_only_who_was_asked_pays(tmp_path: Path) -> None:
    plan = quick()
    simulate(plan, tmp_path / "run")
    lines = history(tmp_path / "run")
    asked = Counter(name for line in lines for name in line["sites"])
    for line in lines:
        drawn = cohort([f"site-{i}" for i in range(6)], plan, line["round"])
        assert list(line["sites"]) == drawn
    for path in (tmp_path / "run" / "ledgers").glob("*.jsonl"):
        assert len(Ledger.open(path).entries()) == asked.pop(path.stem)
    assert not asked
    assert lines[-1]["epsilon"] == max(
        said["epsilon"] for line in lines for said in line["sites"].values()
    )


def test_a_resumed_round_asks_the_same_sites(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def kill(line: Any) -> None:
        if line["round"] == 2:
            raise Killed

    with pytest.raises(Killed):
        simulate(quick(), tmp_path / "run", on_round=kill)
    before = history(tmp_path / "run")[1]["sites"]
    checkpoint.path_of(tmp_path / "run" / "checkpoints", 2).unlink()
    simulate(quick(), tmp_path / "run", resume=True)
    assert history(tmp_path / "run")[1]["sites"].keys() == before.keys()


def test_who_has_spent_its_budget_is_replaced_until_nobody_is_left(tmp_path: Path) -> None:
    one = spent([Event("record", 2.0, 0.2, 1)], 3e-4) + 1e-6
    plan = quick("rounds=9", "min_sites=2", f"limit={one}")
    result = simulate(plan, tmp_path / "run")
    assert result.outcome.reason == "budget"
    lines = history(tmp_path / "run")
    assert len(lines) == 3  # six sites, two a round, one round each
    for line in lines:
        said = [s["status"] for s in line["sites"].values()]
        assert said.count("trained") == 2
    for i in range(6):
        assert len(Ledger.open(tmp_path / "run" / "ledgers" / f"site-{i}.jsonl").entries()) == 1
    assert any(s["status"] == "declined" for line in lines for s in line["sites"].values())


def test_the_client_unit_divides_by_its_cohort_and_pays_for_every_round(tmp_path: Path) -> None:
    simulate(quick("unit=client", "sigma=3.0", "clip=0.5"), tmp_path / "run")
    entries = Ledger.open(tmp_path / "run" / "ledgers" / "coordinator.jsonl").entries()
    assert [e.event for e in entries] == [Event("client", 3.0, 1.0, 1)] * 4
    paid = spent([Event("client", 3.0, 1.0, 1, count=4)], 3e-4)
    assert history(tmp_path / "run")[-1]["epsilon"] == pytest.approx(paid, abs=1e-9)


def test_sigma_is_calibrated_as_if_every_site_took_part_in_every_round() -> None:
    whole = load_plan("digits", ["epsilon=2"])
    assert load_plan("digits", ["epsilon=2", "cohort=2"]).sigma_of("a") == whole.sigma_of("a")


def test_a_round_cannot_need_more_sites_than_it_asks() -> None:
    with pytest.raises(PlanError, match="min_sites must be at most cohort = 2"):
        quick("min_sites=3")
    with pytest.raises(PlanError, match="--min-sites must be at most cohort = 2"):
        requested("digits", ["cohort=2"], 3)


@pytest.mark.slow
@pytest.mark.parametrize("keep", [lambda run: run, with_heads])
def test_the_report_agrees_with_a_run_of_cohorts(
    tmp_path: Path, keep: Callable[[Path], Path]
) -> None:
    simulate(quick("rounds=5", "seed=1"), tmp_path / "run")
    lines = history(tmp_path / "run")
    most = [max(said["epsilon"] for said in line["sites"].values()) for line in lines]
    assert any(line["epsilon"] > own for line, own in zip(lines, most, strict=True))
    report = build([read(keep(tmp_path / "run"))], {"at": "2026-01-02T03:04:05+00:00"})
    assert report.sound, report.problems
