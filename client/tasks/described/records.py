"""Readers by name: pictures, arrays, sounds, texts, windows of a series, one record at a time.

Each record is made into numbers by itself (client/tasks/described/encoding.py); one that does not
fit is left out and told. The code is the product's: nothing here needs an approval.
"""

import csv
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from client.tasks.described.description import Description
from client.tasks.described.encoding import (
    Arrays,
    pixels_of,
    ranged_of,
    sound_of,
    window_of,
    words_of,
)
from client.tasks.rows import TaskError

IMAGES: Final = (".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm", ".gif", ".tif", ".tiff")


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One record: where it stands, whose it is, its raw label, and how to make its arrays."""

    place: str
    arrays: Callable[[], Arrays]
    label: Any
    site: str = ""
    subject: str = ""


def records(about: Description, path: Path) -> Iterator[Record]:
    """The records of a file or folder, in an order of their own; TaskError where it has none."""
    if not path.exists():
        raise TaskError(f"{path}: expected a file or folder, found none")
    return _READERS[about.reader](about, path)


def _files(about: Description, path: Path, endings: tuple[str, ...]) -> Iterator[Record]:
    """Files by a manifest (a CSV file with a column of their names), or by their folders."""
    make = pixels_of if about.reader == "images" else sound_of
    if about.manifest:
        folder = path if path.is_dir() else path.parent
        for place, row in _lines(about, folder / about.manifest):
            name = row.get(about.file) or ""
            file = folder / name
            named = bool(name) and "\0" not in name
            if not named or not file.resolve().is_relative_to(folder.resolve()):
                yield Record(place, _fails("a file of the folder"), None)
                continue
            yield Record(
                f"{place} ({name})",
                lambda file=file: make(about, file),  # type: ignore[misc]
                row.get(about.label),
                row.get(about.site) or "" if about.site else "",
                row.get(about.subject) or "" if about.subject else "",
            )
        return
    places = [path] if path.is_file() else sorted(path.rglob("*"))
    files = [p for p in places if p.suffix.lower() in endings and p.is_file()]
    if not files:
        raise TaskError(f"{path}: expected files that end with {', '.join(endings)}, found none")
    for file in files:
        parts = file.relative_to(path).parts[:-1]  # none of a file by itself
        names = dict(zip(reversed(about.folders), reversed(parts), strict=False))
        yield Record(
            "/".join((*parts, file.name)),
            lambda file=file: make(about, file),  # type: ignore[misc]
            names.get("label"),
            names.get("site", ""),
            names.get("subject", ""),
        )


def _texts(about: Description, path: Path) -> Iterator[Record]:
    """Lines of a CSV file; words become ids by a public hash, so that no vocabulary is learnt."""
    for place, row in _lines(about, _only(path, ".csv", ".tsv")):
        text = row.get(about.text)
        yield Record(
            place,
            _fails("a text") if text is None else lambda text=text: words_of(about, text),  # type: ignore[misc]
            row.get(about.label),
            row.get(about.site) or "" if about.site else "",
            row.get(about.subject) or "" if about.subject else "",
        )


def _arrays(about: Description, path: Path) -> Iterator[Record]:
    """The rows of an npz file without pickles."""
    file = _only(path, ".npz")
    names = [*about.x, about.label, *(n for n in (about.site, about.subject) if n)]
    try:
        with np.load(file, allow_pickle=False) as archive:
            missing = [name for name in names if name not in archive.files and name != about.label]
            if missing:
                raise TaskError(f"{file}: expected an array named {missing[0]!r}, found none")
            held = {name: archive[name] for name in names if name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError) as error:
        if isinstance(error, TaskError):
            raise
        raise TaskError(f"{file}: expected an npz file of plain arrays") from None
    counts = {len(array) if array.ndim else 0 for array in held.values()}
    if len(counts) != 1:
        raise TaskError(f"{file}: expected arrays of as many rows each")
    for i in range(counts.pop()):
        yield Record(
            f"row {i + 1}",
            lambda i=i: {n: ranged_of(about, n, held[n][i]) for n in about.x},  # type: ignore[misc]
            held[about.label][i] if about.label in held else None,
            str(held[about.site][i]) if about.site else "",
            str(held[about.subject][i]) if about.subject else "",
        )


def _series(about: Description, path: Path) -> Iterator[Record]:
    """Windows of `length` steps of each series, by the order of its lines; the last step's label.

    Windows do not overlap unless `stride` is smaller. A step more in a series moves its later
    windows: name the series' owner as `subject` where that must be protected.
    """
    stride = about.stride or about.length
    windows: dict[str, list[tuple[str, Mapping[str, str]]]] = {}
    for place, row in _lines(about, _only(path, ".csv", ".tsv")):
        name = row.get(about.series) or ""
        held = windows.setdefault(name, [])
        held.append((place, row))
        if len(held) < about.length:
            continue
        window, last = list(held), held[-1][1]
        yield Record(
            f"{window[0][0]} to {place}",
            lambda window=window: window_of(about, [r for _, r in window]),  # type: ignore[misc]
            last.get(about.label),
            last.get(about.site) or "" if about.site else "",
            last.get(about.subject) or "" if about.subject else "",
        )
        windows[name] = held[stride:]


def _lines(about: Description, file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The records of a CSV file by the names of its first line; of one that is none, nothing."""
    delimiter = "\t" if file.suffix == ".tsv" else about.delimiter
    try:
        with file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
            names: list[str] | None = None
            for line, values in by_line(lines, delimiter):
                if names is None:
                    if values is None:
                        raise TaskError(f"{file}: expected a CSV file, got a damaged first line")
                    names = values or None
                elif values is None or any("\ufffd" in value for value in values):
                    yield f"line {line}", {}
                elif values:
                    yield f"line {line}", dict(zip(names, values, strict=False))
    except FileNotFoundError:
        raise TaskError(f"{file}: expected a CSV file, found none") from None
    except OSError as error:
        what = error.strerror or "damaged"
        raise TaskError(f"{file}: expected a CSV file that can be read, got one {what}") from None


