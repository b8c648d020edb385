"""What noisy sums say: estimates whose error bars follow from the known noise alone.

All of it is post-processing and costs nothing. The counts of a column's cells are those that fit
the noisy sums best (least squares over the total, the cells and the intervals of the tree: Hay et
al. 2010), so that their error is Gaussian with a known covariance. Intervals are for the rows that
are there, not for a population that they were drawn from.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from privacy.statistics.columns import CategoryColumn, Floats, NumberColumn
from privacy.statistics.design import Block, Design, trees

Z: Final = 1.959963984540054
"""95 % of a Gaussian lie within so many standard deviations."""
QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
ENOUGH: Final = 5.0
"""A ratio is given where its denominator is above so many standard deviations of its noise."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate, and what holds the true value in 95 of 100 releases."""

    value: float
    low: float
    high: float

    def within(self, least: float, most: float) -> "Interval":
        """The same, where the true value cannot be outside of `least`..`most`."""
        return Interval(*(min(max(one, least), most) for one in (self.value, self.low, self.high)))

    def scaled(self, by: float, plus: float = 0.0) -> "Interval":
        """The interval of value * by + plus, by > 0."""
        return Interval(self.value * by + plus, self.low * by + plus, self.high * by + plus)


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """A column's cells: estimated `counts` [k] and their `covariance` [k, k]."""

    counts: Floats
    covariance: Floats

    @property
    def total(self) -> float:
        """The estimated number of rows (or people)."""
        return float(self.counts.sum())

    def count(self, cells: Iterable[int]) -> Interval:
        """How many rows some cells hold."""
        weights = self._weights(cells)
        value = float(weights @ self.counts)
        error = Z * math.sqrt(weights @ self.covariance @ weights)
        return Interval(value, value - error, value + error).within(0, math.inf)

    def share(self, cells: Iterable[int], among: Iterable[int] | None = None) -> Interval | None:
        """The share of rows in some cells, of all or of those `among`; None where too few are.

        Fieller's interval: exact for a ratio of Gaussians.
        """
        top = self._weights(cells)
        under = np.ones_like(top) if among is None else self._weights(among)
        a, b = float(top @ self.counts), float(under @ self.counts)
        c = self.covariance
        both = float(top @ c @ under)
        quotient = ratio(a, b, float(top @ c @ top), float(under @ c @ under), both)
        return None if quotient is None else quotient.within(0, 1)

    def _weights(self, cells: Iterable[int]) -> Floats:
        weights = np.zeros(len(self.counts))
        weights[list(cells)] = 1.0
        return weights


def ratio(a: float, b: float, var_a: float, var_b: float, cov: float) -> Interval | None:
    """The ratio a / b of two noisy numbers by Fieller's theorem; None where b may be 0."""
    if b <= ENOUGH * math.sqrt(var_b):
        return None
    if not var_a and not var_b:
        return Interval(a / b, a / b, a / b)
    z2 = Z * Z
    square = b * b - z2 * var_b
    middle = (a * b - z2 * cov) / square
    width = math.sqrt(max(0.0, middle**2 - (a * a - z2 * var_a) / square))
    return Interval(a / b, middle - width, middle + width)


def counts(of: Design, column: int, sums: Floats, std: float) -> Counts | None:
    """The cells of a column by least squares; None where the plan asks for no cells of it."""
    cells = of.block("cells", column)
    if cells is None:
        return None
    levels = trees(of, column)
    if not std:  # exact sums agree with each other: a fit would only round them
        return Counts(sums[cells.at], np.zeros((cells.size, cells.size)))
    inside = len(cells.edges) - 1 if cells.edges else 0
    solve, covariance = _fit(cells.size, inside, tuple(one.width for one in levels))
    seen = np.concatenate([sums[:1], sums[cells.at], *(sums[one.at] for one in levels)])
    return Counts(solve @ seen, std**2 * covariance)


