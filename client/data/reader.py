"""One reader for training, evaluation and prediction: the same bytes, the same rows or refusal.

A source is a file, several files, a folder or a database's answer; its rows come as pyarrow tables
under the schema's names, in the schema's spelling (`client.data.source`), each with its place. What
cannot be read as the rows that it holds is refused in one line, without a value.
"""

import zlib
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from client.data import spelling
from client.data.formats import columnar
from client.data.formats.text import read_text
from client.data.source import Options, options_of
from client.data.wanted import Piece, Wanted
from client.tasks.rows import NoRows, TaskError

BROKEN: Final = (OSError, EOFError, zlib.error, pa.ArrowException, KeyError)
"""What reading a damaged file raises."""
_TABLES: Final = (".csv", ".tsv", ".txt", ".data", ".parquet", ".arrow", ".arrows", ".feather")
_ABOUT: Final = frozenset({"readme", "source", "license", "licence", "names"})
"""Files of these names tell about a table and are none."""
_PACKED: Final = (".gz", ".zst", ".bz2")


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Some rows: row i of `table` is row `numbers[i]` of the source, from 1.

    `faults` are rows that are no rows of the table's form, with what was expected (only where the
    reader was lenient); `place(number)` says where a row stands; `done` is the part read so far,
    `lines` what was read for these rows.
    """

    table: Any
    numbers: NDArray[np.int64]
    faults: tuple[tuple[int, str], ...]
    place: Callable[[int], str]
    done: float
    lines: int


def read(
    path: Path,
    wanted: Wanted,
    *,
    options: Options | None = None,
    lenient: bool = False,
    by_line: bool = False,
) -> Iterator[Batch]:
    """The rows of a source, batch after batch; TaskError, one line, where it cannot be read.

    `lenient` notes rows of the wrong form as faults instead of refusing the file. So does
    `by_line`, of each line by itself: no line can change how another one is read.
    """
    options = options_of(path) if options is None else options
    first, seen = 1, 0
    places = sources(path, options)
    for index, place in enumerate(places):
        pieces = _pieces(place, wanted, options, lenient, by_line)
        with closing(_ahead(pieces)) as ahead:
            for piece in ahead:
                table = spelling.respelled(piece.table, wanted, options)
                count = table.num_rows + len(piece.bad)
                at = np.arange(first, first + count)
                numbers = np.delete(at, [row for row, _ in piece.bad]) if piece.bad else at
                done = (index + piece.done) / len(places)
                words = _words(piece.place, first, place if len(places) > 1 else None)
                faults = tuple((first + row, expected) for row, expected in piece.bad)
                yield Batch(table, numbers, faults, words, done, piece.lines)
                first += count
                seen += count
    if not seen:
        raise NoRows(f"{path}: expected rows, found none")


def sources(path: Path, options: Options) -> list[Path]:
    """The files of a source, in their order; the source itself where it is a database's answer."""
    if options.query:
        return [path]
    if not path.exists():
        raise TaskError(f"{path}: expected a file or a folder, found none")
    if options.files:
        return [source for name in options.files for source in _named(name)]
    if not path.is_dir():
        return [path]
    tables = sorted(file for file in path.iterdir() if is_table(file))
    if len(tables) != 1:
        raise TaskError(
            f"{path}: expected one table in the folder, or files = [..] in its source.toml, "
            f"found {len(tables)}"
        )
    return tables


def is_table(file: Path) -> bool:
    """Whether a file's name is that of a table."""
    name = file.name
    for packed in _PACKED:
        name = name.removesuffix(packed)
    if not file.is_file() or file.name.startswith(".") or Path(name).stem.lower() in _ABOUT:
        return False
    return Path(name).suffix in _TABLES


def _named(path: Path) -> list[Path]:
    """The file of a name in `files`, or those of a pattern."""
    if "*" not in path.name:
        return [path]
    files = sorted(path.parent.glob(path.name))
    if not files:
        raise TaskError(f"{path}: expected files of this name, found none")
    return files


def _pieces(
    path: Path, wanted: Wanted, options: Options, lenient: bool, by_line: bool
) -> Iterator[Piece]:
    try:
        if options.query:
            from client.data.formats.sql import answer  # an extra, loaded where it is asked for

            yield from answer(path, wanted, options, by_row=by_line)
            return
        if not path.is_file():
            raise TaskError(f"expected a file, found {'a folder' if path.is_dir() else 'none'}")
        form = columnar.form(path)
        if form is not None:
            yield from columnar.read(path, form, wanted, options)
        else:
            yield from read_text(path, wanted, options, lenient=lenient, by_line=by_line)
    except TaskError as error:
        known = str(error).startswith(str(path))
        raise TaskError(str(error) if known else f"{path}: {error}") from None
    except BROKEN as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "damaged"
        raise TaskError(f"{path}: expected a whole file that can be read, got one {why}") from None


def _ahead(pieces: Iterator[Piece]) -> Generator[Piece, None, None]:
    """The same, the next one read while this one is worked on."""
    with ThreadPoolExecutor(1, thread_name_prefix="reader") as pool:
        coming = pool.submit(next, pieces, None)
        while (piece := coming.result()) is not None:
            coming = pool.submit(next, pieces, None)
            yield piece


def _words(place: Callable[[int], str], first: int, file: Path | None) -> Callable[[int], str]:
    def words(number: int) -> str:
        text = place(number - first)
        return text if file is None else f"{file.name}, {text}"

    return words
