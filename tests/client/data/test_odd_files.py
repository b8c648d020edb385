"""Files as people keep them: the rows that they hold, or one line without a value, on every way.

Training, prediction, evaluation and `data check` (which the doctor runs) read every file here.
"""

import bz2
import decimal
import gzip
import io
import re
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as parquet
import pytest

from client.data.check import check
from client.data.input_files import chunks
from client.tasks.registry import task
from client.tasks.rows import TaskError

TABLE = task(
    "table",
    """
label = "ill"
[columns.age]
type = "number"
min = 0
max = 100
[columns.city]
type = "category"
values = ["Oslo", "Bergen", "Ålesund"]
[columns.ill]
type = "category"
values = ["no", "yes"]
""",
)
CITIES = ["Oslo", "Bergen", "Ålesund"]
TWO = ((41.8125, "Oslo", "yes"), (17.4375, "Bergen", "no"))
PLAIN = "age,city,ill\n41.8125,Oslo,yes\n17.4375,Bergen,no\n"
PRIVATE = ("41.81", "17.43", "Qux7", "1152921504606846977", "hush")
Expected = tuple[tuple[float, str, str], ...] | str


def text(content: str | bytes, name: str = "t.csv") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return make


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


def rows(*lines: str, header: str = "age,city,ill", end: str = "\n") -> Callable[[Path], Path]:
    return text(end.join([header, *lines]) + end)


def columns(kind: str = "parquet", **changes: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        values: dict[str, Any] = {
            "age": pa.array([41.8125, 17.4375]),
            "city": pa.array(["Oslo", "Bergen"]),
            "ill": pa.array(["yes", "no"]),
        }
        table = pa.table(values | changes)
        path = folder / f"t.{kind}"
        if kind == "parquet":
            parquet.write_table(table, path)
        elif kind == "feather":
            feather.write_feather(table, path, compression="zstd")
        else:
            new = pa.ipc.new_stream if kind == "arrows" else pa.ipc.new_file
            with new(path, table.schema) as writer:
                writer.write_table(table)
        return path

    return make


def cut(make: Callable[[Path], Path], kept: float) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        path = make(folder)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * kept)])
        return path

    return made


def doubled(folder: Path) -> Path:
    path = folder / "t.parquet"
    arrays = [pa.array([41.8125]), pa.array([1.0]), pa.array(["Oslo"]), pa.array(["yes"])]
    parquet.write_table(pa.Table.from_arrays(arrays, ["age", "age", "city", "ill"]), path)
    return path


def zipped(name: str) -> Callable[[Path], Path]:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("xl/worksheets/sheet1.xml", PLAIN)
    return text(held.getvalue(), name)


def lite(folder: Path) -> Path:
    path = folder / "t.csv"
    with sqlite3.connect(path) as database:
        database.execute("create table t(age real, city text, ill text)")
    database.close()
    return path


def arrays(folder: Path) -> Path:
    np.savez(folder / "t.npz", age=np.array([41.8125]))
    return folder / "t.npz"


