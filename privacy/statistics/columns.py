"""The public description of a column that is counted, and the cells that its values fall into.

A row's value comes as one float64. A number is itself, NaN where it is missing and infinite where
it is no number. A category is the position of its value, the number of values for any other, and
NaN where it is missing. Cells are public: nothing here depends on rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
MOST_CELLS: Final = 1024
_DAY: Final = 86_400


class StatisticsError(ValueError):
    """Statistics that cannot be asked for, or results that cannot be read: one line."""


@dataclass(frozen=True, slots=True)
class NumberColumn:
    """A number of the public range low..high; a `date` counts in days since 1970-01-01 (UTC)."""

    name: str
    low: float
    high: float
    date: bool = False

    def edges(self, bins: int, whole: bool) -> Floats:
        """The cells' edges [m + 1]; a cell of whole numbers begins at its number."""
        if not whole:
            return np.linspace(self.low, self.high, bins + 1)
        first, last = np.ceil(self.low), np.floor(self.high)
        if last - first + 1 > MOST_CELLS or last < first:
            raise StatisticsError(
                f"statistics.whole: {self.name} must have 1 to {MOST_CELLS} whole numbers in its "
                f"range {self.low:g}..{self.high:g}"
            )
        return np.arange(first, last + 2)

    def cells(self, values: Floats, edges: Floats) -> NDArray[np.int64]:
        """The cell of each value [n]: those inside, then below, above, unreadable, missing."""
        inside = len(edges) - 1
        cell = np.searchsorted(edges, values, side="right") - 1
        cell = np.where(values == self.high, np.minimum(cell, inside - 1), cell)
        # Between the range's low end and its first whole number: counted with that number.
        cell = np.where((cell < 0) & (values >= self.low), 0, cell)
        cell = np.where(values < self.low, inside, cell)
        cell = np.where(values > self.high, inside + 1, cell)
        cell = np.where(np.isinf(values), inside + 2, cell)
        return np.asarray(np.where(np.isnan(values), inside + 3, cell), np.int64)

    def scaled(self, values: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        """Values held inside the range and mapped to -1..1, 0 where there is none; which are."""
        present = np.isfinite(values)
        held = np.clip(np.where(present, values, self.low), self.low, self.high)
        unit = 2 * (held - self.low) / (self.high - self.low) - 1
        return np.where(present, np.clip(unit, -1, 1), 0.0), present

    def shown(self, value: float) -> float | str:
        """A value as people read it: a date as its day."""
        if not self.date:
            return float(value)
        return f"{datetime.fromtimestamp(value * _DAY, UTC):%Y-%m-%d}"


@dataclass(frozen=True, slots=True)
class CategoryColumn:
    """One of the public `values`; any other value is counted as "other"."""

    name: str
    values: tuple[str, ...]

    def cells(self, values: Floats) -> NDArray[np.int64]:
        """The cell of each value [n]: those of the public values, then other, missing."""
        count = len(self.values)
        code = np.where(np.isnan(values), count + 1, values)
        return np.asarray(np.clip(code, 0, count + 1), np.int64)


Column = NumberColumn | CategoryColumn


def to_dict(column: Column) -> dict[str, Any]:
    """A column's description as JSON values."""
    if isinstance(column, CategoryColumn):
        return {"name": column.name, "values": list(column.values)}
    low, high = float(column.low), float(column.high)
    return {"name": column.name, "low": low, "high": high, "date": column.date}


def from_dict(value: Mapping[str, Any]) -> Column:
    """What `to_dict` gave; StatisticsError for anything else."""
    try:
        if set(value) == {"name", "values"}:
            return CategoryColumn(str(value["name"]), tuple(map(str, value["values"])))
        if set(value) == {"name", "low", "high", "date"}:
            low, high = float(value["low"]), float(value["high"])
            if low < high:
                return NumberColumn(str(value["name"]), low, high, bool(value["date"]))
    except (TypeError, ValueError):
        pass
    raise StatisticsError(
        f"a column must be described by its range or its values, got {value!r:.80}"
    )
