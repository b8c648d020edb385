"""A package's rows: read and encoded by its code in a closed process, checked here.

A row is encoded by itself: some rows, chosen anew each time, are encoded again in another process,
in another order and without the rest, and must come out the same, bit for bit.
"""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from client.data.loading import chosen
from client.tasks.described.holding_out import number_of, units
from client.tasks.packages.closed_process import Closed, Frame
from client.tasks.packages.confinement import Bounds
from client.tasks.packages.source import backbones_of
from client.tasks.rows import NoRows, Omission, Reading, Rows, TaskError, check_part
from client.tasks.task import Read
from privacy.task_package.archive import SOURCE, Package
from privacy.task_package.manifest import Manifest
from privacy.task_package.reading_part import loads_torch, reading_part

_AGAIN: Final = 24
"""How many rows are encoded a second time."""
_MOST_ROWS: Final = 100_000_000

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Rows as a closed process gave them, with their numbers in the source, from 0."""

    arrays: Mapping[str, NDArray[Any]]
    texts: Mapping[str, list[str]]
    faults: tuple[Mapping[str, Any], ...]
    seen: int


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """Reads with a package's `read` and `encode`, under a plan's options."""

    package: Package
    manifest: Manifest
    options: Mapping[str, Any]
    file: str = SOURCE
    tell: bool = False
    bounds: Bounds | None = None

    def load(self, path: Path | None, part: str) -> Rows:
        """The rows of "train", "test" or "all"; TaskError where none can be had."""
        check_part(part)
        rows, test = self._whole(path)
        if part == "all":
            return rows
        held = self._held_out(rows, test)
        return rows.take(np.flatnonzero(held if part == "test" else ~held))

    def load_both(self, path: Path | None) -> tuple[Rows, Rows]:
        """The rows of "train" and of "test" by one reading; TaskError where none can be had."""
        rows, test = self._whole(path)
        held = self._held_out(rows, test)
        return rows.take(np.flatnonzero(~held)), rows.take(np.flatnonzero(held))

    def _held_out(self, rows: Rows, test: NDArray[np.bool_]) -> NDArray[np.bool_]:
        share = self.manifest.test
        return chosen(units(rows), share) if share else test

    def read(self, path: Path, labels: bool) -> Iterator[tuple[Rows, Part]]:
        """The rows of a file piece by piece, for prediction and evaluation."""
        with self.opened(path) as closed:
            for part in self.parts(closed, labels=labels):
                yield self._rows(part, labels=labels), part

    @contextmanager
    def held_open(self, folder: Path) -> Iterator[Read]:
        """A `read` of files below `folder`, all by one closed process; one file at a time."""
        with self.opened(folder) as closed:

            def read(path: Path, labels: bool) -> Iterator[tuple[Rows, Part]]:
                inside = path.relative_to(folder).as_posix()
                for part in self.parts(closed, labels=labels, inside=inside):
                    yield self._rows(part, labels=labels), part

            yield read

    def opened(self, path: Path) -> Closed:
        """The closed process that reads these files."""
        backbones = backbones_of(self.manifest).values()
        return Closed(self.package, data=path, backbones=backbones, bounds=self.bounds)

    def parts(
        self,
        closed: Closed,
        *,
        labels: bool = True,
        only: Sequence[int] | None = None,
        inside: str = ".",
    ) -> Iterator[Part]:
        """What the package makes of its files; `only` are the rows to encode, by number.

        `inside` is the part of the readable folder that is meant.
        """
        request = {
            "mode": "rows",
            "inside": inside,
            "options": dict(self.options),
            "labels": labels,
            "only": None if only is None else list(only),
            "file": self.file,
            "tell": self.tell,
            "torch": loads_torch(reading_part(self.package)),
        }
        for frame in closed.ask(request, self._expected(labels)):
            yield self._part(frame)

    def _expected(self, labels: bool) -> dict[str, tuple[tuple[int, ...], str]]:
        shapes = self.manifest.shapes(self.options)
        arrays: dict[str, tuple[tuple[int, ...], str]] = {
            f"x/{n}": (shapes[n], one.dtype) for n, one in self.manifest.x.items()
        }
        arrays |= {"test": ((), "uint8"), "number": ((), "int64")}
        if labels:
            arrays["y"] = self.manifest.label_of(self.options)
        return arrays

    def _part(self, frame: Frame) -> Part:
        rows, facts = int(frame.facts.get("rows", 0)), frame.facts
        if rows and set(frame.arrays) != set(self._expected("y" in frame.arrays)):
            raise TaskError(f"{SOURCE}: must answer with every array of task.toml")
        texts = {}
        for name in ("site", "subject", "id"):
            values = facts.get(name)
            if values is None:
                continue
            if not isinstance(values, list) or len(values) != rows:
                raise TaskError(f"{SOURCE}: {name} must be given for every row or for none")
            texts[name] = ["".join(c for c in str(v) if c.isprintable()) for v in values]
        faults, seen = facts.get("faults", []), facts.get("seen", 0)
        if not isinstance(faults, list) or type(seen) is not int or not 0 <= seen <= _MOST_ROWS:
            raise TaskError(f"{SOURCE}: must answer with counts of rows")
        known = tuple(one for one in faults if isinstance(one, dict))
        for name, array in frame.arrays.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise TaskError(f"{SOURCE}: {name} must be finite in every row")
        return Part(frame.arrays, texts, known, seen)

    def _whole(self, path: Path | None) -> tuple[Rows, NDArray[np.bool_]]:
        if path is None or not path.exists():
            raise TaskError(f"data must be the path of {self.manifest.name}'s files, got {path}")
        with self.opened(path) as closed:
            return self._read(path, closed)

    def _read(self, path: Path, closed: Closed) -> tuple[Rows, NDArray[np.bool_]]:
        parts = list(self.parts(closed))
        filled = [part for part in parts if part.arrays]
        reading = _reading(parts, self.tell)
        if not filled:
            raise NoRows(f"{path}: expected rows that fit, got none among {reading}")
        arrays = {n: np.concatenate([p.arrays[n] for p in filled]) for n in filled[0].arrays}
        self._encode_again(closed, arrays)
        texts: dict[str, list[str]] = {}
        if self.manifest.subjects:
            if not all(all(part.texts.get("subject", [""])) for part in filled):
                raise TaskError(f"{SOURCE}: subject must be given for every row: task.toml says so")
            texts["subject"] = [text for part in filled for text in part.texts["subject"]]
        nowhere = [[""] * len(part.arrays["number"]) for part in filled]
        sites = [
            text
            for part, none in zip(filled, nowhere, strict=True)
            for text in part.texts.get("site", none)
        ]
        if any(sites):
            texts["site"] = sites
        whole = Part(arrays, texts, (), 0)
        return self._rows(whole, reading=reading), arrays["test"].astype(bool)

    def _rows(self, part: Part, *, labels: bool = True, reading: Reading | None = None) -> Rows:
        x = {
            name.removeprefix("x/"): torch.from_numpy(array)
            for name, array in part.arrays.items()
            if name.startswith("x/")
        }
        y = torch.from_numpy(part.arrays["y"]) if labels and "y" in part.arrays else None
        if y is not None and self.manifest.kind == "regression":
            low, high = self.manifest.bounds
            y = (y.clamp(low, high) - low) / (high - low) * 2 - 1
        single = next(iter(x.values()), torch.zeros(0))
        subject = part.texts.get("subject")
        return Rows(
            single if len(x) <= 1 else x,
            y if y is not None else torch.zeros(len(single)),
            tuple(part.texts["site"]) if "site" in part.texts else None,
            None
            if subject is None
            else torch.tensor([number_of(one.encode()) for one in subject], dtype=torch.int64),
            reading,
        )

    def _encode_again(self, closed: Closed, arrays: Arrays) -> None:
        """Some rows alone, in another order, in another process: they must be the same."""
        numbers = arrays["number"]
        count = min(_AGAIN, len(numbers))
        chosen = sorted(secrets.SystemRandom().sample(range(len(numbers)), count))
        only = numbers[chosen].tolist()
        place = dict(zip(only, chosen, strict=True))
        seen = 0
        for part in self.parts(closed, only=only):
            for i, number in enumerate(part.arrays.get("number", np.zeros(0)).tolist()):
                at = place.get(number)
                names = [name for name in arrays if name != "number"]
                if at is None or any(
                    part.arrays[name][i].tobytes() != arrays[name][at].tobytes() for name in names
                ):
                    raise _mixed()
                seen += 1
        if seen != count:
            raise _mixed()


def _mixed() -> TaskError:
    return TaskError(
        f"{SOURCE}: encode must depend on its own row alone, got another result for rows that were "
        "encoded again without the others"
    )


def _reading(parts: Sequence[Part], tell: bool) -> Reading:
    """How many rows were left out, and where in task.py: their texts for the owner alone."""
    counts: dict[tuple[str, str], tuple[int, str]] = {}
    seen = sum(part.seen for part in parts)
    for part in parts:
        for fault in part.faults:
            kind, line = str(fault.get("kind", "Error"))[:60], fault.get("line")
            text = " ".join(str(fault.get("text", "")).split())[:200] if tell else ""
            place = f"{SOURCE} line {line}" if type(line) is int else SOURCE
            why = f"a row that encode takes ({kind}{': ' if text else ''}{text})"
            why = "".join(c for c in why if c.isprintable())
            count, first = counts.get((place, why), (0, f"row {int(fault.get('row', 0)) + 1}"))
            counts[place, why] = count + 1, first
    omissions = tuple(
        Omission(*key, count, first)
        for key, (count, first) in sorted(counts.items(), key=lambda item: -item[1][0])[:50]
    )
    lost = sum(count for count, _ in counts.values())
    return Reading(seen, seen, lost, omissions)
