"""Do recent rows still look like those of a reference, beyond noise and chance? For the owner.

The reference is a run of statistics (its noise has a known size) or older rows of the site's own.
Both are counted in the same public cells; a column has drifted where a test of one distribution for
both fails (privacy/statistics/differences.py), at a level shared among all columns.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from torch import Tensor

from client.data.input_files import chunks
from client.inference.evaluation import Evaluation
from client.statistics.look import everything
from client.statistics.statistics_task import statistics_task
from client.tasks.registry import task as task_named
from client.tasks.rows import TaskError
from client.tasks.task import Task
from privacy.statistics.columns import Floats
from privacy.statistics.design import Design
from privacy.statistics.differences import difference
from privacy.statistics.figures import by_column, order_of
from privacy.statistics.release import exact_sums
from privacy.statistics.results import Results, read_results

LEVEL: Final = 0.01
"""Rows that are alike are said to have drifted so often, all columns together."""
_FEWEST: Final = 50
_Z: Final = 2.576


@dataclass(frozen=True, slots=True)
class ColumnDrift:
    """One column: `p` is small where it drifted, `distance` the total variation distance (0 to 1).

    None where the reference's noise, or too few rows, let nothing be said.
    """

    column: str
    p: float | None
    distance: float | None
    drifted: bool


@dataclass(frozen=True, slots=True)
class Calibration:
    """How sure a model is on labelled recent rows, and how often it is right.

    It has drifted where the two differ by more than chance explains (at 99 %) and by 2 points.
    """

    rows: int
    confidence: float
    accuracy: float
    error: float
    drifted: bool


@dataclass(frozen=True, slots=True)
class Drift:
    """A comparison: of how many rows, with what, column by column; `calibration` where labelled."""

    rows: int
    reference: str
    columns: tuple[ColumnDrift, ...]
    calibration: Calibration | None = None

    @property
    def drifted(self) -> bool:
        """Whether anything did."""
        calibrated = self.calibration is None or not self.calibration.drifted
        return any(one.drifted for one in self.columns) or not calibrated

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON values."""
        return {"drifted": self.drifted, **asdict(self)}


def drift(recent: Path, against: Path, of: Task | None) -> Drift:
    """Compare the rows of a file with a reference; TaskError or StatisticsError, one line.

    `against` is a run of statistics (its folder or `statistics.json`), or a file of rows of the
    task `of`, which is that of the run where it is left out.
    """
    if against.name == "statistics.json" or (against / "statistics.json").is_file():
        results = read_results(against)
        of = of or task_named(results.plan.reads, results.plan.schema)
        counted, asked = _same_columns(results, of)
        released = results.released().values()
        sums = np.sum([one for one, _ in released], 0)
        noise = float(np.sqrt(sum(std**2 for _, std in released)))
        words = f"the statistics of run {results.run}"
    elif of is None:
        raise TaskError("--model must be given where --against is a file of rows")
    else:
        counted = statistics_task(everything(of), of)
        asked = _design(counted)
        _, sums = _sums(counted, asked, against)
        noise, words = 0.0, f"the rows of {against.name}"
    rows, now = _sums(counted, asked, recent)
    if rows < _FEWEST:
        raise TaskError(f"{recent}: must have at least {_FEWEST} rows to compare, got {rows}")
    return Drift(rows, words, compared(asked, (sums, noise), now, label=of.label))


def compared(
    of: Design, reference: tuple[Floats, float], recent: Floats, *, label: str = ""
) -> tuple[ColumnDrift, ...]:
    """Column by column, exact recent sums against the reference's sums with noise of known std.

    The `label` is left out: recent rows have none.
    """
    table = by_column(of, {"reference": reference, "recent": (recent, 0.0)})
    table = {i: pair for i, pair in table.items() if of.columns[i].name != label}
    level = LEVEL / max(len(table), 1)
    columns = []
    for index, pair in table.items():
        name = of.columns[index].name
        one = difference(name, pair, order_of(of, index, pair["reference"]))
        if one is None:
            columns.append(ColumnDrift(name, None, None, False))
            continue
        before, after = (np.maximum(c.counts, 0) / max(c.total, 1) for c in pair.values())
        distance = min(1.0, float(np.abs(before - after).sum() / 2))
        columns.append(ColumnDrift(name, one.p, distance, one.p < level))
    return tuple(columns)


def calibration(evaluation: Evaluation) -> Calibration | None:
    """The mean confidence of labelled rows against their accuracy; None for a number as label."""
    bins = evaluation.bins
    rows = sum(one.rows for one in bins)
    if not rows:
        return None
    confidence = sum(one.rows * one.confidence for one in bins) / rows
    accuracy = sum(one.rows * one.accuracy for one in bins) / rows
    # The variance of (right - confidence), bin by bin, for a model that is right as often as sure.
    variance = sum(one.rows * one.confidence * (1 - one.confidence) for one in bins)
    apart = abs(confidence - accuracy)
    drifted = apart > max(0.02, _Z * float(np.sqrt(variance)) / rows)
    return Calibration(rows, confidence, accuracy, evaluation.metrics.get("ece", apart), drifted)


def _same_columns(results: Results, of: Task) -> tuple[Task, Design]:
    """The counting task of a run of statistics, if this task has the very columns it counted."""
    if results.plan.statistics is None:
        raise TaskError("--against must be a run of statistics")
    counted = statistics_task(results.plan.statistics, of)
    if _design(counted).columns != results.columns:
        raise TaskError(f"--against counted other columns or ranges than the task {of.name} has")
    return counted, _design(counted)


def _design(counted: Task) -> Design:
    if counted.statistics is None:
        raise TaskError("statistics: must have a design")
    return counted.statistics


def _sums(counted: Task, of: Design, path: Path) -> tuple[int, Floats]:
    """How many rows a file has, and their exact sums; its labels are not looked at."""
    totals, rows = np.zeros(of.size), 0
    for chunk in chunks(counted, path):
        values = _matrix(chunk.x)
        rows += len(values)
        totals += exact_sums(of, values)
    return rows, totals


def _matrix(x: object) -> Floats:
    if not isinstance(x, Tensor):
        raise TaskError("expected rows of numbers")
    return np.asarray(x.numpy(), np.float64)


def worst(columns: Sequence[ColumnDrift]) -> list[ColumnDrift]:
    """The columns, those that moved furthest first."""
    return sorted(columns, key=lambda one: (not one.drifted, -(one.distance or 0.0), one.column))
