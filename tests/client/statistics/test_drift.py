"""Recent rows against a reference: what moved is named, what only varies by chance is not."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from client.__main__ import app
from client.inference.evaluation import Bin, Evaluation
from client.statistics.drift import calibration, compared, drift, worst
from client.statistics.drift_page import to_html
from client.tasks.registry import task
from client.tasks.rows import TaskError
from client.tasks.task import Task
from privacy.contract.keys.tables import StatisticsPlan
from privacy.contract.plan_file import parse
from privacy.statistics.columns import CategoryColumn, NumberColumn
from privacy.statistics.design import design
from privacy.statistics.release import exact_sums
from privacy.statistics.results import Release, Results

SCHEMA = """
label = "sick"
[columns.age]
type = "number"
min = 0
max = 100
[columns.ward]
type = "category"
values = ["a", "b"]
[columns.sick]
type = "category"
values = ["no", "yes"]
"""
PLAN = f"""
task = "statistics"
purpose = "A test."
sites = 1
rows = 2000
sigma = 3.0
delta = 1e-5
schema = '''{SCHEMA}'''
[statistics]
of = "table"
bins = 20
[statistics.columns]
age = ["histogram"]
ward = ["frequencies"]
"""
COLUMNS = (NumberColumn("age", 0, 100), CategoryColumn("ward", ("a", "b")))
ASKED = StatisticsPlan(
    of="table", columns={"age": ("histogram",), "ward": ("frequencies",)}, bins=20
)


def of() -> Task:
    return task("table", SCHEMA)


def values(n: int, seed: int, *, mean: float = 50, b: float = 0.3) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return np.stack([draw.normal(mean, 12, n).clip(0, 100), draw.random(n) < b], 1)


def written(path: Path, rows: np.ndarray, *, labels: bool = False) -> Path:
    head = "age,ward" + ",sick" * labels
    lines = [f"{a:.2f},{'ab'[int(w)]}" + ",no" * labels for a, w in rows]
    path.write_text("\n".join([head, *lines]) + "\n")
    return path


def test_rows_that_are_alike_have_not_drifted_and_a_moved_column_is_named(tmp_path: Path) -> None:
    old = written(tmp_path / "old.csv", values(3000, 1), labels=True)
    same = drift(written(tmp_path / "same.csv", values(1000, 2)), old, of())
    assert not same.drifted
    assert same.rows == 1000
    assert {one.column for one in same.columns} == {"age", "ward"}  # without the label
    moved = drift(written(tmp_path / "moved.csv", values(1000, 3, mean=58)), old, of())
    assert [one.column for one in moved.columns if one.drifted] == ["age"]
    assert worst(moved.columns)[0].column == "age"
    assert 0.15 < next(one.distance or 0 for one in moved.columns if one.drifted) < 0.5


def test_more_missing_values_are_a_drift_too(tmp_path: Path) -> None:
    old = written(tmp_path / "old.csv", values(3000, 1))
    rows = written(tmp_path / "new.csv", values(1000, 2)).read_text().splitlines()
    gone = [rows[0], *(f",{r.split(',')[1]}" if i % 10 == 0 else r for i, r in enumerate(rows[1:]))]
    (tmp_path / "new.csv").write_text("\n".join(gone) + "\n")
    found = drift(tmp_path / "new.csv", old, of())
    assert [one.column for one in found.columns if one.drifted] == ["age"]


@pytest.mark.statistical
@pytest.mark.parametrize("sigma", [0.0, 20.0])
def test_chance_and_the_references_noise_are_no_drift(sigma: float) -> None:
    asked = design(ASKED, COLUMNS)
    noise = sigma * asked.bound
    alarms = 0
    for seed in range(300):
        draw = np.random.default_rng(10_000 + seed)
        before = exact_sums(asked, values(2000, 2 * seed)) + draw.normal(0, noise, asked.size)
        found = compared(asked, (before, noise), exact_sums(asked, values(500, 2 * seed + 1)))
        alarms += any(one.drifted for one in found)
    assert alarms <= 15  # 3 are expected; 16 or more once in ten million


def results(seed: int = 0) -> Results:
    plan = parse(tomllib.loads(PLAN))
    asked = design(plan.statistics, COLUMNS)  # type: ignore[arg-type]
    draw = np.random.default_rng(seed)
    sums = exact_sums(asked, values(2000, seed)) / asked.bound + draw.normal(0, 3.0, asked.size)
    return Results("aa" * 8, plan, COLUMNS, {"site-0": Release(sums, 3.0)})


def test_a_run_of_statistics_is_a_reference_and_brings_its_task(tmp_path: Path) -> None:
    (tmp_path / "statistics.json").write_text(results().to_json())
    for place in (tmp_path, tmp_path / "statistics.json"):
        same = drift(written(tmp_path / "same.csv", values(1000, 2)), place, None)
        assert not same.drifted
    moved = drift(written(tmp_path / "moved.csv", values(1000, 3, b=0.6)), tmp_path, None)
    assert [one.column for one in moved.columns if one.drifted] == ["ward"]


def test_what_cannot_be_compared_is_one_line(tmp_path: Path) -> None:
    rows = written(tmp_path / "rows.csv", values(60, 1))
    (tmp_path / "statistics.json").write_text(results().to_json())
    other = task("table", SCHEMA.replace("max = 100", "max = 90"))
    with pytest.raises(TaskError, match="other columns or ranges"):
        drift(rows, tmp_path, other)
    with pytest.raises(TaskError, match="--model must be given"):
        drift(rows, rows, None)
    few = written(tmp_path / "few.csv", values(49, 1))
    with pytest.raises(TaskError, match="at least 50 rows to compare, got 49"):
        drift(few, tmp_path, None)


def evaluated(*bins: Bin) -> Evaluation:
    return Evaluation(sum(b.rows for b in bins), {"ece": 0.1}, (), bins)


def test_a_model_that_is_surer_than_right_is_not_calibrated() -> None:
    sure = calibration(evaluated(Bin(0.8, 0.9, 500, 0.85, 0.75), Bin(0.5, 0.6, 500, 0.55, 0.45)))
    assert sure is not None
    assert (sure.rows, sure.confidence, sure.accuracy) == (1000, 0.7, 0.6)
    assert sure.drifted
    few = calibration(evaluated(Bin(0.8, 0.9, 20, 0.85, 0.75)))
    assert few is not None
    assert not few.drifted  # two rows of twenty are chance
    assert calibration(evaluated()) is None


def test_the_page_loads_nothing_and_escapes_names(tmp_path: Path) -> None:
    old = written(tmp_path / "<old>.csv", values(500, 1))
    page = to_html(drift(written(tmp_path / "new.csv", values(500, 2, mean=70)), old, of()))
    assert "These rows have drifted" in page
    assert "&lt;old&gt;" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_the_command_exits_4_where_rows_drifted(tmp_path: Path) -> None:
    (tmp_path / "statistics.json").write_text(results().to_json())
    same = written(tmp_path / "same.csv", values(1000, 2))
    moved = written(tmp_path / "moved.csv", values(1000, 2, mean=70))
    run = CliRunner().invoke
    keys = ["--against", str(tmp_path), "--json", "--out", str(tmp_path / "page.html")]
    first = run(app, ["drift", str(same), *keys])
    assert first.exit_code == 0, first.output
    second = run(app, ["drift", str(moved), *keys])
    assert second.exit_code == 4
    assert json.loads(second.stdout)["drifted"] is True
    assert (tmp_path / "page.html").stat().st_mode & 0o777 == 0o600
