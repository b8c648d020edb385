"""What a plan of statistics asks, as one vector a record, and the bound of its L2 norm.

A block is a part of the vector. `rows` is 1. A column's `cells` are a one-hot vector: its value
falls into one cell. Each level of a `tree` above the cells (dyadic intervals: Hay et al. 2010) is
one-hot too. `groups` are one-hot over (group, label, prediction); `scores` hold a binary model's
score, in 0..1, in the place of the row's group. The `moments` of k columns, scaled to -1..1, are
(1, u_i, u_i u_j for i <= j): each entry is at most 1. So the squared norm of the whole vector is at
most the number of one-hot and score blocks, plus the lengths of the blocks of moments: `bound`
squared. docs/statistics.md has the proof.

Every entry is a whole multiple of 2^-20, so that sums of up to 2^32 records are exact.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from privacy.contract.keys.tables import StatisticsPlan
from privacy.statistics.columns import (
    CategoryColumn,
    Column,
    Floats,
    NumberColumn,
    StatisticsError,
)

STEPS: Final = 2.0**20
"""Entries are whole multiples of 1 / STEPS."""
MOST_NUMBERS: Final = 200_000
_CELLS: Final = frozenset({"missing", "outside", "frequencies", "histogram", "quantiles"})
_NUMBER: Final = frozenset({"missing", "outside", "histogram", "quantiles", "mean", "moments"})
_CATEGORY: Final = frozenset({"missing", "frequencies"})
_INSIDE: Final = frozenset({"histogram", "quantiles"})

Kind = Literal["rows", "cells", "tree", "moments", "groups", "scores"]


@dataclass(frozen=True, slots=True)
class Block:
    """A part of the vector: of which columns, where it begins, how long it is.

    `edges` are those of a number's cells; `width` is how many cells an interval of a tree holds;
    `squares` says whether the moments hold products.
    """

    kind: Kind
    columns: tuple[int, ...]
    start: int
    size: int
    edges: tuple[float, ...] = ()
    width: int = 1
    squares: bool = False

    @property
    def at(self) -> slice:
        """Where it lies in the vector."""
        return slice(self.start, self.start + self.size)

    @property
    def squared_norm(self) -> int:
        """The most that the squares of one record's entries add up to."""
        return self.size if self.kind == "moments" else 1


