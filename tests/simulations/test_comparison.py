"""A federation beside its sites alone and beside no privacy, in one table."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from privacy.contract.plan import PlanError
from privacy.contract.plan_file import load_plan
from server.rounds.run_folder import FolderError
from simulations.__main__ import app
from simulations.comparison import (
    ALONE,
    FEDERATION,
    NO_PRIVACY,
    Comparison,
    compare,
    contenders,
    present,
    write,
)


def made(*overrides: str, **more: object) -> Comparison:
    plan = load_plan("digits", ["rounds=3", "sites=2", "lr=2", "rows=700", *overrides])
    return compare(plan, [8.0], **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return made(seeds=2)


def test_every_site_alone_stands_beside_the_federation_at_each_epsilon(
    comparison: Comparison,
) -> None:
    assert len(comparison.records) == 2 * (1 + (1 + 2))
    table = {(row["who"], row["epsilon"]): row for row in comparison.table()}
    assert {row["plan"] for row in comparison.table()} == {"digits"}
    assert set(table) == {
        (NO_PRIVACY, None),
        *((who, epsilon) for who in (FEDERATION, ALONE) for epsilon in (8.0,)),
    }
    assert all(row["runs"] == 2 and row["standard_deviation"] is not None for row in table.values())
    assert table[FEDERATION, 8.0]["mean"] > table[ALONE, 8.0]["mean"]
    assert table[ALONE, 8.0]["least_site"] <= table[ALONE, 8.0]["least"]
    sites = {one["site"] for one in comparison.records if one["who"] == ALONE}
    assert sites == {"site-0", "site-1"}


def test_it_is_kept_as_csv_json_and_svg(comparison: Comparison, tmp_path: Path) -> None:
    write(comparison, tmp_path / "out")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "comparison.csv").read_text())))
    assert len(rows) == len(comparison.records) and rows[0]["who"] == NO_PRIVACY
    facts = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert facts["metric"] == "accuracy" and len(facts["table"]) == 3
    picture = (tmp_path / "out" / "comparison.svg").read_text()
    assert "each site alone" in picture and "without privacy" in picture
    spread = [row for row in facts["table"] if row["epsilon"] and row["standard_deviation"]]
    assert picture.count("±") == len(spread)  # a bar for each mean of two seeds that differ


def test_a_plan_without_noise_at_the_sites_is_refused() -> None:
    with pytest.raises(PlanError, match="for a comparison"):
        made("unit=none")
    with pytest.raises(PlanError, match="different values"):
        compare(load_plan("digits"), [1.0, 1.0])


def test_plans_of_other_rows_sites_or_guarantees_are_not_held_side_by_side() -> None:
    plan = load_plan("digits", ["rows=300"])
    for change, key in (("sites=4", "sites"), ("delta=1e-4", "delta"), ("split=labels:2", "split")):
        with pytest.raises(PlanError, match=f"^{key} must be .* in every plan .* in two$"):
            compare({"one": plan, "two": load_plan("digits", ["rows=300", change])}, [1.0])
    with pytest.raises(PlanError, match="--beside"):
        contenders("digits", plan, [""])
    with pytest.raises(PlanError, match="--beside"):
        contenders("digits", plan, ["lr=1", "lr=1"])
    beside = contenders("digits", plan, ["lr=1 average=false", "digits rows=200"])
    assert [one.lr for one in beside.values()] == [2.5, 1.0, 2.5]
    assert [one.rows for one in beside.values()] == [300, 300, 200]


def test_plans_side_by_side_stand_in_one_table_one_picture_and_one_json(
    tmp_path: Path,
) -> None:
    words = [
        "digits",
        "--set",
        "rounds=2",
        "--sites",
        "2",
        "--compare",
        "8",
        "--beside",
        "rounds=1",
    ]
    words += ["--runs", str(tmp_path), "--name", "plans"]
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert [(row["plan"], row["who"]) for row in facts["table"]] == [
        (plan, who) for plan in ("digits", "rounds=1") for who in (NO_PRIVACY, FEDERATION, ALONE)
    ]
    assert "rounds=1: federation" in (tmp_path / "plans" / "comparison.svg").read_text()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "plans" / "comparison.csv").read_text())))
    assert {(row["plan"], row["rounds"]) for row in rows} == {("digits", "2"), ("rounds=1", "1")}
    alone = CliRunner().invoke(app, ["digits", "--beside", "lr=1", "--runs", str(tmp_path)])
    assert alone.exit_code != 0 and isinstance(alone.exception, FolderError)


def test_the_table_of_several_plans_fits_in_80_columns(tmp_path: Path) -> None:
    long = "lr=0.25 average=true server_momentum=0.5 server_schedule=cosine warmup=2"
    plans = contenders("digits", load_plan("digits", ["rounds=3", "sites=2"]), [long])
    out = io.StringIO()
    console = Console(file=out, width=80)
    present(console, plans, [8.0], 1, tmp_path / "plans", None, as_json=False)
    table = out.getvalue().split("comparison.csv")[0].splitlines()
    assert max(map(len, table)) <= 80
    assert sum("federation without privacy" in text for text in table) == 2
    assert "".join(table).count("warmup=2") == 1


@pytest.mark.parametrize("epsilons", [[3.0, "abc"], [1.0, 1e9], [2.0, -1.0]])
def test_every_epsilon_is_checked_before_the_first_run(epsilons: list[Any]) -> None:
    with pytest.raises(PlanError, match="epsilon must be a number"):
        compare(load_plan("digits"), epsilons, on_run=lambda *_: pytest.fail("something ran"))


def test_an_empty_epsilon_is_refused_by_the_options_own_name() -> None:
    result = CliRunner().invoke(app, ["digits", "--compare", "1,"])
    assert "--compare must be EPSILON,EPSILON, got '1,'" in str(result.exception)
