"""Parquet and Arrow files as raw columns, some rows at a time."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as parquet

from client.data.source import Options
from client.data.values import plain
from client.data.wanted import Piece, Wanted
from client.tasks.rows import TaskError

ROWS: Final = 65536
"""Rows of a piece."""
_MAGIC: Final = ((b"PAR1", "Parquet"), (b"ARROW1", "Arrow"), (b"\xff\xff\xff\xff", "Arrow stream"))
_SUFFIXES: Final = {
    ".parquet": "Parquet",
    ".arrow": "Arrow",
    ".feather": "Arrow",
    ".arrows": "Arrow stream",
}


def form(path: Path) -> str | None:
    """Which of these forms a file has, by its first bytes or its name; None for text."""
    with path.open("rb") as file:
        head = file.read(8)
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    named = _SUFFIXES.get(path.suffix) or _SUFFIXES.get(Path(path.stem).suffix)
    packed = path.suffix in (".gz", ".zst", ".bz2")
    if packed and named == "Parquet":
        raise TaskError("expected a Parquet file as it is, got a packed one (unpack it)")
    return "Arrow stream" if packed and named == "Arrow stream" else None if packed else named


def read(path: Path, form: str, wanted: Wanted, options: Options) -> Iterator[Piece]:
    """The wanted columns of a file, under the schema's names."""
    try:
        if form == "Parquet":
            yield from _parquet(path, wanted, options)
        else:
            yield from _arrow(path, form, wanted, options)
    except (pa.ArrowException, KeyError, OSError, UnicodeDecodeError) as error:
        raise TaskError(f"expected a whole {form} file, got a damaged one") from error


def _parquet(path: Path, wanted: Wanted, options: Options) -> Iterator[Piece]:
    with parquet.ParquetFile(path) as file:
        columns = chosen(file.schema_arrow.names, wanted, options)
        check_types(file.schema_arrow, columns)
        total = max(file.metadata.num_rows, 1)
        batches = file.iter_batches(ROWS, columns=list(columns))
        yield from numbered((pa.Table.from_batches([batch]) for batch in batches), columns, total)


def _arrow(path: Path, form: str, wanted: Wanted, options: Options) -> Iterator[Piece]:
    if form == "Arrow stream":
        with pa.input_stream(str(path)) as stream, pa.ipc.open_stream(stream) as reader:
            columns = chosen(reader.schema.names, wanted, options)
            check_types(reader.schema, columns)
            tables = (pa.Table.from_batches([batch]).select(list(columns)) for batch in reader)
            yield from numbered(tables, columns, 0)
        return
    with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped) as reader:
        columns = chosen(reader.schema.names, wanted, options)
        check_types(reader.schema, columns)
        count = reader.num_record_batches
        total = sum(reader.get_batch(i).num_rows for i in range(count))
        tables = (
            pa.Table.from_batches([reader.get_batch(i)]).select(list(columns)) for i in range(count)
        )
        yield from numbered(tables, columns, max(total, 1))


def chosen(names: Sequence[str], wanted: Wanted, options: Options) -> dict[str, str]:
    """The wanted columns of a file: its name of each -> the schema's."""
    columns = set(wanted.columns)
    titles = [options.rename.get(name, name).strip() for name in names]
    every = [title if title in columns else plain(title) for title in titles]
    known = dict(zip(names, every, strict=True))
    counts = Counter(every)
    doubled = next((name for name in every if name in columns and counts[name] > 1), None)
    if doubled is not None:
        raise TaskError(f"expected distinct column names, got {doubled!r} twice")
    selection = {name: column for name, column in known.items() if column in columns}
    require(set(selection.values()), wanted, every)
    return selection


def require(columns: set[str], wanted: Wanted, names: Sequence[str] = ()) -> None:
    """Refuse a file that lacks a column; a name of the file that was meant is told."""
    missing = [name for name in wanted.required if name not in columns]
    if missing:
        more = f" (and {len(missing) - 1} more)" if missing[1:] else ""
        raise TaskError(
            f"expected a column named {missing[0]!r}{more}, found none{_meant(missing[0], names)}"
        )


def _meant(wanted: str, names: Sequence[str]) -> str:
    """What may stand in a file in the place of a column; never any other of its texts."""
    if names and names[0].casefold().startswith("sep="):
        return ": its first line is Excel's sep=, delete that line"
    if any(_letters(name) == _letters(wanted) for name in names):
        return " but one that is spelt otherwise (give [rename] in source.toml)"
    return ""


def _letters(name: str) -> str:
    return "".join(c for c in plain(name).casefold() if c.isalnum())


def check_types(schema: Any, columns: dict[str, str]) -> None:
    """Refuse columns that are neither text, numbers nor dates, by name."""
    for name, column in columns.items():
        kind = schema.field(name).type
        inner = kind.value_type if pa.types.is_dictionary(kind) else kind
        if pa.types.is_nested(inner) or "binary" in str(inner):
            what = "nested values" if pa.types.is_nested(inner) else "binary ones"
            raise TaskError(f"column {column}: expected text, numbers or dates, got {what}")


def numbered(tables: Iterator[Any], columns: dict[str, str], total: int) -> Iterator[Piece]:
    """Pieces of at most so many rows, known by number."""
    done = 0
    for whole in tables:
        for start in range(0, whole.num_rows, ROWS):
            table = whole.slice(start, ROWS)
            table = table.rename_columns([columns.get(name, name) for name in table.column_names])
            place = partial(row_place, done)
            done += table.num_rows
            yield Piece(table, (), place, done / total if total else 0.0, table.num_rows)


def row_place(before: int, row: int) -> str:
    """Where a row of a piece stands that has so many rows before it."""
    return f"row {before + row + 1}"