@dataclass(frozen=True, slots=True, eq=False)
class Design:
    """The columns that are counted and the blocks of the vector, in their order."""

    plan: StatisticsPlan
    columns: tuple[Column, ...]
    blocks: tuple[Block, ...]

    @property
    def size(self) -> int:
        """How many numbers are released."""
        return self.blocks[-1].start + self.blocks[-1].size

    @property
    def bound(self) -> float:
        """The L2 norm that no record's vector passes; rounded up."""
        return math.nextafter(math.sqrt(sum(one.squared_norm for one in self.blocks)), math.inf)

    @property
    def classes(self) -> int:
        """How many classes the label has; 0 where no predictions are counted."""
        if self.plan.label is None:
            return 0
        label = next(one for one in self.columns if one.name == self.plan.label)
        return len(label.values) if isinstance(label, CategoryColumn) else 0

    @property
    def width(self) -> int:
        """How many numbers a row's values are: the columns, then prediction and score."""
        return len(self.columns) + (2 if self.plan.groups else 0)

    def block(self, kind: Kind, column: int) -> Block | None:
        """A column's block of a kind; of trees the finest, of moments its own."""
        return next((b for b in self.blocks if b.kind == kind and b.columns == (column,)), None)

    def vectors(self, values: Floats) -> Floats:
        """One vector a row [n, size] of the rows' values [n, width].

        The prediction is the class's position and the score a number in 0..1, both NaN for a row
        that the model cannot read: it counts in no group, as does one without a known label.

        A row whose vector were longer than the bound adds nothing: that never happens, and makes
        the bound hold whatever the code above it does.
        """
        out = np.zeros((len(values), self.size))
        rows = np.arange(len(values))
        for block in self.blocks:
            part = out[:, block.at]
            if block.kind == "rows":
                part[:, 0] = 1.0
            elif block.kind == "moments":
                part[:] = self._moments(block, values)
            elif block.kind in ("groups", "scores"):
                cell, entry = self._predicted(block, values)
                held = cell < block.size
                part[rows[held], cell[held]] = entry[held]
            else:
                cell = self._cells(block, values[:, block.columns[0]])
                if block.kind == "tree":
                    inside = len(block.edges) - 1
                    cell = np.where(cell < inside, cell // block.width, block.size)
                held = cell < block.size
                part[rows[held], cell[held]] = 1.0
        norms = np.einsum("ij,ij->i", out, out)
        out[~(norms <= self.bound**2)] = 0.0
        return out

    def _cells(self, block: Block, values: Floats) -> NDArray[np.int64]:
        column = self.columns[block.columns[0]]
        if isinstance(column, CategoryColumn):
            cells = column.cells(values)
            if block.size == 2:  # present or missing
                return np.asarray(cells == len(column.values) + 1, np.int64)
            return cells
        return column.cells(values, np.array(block.edges))

    def _predicted(self, block: Block, values: Floats) -> tuple[NDArray[np.int64], Floats]:
        """Each row's cell, the block's size where it has none, and what stands there."""
        place, target = block.columns
        group, label = self.columns[place], self.columns[target]
        if isinstance(group, NumberColumn) or isinstance(label, NumberColumn):
            raise StatisticsError("statistics.groups: must be categories")
        of, labels = group.cells(values[:, place]), values[:, target]
        predicted, score = values[:, -2], values[:, -1]
        known = (
            (labels >= 0) & (labels < self.classes) & (predicted >= 0) & (predicted < self.classes)
        )
        known &= (score >= 0) & (score <= 1)
        truth, guess = (np.where(known, one, 0).astype(np.int64) for one in (labels, predicted))
        if block.kind == "scores":
            held = np.rint(np.where(known, score, 0.0) * STEPS) / STEPS
            return np.where(known, of, block.size), held
        cell = (of * self.classes + truth) * self.classes + guess
        return np.where(known, cell, block.size), np.ones(len(values))

    def _moments(self, block: Block, values: Floats) -> Floats:
        pairs = [self._number(i).scaled(values[:, i]) for i in block.columns]
        complete = np.logical_and.reduce([present for _, present in pairs])
        units = [np.where(complete, unit, 0.0) for unit, _ in pairs]
        parts = [complete.astype(np.float64), *units]
        if block.squares:
            both = combinations_with_replacement(units, 2)
            parts += [one * other for one, other in both]
        return np.asarray(np.rint(np.stack(parts, 1) * STEPS) / STEPS, np.float64)

    def _number(self, index: int) -> NumberColumn:
        column = self.columns[index]
        if not isinstance(column, NumberColumn):
            raise StatisticsError(f"{column.name}: must be a number to have a mean")
        return column


def design(plan: StatisticsPlan, columns: Sequence[Column]) -> Design:
    """The vector of a plan, over the public columns of the task whose rows are counted.

    StatisticsError where the plan asks what a column does not have.
    """
    known = {column.name: column for column in columns}
    # By name: a plan's tables come in another order by TOML than by its canonical text.
    label = () if plan.label is None else (plan.label,)
    names = sorted({*plan.columns, *plan.correlation, *plan.groups, *label})
    for name in names:
        if name not in known:
            near = ", ".join(sorted(known)[:20])
            raise StatisticsError(
                f"statistics: {plan.of} must have a column {name}, its columns are {near}"
            )
    chosen = tuple(known[name] for name in names)
    blocks: list[Block] = []
    for kind, at, size, edges, width, squares in _blocks(plan, chosen):
        start = blocks[-1].start + blocks[-1].size if blocks else 0
        blocks.append(Block(kind, at, start, size, edges, width, squares))
    result = Design(plan, chosen, tuple(blocks))
    if result.size > MOST_NUMBERS:
        raise StatisticsError(
            f"statistics: must release at most {MOST_NUMBERS} numbers, got {result.size}"
        )
    return result


_Made = tuple[Kind, tuple[int, ...], int, tuple[float, ...], int, bool]


def _blocks(plan: StatisticsPlan, columns: Sequence[Column]) -> Iterator[_Made]:
    yield "rows", (), 1, (), 1, False
    for index, column in enumerate(columns):
        questions = frozenset(plan.columns.get(column.name, ()))
        fitting = _NUMBER if isinstance(column, NumberColumn) else _CATEGORY
        if wrong := sorted(questions - fitting):
            kind = "number" if isinstance(column, NumberColumn) else "category"
            raise StatisticsError(
                f"statistics.columns.{column.name}: must be words among "
                f"{', '.join(sorted(fitting))} for a {kind}, got {wrong[0]}"
            )
        if isinstance(column, CategoryColumn):
            if column.name in plan.whole:
                raise StatisticsError(f"statistics.whole: {column.name} must be a number")
            if questions:
                size = len(column.values) + 2 if "frequencies" in questions else 2
                yield "cells", (index,), size, (), 1, False
            continue
        if questions & _CELLS:
            yield from _number(plan, index, column, questions)
        for word, size in (("mean", 2), ("moments", 3)):
            if word in questions and not (word == "mean" and "moments" in questions):
                yield "moments", (index,), size, (), 1, word == "moments"
    yield from _groups(plan, columns)
    if plan.correlation:
        at = tuple(i for i, column in enumerate(columns) if column.name in plan.correlation)
        for i in at:
            if not isinstance(columns[i], NumberColumn):
                raise StatisticsError(f"statistics.correlation: {columns[i].name} must be a number")
        k = len(at)
        yield "moments", at, 1 + k + k * (k + 1) // 2, (), 1, True


def _groups(plan: StatisticsPlan, columns: Sequence[Column]) -> Iterator[_Made]:
    """(Group, label, prediction) of each column of groups, and a binary model's score by group."""
    places = {column.name: i for i, column in enumerate(columns)}
    if plan.label is None:
        return
    label = columns[places[plan.label]]
    if isinstance(label, NumberColumn) or plan.label in plan.groups:
        raise StatisticsError("statistics.label: must be a category that is not among the groups")
    for name in plan.groups:
        column = columns[places[name]]
        if isinstance(column, NumberColumn):
            raise StatisticsError(f"statistics.groups: {name} must be a category")
        at, many = (places[name], places[plan.label]), len(column.values) + 2
        yield "groups", at, many * len(label.values) ** 2, (), 1, False
        if len(label.values) == 2:
            yield "scores", at, many, (), 1, False


def _number(
    plan: StatisticsPlan, index: int, column: NumberColumn, questions: frozenset[str]
) -> Iterator[_Made]:
    """A number's cells, and above them the dyadic intervals where its quantiles are asked."""
    edges = np.array([column.low, column.high])
    if questions & _INSIDE:
        edges = column.edges(plan.bins, column.name in plan.whole)
    shown, inside = tuple(edges.tolist()), len(edges) - 1
    yield "cells", (index,), inside + 4, shown, 1, False
    width = 2
    while "quantiles" in questions and width < inside:
        yield "tree", (index,), -(-inside // width), shown, width, False
        width *= 2


def trees(of: Design, column: int) -> tuple[Block, ...]:
    """The levels of a column's tree, the finest first."""
    return tuple(b for b in of.blocks if b.kind == "tree" and b.columns == (column,))
