"""An owner's look at the site's own rows: the figures of statistics, exact, for the owner alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from client.statistics.statistics_task import countable, statistics_task
from client.tasks.preprocessing import Category
from client.tasks.rows import TaskError
from client.tasks.task import Task
from privacy.contract.keys.tables import StatisticsPlan
from privacy.statistics.figures import figures
from privacy.statistics.release import exact_sums

_MOST = 200
"""Columns of a table that are shown where no plan chooses them."""


def everything(of: Task) -> StatisticsPlan:
    """The questions that fit a task's columns, for a look without a plan."""
    if of.columns is None:
        raise TaskError(f"expected a task whose rows have public columns, got {of.name}")
    columns = countable(of.columns)[-_MOST:]  # the label is the last
    questions = {
        one.name: ("frequencies",)
        if isinstance(one, Category)
        else ("histogram", "quantiles", "moments")
        for one in columns
    }
    return StatisticsPlan(of=of.name, columns=questions, bins=20)  # type: ignore[arg-type]


def look(plan: StatisticsPlan, of: Task, data: Path | None, name: str) -> dict[str, Any]:
    """What the plan would release of these rows, without any noise, as JSON values."""
    if of.embedded and data is not None:
        raise TaskError(f"{of.name}: has its rows built in, and no columns of a file to look at")
    counted = statistics_task(replace(plan, groups=(), label=None), of)
    if counted.statistics is None:
        raise TaskError("statistics: must have a design")
    rows = counted.load(data, "train")
    sums = exact_sums(counted.statistics, rows.x.numpy())
    return {"of": of.name, "sites": {name: figures(counted.statistics, sums, 0.0)}}
