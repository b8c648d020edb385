"""A federation whose unit is the person: split, drawn, paid and reported by person, end to end."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from privacy.contract.plan import Plan, PlanError
from privacy.contract.plan_file import load_plan
from privacy.ledger.ledger import Ledger
from simulations.dataset import prepare
from simulations.display import sentence
from simulations.own_task import OwnData
from simulations.partition import SplitError
from simulations.run import Result, simulate

SCHEMA = """
label = "answer"
subject = "person"
site = "city"
[columns.x]
type = "number"
min = 0
max = 1
[columns.answer]
type = "category"
values = ["no", "yes"]
"""
CITIES = ("lisbon", "oslo", "turin")


def people(folder: Path, *, of_two_cities: int = 0) -> Path:
    """180 people with 1 to 9 rows each; the answer is whether the person's own level is high."""
    draw = np.random.default_rng(4)
    lines = ["person,city,x,answer"]
    for person in range(180):
        level = draw.random()
        for row in range(1 + person % 9):
            city = CITIES[(person + (row % 2 if person < of_two_cities else 0)) % 3]
            x = np.clip(level + draw.normal(0, 0.05), 0, 1)
            lines.append(f"p{person},{city},{x:.4f},{'yes' if level > 0.5 else 'no'}")
    (folder / "people.csv").write_text("\n".join(lines) + "\n")
    return folder / "people.csv"


def by_person(folder: Path, *sets: str) -> Plan:
    keys = {
        "task": '"table"', "schema": '"schema.toml"', "unit": '"subject"', "subjects": '"actual"',
        "rounds": 4, "sites": 3, "rate": 0.5, "steps": 2, "lr": 2.0, "clip": 1.0, "sigma": 2.0,
        "delta": 1e-3,
    }  # fmt: skip
    (folder / "schema.toml").write_text(SCHEMA)
    (folder / "plan.toml").write_text("".join(f"{k} = {v}\n" for k, v in keys.items()))
    return load_plan(folder / "plan.toml", list(sets))


def run(folder: Path, *sets: str) -> tuple[Plan, Result]:
    plan = by_person(folder, *sets)
    return plan, simulate(plan, folder / "run", data=people(folder))


@pytest.mark.parametrize("split", ["iid", "natural"])
def test_a_run_pays_for_people_and_says_so(tmp_path: Path, split: str) -> None:
    _, result = run(tmp_path, f"split={split}")
    assert result.summary["rounds"] == 4
    names = sorted(path.name for path in (tmp_path / "run" / "ledgers").glob("*.jsonl"))
    wanted = CITIES if split == "natural" else ("site-0", "site-1", "site-2")
    assert names == [f"{name}.jsonl" for name in wanted]
    for name in names:
        ledger = Ledger.open(tmp_path / "run" / "ledgers" / name)
        (event,) = ledger.merged()
        assert (event.unit, event.rate, event.steps, event.count) == ("subject", 0.5, 2, 4)
        assert event.records == 1
        assert ledger.spent(1e-3) == result.summary["epsilon"] < 4
    assert result.summary["unit"] == "subject"
    assert "records_per_person" not in result.summary
    assert "for any one person with all records" in sentence(result.summary)
    line = json.loads((tmp_path / "run" / "history.jsonl").read_text().splitlines()[-1])
    assert all("epsilon_person" not in entry for entry in line["sites"].values())


