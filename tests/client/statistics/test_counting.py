"""A site's rows as they are counted: every row, each value before it is encoded."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from client.__main__ import app
from client.audit.check import Check
from client.statistics.conformance import STATISTICS_CHECKS
from client.statistics.counting import count
from client.tasks.registry import task_of
from client.tasks.rows import TaskError
from privacy.accounting.events import Event
from privacy.contract.plan import Plan, PlanError
from privacy.contract.plan_file import parse
from privacy.statistics.release import exact_sums

SCHEMA = """
label = "sick"
subject = "who"
test = 0.5
[columns.age]
type = "number"
min = 0
max = 100
missing = 50
[columns.ward]
type = "category"
values = ["a", "b"]
[columns.sick]
type = "category"
values = ["no", "yes"]
"""
CSV = """who,age,ward,sick
p1,10,a,yes
p1,20,a,no
p2,130,b,no
p3,,c,no
p4,word,,perhaps
"""


def plan(**more: object) -> Plan:
    table = {
        "task": "statistics",
        "schema": SCHEMA,
        "rows": 10,
        "sites": 1,
        "sigma": 1e-3,
        "delta": 1e-5,
        "statistics": {
            "of": "table",
            "columns": {
                "age": ["outside", "mean"],
                "ward": ["frequencies"],
                "sick": ["frequencies"],
            },
        },
    }
    return parse({**table, **more})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text(CSV)
    return path


def test_every_row_is_counted_by_what_its_values_are(data: Path) -> None:
    counted = task_of(plan())
    rows = counted.load(data, "train")
    assert len(rows) == 5  # none is held out, and none left out for a value that does not fit
    of = counted.statistics
    assert of is not None
    assert [one.name for one in of.columns] == ["age", "sick", "ward"]
    assert rows.x[:, 0].tolist()[:3] == [10, 20, 130]
    assert math.isnan(rows.x[3, 0]) and math.isinf(rows.x[4, 0])
    sums = exact_sums(of, rows.x.numpy())
    by = {(b.kind, of.columns[b.columns[0]].name): sums[b.at].tolist() for b in of.blocks[1:]}
    assert sums[0] == 5
    assert by["cells", "age"] == [2, 0, 1, 1, 1]  # inside, below, above, unreadable, missing
    assert by["cells", "ward"] == [2, 1, 1, 1]  # a, b, other, missing
    assert by["cells", "sick"] == [3, 1, 1, 0]
    # 10, 20 and 130, which is held to 100, mapped from 0..100 to -1..1
    assert by["moments", "age"] == pytest.approx([3, -0.8 - 0.6 + 1], abs=1e-5)


def test_people_are_capped_before_they_are_counted(data: Path) -> None:
    person = plan(unit="subject", subjects=10, rows=None, rows_per_subject=1)
    person = replace(person, rows=None) if person.rows is not None else person
    counted = task_of(person)
    rows = counted.load(data, "train")
    event = Event("subject", 1e-3, 1.0, 1)
    trained = count(rows, counted, person, event, lambda: counted.model(0))
    of = counted.statistics
    assert of is not None and trained.steps == 1
    sums = trained.update["sums"].astype(np.float64) * of.bound
    assert sums[0] == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"unit": "none", "sigma": None, "delta": None, "clip": None}, "unit must be"),
        ({"unit": "client"}, "unit must be"),
        ({"rounds": 2}, "rounds must be 1"),
        ({"rate": 0.5}, "rate must be 1"),
        ({"clip": 2.0}, "clip must be 1"),
        ({"steps": 3}, "steps must be 1"),
        ({"wire": "int8"}, "float32"),
        ({"metrics": ["rows"], "metrics_sigma": 1.0}, "metrics must be left out"),
        ({"average": True}, "average must be left out"),
        ({"aggregation": "fedprox"}, 'aggregation must be "fedavg"'),
        ({"simulation": {"engine": "vector"}}, "simulation.engine"),
        ({"task": "table"}, "must be given together"),
    ],
)
def test_what_would_be_more_than_one_release_is_refused(more, text) -> None:
    with pytest.raises(PlanError, match=text):
        plan(**more)


def test_tasks_without_public_columns_are_refused() -> None:
    with pytest.raises(TaskError, match="must have a column height"):
        task_of(plan(statistics={"of": "table", "columns": {"height": ["mean"]}}))
    with pytest.raises(TaskError, match="fashion-mnist"):
        task_of(plan(schema=None, statistics={"of": "fashion-mnist", "columns": {}}))


def test_an_owner_looks_at_the_exact_figures(data: Path, tmp_path: Path) -> None:
    (tmp_path / "schema.toml").write_text(SCHEMA)
    chosen = tmp_path / "plan.toml"
    chosen.write_text(plan().to_toml())
    runner = CliRunner()
    told = runner.invoke(app, ["look", str(data), "--plan", str(chosen), "--json"])
    figures = json.loads(told.stdout)["sites"]["rows.csv"]
    assert figures["rows"]["value"] == 5
    page = tmp_path / "look.html"
    told = runner.invoke(
        app,
        ["look", str(data), "--schema", str(tmp_path / "schema.toml"), "--out", str(page)],
    )
    assert told.exit_code == 0, told.output
    assert "must stay at the site" in page.read_text() and page.stat().st_mode & 0o077 == 0


def estimates(value: object) -> Iterator[dict[str, float]]:
    if isinstance(value, dict) and {*value} == {"value", "low", "high"}:
        yield value
    elif isinstance(value, dict | list):
        cells = value.items() if isinstance(value, dict) else enumerate(value)
        for name, one in cells:
            if name != "quantiles":  # these are as wide as a cell
                yield from estimates(one)


def test_what_an_owner_sees_is_exact_to_the_last_digit(data: Path, tmp_path: Path) -> None:
    (tmp_path / "schema.toml").write_text(SCHEMA)
    shown = ["--schema", str(tmp_path / "schema.toml"), "--json"]
    found = json.loads(CliRunner().invoke(app, ["look", str(data), *shown]).stdout)
    assert all(one["low"] == one["value"] == one["high"] for one in estimates(found))
    columns = found["sites"]["rows.csv"]["columns"]
    shares = [f["share"]["value"] for c in columns for f in c.get("frequencies", [])]
    assert len(shares) > 3 and all(5 * share == round(5 * share) for share in shares)


def test_rows_that_are_built_in_are_not_shown_as_those_of_a_file(data: Path) -> None:
    told = CliRunner().invoke(app, ["look", str(data), "--plan", "digits"])
    assert isinstance(told.exception, TaskError)
    assert "has its rows built in" in str(told.exception)


def checks() -> dict[str, Check]:
    return {check.__name__: check() for check in STATISTICS_CHECKS}


def test_a_sound_installation_passes_the_checks() -> None:
    assert all(one.passed for one in checks().values()), checks()


PLANTS = {
    "a bound that forgets the moments": (
        "privacy.statistics.design.Block.squared_norm",
        property(lambda block: 0 if block.kind == "moments" else 1),
        "a_record_is_bounded_in_statistics",
    ),
    "no noise": (
        "privacy.mechanism.noise.privatise",
        lambda sums, std, over=1.0: np.divide(sums, over, out=sums),
        "statistics_are_noised",
    ),
    "half the noise": (
        "privacy.statistics.release.standard_deviation",
        lambda of, sigma: 0.5 * sigma * of.bound,
        "statistics_are_noised",
    ),
    "people that are sums and no means": (
        "privacy.statistics.release._people",
        None,
        "a_record_is_bounded_in_statistics",
    ),
}


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import privacy.statistics.design as design
    import privacy.statistics.release as release

    place, value, check = PLANTS[name]
    if value is None:
        people = release._people

        def planted(*words):  # type: ignore[no-untyped-def]
            values, person, counts = people(*words)
            return values, person, np.ones_like(counts)

        value = planted
    if "squared_norm" in place:
        # The guard in `vectors` would keep the bound: the planted bug takes it away as well.
        monkeypatch.setattr(design.Design, "vectors", _unguarded(design.Design.vectors))
    monkeypatch.setattr(place, value)
    found = next(one for one in STATISTICS_CHECKS if one.__name__ == check)()
    assert not found.passed, found


def _unguarded(vectors):  # type: ignore[no-untyped-def]
    class Unbounded:
        def __init__(self, of: object) -> None:
            self._of = of

        def __getattr__(self, name: str) -> object:
            return 1e9 if name == "bound" else getattr(self._of, name)

    return lambda of, values: vectors(Unbounded(of), values)


def test_a_bound_that_is_too_small_is_kept_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a wrong bound what a record adds is nothing, and not too much."""
    import privacy.statistics.design as design

    monkeypatch.setattr(
        design.Block, "squared_norm", property(lambda b: 0 if b.kind == "moments" else 1)
    )
    assert STATISTICS_CHECKS[1]().passed
