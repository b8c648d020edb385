"""Files to raw columns: CSV (plain or .gz) and Parquet, batch after batch; one line if that fails.

Parsing is pyarrow's; only where it refuses, or a value does not fit, are lines counted.
"""

import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TextIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as parquet
import torch

from client.tasks.preprocessing import Columns
from client.tasks.rows import Encoded, Rows, TaskError

BLOCK: Final = 16 * 2**20
"""Bytes of a CSV file read at once."""
BROKEN: Final = (OSError, EOFError, zlib.error, pa.ArrowInvalid, UnicodeDecodeError, csv.Error)
"""What reading a damaged file raises."""


def batches(
    path: Path, *, names: Sequence[str] | None = None, delimiter: str = ",", skip: int = 0
) -> Iterator[Any]:
    """The rows of a CSV or Parquet file as pyarrow tables (a CSV file's columns are text).

    `names` are the columns of a CSV file without a header line; `skip` first lines are passed over.
    """
    if not path.is_file():
        raise TaskError(f"{path}: expected a file, found {'a folder' if path.is_dir() else 'none'}")
    if ".parquet" in path.suffixes:
        yield from _parquet(path)
        return
    header = list(names) if names else _header(path, delimiter, skip)
    doubled = sorted({name for name in header if header.count(name) > 1})
    if doubled:
        raise TaskError(f"{path}: expected distinct column names, got {doubled[0]!r} twice")
    try:
        with (
            pa.input_stream(str(path), compression="detect") as stream,
            pacsv.open_csv(
                stream,
                read_options=pacsv.ReadOptions(
                    block_size=BLOCK, column_names=header, skip_rows=skip + (names is None)
                ),
                parse_options=pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
                convert_options=pacsv.ConvertOptions(
                    column_types=dict.fromkeys(header, pa.string())
                ),
            ) as reader,
        ):
            for batch in reader:
                yield pa.Table.from_batches([batch])
    except BROKEN as error:
        raise TaskError(_fault(path, header, delimiter, skip + (names is None))) from error


def _parquet(path: Path) -> Iterator[Any]:
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield pa.Table.from_batches([batch])
    except BROKEN as error:
        raise TaskError(f"{path}: expected a whole Parquet file, got a damaged one") from error


def encoded(path: Path, columns: Columns, tables: Iterator[Any]) -> Iterator[tuple[Any, Encoded]]:
    """Every table of a file with its encoding; rows count through the whole file."""
    for table in tables:
        try:
            yield table, columns.encode(table)
        except TaskError as error:
            raise TaskError(f"{path}: {error}") from error


def whole(
    path: Path,
    columns: Columns,
    tables: Iterator[Any],
    *,
    first: int = 2,
    drop_missing: bool = False,
    delimiter: str = ",",
) -> Rows:
    """All rows of a file, whose first row is on line `first`; the first misfit refuses the file.

    With `drop_missing`, rows whose values are missing are left out instead.
    """
    done, xs, ys = 0, [], []
    for table, batch in encoded(path, columns, tables):
        for misfit in batch.misfits:
            if not (drop_missing and misfit.absent):
                where = place(path, done + misfit.row, first, delimiter)
                raise TaskError(
                    f"{path}: {where}, column {misfit.column}: expected {misfit.expected}"
                )
        if batch.y is None:
            raise TaskError(f"{path}: expected a column named {columns.label.name!r}, found none")
        xs.append(batch.x)
        ys.append(batch.y)
        done += table.num_rows
    if not done:
        raise TaskError(f"{path}: expected rows, found none")
    return Rows(torch.cat(xs), torch.cat(ys))


def place(path: Path, row: int, first: int = 2, delimiter: str = ",") -> str:
    """Where row `row` (from 0) of a file stands, in words; `first` is the line of row 0."""
    if ".parquet" in path.suffixes:
        return f"row {row + 1}"
    with _text(path) as file:
        for _ in range(first - 1):
            next(file, None)
        reader = csv.reader(file, delimiter=delimiter)
        for number, _fields in enumerate(fields for fields in reader if fields):
            if number == row:
                return f"line {reader.line_num + first - 1}"
    return f"row {row + 1}"


def folder_file(path: Path | None, task: str, *names: str) -> Path:
    """The first of `names` that lies in the folder `path`."""
    if path is None:
        raise TaskError(f"data: expected the folder of {task}'s files ({names[0]}, ..), got none")
    if not path.exists():
        raise TaskError(f"{path}: expected the folder of {task}'s files, found none")
    for name in names:
        if (path / name).is_file():
            return path / name
    raise TaskError(f"{path / names[0]}: expected a file of {task}, found none")


def headed(path: Path, names: Sequence[str], comment: str | None = None) -> bool:
    """Whether a text file begins with a header line (of some of `names`) or with a comment."""
    if not path.is_file() or ".parquet" in path.suffixes:
        return comment is None
    try:
        with _text(path) as file:
            line = next(file, "")
    except BROKEN:
        return False
    if comment is not None and line.startswith(comment):
        return True
    return bool({field.strip() for field in line.split(",")} & set(names))


def _header(path: Path, delimiter: str, skip: int) -> list[str]:
    try:
        with _text(path) as file:
            for _ in range(skip):
                next(file, None)
            header = next(csv.reader(file, delimiter=delimiter), None)
    except BROKEN as error:
        raise TaskError(f"{path}: expected a text file (UTF-8), got a damaged one") from error
    if not header:
        raise TaskError(f"{path}: expected a header line of column names, found none")
    return [name.strip() for name in header]


def _fault(path: Path, header: list[str], delimiter: str, first: int) -> str:
    """Which line of a CSV file is wrong."""
    try:
        with _text(path) as file:
            for _ in range(first):
                next(file, None)
            reader = csv.reader(file, delimiter=delimiter)
            for fields in reader:
                if fields and len(fields) != len(header):
                    line = reader.line_num + first
                    return f"{path}: line {line}: expected {len(header)} values, got {len(fields)}"
            if not reader.line_num:
                return f"{path}: expected rows, found none"
    except BROKEN:
        return f"{path}: expected a whole text file (UTF-8), got a truncated or damaged one"
    return f"{path}: expected a CSV file with {len(header)} columns, got another format"


def _text(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return cast(TextIO, gzip.open(path, "rt", encoding="utf-8-sig", newline=""))
    return path.open(encoding="utf-8-sig", newline="")


def images(path: Path, magic: int, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An idx file of bytes (LeCun's format), plain or .gz, whose header has to match `shape`.

    A 0 in `shape` stands for any number.
    """
    try:
        packed = path.read_bytes()
        content = gzip.decompress(packed) if packed[:2] == b"\x1f\x8b" else packed
    except BROKEN as error:
        raise TaskError(f"{path}: expected a whole .gz file, got a damaged one") from error
    head = 4 + 4 * len(shape)
    if len(content) < head or int.from_bytes(content[:4], "big") != magic:
        raise TaskError(f"{path}: expected an idx file with magic number {magic}, got another")
    found = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, head, 4))
    if any(want not in (0, got) for want, got in zip(shape, found, strict=True)):
        raise TaskError(f"{path}: expected the shape {shape} (0: any), got {found}")
    size = int(np.prod(found))
    if len(content) - head != size or not size:
        raise TaskError(
            f"{path}: expected {size} bytes after its header, got {len(content) - head}"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=head).reshape(found)
