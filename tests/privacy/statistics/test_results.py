"""statistics.json: read again it is the same, and anything else is one clear line."""

import json
from pathlib import Path

import numpy as np
import pytest

from privacy.contract.plan_file import parse
from privacy.statistics.columns import CategoryColumn, NumberColumn, StatisticsError
from privacy.statistics.constants import narrowed
from privacy.statistics.page import to_html
from privacy.statistics.release import noisy_sums
from privacy.statistics.results import Release, Results, digest_of, read_results

COLUMNS = (NumberColumn("age", 0, 100), CategoryColumn("ward", ("<b>a</b>", "b")))
SCHEMA = """
label = "ward"
[columns.age]
type = "number"
min = 0
max = 100
[columns.ward]
type = "category"
values = ["a", "b"]
"""


def results(sites: int = 2) -> Results:
    plan = parse(
        {
            "task": "statistics",
            "rows": 3000,
            "sites": sites,
            "epsilon": 1.0,
            "delta": 1e-5,
            "statistics": {
                "of": "table",
                "columns": {
                    "age": ["quantiles", "histogram", "moments"],
                    "ward": ["frequencies"],
                },
                "bins": 20,
            },
        }
    )
    made = Results("run", plan, COLUMNS, {})
    source, sigma = np.random.default_rng(0), plan.nominal_sigma() or 0.0
    for site in range(sites):
        values = np.stack([source.normal(45, 10, 3000), source.integers(0, 2, 3000)], 1)
        sums = noisy_sums(made.design, values, sigma).astype(np.float64)
        made.sites[f"site-{site}"] = Release(sums, sigma)  # type: ignore[index]
    return made


def test_what_was_written_is_read(tmp_path: Path) -> None:
    made = results()
    (tmp_path / "statistics.json").write_text(made.to_json())
    read = read_results(tmp_path)
    assert read.to_json() == made.to_json()
    content = read.content()
    assert [one["column"] for one in content["differences"]] == ["age", "ward"]
    assert set(content["sites"]) == {"site-0", "site-1"}


def test_the_page_shows_every_column_and_escapes_what_comes_from_outside() -> None:
    page = to_html(results().content())
    assert "age" in page and "site-1" in page and "<svg" in page
    assert "<b>a</b>" not in page and "&lt;b&gt;a&lt;/b&gt;" in page
    assert "<script" not in page and "http" not in page.replace("http://www.w3.org", "")


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v | {"format": 2},
        lambda v: v | {"columns": [{"name": "age"}]},
        lambda v: v | {"columns": []},
        lambda v: v | {"releases": {"a": {"sigma": 1.0, "sums": [1.0]}}},
        lambda v: v | {"releases": {"a": {"sigma": 0.0, "sums": []}}},
        lambda v: v | {"plan": "{}"},
        lambda v: [],
        lambda v: {},
    ],
)
def test_anything_else_is_one_line(tmp_path: Path, change) -> None:
    path = tmp_path / "statistics.json"
    path.write_text(json.dumps(change(json.loads(results(1).to_json()))))
    with pytest.raises(StatisticsError) as caught:
        read_results(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_later_schema_takes_its_ranges_from_the_noisy_quantiles(tmp_path: Path) -> None:
    path, schema = tmp_path / "statistics.json", tmp_path / "schema.toml"
    path.write_text(results().to_json())
    schema.write_text(SCHEMA)
    text, changes = narrowed(schema, read_results(path), 0.02, digest_of(path))
    low, high = changes["age"]
    assert 15 < low < 35 and 55 < high < 75
    assert digest_of(path) in text and f"min = {low}" in text
    with pytest.raises(StatisticsError, match="--tail"):
        narrowed(schema, read_results(path), 0.5, "")
    schema.write_text(SCHEMA.replace("age", "height"))
    with pytest.raises(StatisticsError, match="whose quantiles were asked"):
        narrowed(schema, read_results(path), 0.02, "")


def test_the_command_narrows_a_schema_and_says_where_its_constants_come_from(
    tmp_path: Path,
) -> None:
    from typer.testing import CliRunner

    from privacy.__main__ import app

    found, schema, out = tmp_path / "statistics.json", tmp_path / "old.toml", tmp_path / "new.toml"
    found.write_text(results().to_json())
    schema.write_text(SCHEMA)
    words = ["constants", str(found), "--schema", str(schema), "--out", str(out)]
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 0, told.output
    first, origin = told.output.splitlines()
    assert first.startswith("age: ")
    low, high = map(float, first.removeprefix("age: ").split(" to "))
    assert 0 < low < 40 and 50 < high < 100
    assert origin == f'constants_from = "sha256:{digest_of(found)}"'
    assert out.read_text() == narrowed(schema, read_results(found), 0.01, digest_of(found))[0]
