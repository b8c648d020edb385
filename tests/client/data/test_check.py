"""A look at one's own file: every fault is counted, and no value is told unless asked for."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from client.agent import populations
from client.commands import ledgers
from client.data.check import check
from client.data.site_rows import SiteRows, Source
from client.site import SiteError
from client.tasks.registry import task
from privacy.contract.policy import Policy

SCHEMA = """
label = "ill"
[columns.age]
type = "number"
min = 18
max = 100
missing = "indicator"
[columns.city]
type = "category"
values = ["Oslo", "Bergen"]
[columns.ill]
type = "category"
values = ["no", "yes"]
"""
ROWS = [
    *["63,Oslo,yes", "-999,Bergen,no", "-999,OSLO,no", ",Oslo,no", "hush,Oslo,no", "30,Oslo,?"],
    *["200,Oslo,no", "20,Oslo,yes", "20,Bergen,no", "20,Oslo,no"],
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "d.csv"
    path.write_text("\n".join(["age,city,ill", *ROWS]) + "\n")
    return path


def test_shares_sentinels_and_classes_are_counted(file: Path) -> None:
    found = check(task("table", SCHEMA), file)
    facts = found.to_dict()
    assert (facts["rows"], facts["lines"], facts["left_out"]) == (10, 10, 2)
    age, city, ill = facts["columns"]
    assert (age["missing"], age["outside"], age["unknown"]) == (0.1, 0.3, 0.1)
    assert age["sentinels"] == ["-999"]
    assert (city["unknown"], ill["missing"]) == (0.1, 0.1)
    assert facts["classes"] == {"no": 6, "yes": 2}
    assert facts["where"][0] == "line 6, column age: expected a number in 18..100"
    assert found.first == []
    assert found.worst() == pytest.approx(0.2)


def test_the_command_tells_values_only_on_request(file: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    ledgers.register(app)
    (tmp_path / "s.toml").write_text(SCHEMA)
    runner = CliRunner()
    arguments = ["data", "check", str(file), "--schema", str(tmp_path / "s.toml")]
    plain = runner.invoke(app, arguments)
    assert plain.exit_code == 1
    assert "10 rows on 10 lines; 2 would be left out" in plain.stdout
    assert "hush" not in plain.stdout
    assert "63" not in plain.stdout
    shown = json.loads(runner.invoke(app, [*arguments, "--show", "--json"]).stdout)
    assert [row["city"] for row in shown["first"]] == ["Oslo", "Bergen", "OSLO"]
    populations.add(tmp_path, "people", tmp_path / "l.jsonl", file, SCHEMA)
    again = runner.invoke(app, ["data", "check", "--dir", str(tmp_path), "--json"])
    assert json.loads(again.stdout)["rows"] == 10


def test_a_policy_refuses_a_file_that_is_hardly_understood(file: Path) -> None:
    told: list[str] = []
    for limit, refused in ((0.3, False), (0.1, True)):
        policy = Policy(epsilon=1.0, delta=1e-5, max_unfit=limit)
        rows = SiteRows(Source(file), SCHEMA, lambda: policy, lambda event, **_: told.append(event))  # noqa: B023
        if refused:
            with pytest.raises(SiteError, match=r"0\.200 does not fit, more than max_unfit = 0\.1"):
                rows.check()
        else:
            rows.check()
    assert told == ["rows_read", "rows_read"]
