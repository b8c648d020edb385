"""Files as people keep them: read right, or refused in one line that names no value."""

import bz2
import gzip
import re
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as parquet
import pytest

from client.data.input_files import chunks
from client.tasks.registry import task
from client.tasks.rows import TaskError

SCHEMA = """
label = "ill"
[columns.age]
type = "number"
min = 18
max = 100
[columns.city]
type = "category"
values = ["Oslo", "Bergen", "Tromsø"]
[columns.ill]
type = "category"
values = ["no", "yes"]
"""
HEADER = "age,city,ill,note\n"
ROWS = "63,Oslo,yes,a\n40,Bergen,no,b\n25,Tromsø,no,c\n"
X = [[10 / 41 - 1 / 8.2 + 0.0, 0, 0, 0, 0]]
TABLE = task("table", SCHEMA)


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def ages(path: Path) -> list[int]:
    x = TABLE.load(path, "all").x
    return [round(value) for value in ((x[:, 0] + 1) * 41 + 18).tolist()]


def cities(path: Path) -> list[int]:
    return TABLE.load(path, "all").x[:, 1:].argmax(1).tolist()


def refusal(path: Path) -> str:
    """The one line of training, which prediction's line has to share."""
    with pytest.raises(TaskError) as refused:
        TABLE.load(path, "all")
    message = str(refused.value)
    assert "\n" not in message
    assert message.startswith(str(path.parent))
    assert not re.search("hush|4711", message)
    told = ""
    try:
        for chunk in chunks(TABLE, path, labels=True):
            told += "".join(str(fault) for fault in chunk.faults)
    except TaskError as error:
        told += str(error)
    assert told
    assert "hush" not in told
    return message


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ('63,Oslo,yes,"oops\n40,Bergen,no,x\n25,Oslo,no,y\n', "line 2: expected a closing quote"),
        ('63,Oslo,yes,x\n40,Bergen,no,"hush\n', "line 3: expected a closing quote"),
        ('63,Oslo,yes,"oops\n40,Bergen,no,"x"\n', "line 2: expected a delimiter or a line's end"),
        ('63,Oslo,yes,"oops\n40,Bergen,no,x\n25,Oslo,no,y"\n', "over 3 lines that look like rows"),
        ('63,Oslo,yes,"a"b\n', "line 2: expected a delimiter or a line's end after a closing"),
        ('63,Oslo,yes,5" x\n40,Oslo,no,"a"b\n', "line 3: expected a delimiter"),
        ('63, "Oslo",yes,x\n', "line 2: expected a quote right after the delimiter"),
        ("63,Oslo,yes\n", "line 2: expected 4 values, got 3"),
        ("63,Oslo,yes,a,b\n", "line 2: expected 4 values, got 5"),
        ('63,Oslo,yes,"a,\nb"\n40,Oslo,no\n', "line 4: expected 4 values, got 3"),
        ("63,Os\0lo,yes,a\n", "line 2: expected text without a NUL byte"),
        (b"63,Oslo,yes,a\n40,Troms\xf8,no,b\n", "line 3: expected UTF-8 text"),
        (ROWS.encode() + "63,Tromsø,yes,x\n".encode("latin-1"), "line 5: expected UTF-8 text"),
    ],
)
def test_what_would_swallow_or_invent_rows_is_refused_by_line(
    tmp_path: Path, rows: str | bytes, said: str
) -> None:
    body = rows if isinstance(rows, bytes) else rows.encode()
    assert said in refusal(write(tmp_path / "d.csv", HEADER.encode() + body))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEADER.replace(",", ";") + ROWS.replace(",", ";"), "got a header that fits ';'"),
        (HEADER.replace(",", "\t") + ROWS.replace(",", "\t"), r"got a header that fits '\t'"),
        ((HEADER + ROWS).encode("utf-16"), "begins like utf-16"),
        ((HEADER + ROWS).encode("utf-32"), "begins like utf-32"),
        (HEADER.replace("note", "age") + ROWS, "expected distinct column names, got 'age' twice"),
        ("age,city,ill,x,x\n63,Oslo,yes,1,2\n", "got that of column 4 twice"),
        (ROWS, "expected a column named 'age'"),
        ("\n\n", "expected a header line"),
        ("\0" * 99, "expected a header line"),
        (b"SQLite format 3\0" + b"\0" * 99, "got an SQLite database"),
    ],
)
def test_a_file_in_another_form_names_what_would_fit(
    tmp_path: Path, text: str | bytes, said: str
) -> None:
    assert said in refusal(write(tmp_path / "d.csv", text))


