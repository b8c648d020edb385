"""Encoded rows and what can be wrong with raw ones."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # an exported model predicts without torch
    from torch import Tensor

PARTS: Final = ("train", "test", "all")
"""The parts of a data set that `Task.load` knows."""


class TaskError(ValueError):
    """A task, a schema or a data file that cannot be used; always one line."""


class NoRows(TaskError):
    """A data file that can be read, and has no row that fits."""


@dataclass(frozen=True, slots=True)
class Omission:
    """Rows that a public rule leaves out, each for itself: the column, what was expected of it.

    `first` is where the first of them stands; `column` is empty where the row is none of its form.
    """

    column: str
    expected: str
    rows: int
    first: str = ""

    def __str__(self) -> str:
        more = f" and {self.rows - 1} more" if self.rows > 1 else ""
        column = f", column {self.column}" if self.column else ""
        return f"{self.first}{more}{column}: expected {self.expected}"


@dataclass(frozen=True, slots=True)
class Reading:
    """How a file was read: its rows, on how many lines, and those that were left out, and why.

    `unknown` counts, by column, the rows whose value is none of the public ones ("other"). It is
    for the data's owner alone.
    """

    rows: int
    lines: int
    left_out: int
    omissions: tuple[Omission, ...] = ()
    unknown: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        text = f"{self.rows} rows on {self.lines} lines"
        if self.left_out:
            why = "; ".join(str(one) for one in self.omissions[:5])
            more = f"; and {len(self.omissions) - 5} more reasons" if self.omissions[5:] else ""
            text += f", {self.left_out} left out ({why}{more})"
        return text + "".join(f"; {one}" for one in unknown_words(self.unknown, self.rows))

    def __add__(self, other: "Reading") -> "Reading":
        omissions: dict[tuple[str, str], tuple[int, str]] = {}
        for one in (*self.omissions, *other.omissions):
            key = (one.column, one.expected)
            rows, first = omissions.get(key, (0, one.first))
            omissions[key] = rows + one.rows, first
        return Reading(
            self.rows + other.rows,
            self.lines + other.lines,
            self.left_out + other.left_out,
            tuple(Omission(*key, *facts) for key, facts in omissions.items()),
            added(self.unknown, other.unknown),
        )


def added(
    one: Sequence[tuple[str, int]], other: Sequence[tuple[str, int]]
) -> tuple[tuple[str, int], ...]:
    """The sums of two counts by name."""
    total = Counter(dict(one))
    total.update(dict(other))
    return tuple(total.items())


def unknown_words(unknown: Sequence[tuple[str, int]], rows: int) -> list[str]:
    """A sentence for each column with values that are none of the public ones."""
    return [
        f"column {column}: {count} of {rows} values are none of the public ones"
        for column, count in unknown
    ]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Encoded rows: `x` [n, ...], `y` [n, ...], and where known each row's site and subject.

    `x` is a tensor, or several by name whose rows belong together (ids, their mask, numbers).
    `subject` numbers the people behind the rows: equal numbers, one person. `reading` says how the
    file was read, for its owner.
    """

    x: Any
    y: "Tensor"
    site: tuple[str, ...] | None = None
    subject: "Tensor | None" = None
    reading: Reading | None = None

    def __post_init__(self) -> None:
        parts = list(self.x.items()) if isinstance(self.x, dict) else [("x", self.x)]
        count = len(parts[0][1])
        others = (("y", self.y), ("site", self.site), ("subject", self.subject))
        for name, value in (*parts[1:], *others):
            if value is not None and len(value) != count:
                raise TaskError(f"{name}: expected {count} values, got {len(value)}")

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices: "Sequence[int] | NDArray[np.int64] | Tensor") -> "Rows":
        """The rows at `indices`, in that order."""
        import torch

        from client.dpsgd.trees import mapped

        at = torch.as_tensor(indices, dtype=torch.int64)
        site = None if self.site is None else tuple(self.site[i] for i in at.tolist())
        subject = None if self.subject is None else self.subject[at]
        # Rows whole, by copying memory: `x[at]` gathers number by number.
        x = mapped(lambda t: t.index_select(0, at), self.x)
        return Rows(x, self.y[at], site, subject, self.reading)

    def __add__(self, other: "Rows") -> "Rows":
        """The rows of both, one after the other."""
        import torch

        from client.dpsgd.trees import joined

        site = None
        if self.site is not None and other.site is not None:
            site = self.site + other.site
        subject = None
        if self.subject is not None and other.subject is not None:
            subject = torch.cat([self.subject, other.subject])
        reading = None
        if self.reading is not None and other.reading is not None:
            reading = self.reading + other.reading
        y = torch.cat([self.y, other.y])
        return Rows(joined([self.x, other.x]), y, site, subject, reading)


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

    Both are tensors, or numpy's arrays where an exported model predicts.

    `index` are the positions of these rows in the raw table; `misfits` says why others are absent;
    `raw` are the scaled columns (-1..1) that a task's `front` turns into x; `unknown` counts, by
    column, values of the raw table that are none of the public ones, and stand as "other".
    """

    x: Any
    y: Any
    index: NDArray[np.int64]
    misfits: tuple[Misfit, ...] = ()
    raw: Any = None
    unknown: tuple[tuple[str, int], ...] = ()


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
    subjects = rows.subject.numpy()
    order = np.argsort(subjects, kind="stable")
    ranked = subjects[order]
    begins = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
    among = np.arange(len(order)) - np.repeat(begins, np.diff(np.append(begins, len(order))))
    if not len(order) or among.max() < most:
        return rows
    return rows.take(np.sort(order[among < most]))


def check_part(part: str) -> None:
    """Refuse a part of a data set that does not exist."""
    if part not in PARTS:
        raise TaskError(f"part: expected one of {', '.join(PARTS)}, got {part!r}")
