"""A task that counts: the raw columns of another task's rows, each value before it is encoded.

Every row of that task's files is counted, one with a missing or an unknown value too. What a value
is follows from it and the public columns alone.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.tasks.preprocessing import Category, Columns, Number
from client.tasks.rows import Encoded, Rows, TaskError
from client.tasks.task import Task
from privacy.contract.keys.tables import StatisticsPlan
from privacy.statistics.columns import CategoryColumn, Column, NumberColumn, StatisticsError
from privacy.statistics.design import design


class _Sums(nn.Module):
    """In the place of a model's weights: the sums, which begin at 0.

    Where predictions are counted, the weights of the model that makes them as well.
    """

    def __init__(self, size: int, model: nn.Module | None) -> None:
        super().__init__()
        self.sums = nn.Parameter(torch.zeros(size))
        if model is not None:
            self.model = model


def countable(columns: Columns) -> tuple[Number | Category, ...]:
    """The columns of a task that have public values or a public range, its label among them."""
    return tuple(
        one for one in (*columns.inputs, columns.label) if isinstance(one, Number | Category)
    )


def _described(column: Number | Category) -> Column:
    if isinstance(column, Category):
        return CategoryColumn(column.name, column.values)
    return NumberColumn(column.name, column.low, column.high, column.date)


def statistics_task(plan: StatisticsPlan, of: Task) -> Task:
    """The task that counts the rows of another; TaskError where these have no public columns."""
    if of.columns is None or of.load_with is None:
        raise TaskError(
            f"statistics.of must be a task whose rows have public columns, got {of.name}"
        )
    try:
        counted = design(plan, [_described(one) for one in countable(of.columns)])
    except StatisticsError as error:
        raise TaskError(str(error)) from None
    if plan.groups and (len(of.shape) != 1 or of.classes == () or of.label != plan.label):
        raise TaskError(
            f"statistics.label must be {of.label}, the label of a classification, got {plan.label}"
        )
    known = {one.name: one for one in countable(of.columns)}
    columns = [known[one.name] for one in counted.columns]
    label, load_with = of.columns.label, of.load_with

    def encode(table: Any) -> Encoded:
        raw = _encoded(table, columns, label)
        return _with_features(raw, of.encode(table)) if plan.groups else raw

    def load(path: Path | None, part: str) -> Rows:
        return load_with(path, encode)

    return Task(
        name="statistics",
        kind="regression",
        classes=(),
        inputs=tuple(one.name for one in columns),
        label=label.name,
        shape=(len(columns) + (of.shape[0] if plan.groups else 0),),
        model=lambda seed: _Sums(counted.size, of.model(seed) if plan.groups else None),
        load=load,
        wanted=of.wanted,
        encode=encode,
        loss=_nothing,
        metrics=_nothing,
        decode=of.decode if plan.groups else _nothing,
        embedded=of.embedded,
        dtype=torch.float64,
        y_dtype=torch.int64,
        subjects=of.subjects,
        options=json.dumps(asdict(plan), sort_keys=True),
        statistics=counted,
    )


def _nothing(*_: Tensor) -> Any:
    raise TaskError("statistics: nothing is learnt, so there is nothing to predict or to measure")


def _encoded(table: Any, columns: Sequence[Number | Category], label: Number | Category) -> Encoded:
    """Every row's raw values as privacy/statistics/columns.py has them; a label class as y."""
    names, rows = set(table.column_names), table.num_rows
    x = np.full((rows, len(columns)), np.nan)
    for place, column in enumerate(columns):
        if column.name in names:
            x[:, place] = _values(column, table.column(column.name))
    y = np.zeros(rows, dtype=np.int64)
    if isinstance(label, Category) and label.name in names:
        y, _ = label.codes(table.column(label.name))
    index = np.arange(rows, dtype=np.int64)
    return Encoded(torch.from_numpy(x), torch.from_numpy(np.ascontiguousarray(y)), index)


def _with_features(raw: Encoded, features: Encoded) -> Encoded:
    """The raw values, then the features that the model reads; NaN where a row does not fit."""
    x = np.full((len(raw.x), features.x.shape[1]), np.nan)
    x[features.index] = features.x.numpy()
    return replace(raw, x=torch.cat([raw.x, torch.from_numpy(x)], 1))


def _values(column: Number | Category, raw: Any) -> NDArray[np.float64]:
    try:
        if isinstance(column, Number):
            numbers, wrong = column.numbers(raw)
            return np.where(wrong, np.inf, numbers)
        codes, gone = column.codes(raw)
    except TaskError as error:
        raise TaskError(f"column {column.name}: {error}") from None
    return np.where(gone, np.nan, codes.astype(np.float64))
