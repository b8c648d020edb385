"""The rows to predict, read piece by piece whatever the file's size, each with its place in it.

A row that does not fit is reported by its line and field, never by its value, and never dropped
unseen: lines of the wrong length count as misfits like wrong values do.
"""

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as parquet
from numpy.typing import NDArray
from torch import Tensor

from client.data.input_arrays import ArraysError, arrays
from client.tasks.rows import TaskError
from client.tasks.task import Task

BLOCK: Final = 4 * 2**20
"""Bytes of a text file parsed at once."""
LONGEST: Final = 64 * 2**20
"""Bytes of the longest record, quoted line breaks included."""
DELIMITERS: Final = (",", ";", "\t", "|")
ROWS: Final = 16384
"""Rows of a binary file encoded at once."""
_BROKEN: Final = (OSError, EOFError, zlib.error, pa.ArrowException)


@dataclass(frozen=True, slots=True)
class Fault:
    """One field that does not fit: the row (from 1), where it stands, and what was expected."""

    row: int
    place: str
    column: str
    expected: str

    def __str__(self) -> str:
        return f"{self.place}, {self.column}: expected {self.expected}"


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Encoded rows: `rows` are their numbers in the file, from 1; `done` is the part read."""

    x: Tensor
    y: Tensor | None
    rows: NDArray[np.int64]
    groups: list[str] | None
    faults: tuple[Fault, ...]
    done: float
    raw: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """Raw columns: row i of the table is row `numbers[i]` of the file."""

    table: Any
    numbers: NDArray[np.int64]
    ragged: tuple[tuple[int, int, int], ...]
    place: Callable[[int], str]
    done: float


def chunks(
    task: Task, path: Path, *, labels: bool = False, group: str | None = None
) -> Iterator[Chunk]:
    """The rows of a file or folder in the task's encoding; TaskError, one line, if it has none.

    Without `labels` a label column is not looked at, so that rows without labels fit.
    """
    if not path.exists():
        raise TaskError(f"{path}: expected a file or a folder, found none")
    try:
        for piece in _pieces(task, path, group):
            yield _encoded(task, piece, labels, group)
    except _BROKEN as error:
        raise TaskError(f"{path}: expected a whole file, got a damaged one") from error
    except (ArraysError, TaskError) as error:
        known = str(error).startswith(str(path))
        raise TaskError(str(error) if known else f"{path}: {error}") from error


def _encoded(task: Task, piece: _Piece, labels: bool, group: str | None) -> Chunk:
    table = piece.table
    if task.label in table.column_names and not labels and task.label not in task.inputs:
        table = table.drop_columns([task.label])
    encoded = task.encode(table)
    if labels and encoded.y is None:
        raise TaskError(f"expected a column of labels named {task.label!r}, found none")
    groups = None
    if group is not None:
        if group not in table.column_names:
            raise TaskError(f"expected a column named {group!r} to group by, found none")
        values = table.column(group).take(pa.array(encoded.kept)).to_pylist()
        groups = ["" if value is None else str(value).strip() for value in values]
    faults = [
        Fault(number, piece.place(number), "the line", f"{wanted} values, got {got}")
        for number, wanted, got in piece.ragged
    ]
    for misfit in encoded.misfits:
        number = int(piece.numbers[misfit.row])
        faults.append(Fault(number, piece.place(number), misfit.column, misfit.expected))
    faults.sort(key=lambda fault: fault.row)
    rows = piece.numbers[encoded.kept]
    return Chunk(encoded.x, encoded.y, rows, groups, tuple(faults), piece.done, encoded.raw)


def _pieces(task: Task, path: Path, group: str | None) -> Iterator[_Piece]:
    if path.is_dir() or path.suffix not in (".csv", ".tsv", ".txt", ".parquet", ".data"):
        found = arrays(task, path, ROWS)
        if found is not None:
            yield from _numbered(found)
            return
    if path.is_dir():
        raise TaskError(f"expected a file of {task.name}'s rows, got a folder")
    if path.suffix == ".parquet":
        yield from _parquet(task, path, group)
        return
    with _open(path) as file:
        line = file.readline(LONGEST).decode("utf-8-sig", "replace")
    names, delimiter = _header(line, task.inputs)
    if not set(names) & set(task.inputs):
        yield from _own(task, path, names)
        return
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise TaskError(f"expected distinct column names, got {doubled[0]!r} twice")
    missing = [name for name in task.inputs if name not in names]
    if missing:
        more = f" (and {len(missing) - 1} more)" if missing[1:] else ""
        raise TaskError(f"expected a column named {missing[0]!r}{more}, found none")
    columns = list(dict.fromkeys([*task.inputs, task.label, *([group] if group else [])]))
    yield from _text(path, names, [name for name in columns if name in names], delimiter)


def _numbered(tables: Iterator[tuple[Any, float, Sequence[str] | None]]) -> Iterator[_Piece]:
    """Pieces of a source without lines: rows are known by number, files by name."""
    first = 1
    for table, done, places in tables:
        numbers = np.arange(first, first + table.num_rows)

        def place(number: int, names: Sequence[str] | None = places, start: int = first) -> str:
            return f"row {number}" if names is None else names[number - start]

        yield _Piece(table, numbers, (), place, done)
        first += table.num_rows


def _own(task: Task, path: Path, names: Sequence[str]) -> Iterator[_Piece]:
    """A file in the form that the task's data came in, without the schema's header."""
    try:
        yield from _numbered((table, 0.0, None) for table in task.read(path))
    except TaskError as error:
        raise TaskError(
            f"{path}: expected the columns {', '.join(task.inputs[:3])}.., got {len(names)} others"
        ) from error


def _parquet(task: Task, path: Path, group: str | None) -> Iterator[_Piece]:
    with parquet.ParquetFile(path) as file:
        columns = [*task.inputs, task.label, *([group] if group else [])]
        kept = [name for name in dict.fromkeys(columns) if name in file.schema_arrow.names]
        total, read = max(file.metadata.num_rows, 1), 0
        tables = (pa.Table.from_batches([batch]) for batch in file.iter_batches(ROWS, columns=kept))
        for piece in _numbered((table, 0.0, None) for table in tables):
            read += piece.table.num_rows
            yield _Piece(piece.table, piece.numbers, (), piece.place, read / total)


def _open(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if packed else path.open("rb")  # type: ignore[return-value]


def _header(line: str, wanted: Sequence[str]) -> tuple[list[str], str]:
    """The names of a header line and the delimiter by which most of them are wanted ones."""
    found: list[tuple[int, list[str], str]] = []
    for delimiter in DELIMITERS:
        try:
            names = next(csv.reader([line], delimiter=delimiter), [])
        except csv.Error as error:
            raise TaskError("expected a header line of column names, got another text") from error
        names = [name.strip() or f"unnamed {i}" for i, name in enumerate(names)]
        found.append((len(set(names) & set(wanted)), names, delimiter))
    _, names, delimiter = max(found, key=lambda one: one[0])
    if not line.strip() or "\x00" in line:
        raise TaskError("expected a header line of column names, found none")
    return names, delimiter


def _text(
    path: Path, names: Sequence[str], columns: Sequence[str], delimiter: str
) -> Iterator[_Piece]:
    """A CSV file in blocks of whole records; lines are counted only where they are needed."""
    size = max(path.stat().st_size, 1)
    with path.open("rb") as raw, _layer(raw) as file:
        file.readline(LONGEST)
        rows, line = 1, 2
        for block in _blocks(file):
            table, ragged = _parsed(block, names, columns, delimiter)
            count = table.num_rows + len(ragged)
            numbers = np.arange(rows, rows + count)
            wrong = tuple((rows + at, wanted, got) for at, wanted, got in ragged)
            kept = np.delete(numbers, [at for at, _, _ in ragged])
            yield _Piece(table, kept, wrong, _Lines(block, rows, line), raw.tell() / size)
            rows += count
            line += block.count(b"\n")
    if rows == 1:
        raise TaskError("expected rows, found none")


def _layer(raw: BinaryIO) -> BinaryIO:
    packed = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    return gzip.GzipFile(fileobj=raw) if packed else raw  # type: ignore[return-value]


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    """Blocks that end with a record: after a line break that no quotes enclose."""
    rest = b""
    while more := file.read(BLOCK):
        rest += more
        end = len(rest)
        while (end := rest.rfind(b"\n", 0, end)) >= 0 and rest.count(b'"', 0, end) % 2:
            pass
        if end >= 0:
            yield rest[: end + 1]
            rest = rest[end + 1 :]
        if len(rest) > LONGEST:
            raise TaskError(f"expected records of at most {LONGEST} bytes, got a longer one")
    if rest.strip():
        yield rest


def _parsed(
    block: bytes, names: Sequence[str], columns: Sequence[str], delimiter: str
) -> tuple[Any, list[tuple[int, int, int]]]:
    """A block's columns as text, and of each line of the wrong length its index and lengths."""
    ragged: list[tuple[int, int, int]] = []

    def note(row: Any) -> str:
        ragged.append((row.number - 1, row.expected_columns, row.actual_columns))
        return "skip"

    if not block.strip():
        return pa.table({name: pa.array([], pa.string()) for name in columns}), []
    try:
        block.decode("utf-8")
    except UnicodeDecodeError:
        # Values with bytes that are no UTF-8 will not fit; the others still do.
        block = block.decode("utf-8", "replace").encode()
    table = pacsv.read_csv(
        io.BytesIO(block),
        read_options=pacsv.ReadOptions(
            column_names=list(names), use_threads=False, block_size=2 * len(block) + 1
        ),
        parse_options=pacsv.ParseOptions(
            delimiter=delimiter, newlines_in_values=True, invalid_row_handler=note
        ),
        convert_options=pacsv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), include_columns=list(columns)
        ),
    )
    return table, ragged


class _Lines:
    """The line of a row of one block, found by counting once, and only if somebody asks."""

    def __init__(self, block: bytes, row: int, line: int) -> None:
        self.block, self.row, self.line = block, row, line
        self.starts: NDArray[np.int64] | None = None

    def __call__(self, row: int) -> str:
        if self.starts is None:
            self.starts = self._starts()
        return f"line {self.line + int(self.starts[row - self.row])}"

    def _starts(self) -> NDArray[np.int64]:
        inside, starts = False, []
        for index, text in enumerate(self.block.split(b"\n")):
            if not inside and text.rstrip(b"\r"):
                starts.append(index)
            inside ^= bool(text.count(b'"') % 2)
        return np.array(starts, dtype=np.int64)
