"""Predictions to a file or a stream: CSV, Parquet or JSON lines; complete or absent.

Columns: the site's own id column where it has one, `row` (from 1 through the file), and what
`client.inference.decoded_columns` makes of the model's outputs.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal, TextIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as parquet

from client.scoring.predictions import Predictions
from privacy.files import open_atomic

FORMATS: Final = (".csv", ".parquet", ".jsonl", ".ndjson")
HELD: Final = 32 * 2**20
"""Bytes of a stream's rows that wait in memory; more wait in a file without a name."""

_FORMULA: Final = r"^[=+\-@\t\r]"
_NUMBER: Final = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"

Form = Literal["csv", "lines", "objects", "parquet"]
"""CSV, a JSON object a line, the objects of a JSON list, Parquet."""


@dataclass(frozen=True, slots=True, eq=False)
class Formatted:
    """Some predictions in the form of an output, made anywhere, to be written in their order.

    `content` is its text, or an Arrow table where that is for Parquet; `names` is CSV's first line.
    """

    content: Any
    names: bytes = b""


Write = Callable[[Formatted], None]


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


def form_of(path: Path | None, *, as_json: bool = False) -> Form:
    """The form of a file by its name, or of a stream; WritingError for a name that has none."""
    if path is None:
        return "objects" if as_json else "csv"
    if path.suffix not in FORMATS:
        raise WritingError(f"out: expected a name that ends with {', '.join(FORMATS)}, got {path}")
    if path.suffix == ".parquet":
        return "parquet"
    return "csv" if path.suffix == ".csv" else "lines"


def formatted(part: Predictions, form: Form) -> Formatted:
    """Predictions in a form."""
    if form == "parquet":
        return Formatted(table(part))
    if form == "csv":
        batch = table(part, safe=True)
        options = pacsv.WriteOptions(include_header=False, quoting_style="needed")
        sink = pa.BufferOutputStream()
        pacsv.write_csv(batch, sink, options)
        return Formatted(sink.getvalue().to_pybytes(), _header(batch.column_names))
    lines = json_lines(part)
    text = ",\n".join(lines) if form == "objects" else "".join(f"{line}\n" for line in lines)
    return Formatted(text.encode())


@contextmanager
def writing(path: Path) -> Iterator[Write]:
    """A function that adds predictions to `path`; the file appears when all are written."""
    form = form_of(path)
    try:
        with open_atomic(path, durable=False) as file, ExitStack() as opened:
            yield _parquet(opened, file) if form == "parquet" else _text(file, form)
    except OSError as error:
        raise WritingError(
            f"{path}: expected a place to write to, got {error.strerror or error} (--out elsewhere)"
        ) from error


@contextmanager
def held_back(stdout: TextIO, *, form: Form, before: str = "") -> Iterator[Write]:
    """A function that adds predictions to a stream, which gets them when all are made.

    So nothing is on it where a later row turns out not to fit. Objects are a JSON list, after the
    text `before`.
    """
    with tempfile.SpooledTemporaryFile(HELD, prefix="tacit-") as file:
        yield _text(file, form)
        file.seek(0)
        if form == "csv":  # the same bytes as in a file, whatever the terminal can show
            stdout.flush()
            while content := file.read(2**20):
                stdout.buffer.write(content)
            return
        stdout.write(f"{before}[")
        while content := file.read(2**20):
            stdout.write(content.decode())
        stdout.write("]")


def _text(file: IO[bytes], form: Form) -> Write:
    begun = False

    def write(part: Formatted) -> None:
        nonlocal begun
        if form == "csv" and not begun:
            file.write(part.names)
        elif form == "objects" and begun and part.content:
            file.write(b",\n")
        begun = begun or form == "csv" or bool(part.content)
        file.write(part.content)

    return write


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

    def write(part: Formatted) -> None:
        nonlocal writer
        if writer is None:
            writer = opened.enter_context(parquet.ParquetWriter(file, part.content.schema))
        writer.write_table(part.content.cast(writer.schema))

    return write