def by_line(lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str] | None]]:
    """Each record's first line, from 1, and its values; None of a line that is no record.

    Such a line (text after a closing quote, a quote that stays open) is left alone, and what it
    would have swallowed is read again: it takes no other record with it.
    """
    source = _Again(lines)
    table, line = csv.reader(source, delimiter=delimiter, strict=True), 1
    while True:
        source.taken.clear()
        try:
            values = next(table)
        except StopIteration:
            return
        except csv.Error:
            source.coming.extendleft(reversed(source.taken[1:]))
            yield line, None
            line += 1
            continue
        yield line, values
        line += len(source.taken)


class _Again:
    """Lines, of which the last ones that were `taken` can be put back to be `coming`."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = iter(lines)
        self.taken: list[str] = []
        self.coming: deque[str] = deque()

    def __iter__(self) -> "_Again":
        return self

    def __next__(self) -> str:
        line = self.coming.popleft() if self.coming else next(self._lines)
        self.taken.append(line)
        return line


def _only(path: Path, *endings: str) -> Path:
    if not path.is_dir():
        return path
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in endings and p.is_file())
    if len(files) != 1:
        kinds = " or ".join(endings)
        raise TaskError(f"{path}: expected one {kinds} file in the folder, found {len(files)}")
    return files[0]


def _fails(expected: str) -> Callable[[], Arrays]:
    def make() -> Arrays:
        raise ValueError(expected)

    return make


_READERS: Final[dict[str, Callable[[Description, Path], Iterator[Record]]]] = {
    "images": lambda about, path: _files(about, path, IMAGES),
    "sounds": lambda about, path: _files(about, path, (".wav",)),
    "texts": _texts,
    "arrays": _arrays,
    "series": _series,
}
