"""Files as public reports showed them, and what becomes of each by every command.

The schema is that of `tests/integration/test_public_reports.py`: an age of 0..100, a city, and
whether somebody is ill.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

Row = tuple[float, str, str]
THREE: tuple[Row, ...] = ((63.25, "Oslo", "yes"), (40.5, "Bergen", "no"), (25.125, "Oslo", "no"))
HEADER = "age,city,ill,note\n"
PLAIN = HEADER + "63.25,Oslo,yes,a\n40.5,Bergen,no,b\n25.125,Oslo,no,c\n"


@dataclass(frozen=True)
class Case:
    """A file, beside it a source.toml, and what becomes of it.

    `rows` are what it holds, or `refused` is what is said (a pattern). `left_out` rows are left out
    in training and named by prediction; `unknown` are values by column that are none of the
    public ones.
    """

    make: Callable[[Path], Path]
    rows: Sequence[Row] = THREE
    refused: str = ""
    left_out: int = 0
    unknown: dict[str, int] = field(default_factory=dict)
    source: str = ""


def text(content: str | bytes, name: str = "t.csv") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return make


def columns(
    names: Sequence[str] = ("age", "city", "ill"), **changes: Any
) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        values = {
            "age": pa.array([63.25, 40.5, 25.125]),
            "city": pa.array(["Oslo", "Bergen", "Oslo"]),
            "ill": pa.array(["yes", "no", "no"]),
        } | changes
        table = pa.Table.from_arrays([values[name] for name in names], names=list(names))
        parquet.write_table(table, folder / "t.parquet")
        return folder / "t.parquet"

    return make


def lines(*more: str, header: str = HEADER) -> Callable[[Path], Path]:
    return text(header + "".join(f"{line}\n" for line in more))


BIG = ((100.0, "Oslo", "yes"), (40.5, "Bergen", "no"), (25.125, "Oslo", "no"))
OTHER = ((63.25, "", "yes"), (40.5, "", "no"), (25.125, "", "no"))
CASES: dict[str, Case] = {
    # P1: rows that vanish or are invented
    "P1 a quote that never closes": Case(
        lines('63.25,Oslo,yes,"hush', "40.5,Bergen,no,x", "25.125,Oslo,no,y"),
        refused="line 2: expected a closing quote",
    ),
    "P1 an inch mark 900 lines before the end": Case(
        lines('63.25,Oslo,yes,"5 hush', *["40.5,Bergen,no,x"] * 900),
        refused="line 2: expected a closing quote",
    ),
    "P1 the quote of the label": Case(
        lines("63.25,Oslo,yes,x", '40.5,Bergen,"no,x', "25.125,Oslo,no,y"),
        refused="line 3: expected a closing quote",
    ),
    "P1 a quote in the last line": Case(
        lines("63.25,Oslo,yes,x", "40.5,Bergen,no,x", '25.125,Oslo,no,"hush'),
        refused="line 4: expected a closing quote",
    ),
    "P1 two open quotes that close each other": Case(
        lines('63.25,Oslo,yes,"a', "40.5,Bergen,no,x", '25.125,Oslo,no,"b'),
        refused="line 2: expected",
    ),
    "P1 a quote in the header": Case(
        lines("63.25,Oslo,yes,x", header='age,city,ill,"note\n'), refused="expected"
    ),
    "P1 text after a quote": Case(
        lines('63.25,Oslo,yes,"a" hush', "40.5,Bergen,no,x"), refused="line 2: expected a delimiter"
    ),
    "P1 a quote in the middle": Case(
        lines('63.25,Oslo,yes,5" wide', '40.5,Bergen,no,x"', '25.125,Oslo,no,a "b" c')
    ),
    "P1 declared lines in quotes": Case(
        lines('63.25,Oslo,yes,"a', 'b"', "40.5,Bergen,no,x", "25.125,Oslo,no,y"),
        source="multiline = true\n",
    ),
    "P1 a line too short": Case(
        lines("63.25,Oslo,yes,x", "40.5,Bergen"), refused="line 3.*: expected 4 values, got 2"
    ),
    "P1 a line too long": Case(
        lines("63.25,Oslo,yes,x", "40.5,Bergen,no,x,hush"),
        refused="line 3.*: expected 4 values, got 5",
    ),
    "P1 a NUL": Case(
        lines("63.25,Oslo,yes,x", "40.5,Ber\0gen,no,x"), refused="line 3.*: expected text without"
    ),
    "P1 a file cut in a line": Case(text(PLAIN[:-9]), refused="line 4.*: expected 4 values, got"),
    # P4: columnar files
    "P4 Parquet": Case(columns()),
    "P4 two columns of one name": Case(
        columns(("age", "age", "city", "ill")), refused="distinct column names, got 'age' twice"
    ),
    "P4 two columns of one label": Case(
        columns(("age", "city", "ill", "ill")), refused="distinct column names, got 'ill' twice"
    ),
    "P4 two columns that nobody asks for": Case(
        columns(("age", "more", "more", "city", "ill"), more=pa.array([1, 2, 3])), THREE
    ),
    "P4 whole numbers beyond 2^53": Case(
        columns(age=pa.array([Decimal(2**60 + 1), Decimal("40.5"), Decimal("25.125")])), BIG
    ),
    "P4 whole numbers of 64 bits": Case(
        columns(age=pa.array([2**60 + 1, 2**53 + 1, -(2**62)])),
        ((100, "Oslo", "yes"), (100, "Bergen", "no"), (0, "Oslo", "no")),
    ),
    "P4 a list": Case(
        columns(age=pa.array([[63.25], [40.5], [25.125]])), refused="column age: .* nested"
    ),
    "P4 a map": Case(
        columns(city=pa.array([[("hush", 1)]] * 3, pa.map_(pa.string(), pa.int64()))),
        refused="column city: .* nested",
    ),
    "P4 bytes": Case(
        columns(city=pa.array([b"Oslo", b"Bergen", b"Oslo"])), refused="column city: .* binary"
    ),
    "P4 times for numbers": Case(
        columns(age=pa.array([1, 2, 3], pa.time32("s"))), refused="column age: expected numbers"
    ),
    "P4 dates for labels": Case(
        columns(ill=pa.array([1, 2, 3], pa.date32())), refused="expected one of no|rows that fit",
        left_out=3,
    ),
    "P4 numbers for a category": Case(
        columns(city=pa.array([1.0, 2.0, 3.0])), OTHER, unknown={"city": 3}
    ),
    "P4 a column without a type": Case(columns(city=pa.nulls(3)), OTHER),
    "P4 large text and a dictionary": Case(
        columns(
            city=pa.array(["Oslo", "Bergen", "Oslo"]).dictionary_encode(),
            ill=pa.array(["yes", "no", "no"], pa.large_string()),
        )
    ),
    # P5: a column that nobody understood
    "P5 another case": Case(
        lines("63.25,OSLO,yes,x", "40.5,bergen,no,x", "25.125,oslo,no,x"),
        OTHER,
        unknown={"city": 3},
    ),
    "P5 a code": Case(
        lines("63.25,0,yes,x", "40.5,1,no,x", "25.125,0,no,x"), OTHER, unknown={"city": 3}
    ),
    "P5 one of three": Case(
        lines("63.25,Oslo,yes,x", "40.5,Narnia,no,x", "25.125,Oslo,no,x"),
        ((63.25, "Oslo", "yes"), (40.5, "", "no"), (25.125, "Oslo", "no")),
        unknown={"city": 1},
    ),
    "P5 missing is not unknown": Case(
        lines("63.25,,yes,x", "40.5,NA,no,x", "25.125,?,no,x"), OTHER
    ),
    "P5 two parts of a letter": Case(
        lines("63.25,Tromsø,yes,x", "40.5,Bergen,no,x", "25.125,Oslo,no,x"),
        ((63.25, "Tromsø", "yes"), *THREE[1:]),
    ),
    "P5 a blank before quotes": Case(
        lines('63.25, "Oslo",yes,x', "40.5,Bergen,no,x"), refused="line 2: expected a quote right"
    ),
    "P5 mapped by the site": Case(
        lines("63.25,O,yes,x", "40.5,B,no,x", "25.125,O,no,x"),
        source='[columns.city]\nvalues = {O = "Oslo", B = "Bergen"}\n',
    ),
    "P5 a label of another case": Case(
        lines("63.25,Oslo,YES,x", "40.5,Bergen,No,x", "25.125,Oslo,NO,x")
    ),
    "P5 a label that nobody knows": Case(
        lines("63.25,Oslo,yes,x", "40.5,Bergen,no,x", "25.125,Oslo,hush,x"), THREE[:2], left_out=1
    ),
    # P6: files as sites write them
    "P6 semicolons": Case(text(PLAIN.replace(",", ";")), refused="fits ';'"),
    "P6 tabs": Case(text(PLAIN.replace(",", "\t")), refused=r"fits '\\t'"),
    "P6 bars": Case(text(PLAIN.replace(",", "|")), refused=r"fits '\|'"),
    "P6 declared semicolons and decimal commas": Case(
        text(PLAIN.replace(",", ";").replace(".", ",")),
        source='delimiter = ";"\ndecimal = ","\n',
    ),
    "P6 decimal commas that nobody declared": Case(
        lines('"63,25",Oslo,yes,x', "40.5,Bergen,no,x", "25.125,Oslo,no,x"), THREE[1:], left_out=1
    ),
    "P6 thousands that nobody declared": Case(
        lines('"1,234",Oslo,yes,x', "40.5,Bergen,no,x", "25.125,Oslo,no,x"), THREE[1:], left_out=1
    ),
    "P6 Latin-1": Case(
        text(PLAIN.replace("Bergen", "Tromsø").encode("latin-1")), refused="3.*: expected UTF-8"
    ),
    "P6 declared Latin-1": Case(
        text(PLAIN.replace("Bergen", "Tromsø").encode("latin-1")),
        (THREE[0], (40.5, "Tromsø", "no"), THREE[2]),
        source='encoding = "latin-1"\n',
    ),
    "P6 UTF-16": Case(text(PLAIN.encode("utf-16")), refused="begins like utf-16"),
    "P6 declared UTF-16": Case(text(PLAIN.encode("utf-16")), source='encoding = "utf-16"\n'),
    "P6 missing codes that nobody declared": Case(
        lines("63.25,Oslo,yes,x", "-999,Bergen,no,x"), (THREE[0], (0, "Bergen", "no"))
    ),
    "P6 missing codes declared": Case(
        lines("63.25,Oslo,yes,x", "-999,Bergen,no,x", "25.125,Oslo,no,x"),
        (THREE[0], THREE[2]),
        left_out=1,
        source='missing = ["-999"]\n',
    ),
    "P6 columns renamed": Case(
        lines("63.25,Oslo,yes,x", "40.5,Bergen,no,x", "25.125,Oslo,no,x",
              header="alter,ort,krank,note\n"),
        source='[rename]\nalter = "age"\nort = "city"\nkrank = "ill"\n',
    ),
    "P6 names of another case": Case(
        text(PLAIN.replace("age,city", "Age,CITY")), refused="spelt otherwise"
    ),
    # P11: booleans
    **{
        f"P11 {yes}": Case(
            lines(f"63.25,Oslo,{yes},x", f"40.5,Bergen,{no},x", f"25.125,Oslo,{no},x")
        )
        for yes, no in (("TRUE", "FALSE"), ("True", "False"), ("1", "0"), ("1.0", "0.0"),
                        ("t", "f"), ("Y", "N"))
    },
    "P11 Parquet": Case(columns(ill=pa.array([True, False, False]))),
    "P11 whole numbers of Parquet": Case(columns(ill=pa.array([1, 0, 0], pa.uint8()))),
    "P11 floats of Parquet": Case(columns(ill=pa.array([1.0, 0.0, 0.0]))),
    # P12: what a look before the run would have shown
    "P12 a header alone": Case(text(HEADER), refused="expected rows, found none"),
    "P12 no header": Case(
        text("63.25,Oslo,yes,x\n40.5,Bergen,no,x\n"), refused="expected a column named"
    ),
    "P12 a missing number": Case(
        lines("63.25,Oslo,yes,x", ",Bergen,no,x", "25.125,Oslo,no,x"), (THREE[0], THREE[2]),
        left_out=1,
    ),
    "P12 a column that is not there": Case(
        text("age,ill\n63.25,yes\n"), refused="expected a column named 'city'"
    ),
    "P12 no table": Case(text(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "t.csv"), refused="expected"),
}  # fmt: skip
