"""One reader for training, evaluation and prediction: the same bytes, the same rows or refusal.

A source is a file, several files, a folder or a database's answer; its rows come as pyarrow tables
under the schema's names, in the schema's spelling (`client.data.source`), each with its place. What
cannot be read as the rows that it holds is refused in one line, without a value.
"""

import zlib
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from client.data import spelling
from client.data.formats import columnar
from client.data.formats.text import Unparsed, text_blocks
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


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A part of a source as it was found: `batch` makes rows of it, in any order, anywhere.

    `source` is its file, one of `several`; `done` is the part of the whole read so far.
    """

    content: Piece | Unparsed
    source: Path
    several: bool
    done: float

    @property
    def rows(self) -> int:
        """How many rows it has, those of the wrong form included."""
        if isinstance(self.content, Unparsed):
            return self.content.rows
        return int(self.content.table.num_rows) + len(self.content.bad)


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
    first = 1
    found = parts(path, wanted, options, lenient=lenient, by_line=by_line)
    with closing(ahead(found)) as coming:
        for part in coming:
            yield batch(part, first, wanted, options)
            first += part.rows
    check_rows(path, first - 1)


def check_rows(path: Path, rows: int) -> None:
    """Refuse a source without a row."""
    if not rows:
        raise NoRows(f"{path}: expected rows, found none")


def parts(
    path: Path, wanted: Wanted, options: Options, *, lenient: bool, by_line: bool = False
) -> Iterator[Part]:
    """The source in parts, text not parsed yet; TaskError, one line, where it cannot be read."""
    places = sources(path, options)
    for index, place in enumerate(places):
        with _in_file(place):
            for content in _contents(place, wanted, options, lenient, by_line):
                done = (index + content.done) / len(places)
                yield Part(content, place, len(places) > 1, done)


def batch(part: Part, first: int, wanted: Wanted, options: Options) -> Batch:
    """The rows of a part whose first one is row `first` of the source."""
    piece = _piece(part)
    table = spelling.respelled(piece.table, wanted, options)
    at = np.arange(first, first + table.num_rows + len(piece.bad))
    numbers = np.delete(at, [row for row, _ in piece.bad]) if piece.bad else at
    words = _words(piece.place, first, part.source if part.several else None)
    faults = tuple((first + row, expected) for row, expected in piece.bad)
    return Batch(table, numbers, faults, words, part.done, piece.lines)


def ahead(parts: Iterator[Part]) -> Generator[Part, None, None]:
    """The same, parsed, the next one read while this one is worked on."""
    parsed = map(_parsed, parts)
    with ThreadPoolExecutor(1, thread_name_prefix="reader") as pool:
        coming = pool.submit(next, parsed, None)
        while (part := coming.result()) is not None:
            coming = pool.submit(next, parsed, None)
            yield part


def _parsed(part: Part) -> Part:
    return replace(part, content=_piece(part))


def _piece(part: Part) -> Piece:
    if not isinstance(part.content, Unparsed):
        return part.content
    with _in_file(part.source):
        return part.content.piece()


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


def _contents(
    path: Path, wanted: Wanted, options: Options, lenient: bool, by_line: bool
) -> Iterator[Piece | Unparsed]:
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
        yield from text_blocks(path, wanted, options, lenient=lenient, by_line=by_line)


@contextmanager
def _in_file(path: Path) -> Iterator[None]:
    """Name the file in what is refused of it."""
    try:
        yield
    except TaskError as error:
        known = str(error).startswith(str(path))
        raise TaskError(str(error) if known else f"{path}: {error}") from None
    except BROKEN as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "damaged"
        raise TaskError(f"{path}: expected a whole file that can be read, got one {why}") from None


def _words(place: Callable[[int], str], first: int, file: Path | None) -> Callable[[int], str]:
    def words(number: int) -> str:
        text = place(number - first)
        return text if file is None else f"{file.name}, {text}"

    return words