@pytest.mark.parametrize(
    "text",
    [
        HEADER + ROWS,
        "\ufeff" + HEADER + ROWS,
        (HEADER + ROWS).replace("\n", "\r\n"),
        (HEADER + ROWS).replace("\n", "\r"),
        (HEADER + ROWS).rstrip("\n"),
        HEADER + "\n" + ROWS.replace("\n", "\n\n"),
        HEADER + ROWS.replace("Oslo", '"Oslo"').replace(",a\n", ',"a ""b"" c"\n'),
        HEADER + ROWS.replace(",a\n", ',"a\nb"\n').replace(",b\n", ',"one, two\n\nthree"\n'),
        HEADER + ROWS.replace(",a\n", ',5" wide\n').replace(",b\n", ',"x"\n'),
        HEADER + ROWS.replace("Oslo", " Oslo ").replace("63", " 63").replace("40", "4.0e1"),
        (HEADER + ROWS).replace("Tromsø", "Tromsø"),
        '"note","age","city","ill"\nx,63,Oslo,yes\nx,40,Bergen,no\nx,25,Tromsø,no\n',
        HEADER.replace("age,", "age ,") + ROWS,
        HEADER + ROWS.replace("63", "+63").replace("yes", "TRUE").replace("no", "False"),
        HEADER + ROWS.replace("yes", "1").replace("no", "0.0"),
        HEADER + ROWS.replace("Tromsø", "Tromso\u0338").replace("Tromso\u0338", "Troms\u00f8"),
    ],
)
def test_the_same_rows_are_read_however_they_are_written(tmp_path: Path, text: str) -> None:
    file = write(tmp_path / "d.csv", text)
    assert ages(file) == [63, 40, 25]
    assert cities(file) == [0, 1, 2]
    assert TABLE.load(file, "all").y.tolist() == [1, 0, 0]
    (chunk,) = chunks(TABLE, file, labels=True)
    assert chunk.x.equal(TABLE.load(file, "all").x)
    assert chunk.rows.tolist() == [1, 2, 3]


def test_packed_files_and_several_members_are_read_whole(tmp_path: Path) -> None:
    body = (HEADER + ROWS).encode()
    half = len(HEADER) + 20
    write(tmp_path / "a.csv.gz", gzip.compress(body[:half]) + gzip.compress(body[half:]))
    write(tmp_path / "b.csv.bz2", bz2.compress(body))
    write(tmp_path / "c.csv.zst", pa.compress(body, "zstd", asbytes=True))
    for name in ("a.csv.gz", "b.csv.bz2", "c.csv.zst"):
        assert ages(tmp_path / name) == [63, 40, 25], name
    write(tmp_path / "d.csv.gz", gzip.compress(body)[:-9])
    assert "d.csv.gz" in refusal(tmp_path / "d.csv.gz")