def several(*names: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        place = folder / "data"
        place.mkdir()
        for name in names:
            (place / name).write_text(PLAIN)
        return place

    return make


MANY = "9" * 5000
ODD: dict[str, tuple[Callable[[Path], Path], Expected]] = {
    # text that holds these rows
    "plain": (text(PLAIN), TWO),
    "lines of Windows": (text(PLAIN.replace("\n", "\r\n")), TWO),
    "lines of old Macs": (text(PLAIN.replace("\n", "\r")), TWO),
    "mixed ends of lines": (text(PLAIN.replace("yes\n", "yes\r\n")), TWO),
    "no last line end": (text(PLAIN[:-1]), TWO),
    "a byte order mark": (text("\ufeff" + PLAIN), TWO),
    "blank lines": (text("\n\n" + PLAIN.replace("\n", "\n\n")), TWO),
    "all quoted": (text(re.sub(r"[^,\n]+", r'"\g<0>"', PLAIN)), TWO),
    "quoted header": (text(PLAIN.replace("city", '"city"')), TWO),
    "blanks in the header": (text(PLAIN.replace("age,city", " age , city")), TWO),
    "another order": (rows("yes,Oslo,41.8125", "no,Bergen,17.4375", header="ill,city,age"), TWO),
    "a column more": (rows("x,41.8125,Oslo,yes", "y,17.4375,Bergen,no", header="hush,age,city,ill"),
                      TWO),
    "quotes in quotes": (rows('41.8125,Oslo,yes,"a ""b"", c"', '17.4375,Bergen,no,""',
                              header="age,city,ill,note"), TWO),
    "a carriage return in quotes": (rows('41.8125,Oslo,yes,"a\rb"', "17.4375,Bergen,no,c",
                                         header="age,city,ill,note"), TWO),
    "a line end in quotes": (rows('41.8125,Oslo,yes,"a\nb"', "17.4375,Bergen,no,c",
                                  header="age,city,ill,note"), TWO),
    "characters that look like line ends": (
        rows("41.8125,Oslo,yes,a\x0bb\x0c\u2028\x85", "17.4375,Bergen,no,c",
             header="age,city,ill,note"), TWO),
    "a long value": (rows(f"41.8125,Oslo,yes,{'x' * 3_000_000}", "17.4375,Bergen,no,c",
                          header="age,city,ill,note"), TWO),
    "letters in two parts": (rows("41.8125,A\u030alesund,yes", "17.4375,Ålesund,no"),
                             ((41.8125, "Ålesund", "yes"), (17.4375, "Ålesund", "no"))),
    "blanks around values": (rows(" 41.8125 , Oslo ,yes ", "\t17.4375,Bergen\t,\tno"), TWO),
    "numbers of any spelling": (rows("+4.18125e1,Oslo,yes", "00017.4375,Bergen,no"), TWO),
    "labels as booleans": (rows("41.8125,Oslo,TRUE", "17.4375,Bergen,f"), TWO),
    "labels as numbers": (rows("41.8125,Oslo,1.0", "17.4375,Bergen,0"), TWO),
    "a whole number beyond 2^53": (rows("1152921504606846977,Oslo,yes"), ((100, "Oslo", "yes"),)),
    "values outside": (rows("-5,Oslo,yes", "1e300,Oslo,no"), ((0, "Oslo", "yes"),
                                                              (100, "Oslo", "no"))),
    "a category that nobody knows": (rows("41.8125,Qux7,yes"), ((41.8125, "", "yes"),)),
    "a missing category": (rows("41.8125,,yes", "41.8125,NA,no"),
                           ((41.8125, "", "yes"), (41.8125, "", "no"))),
    "what nobody sees": (rows("41.8125,Os\u00adlo\u200b,yes", "\ufeff17.4375,Bergen\u00a0,no",
                              header="age\u200b,city,ill"), TWO),
    "two byte order marks": (text("\ufeff\ufeff" + PLAIN), TWO),
    "a delimiter at each end": (text(PLAIN.replace("\n", ",\n")), TWO),
    "gzip": (text(gzip.compress(PLAIN.encode()), "t.csv.gz"), TWO),
    "gzip in two members": (
        text(gzip.compress(PLAIN[:20].encode()) + gzip.compress(PLAIN[20:].encode()), "t.csv.gz"),
        TWO),
    "gzip by another name": (text(gzip.compress(PLAIN.encode())), TWO),
    "zstd": (text(zstd(PLAIN.encode()), "t.csv.zst"), TWO),
    "bzip2": (text(bz2.compress(PLAIN.encode()), "t.csv.bz2"), TWO),
    "no gzip by that name": (text(PLAIN, "t.csv.gz"), TWO),
    "tabs": (text(PLAIN.replace(",", "\t"), "t.tsv"), TWO),
    "a folder with one table": (several("t.csv"), TWO),
    # rows that are left out, each for itself
    "a missing number": (rows("41.8125,Oslo,yes", ",Bergen,no"), TWO[:1]),
    "no number": (rows("41.8125,Oslo,yes", "old,Bergen,no"), TWO[:1]),
    "infinity": (rows("41.8125,Oslo,yes", "inf,Bergen,no", "-Infinity,Bergen,no"), TWO[:1]),
    "a number too large": (rows("41.8125,Oslo,yes", "1e999,Bergen,no", f"{MANY},Bergen,no"),
                           TWO[:1]),
    "not a number in words": (rows("41.8125,Oslo,yes", "nan(1),Bergen,no", "NaN,Oslo,no"), TWO[:1]),
    "hexadecimal": (rows("41.8125,Oslo,yes", "0x11,Bergen,no", "1_7,Bergen,no"), TWO[:1]),
    "digits of other scripts": (rows("41.8125,Oslo,yes", "１７,Bergen,no", "١٧,Bergen,no"),
                                TWO[:1]),
    "a decimal comma": (rows("41.8125,Oslo,yes", '"17,4375",Bergen,no'), TWO[:1]),
    "an unknown label": (rows("41.8125,Oslo,yes", "17.4375,Bergen,Qux7"), TWO[:1]),
    "a missing label": (rows("41.8125,Oslo,yes", "17.4375,Bergen,"), TWO[:1]),
    # what cannot be read as the rows that it holds
    "a quote that never closes": (rows('41.8125,Oslo,yes,"a', "17.4375,Bergen,no,b",
                                       header="age,city,ill,note"),
                                  "line 2: expected a closing quote"),
    "a quote that closes lines later": (
        rows('41.8125,Oslo,yes,"a', *["17.4375,Bergen,no,b"] * 5, '17.4375,Bergen,no,"b"',
             header="age,city,ill,note"), "line 2: expected"),
    "text after a quote": (rows('"41.8125"4,Oslo,yes'), "line 2: expected a delimiter"),
    "a blank before a quote": (rows('41.8125, "Oslo",yes'), "line 2: expected a quote right"),
    "a short line": (rows("41.8125,Oslo,yes", "17.4375,Bergen"),
                     "line 3: expected 3 values, got 2"),
    "a long line": (rows("41.8125,Oslo,yes", "17.4375,Bergen,no,9"),
                    "line 3: expected 3 values, got 4"),
    "a line of blanks": (rows("41.8125,Oslo,yes", "   "), "line 3: expected 3 values, got 1"),
    "a doubled column": (rows("41.8125,9,Oslo,yes", header="age,age,city,ill"),
                         "distinct column names, got 'age' twice"),
    "a column that is not there": (rows("41.8125,yes", header="age,ill"), "named 'city'"),
    "another case of names": (text(PLAIN.replace("age", "AGE")), "spelt otherwise"),
    "another spelling of names": (text(PLAIN.replace("age", "A_ge")), "spelt otherwise"),
    "doubled after trimming": (rows("41.8125,9,Oslo,yes", header="age, age\u200b,city,ill"),
                               "distinct column names, got 'age' twice"),
    "Excel's first line": (text("sep=,\n" + PLAIN), "Excel's sep="),
    "a title": (text("Export,,\n" + PLAIN), "expected a column named"),
    "gzip with bytes behind it": (text(gzip.compress(PLAIN.encode()) + b"hush", "t.csv.gz"),
                                  "damaged"),
    "gzip without its sum": (text(gzip.compress(PLAIN.encode())[:-8], "t.csv.gz"), "damaged"),
    "gzip whose second member is cut": (
        text(gzip.compress(PLAIN.encode()) + gzip.compress(PLAIN.encode() * 99)[:-9], "t.csv.gz"),
        "damaged"),
    "semicolons": (text(PLAIN.replace(",", ";")), "fits ';'"),
    "tabs under the name of commas": (text(PLAIN.replace(",", "\t")), r"fits '\\t'"),
    "bars": (text(PLAIN.replace(",", "|")), r"fits '\|'"),
    "no header": (rows("17.4375,Bergen,no", header="41.8125,Oslo,yes"), "expected a column named"),
    "a carriage return alone": (rows("41.8125,Oslo,yes\r17.4375,Bergen,no", "17.4375,Bergen,no"),
                                "line 2: expected lines that end in one way"),
    "a NUL": (rows("41.8125,Os\0lo,yes"), "line 2: expected text without a NUL"),
    "Latin-1": (text(PLAIN.replace("Oslo", "Ålesund").encode("latin-1")), "line 2: expected UTF-8"),
    "UTF-8 and Latin-1": (text((PLAIN + "1,Ålesund,no\n").encode() + b"17.4375,\xc5lesund,no\n"),
                          "line 5: expected UTF-8"),
    "half a surrogate pair": (text(PLAIN.encode() + b"17.4375,\xed\xa0\x80,no\n"),
                              "line 4: expected UTF-8"),
    "UTF-16": (text(PLAIN.encode("utf-16")), "begins like utf-16"),
    "UTF-16 without a mark": (text(PLAIN.encode("utf-16-le")), "expected a header line"),
    "UTF-32": (text(PLAIN.encode("utf-32")), "begins like utf-32"),
    "nothing": (text(""), "expected a header line"),
    "line ends alone": (text("\n\r\n\n"), "expected a header line"),
    "a header alone": (text("age,city,ill\n"), "expected rows, found none"),
    "gzip cut short": (cut(text(gzip.compress(PLAIN.encode() * 200), "t.csv.gz"), 0.6), "expected"),
    "gzip damaged": (text(gzip.compress(PLAIN.encode())[:15] + b"\xff" * 30, "t.csv.gz"),
                     "expected a whole file"),
    "SQLite": (lite, "got an SQLite database"),
    "Excel": (zipped("t.xlsx"), "expected"),
    "zip": (zipped("t.csv"), "expected"),
    "a picture": (text(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(40), "t.png"), "expected"),
    "a PDF": (text(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n", "t.pdf"), "expected"),
    "JSON lines": (text('{"age": 41.8125, "city": "Oslo", "ill": "yes"}\n', "t.jsonl"), "expected"),
    "a page": (text("<!doctype html>\n<title>hush</title>\n", "t.csv"), "expected a column named"),
    "numpy": (arrays, "expected"),
    "two tables": (several("a.csv", "b.csv"), "expected one table"),
    "no table": (several("a.doc"), "expected one table"),
    # columnar files
    "Parquet": (columns(), TWO),
    "Arrow": (columns("arrow"), TWO),
    "an Arrow stream": (columns("arrows"), TWO),
    "Feather": (columns("feather"), TWO),
    "dictionaries": (columns(city=pa.array(["Oslo", "Bergen"]).dictionary_encode()), TWO),
    "long texts": (columns(city=pa.array(["Oslo", "Bergen"], pa.large_string())), TWO),
    "decimals": (columns(age=pa.array([decimal.Decimal("41.8125"), decimal.Decimal("17.4375")])),
                 TWO),
    "halves": (columns(age=pa.array(np.array([41.8125, 17.4375], np.float16))), TWO),
    "floats": (columns(age=pa.array([41.8125, 17.4375], pa.float32())), TWO),
    "booleans": (columns(ill=pa.array([True, False])), TWO),
    "whole numbers as labels": (columns(ill=pa.array([1, 0], pa.int8())), TWO),
    "numbers as text": (columns(age=pa.array(["41.8125", "17.4375"])), TWO),
    "whole numbers beyond 2^53": (columns(age=pa.array([2**60 + 1, 0])),
                                  ((100, "Oslo", "yes"), (0, "Bergen", "no"))),
    "nulls": (columns(age=pa.array([41.8125, None])), TWO[:1]),
    "not-a-number": (columns(age=pa.array([41.8125, float("nan")])), TWO[:1]),
    "null columns": (columns(city=pa.nulls(2)), ((41.8125, "", "yes"), (17.4375, "", "no"))),
    "columns of nothing but nulls": (columns(age=pa.nulls(2)), "expected rows that fit"),
    "blanks in the names of columns": (columns(**{" age ": pa.array([41.8125, 17.4375])}),
                                       "distinct column names, got 'age' twice"),
    "old moments for numbers": (columns(age=pa.array([1, 2], pa.timestamp("ns"))),
                                "column age: expected numbers"),
    "structures": (columns(age=pa.array([{"hush": 1.0}, {"hush": 2.0}])),
                   "column age: .* got nested values"),
    "a structure that nobody asked for": (columns(more=pa.array([{"a": 1.0}, {"a": 2.0}])), TWO),
    "whole numbers without a sign": (columns(age=pa.array([2**64 - 1, 0], pa.uint64())),
                                     ((100, "Oslo", "yes"), (0, "Bergen", "no"))),
    "nested": (columns(city=pa.array([["Oslo"], ["Bergen"]])), "column city: .* got nested values"),
    "binary": (columns(city=pa.array([b"Oslo", b"Bergen"])), "column city: .* got binary ones"),
    "moments for numbers": (columns(age=pa.array([1, 2], pa.timestamp("s"))),
                            "column age: expected numbers"),
    "doubled columns of Parquet": (doubled, "distinct column names, got 'age' twice"),
    "no rows": (columns(age=pa.array([], pa.float64()), city=pa.array([], pa.string()),
                        ill=pa.array([], pa.string())), "expected rows, found none"),
    "Parquet cut short": (cut(columns(), 0.7), "damaged"),
    "Parquet of four bytes": (text(b"PAR1", "t.parquet"), "damaged"),
    "Arrow cut short": (cut(columns("arrow"), 0.7), "damaged"),
    "text by the name of Parquet": (text(PLAIN, "t.parquet"), "damaged"),
}  # fmt: skip


ROW_BY_ROW = (
    *("a short line", "a long line", "a line of blanks", "a NUL"),
    *("Latin-1", "UTF-8 and Latin-1", "half a surrogate pair"),
)
"""What prediction tells row by row."""


def encoded(expected: tuple[tuple[float, str, str], ...]) -> tuple[list[list[float]], list[int]]:
    x = []
    for age, city, _ in expected:
        row = [2 * age / 100 - 1, 0.0, 0.0, 0.0, 0.0]
        row[1 + (CITIES.index(city) if city else 3)] = 1.0
        x.append(row)
    return x, [("no", "yes").index(label) for _, _, label in expected]


def test_there_are_more_than_sixty_of_them() -> None:
    assert len(ODD) > 90


def trained(path: Path) -> tuple[list[list[float]], list[int]]:
    found = TABLE.load(path, "all")
    return found.x.tolist(), found.y.tolist()


def predicted(path: Path) -> tuple[list[list[float]], list[int]]:
    """What `predict` reads, which looks at no label: the others as for training."""
    found = list(chunks(TABLE, path))
    return [row for one in found for row in one.x.tolist()], []


def evaluated(path: Path) -> tuple[list[list[float]], list[int]]:
    x: list[list[float]] = []
    y: list[int] = []
    for one in chunks(TABLE, path, labels=True):
        assert one.y is not None
        x += one.x.tolist()
        y += one.y.tolist()
    return x, y


@pytest.mark.parametrize("name", ODD)
def test_a_file_gives_its_rows_or_one_line_without_a_value(name: str, tmp_path: Path) -> None:
    make, expected = ODD[name]
    path = make(tmp_path)
    if isinstance(expected, str):
        for way in (trained, evaluated, lambda p: check(TABLE, p)):
            if way is not trained and name == "columns of nothing but nulls":
                continue  # every row is told by itself
            if way is evaluated and name in ROW_BY_ROW:
                continue  # see below
            with pytest.raises(TaskError) as refused:
                way(path)
            message = str(refused.value)
            if way is trained:
                assert re.search(expected, message), message
            assert message.startswith(str(tmp_path))
            assert "\n" not in message
            assert message.isprintable()
            assert not [value for value in PRIVATE if value in message]
        return
    x, y = encoded(expected)
    assert trained(path) == (pytest.approx(np.array(x)), y)
    assert evaluated(path) == (pytest.approx(np.array(x)), y)
    seen, _ = predicted(path)
    assert [row for row in seen if row in trained(path)[0]] == trained(path)[0]
    found = check(TABLE, path)
    assert found.rows - found.left_out == len(expected)
    assert not [value for value in PRIVATE if value in str(found.to_dict())]


@pytest.mark.parametrize("name", ROW_BY_ROW)
def test_prediction_tells_such_rows_one_by_one(name: str, tmp_path: Path) -> None:
    make, expected = ODD[name]
    assert isinstance(expected, str)
    found = list(chunks(TABLE, make(tmp_path), labels=True))
    told = [str(fault) for one in found for fault in one.faults]
    assert told
    assert re.search(expected, told[0])
    assert not [value for value in PRIVATE if value in " ".join(told)]
