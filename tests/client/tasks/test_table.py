"""A table of one's own: read by a public schema, refused by line and column, never by value."""

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as parquet
import pytest

from client.tasks.registry import task
from client.tasks.rows import TaskError

SCHEMA = """
label = "ill"
subject = "patient"
site = "clinic"

[columns.age]
type = "number"
min = 18
max = 100
missing = "indicator"

[columns.visits]
type = "number"
min = 0
max = 10
missing = 0

[columns.city]
type = "category"
values = ["Rome", "Oslo"]

[columns.ill]
type = "category"
values = ["no", "yes"]
"""
HEADER = "patient,clinic,age,visits,city,ill,note\n"
REGRESSION = """
kind = "regression"
label = "price"
hidden = [8]
test = "later.csv"
[columns.price]
type = "number"
min = 0
max = 200
[columns.rooms]
type = "number"
min = 0
max = 10
"""


def _write(file: Path, rows: int) -> Path:
    draw = np.random.default_rng(0)
    ages = [str(age) if age < 90 else "" for age in draw.integers(18, 100, rows)]
    cities = draw.choice(["Rome", "Oslo", "Atlantis", ""], rows)
    lines = [
        f"p{i // 2},{'ab'[i % 2]},{ages[i]},{i % 12},{cities[i]},{'no' if i % 3 else 'yes'},"
        '"x, y"\n'
        for i in range(rows)
    ]
    file.write_text(HEADER + "".join(lines))
    return file


def test_forty_thousand_rows_with_holes_and_an_unknown_category_load_in_a_moment(
    tmp_path: Path,
) -> None:
    file = _write(tmp_path / "rows.csv", 40_000)
    table = task("table", SCHEMA)
    start = time.process_time()
    train = table.load(file, "train")
    assert time.process_time() - start < 3
    assert train.x.shape[1] == table.shape[0] == 6
    assert train.x.abs().max() <= 1
    test = table.load(file, "test")
    assert len(train) + len(test) == 40_000
    assert abs(len(test) - 8_000) < 400
    assert train.subject is not None
    assert test.subject is not None
    assert not set(train.subject.tolist()) & set(test.subject.tolist())
    assert set(train.site or ()) == {"a", "b"}


def test_parquet_and_csv_are_the_same_rows(tmp_path: Path) -> None:
    file = _write(tmp_path / "rows.csv", 300)
    parquet.write_table(pacsv.read_csv(file), tmp_path / "rows.parquet")
    table = task("table", SCHEMA)
    one, two = (table.load(tmp_path / f"rows.{kind}", "all") for kind in ("csv", "parquet"))
    assert one.x.equal(two.x)
    assert one.y.equal(two.y)
    assert one.subject is not None
    assert two.subject is not None
    assert one.subject.equal(two.subject)