def arrow(**changes: object) -> pa.Table:
    columns: dict[str, object] = {
        "age": pa.array([63, 40, 25]),
        "city": pa.array(["Oslo", "Bergen", "Tromsø"]),
        "ill": pa.array(["yes", "no", "no"]),
    }
    return pa.table(columns | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"age": pa.array([63, 40, 25], pa.uint8())},
        {"age": pa.array([63, 40, 25], pa.float32())},
        {"age": pa.array([Decimal("63.00"), Decimal(40), Decimal(25)], pa.decimal128(9, 2))},
        {"age": pa.array(["63", "40", "25"])},
        {"age": pa.array([63, 40, 25]).dictionary_encode()},
        {"city": pa.array(["Oslo", "Bergen", "Tromsø"]).dictionary_encode()},
        {"city": pa.array(["Oslo", "Bergen", "Tromsø"], pa.large_string())},
        {"ill": pa.array([True, False, False])},
        {"ill": pa.array([1, 0, 0])},
        {"ill": pa.array([1.0, 0.0, 0.0])},
        {"extra": pa.array([[1], [2], [3]])},
    ],
)
def test_columns_of_any_type_mean_the_same(tmp_path: Path, changes: dict[str, object]) -> None:
    table = arrow(**changes)
    parquet.write_table(table, tmp_path / "d.parquet")
    feather.write_feather(table, tmp_path / "d.feather")
    with (
        pa.OSFile(str(tmp_path / "d.arrows"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    for name in ("d.parquet", "d.feather", "d.arrows"):
        assert ages(tmp_path / name) == [63, 40, 25]
        assert cities(tmp_path / name) == [0, 1, 2]
        assert TABLE.load(tmp_path / name, "all").y.tolist() == [1, 0, 0]


def test_whole_numbers_beyond_2_to_53_are_held_at_the_bound_and_shown_to_nobody(
    tmp_path: Path,
) -> None:
    parquet.write_table(arrow(age=pa.array([2**60 + 1, 40, 25])), tmp_path / "d.parquet")
    assert ages(tmp_path / "d.parquet") == [100, 40, 25]
    assert ages(write(tmp_path / "d.csv", HEADER + f"{2**60 + 1},Oslo,yes,a\n")) == [100]


def test_labels_beyond_2_to_53_are_told_apart(tmp_path: Path) -> None:
    low, high = 2**60, 2**60 + 1
    learning = task("table", SCHEMA.replace('["no", "yes"]', f"[{low}, {high}]"))
    parquet.write_table(arrow(ill=pa.array([high, low, low])), tmp_path / "d.parquet")
    assert learning.load(tmp_path / "d.parquet", "all").y.tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"age": pa.array([[63], [40], [25]])}, "column age: expected text, numbers or dates"),
        ({"city": pa.array([{"a": 1}] * 3)}, "column city: expected"),
        ({"city": pa.array([b"a", b"b", b"c"])}, "column city: expected"),
        ({"age": pa.array([0, 0, 0], pa.timestamp("s"))}, "column age: expected numbers"),
    ],
)
def test_columns_of_no_use_are_refused_by_name(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    parquet.write_table(arrow(**changes), tmp_path / "d.parquet")
    assert said in refusal(tmp_path / "d.parquet")


def test_a_doubled_column_of_parquet_is_refused_by_name(tmp_path: Path) -> None:
    table = pa.Table.from_arrays(
        [pa.array([1]), pa.array([2]), pa.array(["Oslo"]), pa.array(["no"])],
        names=["age", "age", "city", "ill"],
    )
    parquet.write_table(table, tmp_path / "d.parquet")
    assert "'age' twice" in refusal(tmp_path / "d.parquet")


def test_booleans_of_a_schema_take_every_spelling(tmp_path: Path) -> None:
    learning = task("table", SCHEMA.replace('["no", "yes"]', "[false, true]"))
    parquet.write_table(arrow(ill=pa.array([True, False, False])), tmp_path / "d.parquet")
    assert learning.load(tmp_path / "d.parquet", "all").y.tolist() == [1, 0, 0]
    for yes, no in (("TRUE", "FALSE"), ("True", "False"), ("1", "0"), ("yes", "no"), ("t", "f")):
        file = write(tmp_path / "d.csv", HEADER + f"63,Oslo,{yes},a\n40,Oslo,{no},b\n")
        assert learning.load(file, "all").y.tolist() == [1, 0]


def test_dates_count_in_days_and_case_and_aliases_are_the_schemas(tmp_path: Path) -> None:
    learning = task(
        "table",
        """
label = "ill"
[columns.seen]
type = "date"
min = 2020-01-01
max = 2020-01-11
[columns.city]
type = "category"
values = ["Oslo", "Bergen"]
fold = true
aliases = { Christiania = "Oslo" }
[columns.ill]
type = "category"
values = ["no", "yes"]
""",
    )
    rows = "2020-01-06,OSLO,no\n2020-01-01,christiania,no\n2020-01-11T00:00:00Z,bergen,yes\n"
    file = write(tmp_path / "d.csv", "seen,city,ill\n" + rows + "hush,oslo,no\n")
    found = learning.load(file, "all")
    assert found.x.tolist() == [[0, 1, 0, 0], [-1, 1, 0, 0], [1, 0, 1, 0]]
    assert "line 5, column seen: expected a date in 2020-01-01..2020-01-11" in str(found.reading)
    stamps = np.array(["2020-01-06", "2020-01-01", "2020-01-11"], "datetime64[s]")
    for kind in (pa.date32(), pa.timestamp("us"), pa.timestamp("ns", "UTC")):
        table = pa.table({"seen": pa.array(stamps).cast(kind), "city": ["OSLO"] * 3,
                          "ill": ["no"] * 3})  # fmt: skip
        parquet.write_table(table, tmp_path / "d.parquet")
        assert learning.load(tmp_path / "d.parquet", "all").x[:, 0].tolist() == [0, -1, 1]


def test_columns_of_a_pattern_are_written_once() -> None:
    learning = task(
        "table",
        'label = "ill"\n[columns."gene_*"]\ntype = "number"\nmin = 0\nmax = 1\nto = 20\n'
        '[columns."*_score"]\ntype = "number"\nmin = 0\nmax = 1\nnames = ["pain", "sleep"]\n'
        '[columns.ill]\ntype = "category"\nvalues = ["no", "yes"]\n',
    )
    assert learning.inputs == (*(f"gene_{i}" for i in range(1, 21)), "pain_score", "sleep_score")


def test_rows_and_lines_are_told(tmp_path: Path) -> None:
    body = HEADER + ROWS.replace(",a\n", ',"a\nb"\n') + "hush,Oslo,no,x\n"
    reading = TABLE.load(write(tmp_path / "d.csv", body), "all").reading
    assert reading is not None
    assert (reading.rows, reading.lines, reading.left_out) == (4, 5, 1)


@pytest.mark.parametrize("size", [64, 100, 333, 4096])
def test_where_a_block_ends_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    draw = np.random.default_rng(size)
    notes = ["a", '"b ""c"" d"', '"two\nlines"', '5" wide', '""', '"x,y"', '"\r\n"']
    lines = [f"{20 + i % 70},Oslo,no,{notes[draw.integers(len(notes))]}" for i in range(200)]
    file = write(tmp_path / "d.csv", HEADER + "\n".join(lines) + "\n")
    whole = TABLE.load(file, "all")
    assert len(whole) == 200
    monkeypatch.setattr("client.data.formats.records.BLOCK", size)
    assert TABLE.load(file, "all").x.equal(whole.x)
    lines[150] = lines[150].replace("Oslo", "Oslo,Oslo")
    write(file, HEADER + "\n".join(lines) + "\n")
    line = 1 + (HEADER + "\n".join(lines[:150]) + "\n").count("\n")
    assert f"line {line}: expected 4 values, got 5" in refusal(file)
