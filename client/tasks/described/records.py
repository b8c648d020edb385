"""Readers by name: pictures, arrays, sounds, texts, windows of a series, one record at a time.

Each record is made into numbers by itself, by public rules alone; one that does not fit is left out
and told. The code is the product's: nothing here needs an approval.
"""

import csv
import hashlib
import re
import wave
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from client.tasks.described.description import Description
from client.tasks.described.networks import Input
from client.tasks.features import scattering, wavelets
from client.tasks.features.summaries import summary, summary_width
from client.tasks.rows import TaskError

IMAGES: Final = (".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm", ".gif", ".tif", ".tiff")
_PIXELS_MAX: Final = 64_000_000
_FRAME: Final = 0.032
_WORD: Final = re.compile(r"\w+")
_FILTERS: Final = {
    "edges": (scattering.WIDTH, scattering.oriented),
    "wavelets": (wavelets.WIDTH, wavelets.features),
}
"""Fixed public filters by name: how many numbers they make of a picture, and how."""
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One record: where it stands, whose it is, its raw label, and how to make its arrays."""

    place: str
    arrays: Callable[[], Arrays]
    label: Any
    site: str = ""
    subject: str = ""


def inputs_of(about: Description) -> dict[str, Input]:
    """The arrays of a row, by name."""
    if about.reader == "images":
        if about.filters != "none":
            return {"pixels": Input((_FILTERS[about.filters][0],))}
        return {"pixels": Input((about.channels, *about.size))}
    if about.reader == "sounds":
        return {"spectrum": Input((1, about.bands, about.frames))}
    if about.reader == "texts":
        return {"words": Input((about.length,), about.words)}
    if about.reader == "series":
        if about.summary:
            return {"window": Input((summary_width(len(about.columns)),))}
        return {"window": Input((len(about.columns), about.length))}
    return {name: Input(rule.shape, rule.words or 0) for name, rule in about.x.items()}


def records(about: Description, path: Path) -> Iterator[Record]:
    """The records of a file or folder, in an order of their own; TaskError where it has none."""
    if not path.exists():
        raise TaskError(f"{path}: expected a file or folder, found none")
    return _READERS[about.reader](about, path)


def _files(about: Description, path: Path, endings: tuple[str, ...]) -> Iterator[Record]:
    """Files by a manifest (a CSV file with a column of their names), or by their folders."""
    make = _pixels if about.reader == "images" else _spectrum
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


def _pixels(about: Description, file: Path) -> Arrays:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            if image.width * image.height > _PIXELS_MAX:
                raise ValueError("a picture of fewer pixels")
            height, width = about.size
            mode = "L" if about.channels == 1 else "RGB"
            small = image.convert(mode).resize((width, height), Image.Resampling.BILINEAR)
            pixels = np.asarray(small, np.float32) / 127.5 - 1
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError):
        raise ValueError("a picture that can be read") from None
    if about.filters != "none":
        seen = _FILTERS[about.filters][1](torch.from_numpy((pixels[None] + 1) / 2))
        return {"pixels": seen[0].numpy()}
    shaped = pixels[None] if about.channels == 1 else pixels.transpose(2, 0, 1)
    return {"pixels": np.ascontiguousarray(shaped)}


def _spectrum(about: Description, file: Path) -> Arrays:
    """The logarithm of a short-time spectrum in bands, at evenly spaced times of a fixed length."""
    try:
        with wave.open(str(file)) as sound:
            if sound.getsampwidth() != 2 or sound.getframerate() != about.rate:
                raise ValueError(f"a wav file of 16 bits at {about.rate} Hz")
            count = min(sound.getnframes(), int(about.seconds * about.rate) + 1)
            raw = np.frombuffer(sound.readframes(count), "<i2").astype(np.float64)
            if sound.getnchannels() > 1:
                raw = raw.reshape(-1, sound.getnchannels()).mean(1)
    except (wave.Error, EOFError, OSError):
        raise ValueError("a wav file that can be read") from None
    frame = max(16, int(_FRAME * about.rate))
    whole = max(int(about.seconds * about.rate), frame)
    samples = np.zeros(whole)
    samples[: min(len(raw), whole)] = raw[:whole] / 2**15
    starts = np.linspace(0, whole - frame, about.frames).astype(int)
    window = np.hanning(frame)
    power = np.abs(np.fft.rfft(samples[starts[:, None] + np.arange(frame)] * window, axis=1)) ** 2
    wide = np.unique(np.geomspace(1, power.shape[1], about.bands + 1).round().astype(int))
    if len(wide) <= about.bands:  # too few frequencies for bands that grow
        wide = np.linspace(1, power.shape[1], about.bands + 1).astype(int)
    bands = [power[:, a : max(b, a + 1)].mean(1) for a, b in pairwise(wide)]
    spectrum = (np.log10(np.stack(bands) + 1e-6) + 2) / 4
    return {"spectrum": spectrum.astype(np.float32)[None]}


def _texts(about: Description, path: Path) -> Iterator[Record]:
    """Lines of a CSV file; words become ids by a public hash, so that no vocabulary is learnt."""
    for place, row in _lines(about, _only(path, ".csv", ".tsv")):
        text = row.get(about.text)
        yield Record(
            place,
            _fails("a text") if text is None else lambda text=text: _words(about, text),  # type: ignore[misc]
            row.get(about.label),
            row.get(about.site) or "" if about.site else "",
            row.get(about.subject) or "" if about.subject else "",
        )


def _words(about: Description, text: str) -> Arrays:
    words = _WORD.findall(text.casefold())[: about.length]
    places = np.zeros(about.length, np.int64)
    for i, word in enumerate(words):
        number = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
        places[i] = 1 + number % (about.words - 1)
    return {"words": places}


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
            lambda i=i: {n: _ranged(about, n, held[n][i]) for n in about.x},  # type: ignore[misc]
            held[about.label][i] if about.label in held else None,
            str(held[about.site][i]) if about.site else "",
            str(held[about.subject][i]) if about.subject else "",
        )


def _ranged(about: Description, name: str, value: NDArray[Any]) -> NDArray[Any]:
    rule = about.x[name]
    if value.shape != rule.shape or value.dtype.kind not in "biuf":
        raise ValueError(f"numbers of shape {list(rule.shape)} in {name}")
    if rule.words is not None:
        if value.dtype.kind == "f" or (value < 0).any() or (value >= rule.words).any():
            raise ValueError(f"ids from 0 to {rule.words - 1} in {name}")
        return value.astype(np.int64)
    low, high = rule.range or (0.0, 1.0)
    held = np.clip(value.astype(np.float64), low, high)
    return np.asarray(2 * (held - low) / (high - low) - 1, np.float32)


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
            lambda window=window: _window(about, [r for _, r in window]),  # type: ignore[misc]
            last.get(about.label),
            last.get(about.site) or "" if about.site else "",
            last.get(about.subject) or "" if about.subject else "",
        )
        windows[name] = held[stride:]


def _window(about: Description, rows: list[Mapping[str, str]]) -> Arrays:
    out = np.empty((len(about.columns), about.length), np.float32)
    for i, (name, (low, high)) in enumerate(about.columns.items()):
        try:
            values = np.array([float(row[name]) for row in rows])
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"numbers in the column {name}") from None
        out[i] = 2 * (np.clip(values, low, high) - low) / (high - low) - 1
    return {"window": summary(out) if about.summary else out}


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
