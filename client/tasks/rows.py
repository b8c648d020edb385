"""Encoded rows and what can be wrong with raw ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PARTS: Final = ("train", "test", "all")
"""The parts of a data set that `Task.load` knows."""


class TaskError(ValueError):
    """A task, a schema or a data file that cannot be used; always one line."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Encoded rows: `x` [n, ...], `y` [n], and where known each row's natural site and subject.

    `subject` numbers the people behind the rows: equal numbers, one person.
    """

    x: Tensor
    y: Tensor
    site: tuple[str, ...] | None = None
    subject: Tensor | None = None

    def __post_init__(self) -> None:
        for name, value in (("y", self.y), ("site", self.site), ("subject", self.subject)):
            if value is not None and len(value) != len(self.x):
                raise TaskError(f"{name}: expected {len(self.x)} values, got {len(value)}")

    def __len__(self) -> int:
        return len(self.x)

    def take(self, indices: Sequence[int] | NDArray[np.int64] | Tensor) -> "Rows":
        """The rows at `indices`, in that order."""
        at = torch.as_tensor(indices, dtype=torch.int64)
        site = None if self.site is None else tuple(self.site[i] for i in at.tolist())
        subject = None if self.subject is None else self.subject[at]
        # Rows whole, by copying memory: `x[at]` gathers number by number.
        return Rows(self.x.index_select(0, at), self.y[at], site, subject)


@dataclass(frozen=True, slots=True)
class Misfit:
    """A value that does not fit its column, or is `absent`; it never holds the value itself."""

    row: int
    column: str
    expected: str
    absent: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """Raw columns encoded: `x` and `y` (None without a label column) of the rows that fit.

    `kept` are the positions of these rows in the raw table; `misfits` says why others are absent;
    `raw` are the scaled columns (-1..1) that a task's `front` turns into x.
    """

    x: Tensor
    y: Tensor | None
    kept: NDArray[np.int64]
    misfits: tuple[Misfit, ...] = ()
    raw: Tensor | None = None


def builtin(rows: Rows, part: int, parts: int) -> Rows:
    """Part 0..`parts`-1 of an embedded task's rows: disjoint parts, which together are all rows."""
    if not 1 <= parts <= len(rows):
        raise TaskError(f"builtin: expected 1 <= parts <= {len(rows)}, got {parts}")
    if not 0 <= part < parts:
        raise TaskError(f"builtin: expected 0 <= part < {parts}, got {part}")
    order = np.random.default_rng(0).permutation(len(rows))
    return rows.take(np.array_split(order, parts)[part])


def cap(rows: Rows, most: int) -> Rows:
    """The first `most` rows of every subject, in the rows' order; all rows without subjects."""
    if most < 1:
        raise TaskError(f"cap: expected 1 <= rows per subject, got {most}")
    if rows.subject is None:
        return rows
    seen: dict[int, int] = {}
    kept: list[int] = []
    for row, subject in enumerate(rows.subject.tolist()):
        seen[subject] = seen.get(subject, 0) + 1
        if seen[subject] <= most:
            kept.append(row)
    return rows.take(kept)


def check_part(part: str) -> None:
    """Refuse a part of a data set that does not exist."""
    if part not in PARTS:
        raise TaskError(f"part: expected one of {', '.join(PARTS)}, got {part!r}")
