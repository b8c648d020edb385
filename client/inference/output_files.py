"""Predictions to a file or a stream: CSV, Parquet or JSON lines; complete or absent.

Columns: the site's own id column where it has one, `row` (from 1 through the file), and what
`client.inference.decoded_columns` makes of the model's outputs.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Final, TextIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as parquet

from client.inference.predictor import Predictions
from privacy.files import open_atomic

FORMATS: Final = (".csv", ".parquet", ".jsonl", ".ndjson")
HELD: Final = 32 * 2**20
"""Bytes of a stream's rows that wait in memory; more wait in a file without a name."""

_FORMULA: Final = r"^[=+\-@\t\r]"
_NUMBER: Final = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"

Write = Callable[[Predictions], None]


class WritingError(ValueError):
    """A place or a form that predictions cannot be written to."""


def table(part: Predictions, *, safe: bool = False) -> Any:
    """The rows as a table; with `safe`, no spreadsheet would run a text as a formula."""
    columns: dict[str, Any] = {}
    if part.ids is not None:
        columns[part.ids_name] = part.ids
    columns |= {"row": pa.array(part.rows)} | part.columns
    return pa.table({name: _plain(values, safe) for name, values in columns.items()})


def _plain(values: Any, safe: bool) -> Any:
    """A column of classes as texts; each class is looked at once, whatever the number of rows."""
    if isinstance(values, pa.ChunkedArray) and pa.types.is_dictionary(values.type):
        values = pc.cast(values, values.type.value_type)
    if not isinstance(values, pa.DictionaryArray):
        return _without_formulas(values) if safe else values
    classes = values.dictionary
    return (_without_formulas(classes) if safe else classes).take(values.indices)


def records(part: Predictions) -> list[dict[str, Any]]:
    """Each row as a JSON object's content."""
    batch = table(part)
    for index, name in enumerate(batch.column_names):
        if not pa.types.is_primitive(batch.column(index).type):
            text = pc.cast(batch.column(index), pa.string())
            batch = batch.set_column(index, name, text)
        elif pa.types.is_temporal(batch.column(index).type):
            batch = batch.set_column(index, name, pc.cast(batch.column(index), pa.string()))
    rows: list[dict[str, Any]] = batch.to_pylist()
    return rows


def json_lines(part: Predictions) -> Iterator[str]:
    """Each row as one JSON object."""
    for record in records(part):
        yield json.dumps(record)


@contextmanager
def writing(path: Path) -> Iterator[Write]:
    """A function that adds predictions to `path`; the file appears when all are written."""
    if path.suffix not in FORMATS:
        raise WritingError(f"out: expected a name that ends with {', '.join(FORMATS)}, got {path}")
    try:
        with open_atomic(path, durable=False) as file, ExitStack() as opened:
            if path.suffix == ".parquet":
                yield _parquet(opened, file)
            else:
                yield _lines(file, as_csv=path.suffix == ".csv")
    except OSError as error:
        raise WritingError(
            f"{path}: expected a place to write to, got {error.strerror or error} (--out elsewhere)"
        ) from error


@contextmanager
def held_back(stdout: TextIO, *, as_csv: bool, before: str = "") -> Iterator[Write]:
    """A function that adds predictions to a stream, which gets them when all are made.

    So nothing is on it where a later row turns out not to fit. Without `as_csv` they are a JSON
    list, after the text `before`.
    """
    with tempfile.SpooledTemporaryFile(HELD, prefix="tacit-") as file:
        yield _lines(file, as_csv=True) if as_csv else _listed(file)
        file.seek(0)
        if as_csv:  # the same bytes as in a file, whatever the terminal can show
            stdout.flush()
            while content := file.read(2**20):
                stdout.buffer.write(content)
            return
        stdout.write(f"{before}[")
        while content := file.read(2**20):
            stdout.write(content.decode())
        stdout.write("]")


def _listed(file: IO[bytes]) -> Write:
    separator = ""

    def objects(part: Predictions) -> None:
        nonlocal separator
        for line in json_lines(part):
            file.write((separator + line).encode())
            separator = ",\n"

    return objects


def _lines(file: IO[bytes], *, as_csv: bool) -> Write:
    begun = False

    def csv_lines(part: Predictions) -> None:
        nonlocal begun
        batch = table(part, safe=True)
        if not begun:
            file.write(_header(batch.column_names))
        begun = True
        options = pacsv.WriteOptions(include_header=False, quoting_style="needed")
        sink = pa.BufferOutputStream()
        pacsv.write_csv(batch, sink, options)
        file.write(sink.getvalue())

    def objects(part: Predictions) -> None:
        file.write("".join(line + "\n" for line in json_lines(part)).encode())

    return csv_lines if as_csv else objects


def _without_formulas(column: Any) -> Any:
    """Texts that a spreadsheet would run as a formula, behind an apostrophe; numbers stay."""
    kind = column.type
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if not any(holds(kind) for holds in texts):
        return column
    column = pc.cast(column, pa.string())
    runs = pc.and_(
        pc.match_substring_regex(column, _FORMULA),
        pc.invert(pc.match_substring_regex(column, _NUMBER)),
    )
    return pc.if_else(runs, pc.binary_join_element_wise("'", column, ""), column)


def _header(names: list[str]) -> bytes:
    """The names of the columns, quoted where they have to be."""
    quoted = [
        '"' + name.replace('"', '""') + '"' if set(name) & set('",\r\n') else name for name in names
    ]
    return (",".join(quoted) + "\n").encode()


def _parquet(opened: ExitStack, file: IO[bytes]) -> Write:
    writer: Any = None

    def write(part: Predictions) -> None:
        nonlocal writer
        batch = table(part)
        if writer is None:
            writer = opened.enter_context(parquet.ParquetWriter(file, batch.schema))
        writer.write_table(batch.cast(writer.schema))

    return write
