"""A look at a site's own file before any round: what would be read, and what would not.

Everything here is about private rows and stays at the site: it is for the owner's eyes alone.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from client.data.reader import read
from client.data.source import options_of
from client.tasks.features.text import Text
from client.tasks.preprocessing import Category, Number
from client.tasks.preprocessing import Column as RawColumn
from client.tasks.rows import TaskError
from client.tasks.task import Task

SENTINELS: Final = (-1.0, -9.0, -99.0, -999.0, -9999.0, 9.0, 99.0, 999.0, 9999.0)
"""Numbers that often stand for a missing value."""
SUSPICIOUS: Final = 0.02
"""The share of a column outside its bounds from which one such number is told."""


@dataclass(slots=True)
class Column:
    """One column, in counts of rows: `misfit` are rows that would be left out for it."""

    name: str
    kind: str
    rows: int = 0
    missing: int = 0
    outside: int = 0
    unknown: int = 0
    misfit: int = 0
    sentinels: Counter[float] = field(default_factory=Counter)

    def share(self, count: int) -> float:
        """A count as a share of the rows."""
        return count / self.rows if self.rows else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The column as JSON values."""
        sentinels = {value: n for value, n in self.sentinels.items() if self.share(n) >= SUSPICIOUS}
        return {
            "column": self.name,
            "type": self.kind,
            "missing": self.share(self.missing),
            "outside": self.share(self.outside),
            "unknown": self.share(self.unknown),
            "left_out": self.misfit,
            "sentinels": [f"{value:g}" for value in sorted(sentinels)],
        }


@dataclass(slots=True)
class Checked:
    """What a file holds under a task's schema; `first` are its first rows as they would be read."""

    rows: int = 0
    lines: int = 0
    left_out: int = 0
    places: list[str] = field(default_factory=list)
    columns: dict[str, Column] = field(default_factory=dict)
    classes: Counter[str] = field(default_factory=Counter)
    first: list[dict[str, Any]] = field(default_factory=list)

    def worst(self) -> float:
        """The largest share of a column that nobody understood, or of rows left out."""
        shares = [column.share(column.unknown) for column in self.columns.values()]
        return max([*shares, self.left_out / self.rows if self.rows else 1.0])

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON values, without any row."""
        return {
            "rows": self.rows,
            "lines": self.lines,
            "left_out": self.left_out,
            "where": self.places,
            "classes": dict(self.classes),
            "columns": [column.to_dict() for column in self.columns.values()],
        }


def check(task: Task, path: Path, *, shown: int = 0) -> Checked:
    """Read a source whole, as training would; TaskError where it cannot be read.

    The first `shown` rows are kept as they are read, with their values.
    """
    columns = task.columns
    if columns is None or task.embedded:
        raise TaskError(f"{task.name}: has no columns of a file to check")
    result = Checked()
    for column in (*columns.inputs, columns.label):
        result.columns[column.name] = Column(column.name, _kind(column))
    wanted = task.wanted
    for batch in read(path, wanted, options=options_of(path)):
        result.rows += batch.table.num_rows
        result.lines += batch.lines
        names = set(batch.table.column_names)
        for column in (*columns.inputs, columns.label):
            if column.name not in names:
                raise TaskError(f"{path}: expected a column named {column.name!r}, found none")
            try:
                _look(result.columns[column.name], column, batch.table.column(column.name))
            except TaskError as error:
                raise TaskError(f"{path}: column {column.name}: {error}") from None
        try:
            encoded = task.encode(batch.table)
        except TaskError as error:
            raise TaskError(f"{path}: {error}") from None
        result.left_out += batch.table.num_rows - len(encoded.index)
        for misfit in encoded.misfits:
            result.columns[misfit.column].misfit += 1
            if len(result.places) < 5:
                where = batch.place(int(batch.numbers[misfit.row]))
                result.places.append(f"{where}, column {misfit.column}: expected {misfit.expected}")
        if encoded.y is not None and task.classes:
            counts = np.bincount(encoded.y.numpy(), minlength=len(task.classes))
            for name, count in zip(task.classes, counts.tolist(), strict=True):
                result.classes[name] += count
        if len(result.first) < shown:
            result.first += batch.table.slice(0, shown - len(result.first)).to_pylist()
    return result


def _kind(column: RawColumn) -> str:
    if isinstance(column, Number):
        return "date" if column.date else "number"
    return "text" if isinstance(column, Text) else "category"


def _look(counts: Column, column: RawColumn, values: Any) -> None:
    """Add a batch's values to a column's counts."""
    counts.rows += len(values)
    if isinstance(column, Text):
        counts.missing += int(column.missing(values).sum())
        return
    if isinstance(column, Category):
        codes, gone = column.codes(values)
        counts.missing += int(gone.sum())
        counts.unknown += int(((codes == len(column.values)) & ~gone).sum())
        return
    numbers, wrong = column.numbers(values)
    gone = np.isnan(numbers) & ~wrong
    counts.missing += int(gone.sum())
    counts.unknown += int(wrong.sum())
    held = numbers[~gone & ~wrong]
    beyond = held[(held < column.low) | (held > column.high)]
    counts.outside += len(beyond)
    for value in SENTINELS:
        if not column.low <= value <= column.high:
            count = int((beyond == value).sum())
            if count:
                counts.sentinels[value] += count
