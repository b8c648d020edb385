"""`tacit-simulate new DATA`: the names and kinds of columns, and not one value of any row."""

import gzip
import tomllib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from typer.testing import CliRunner

from client.tasks.rows import TaskError
from client.tasks.schema import schema
from privacy.contract.plan_file import load_plan
from simulations.__main__ import new_app
from simulations.new_schema import new_schema

ROWS = 'who,age,smoker,seen,the "city"\nzz17,63.25,true,2021-03-04,Quito\nzz18,,false,,Lima\n'
HEADER = ROWS.replace('the "city"', '"the ""city"""')
VALUES = ("zz17", "zz18", "63.25", "2021-03-04", "Quito", "Lima")


def write(folder: Path, kind: str) -> Path:
    if kind == "parquet":
        path = folder / "people.parquet"
        columns = {
            "who": ["zz17"],
            "age": [63.25],
            "smoker": [True],
            "seen": pa.array([18690], pa.int32()).cast(pa.date32()),
            'the "city"': ["Quito"],
        }
        parquet.write_table(pa.table(columns), path)
    elif kind == "gz":
        path = folder / "people.csv.gz"
        path.write_bytes(gzip.compress(HEADER.encode()))
    elif kind == "semicolons":
        path = folder / "people.csv"
        path.write_text(HEADER.replace(",", ";"))
    else:
        path = folder / "people.csv"
        path.write_text(HEADER)
    return path


@pytest.mark.parametrize("kind", ["csv", "gz", "semicolons", "parquet"])
def test_the_schema_has_names_and_kinds_and_no_value(kind: str, tmp_path: Path) -> None:
    written, plan = new_schema(write(tmp_path, kind), tmp_path)
    text = written.read_text() + plan.read_text()
    assert not [value for value in VALUES if value in text]
    columns = tomllib.loads(written.read_text())["columns"]
    assert {name: one["type"] for name, one in columns.items()} == {
        "who": "category",
        "age": "number",
        "smoker": "category",
        "seen": "date",
        'the "city"': "category",
    }
    assert columns["smoker"]["values"] == [False, True]
    assert ('delimiter = ";"' in written.read_text()) == (kind == "semicolons")


def test_what_is_not_filled_in_is_refused_and_what_is_runs(tmp_path: Path) -> None:
    written, plan = new_schema(write(tmp_path, "csv"), tmp_path)
    text = written.read_text()
    with pytest.raises(TaskError, match=r"columns|label|values|min"):
        schema(text)
    text = text.replace('label = ""', 'label = "smoker"', 1)
    text = text.replace("# min =\n# max =", "min = 0\nmax = 120", 1)
    text = text.replace("# min = 2000-01-31\n# max =", "min = 2000-01-01\nmax = 2030-01-01")
    text = text.replace("values = []", 'values = ["a"]')
    written.write_text(text)
    plan.write_text(plan.read_text().replace('purpose = ""', 'purpose = "Who smokes."'))
    assert schema(load_plan(str(plan)).schema or "").columns.width == 6


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("63,2,Oslo\n40,5,Bergen\n", "got one with values"),
        ("age,age\n1,2\n", "distinct column names, got 'age' twice"),
        ("age,\x1b[2J\n1,2\n", "column 2: expected a printable name"),
        ("age,\n1,2\n", "got one with values"),
        ("", "found none"),
        ("\n\n", "found none"),
    ],
)
def test_a_file_without_a_header_of_names_is_refused_in_one_line(
    content: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "people.csv"
    path.write_text(content)
    with pytest.raises(TaskError) as refused:
        new_schema(path, tmp_path)
    assert said in str(refused.value)
    assert "\x1b" not in str(refused.value)
    assert "Oslo" not in str(refused.value)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_command_writes_both_and_overwrites_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "csv")
    done = CliRunner().invoke(new_app, ["people.csv"])
    assert done.exit_code == 0, done.output
    assert "tacit-simulate people.toml --data people.csv" in done.output
    before = (tmp_path / "people.toml").read_text()
    again = CliRunner().invoke(new_app, ["people.csv"])
    assert isinstance(again.exception, TaskError)
    assert "exists already" in str(again.exception)
    assert (tmp_path / "people.toml").read_text() == before
