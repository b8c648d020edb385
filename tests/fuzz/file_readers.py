"""Readers of files: rows, `source.toml`, signatures, cards, and reports with their evidence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet

from client.data.input_files import chunks
from client.data.source import parse
from client.models.loading import header
from client.tasks.registry import task
from client.tasks.rows import TaskError
from privacy.identity.model_signature import SigningError, read_signature, valid
from privacy.model_card import Card, CardError
from privacy.report.bundle.verify import verify
from privacy.report.bundle.write import file_report
from privacy.report.sources import ReportError
from tests.fuzz.reader import Reader
from tests.support.run_folders import run_folder

SCHEMA = """label = "ill"
subject = "who"
[columns.age]
type = "number"
min = 0
max = 100
missing = "indicator"
[columns.seen]
type = "date"
min = 2020-01-01
max = 2030-01-01
[columns.city]
type = "category"
values = ["Oslo", "Bergen"]
[columns.ill]
type = "category"
values = [false, true]
"""
CSV = b"""who,age,seen,city,ill
p1,63,2021-03-04,Oslo,yes
"p 2",,2022-01-01,"Ber""gen",no
p3,1e2,,"a
b",1
"""
SOURCE = b"""delimiter = ";"
decimal = ","
missing = ["-9"]
files = ["t.csv"]
[rename]
alter = "age"
[columns.city]
values = { O = "Oslo" }
"""


def file_readers(folder: Path, model: Path) -> list[Reader]:
    """Those readers, over files in `folder`; `model` is a released and signed one."""
    place = folder / "files"
    place.mkdir()
    table = task("table", SCHEMA)

    def read_rows(name: str) -> Callable[[bytes], None]:
        def read(content: bytes) -> None:
            path = place / name
            path.write_bytes(content)
            first, second = _rows(path), _rows(path)
            if first != second:
                raise AssertionError("other rows when they are read again")

        return read

    def _rows(path: Path) -> list[str]:
        return [str((one.x, one.faults)) for one in chunks(table, path)]

    def read_source(content: bytes) -> None:
        path = place / "s.toml"
        path.write_bytes(content)
        parse(path)

    def read_signed(content: bytes) -> None:
        valid(read_signature(content))

    whole = pa.table({"who": ["a"], "age": [1.0], "seen": ["2021-01-01"], "city": ["Oslo"]})
    parquet.write_table(whole, place / "t.parquet")
    signature = model.with_name(model.name + ".sig").read_bytes()
    card = header(model.read_bytes()).get("card") or _card()
    return [
        Reader("csv", (CSV, CSV.replace(b"\n", b"\r\n")), read_rows("t.csv"), (TaskError,)),
        Reader(
            "parquet",
            ((place / "t.parquet").read_bytes(),),
            read_rows("u.parquet"),
            (TaskError,),
        ),
        Reader("source-toml", (SOURCE,), read_source, (TaskError,)),
        Reader("signature", (signature,), read_signed, (SigningError,), "json"),
        Reader(
            "card",
            (card.encode(),),
            lambda content: Card.from_json(content.decode("utf-8", "replace")),
            (CardError,),
            "json",
        ),
        *_reports(folder / "reported"),
    ]


def _reports(folder: Path) -> list[Reader]:
    """Each file of a report; a changed one must be told, never be a traceback."""
    _, out, _ = file_report([run_folder(folder)])
    assert verify(out).sound
    kept = folder.with_name("kept")
    shutil.copytree(out, kept)

    def reader(path: Path) -> Reader:
        name = path.relative_to(out)

        def read(content: bytes) -> None:
            path.write_bytes(content)
            try:
                sound = verify(out).sound
            finally:
                shutil.copyfile(kept / name, path)
            if sound and not _same(content, (kept / name).read_bytes(), path.suffix):
                raise AssertionError(f"a changed {name} is sound")

        form = "json" if path.suffix in (".json", ".sig") else "bytes"
        return Reader(f"report-{path.name}", (path.read_bytes(),), read, (ReportError,), form)

    names: dict[str, Path] = {}
    for path in sorted(out.rglob("*")):
        if path.is_file() and path.suffix in (".json", ".jsonl", ".sig", ".toml"):
            names.setdefault(path.name, path)
    return [reader(path) for path in names.values()]


def _same(one: bytes, other: bytes, suffix: str) -> bool:
    """Whether two contents say the same: a signature is one however its JSON is laid out."""
    return one == other or (suffix == ".sig" and json.loads(one) == json.loads(other))


def _card() -> str:
    return Card(
        **dict.fromkeys(("task", "kind", "label", "run", "plan", "unit", "purpose"), "x"),
        **dict.fromkeys(("model", "signer"), "x"),
        classes=("a", "b"),
        inputs=("x",),
        shape=(1,),
        schema=None,
        round=1,
        delta=1e-5,
        epsilon=1.0,
        sites={"a": {"epsilon": 1.0, "delta": 1e-5}},
        metrics={},
    ).to_json()
