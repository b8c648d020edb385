"""A federation beside its sites alone and beside no privacy, in one table."""

import csv
import io
import json
from pathlib import Path

import pytest

from privacy.contract.plan import PlanError
from privacy.contract.plan_file import load_plan
from simulations.comparison import ALONE, FEDERATION, NO_PRIVACY, Comparison, compare, write


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


def test_a_plan_without_noise_at_the_sites_is_refused() -> None:
    with pytest.raises(PlanError, match="for a comparison"):
        made("unit=none")
    with pytest.raises(PlanError, match="different values"):
        compare(load_plan("digits"), [1.0, 1.0])