@lru_cache(maxsize=64)
def _fit(size: int, inside: int, widths: tuple[int, ...]) -> tuple[Floats, Floats]:
    """How cells follow from (total, cells, intervals), and their covariance at noise 1."""
    rows = [np.ones((1, size)), np.eye(size)]
    for width in widths:
        level = np.zeros((-(-inside // width), size))
        level[np.arange(inside) // width, np.arange(inside)] = 1.0
        rows.append(level)
    matrix = np.concatenate(rows)
    covariance: Floats = np.linalg.inv(matrix.T @ matrix).astype(np.float64)
    return covariance @ matrix.T, covariance


@dataclass(frozen=True, slots=True, eq=False)
class Ranks:
    """The cells of a number in their order: below, inside, above; and their ends on the axis."""

    column: NumberColumn
    edges: Floats
    whole: bool
    cells: Counts

    @property
    def order(self) -> list[int]:
        """The positions of the cells, by value."""
        inside = len(self.edges) - 1
        return [inside, *range(inside), inside + 1]

    def curve(self) -> Floats:
        """How many rows lie up to the end of each cell of the order, made monotone.

        The nearest monotone curve in least squares (pool adjacent violators).
        """
        from scipy.optimize import isotonic_regression

        steps = np.cumsum(self.cells.counts[self.order])
        weights = np.ones(len(steps))
        weights[-1] = len(steps)  # the end of the curve is the best known
        monotone: Floats = np.maximum(isotonic_regression(steps, weights=weights).x, 0.0)
        return monotone

    def quantile(self, share: float) -> Interval | None:
        """The value below which `share` of the values lie, and where it may be.

        A cell is left out of the interval where the noise does not explain that the quantile lies
        in it: the interval holds the true one in at least 95 of 100 releases. The range's ends
        stand for values beyond them.
        """
        order, number = self.order, len(self.order)
        over = np.zeros(len(self.cells.counts))
        over[order] = 1.0
        c = self.cells.covariance
        if over @ self.cells.counts <= ENOUGH * math.sqrt(over @ c @ over):
            return None
        through = np.zeros((number + 1, len(over)))
        through[1:, order] = np.tril(np.ones((number, number)))
        lead = through - share * over
        gap = lead @ self.cells.counts
        error = Z * np.sqrt(np.maximum(((lead @ c) * lead).sum(1), 0.0))
        possible = np.flatnonzero((gap[:-1] <= error[:-1]) & (gap[1:] >= -error[1:]))
        curve = self.curve()
        goal = share * curve[-1]
        at = min(int(np.searchsorted(curve, goal, side="left")), number - 1)
        before = curve[at - 1] if at else 0.0
        part = (goal - before) / (curve[at] - before) if curve[at] > before else 0.0
        low, high = self._ends(at)
        value = low if self.whole else low + part * (high - low)
        held = [*possible.tolist(), at]
        first, last = self._ends(min(held))[0], self._ends(max(held))[1]
        return Interval(value, first, last)

    def _ends(self, at: int) -> tuple[float, float]:
        """The values of a cell of the order: of whole numbers, the number itself."""
        inside = len(self.edges) - 1
        if at == 0:
            return self.column.low, self.column.low
        if at > inside:
            return self.column.high, self.column.high
        low, high = float(self.edges[at - 1]), float(self.edges[at])
        return (low, low) if self.whole else (low, high)


def ranks(of: Design, column: int, cells: Counts) -> Ranks:
    """A number's cells in the order of their values."""
    block, described = of.block("cells", column), of.columns[column]
    if block is None or isinstance(described, CategoryColumn):
        raise ValueError("column: must be a number with cells")
    whole = described.name in of.plan.whole
    return Ranks(described, np.array(block.edges), whole, cells)


def mean(of: Design, block: Block, place: int, sums: Floats, std: float) -> Interval | None:
    """The mean of the `place`-th column of a block of moments, in its own unit."""
    part = sums[block.at]
    quotient = ratio(float(part[1 + place]), float(part[0]), std**2, std**2, 0.0)
    if quotient is None:
        return None
    half, middle = _unit(of, block.columns[place])
    return quotient.within(-1, 1).scaled(half, middle)


def deviation(of: Design, block: Block, place: int, sums: Floats, std: float) -> Interval | None:
    """The standard deviation of a column (over n), by the delta method."""
    part, k = sums[block.at], len(block.columns)
    if part[0] <= ENOUGH * std:
        return None
    square = 1 + k + _pair(k, place, place)
    m, q = part[1 + place] / part[0], part[square] / part[0]
    variance = q - m * m
    gradient = np.array([2 * m * m - q, -2 * m, 1.0]) / part[0]
    error = Z * std * float(np.linalg.norm(gradient))
    half, _ = _unit(of, block.columns[place])
    interval = Interval(variance, variance - error, variance + error).within(0, 1)
    return Interval(
        *(half * math.sqrt(one) for one in (interval.value, interval.low, interval.high))
    )


def correlation(block: Block, i: int, j: int, sums: Floats, std: float) -> Interval | None:
    """The correlation of two columns of a block of moments, by the delta method.

    None where a variance is lost in the noise.
    """
    part, k = sums[block.at], len(block.columns)
    at = [0, 1 + i, 1 + j, *(1 + k + _pair(k, a, b) for a, b in ((i, i), (j, j), (i, j)))]
    moments = part[at]
    if moments[0] <= ENOUGH * std:
        return None

    def value(m: Floats) -> float:
        a, b, aa, bb, ab = m[1:] / m[0]
        one, other = aa - a * a, bb - b * b
        return float(ab - a * b) / math.sqrt(one * other) if min(one, other) > 0 else math.nan

    step = 0.25 * std if std else 1.0
    gradient = [
        (value(moments + step * e) - value(moments - step * e)) / (2 * step) for e in np.eye(6)
    ]
    middle, error = value(moments), Z * std * float(np.linalg.norm(gradient))
    if not math.isfinite(middle + error):
        return None
    return Interval(middle, middle - error, middle + error).within(-1, 1)


def _pair(k: int, i: int, j: int) -> int:
    """The place of u_i u_j, i <= j, among the products of k columns."""
    i, j = min(i, j), max(i, j)
    return i * k - i * (i - 1) // 2 + (j - i)


def _unit(of: Design, column: int) -> tuple[float, float]:
    """Half of a number's range and its middle."""
    described = of.columns[column]
    if isinstance(described, CategoryColumn):
        raise ValueError("column: must be a number")
    return (described.high - described.low) / 2, (described.high + described.low) / 2