def test_paid_metrics_are_of_people_and_paid_as_theirs(tmp_path: Path) -> None:
    metrics = 'metrics=["loss", "accuracy", "rows", "classes"]'
    plan, _ = run(tmp_path, metrics, "metrics_sigma=0.5", "split=natural")
    ledger = Ledger.open(tmp_path / "run" / "ledgers" / "oslo.jsonl")
    paid = sorted((event.unit, event.sigma, event.rate) for event in ledger.merged())
    assert paid == [("subject", 0.5, 1.0), ("subject", 2.0, 0.5)]
    line = json.loads((tmp_path / "run" / "history.jsonl").read_text().splitlines()[-1])
    shown = line["metrics"]
    prepared, _ = prepare(plan, people(tmp_path))
    train = sum(prepared.units_of(city) for city in CITIES)
    noise = 7 * 0.5 * 2 * 3**0.5  # seven deviations of three sites' sums, of four kinds each
    assert shown["site_rows"] == pytest.approx(train, abs=noise)  # people, not some 720 rows
    assert shown["site_class no"] + shown["site_class yes"] == pytest.approx(train, abs=2 * noise)
    assert shown["site_loss"] == pytest.approx(0.3, abs=0.2 + plan.metrics_clip * noise / 120)


def test_the_plan_counts_people_and_never_rows(tmp_path: Path) -> None:
    plan, world = prepare(by_person(tmp_path, "split=natural"), people(tmp_path))
    for city in CITIES:
        rows = world.rows(city)
        assert rows.subject is not None
        assert plan.units_of(city) == len(rows.subject.unique()) < len(rows)
        assert plan.denominator(city) == 0.5 * plan.units_of(city)
    assert plan.rows is None


def test_no_person_is_at_two_sites_nor_in_training_and_test(tmp_path: Path) -> None:
    _, world = prepare(by_person(tmp_path, "split=iid"), people(tmp_path))
    seen: set[int] = set()
    for site in world.parts:
        subject = world.rows(site).subject
        assert subject is not None
        here = set(subject.tolist())
        assert not here & seen
        seen |= here
    assert world.test.subject is not None
    held_out = set(world.test.subject.tolist())
    assert held_out and not held_out & seen
    assert len(held_out | seen) == 180


def test_a_person_at_two_natural_sites_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SplitError, match="every person at one site"):
        prepare(by_person(tmp_path, "split=natural"), people(tmp_path, of_two_cities=9))


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["split=labels:1"], "iid or natural"),
        (["simulation.engine=vector"], "engine"),
        (["subjects=2000"], "1/subjects"),
        (["rows=5"], "rows must be left out"),
    ],
)
def test_what_does_not_fit_people_is_one_line(tmp_path: Path, sets: list[str], said: str) -> None:
    with pytest.raises((PlanError, SplitError), match=said) as refused:
        prepare(by_person(tmp_path, *sets), people(tmp_path))
    assert "\n" not in str(refused.value)


def test_rows_of_nobody_cannot_be_protected_by_person(tmp_path: Path) -> None:
    plan = replace(load_plan("digits"), unit="subject", rows=None, subjects=100)
    with pytest.raises(PlanError, match="whose rows do not say whose they are"):
        prepare(plan, None)


@pytest.mark.slow
def test_the_model_learns_what_people_have_in_common(tmp_path: Path) -> None:
    _, result = run(tmp_path, "sigma=1", "rounds=20", "clip=0.5", "lr=4")
    metrics: dict[str, Any] = result.summary["metrics"]
    assert metrics["accuracy"] > 0.75


@pytest.mark.parametrize("people", [True, False])
def test_a_researchers_own_arrays_can_be_protected_by_person(tmp_path: Path, people: bool) -> None:
    draw = np.random.default_rng(1)
    x = draw.normal(size=(300, 4)).astype(np.float32)
    y, who = (x[:, 0] > 0).astype(np.int64), np.arange(300) // 3
    plan = replace(
        load_plan("digits", ["rounds=2", "sites=2", "sigma=2", "delta=1e-3"]),
        unit="subject",
        rows=None,
        subjects="actual",
    )
    data = OwnData(x, y, subject=who if people else None)
    if people:
        result = simulate(plan, tmp_path / "run", task=lambda: nn.Linear(4, 2), data=data)
        assert (result.outcome.reason, result.summary["unit"]) == ("done", "subject")
    else:
        with pytest.raises(PlanError, match="do not say whose they are"):
            simulate(plan, tmp_path / "run", task=lambda: nn.Linear(4, 2), data=data)