def test_a_regression_has_a_test_file_and_predicts_in_its_own_unit(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("rooms,price\n5,100\n10,250\n")
    (tmp_path / "later.csv").write_text("rooms,price\n0,0\n")
    table = task("table", REGRESSION)
    assert table.load(tmp_path, "train").y.tolist() == [0, 1]
    assert table.load(tmp_path, "test").y.tolist() == [-1]
    assert len(table.load(tmp_path / "rows.csv", "all")) == 3
    rows = table.load(tmp_path, "test")
    assert table.decode(rows.y[:, None]).tolist() == [0]
    assert table.model(0)(rows.x).shape == (1, 1)
    assert table.metrics(rows.y[:, None], rows.y) == {"mse": 0.0, "loss": 0.0}


def test_columns_alone_are_encoded_for_prediction() -> None:
    encoded = task("table", SCHEMA).encode(
        pa.table({"age": [59], "visits": [5], "city": ["Oslo"], "else": [1]})
    )
    assert encoded.y is None
    assert encoded.x.tolist() == [[0, 0, 0, 0, 1, 0]]


GOOD = "p1,a,30,1,Rome,no,x\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (GOOD + "p2,a,hush,1,Rome,no,x\n", "line 3, column age: expected a number in 18..100"),
        (GOOD + "\n" + "p2,a,30,hush,Rome,no,x\n", "line 4, column visits: expected a number"),
        (GOOD + "p2,a,30,1,Rome,hush,x\n", "line 3, column ill: expected one of no, yes"),
        (GOOD + "p2,a,30,1,Rome,,x\n", "line 3, column ill"),
        (GOOD + ",a,30,1,Rome,no,x\n", "line 3, column patient: expected a value"),
        (
            'p1,a,30,1,Rome,no,"two\nlines"\n' + "p2,a,hush,1,Rome,no,x\n",
            "line 4, column age: expected a number",
        ),
        (GOOD + 2 * "p2,a,hush,1,Rome,no,x\n", "line 3 and 1 more, column age"),
    ],
)
def test_a_row_that_does_not_fit_is_left_out_and_named_by_line(
    tmp_path: Path, text: str, told: str
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(HEADER + text)
    rows = task("table", SCHEMA).load(file, "all")
    assert len(rows) == 1
    assert told in str(rows.reading)
    assert "hush" not in str(rows.reading)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEADER + GOOD + "p2,a,30\n", "line 3: expected 7 values, got 3"),
        (HEADER + "p2,a,hush,1,Rome,no,x\n", "expected rows that fit, got none among 1 rows"),
        (HEADER, "expected rows, found none"),
        ("", "expected a header line"),
        (HEADER.replace("age", "old") + GOOD, "expected a column named 'age'"),
        (HEADER.replace("ill", "well") + GOOD, "expected a column named 'ill'"),
        (HEADER.replace("patient", "person") + GOOD, "expected a column named 'patient'"),
        (HEADER.replace("note", "age") + GOOD, "'age' twice"),
        (HEADER.replace(",", ";") + GOOD.replace(",", ";"), "got a header that fits ';'"),
    ],
)
def test_a_file_that_is_not_the_schemas_is_refused_and_no_value_shown(
    tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(text)
    with pytest.raises(TaskError) as refused:
        task("table", SCHEMA).load(file, "all")
    message = str(refused.value)
    assert said in message
    assert "hush" not in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "rows.parquet"])
def test_a_file_that_is_none_or_damaged_is_one_line(tmp_path: Path, name: str) -> None:
    for content in (None, b"PAR1\xff\xfe\x00", b"\x1f\x8b\x08\x00\xff"):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(TaskError) as refused:
            task("table", SCHEMA).load(tmp_path / name, "train")
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('label = "ill"', "", "label: expected the name of a column, got nothing"),
        ('label = "ill"', 'label = "city2"', "label: expected one of the columns"),
        ('label = "ill"', 'label = "age"', "columns.age.type: expected category"),
        ('label = "ill"', 'label = "ill"\nkind = "ranking"', "kind: expected classification"),
        ('label = "ill"', 'label = "ill"\ncolour = 1', "colour: expected one of"),
        ('label = "ill"', 'label = "ill"\nhidden = [0]', "hidden: expected"),
        ('label = "ill"', 'label = "ill"\ntest = 1.5', "test: expected a fraction"),
        ('label = "ill"', 'label = "ill"\ntest = "../x.csv"', "test: expected a fraction"),
        ('label = "ill"', 'label = "ill"\ndelimiter = ";;"', "delimiter: expected one"),
        ('subject = "patient"', 'subject = "age"', "subject: expected a column that is not"),
        ("max = 100", "max = 18", "columns.age.max: expected more than"),
        ("max = 100", "", "columns.age.max: expected a number"),
        ("max = 100", 'max = "x"', "columns.age.max: expected a number"),
        ("max = 100", "max = 100\nmean = 4", "columns.age.mean: expected one of"),
        ('"indicator"', '"drop"', "columns.age.missing: expected"),
        ('["Rome", "Oslo"]', "[]", "columns.city.values: expected"),
        ('["Rome", "Oslo"]', '["Rome", "Rome"]', "distinct"),
        ('type = "category"', 'type = "sound"', "type: expected"),
        ('type = "category"', 'type = "text"', "values: expected one of"),
        ("[columns.age]", "[columns", "must be TOML"),
    ],
)
def test_a_schema_that_cannot_be_is_named_by_key(old: str, new: str, said: str) -> None:
    assert old in SCHEMA
    with pytest.raises(TaskError) as refused:
        task("table", SCHEMA.replace(old, new, 1))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
