"""The columns of a source and what kind of values each holds; no value is kept or returned."""

from collections import Counter
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as parquet

from client.data.formats import columnar
from client.data.formats.csv import DELIMITERS, split_header
from client.data.formats.dialect import Dialect
from client.data.formats.records import utf8
from client.data.formats.text import dialect_of, first_record, unpacked
from client.data.source import Options
from client.data.values import ABSENT, is_number
from client.data.wanted import Wanted
from client.tasks.rows import TaskError

LOOKED_AT: Final = 2**20
"""Bytes of a text file whose values say what kind a column is of."""
_NONE: Final = Wanted(required=())


def columns_of(path: Path, options: Options) -> tuple[list[tuple[str, str]], str]:
    """Names and kinds (number, boolean, date, text) of a file's columns, and a CSV's delimiter.

    TaskError where it has no header of distinct printable names.
    """
    form = columnar.form(path)
    try:
        if form is None:
            columns, delimiter = _of_text(path, options)
        else:
            columns, delimiter = (
                [(field.name, _kind(field.type)) for field in _schema(path, form)],
                "",
            )
    except (pa.ArrowException, OSError):
        raise TaskError("expected a whole file that can be read, got a damaged one") from None
    columns = [(options.rename.get(name.strip(), name.strip()), kind) for name, kind in columns]
    for at, (name, _) in enumerate(columns):
        if not name or not name.isprintable() or len(name) > 200:
            raise TaskError(f"column {at + 1}: expected a printable name of at most 200 characters")
    twice = [name for name, count in Counter(name for name, _ in columns).items() if count > 1]
    if twice:
        raise TaskError(f"expected distinct column names, got {twice[0]!r} twice")
    return columns, delimiter


def _schema(path: Path, form: str) -> Any:
    if form == "Parquet":
        return parquet.read_schema(path)
    with pa.input_stream(str(path)) as stream:
        if form == "Arrow stream":
            with pa.ipc.open_stream(stream) as reader:
                return reader.schema
    with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped) as reader:
        return reader.schema


def _of_text(path: Path, options: Options) -> tuple[list[tuple[str, str]], str]:
    with path.open("rb") as raw, unpacked(raw) as stream:
        dialect = dialect_of(path, _NONE, options)
        chunks = utf8(stream, dialect.encoding)
        header, rest, _ = first_record(chunks, dialect, "")
        rest = rest or next(chunks, b"")
    if b"\0" in header or not header.strip():
        raise TaskError("expected a header line of column names, found none")
    if options.header:
        return [(name, kind) for name, kind in _typed(list(options.header), header, dialect)], ""
    delimiter = dialect.delimiter
    if "delimiter" not in options.declared:
        delimiter = max(DELIMITERS, key=lambda mark: len(split_header(header, dialect, mark)))
    names = [name.strip() for name in split_header(header, dialect, delimiter)]
    if any(is_number(name) or name in ABSENT for name in names):
        raise TaskError(
            "expected a header line of column names, got one with values "
            "(header = [..] in source.toml)"
        )
    part = rest[: rest.rfind(b"\n", 0, LOOKED_AT) + 1] or rest[:LOOKED_AT]
    style = Dialect(delimiter, dialect.quote, dialect.escape, "utf-8", dialect.decimal)
    return _typed(names, part, style), "" if delimiter in (",", dialect.delimiter) else delimiter


def _typed(names: list[str], part: bytes, dialect: Dialect) -> list[tuple[str, str]]:
    """What pyarrow takes the columns of some rows for; text where it cannot read them."""
    places = [str(at) for at in range(len(names))]
    try:
        table = pacsv.read_csv(
            pa.BufferReader(part),
            read_options=pacsv.ReadOptions(column_names=places, block_size=len(part) + 1),
            parse_options=pacsv.ParseOptions(
                delimiter=dialect.delimiter,
                quote_char=dialect.quote or False,
                escape_char=dialect.escape or False,
                newlines_in_values=True,
                invalid_row_handler=lambda row: "skip",
            ),
            convert_options=pacsv.ConvertOptions(
                null_values=sorted(ABSENT),
                strings_can_be_null=True,
                decimal_point=dialect.decimal,
            ),
        )
    except pa.ArrowException:
        return [(name, "text") for name in names]
    return [(name, _kind(kind)) for name, kind in zip(names, table.schema.types, strict=True)]


def _kind(kind: Any) -> str:
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    return "date" if pa.types.is_date(kind) or pa.types.is_timestamp(kind) else "text"
