"""A request's rows: JSON in, encoded rows out, by the same encoding that training used.

Values are never repeated in an answer or a log: a row that does not fit is named by its number and
field alone. Rows of plain numbers, the common case, take a short way with the same result.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from client.data.values import plain
from client.tasks.preprocessing import Number
from client.tasks.rows import TaskError
from client.tasks.task import Task
from privacy.http.exchange import HttpError

LONGEST: Final = 10_000
"""Characters of the longest text value."""


class RequestError(HttpError):
    """A request that cannot be answered: an HTTP status, and one line without any value."""


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """Encoded rows x, a tree of [rows, ...], whether one alone was asked for, and their names."""

    x: Any
    single: bool
    names: list[str] | None = None


Encode = Callable[[bytes, str], Request]
"""A request's body, and the name of its file where it is one, to encoded rows."""


def encoder(task: Task, most: int) -> Encode:
    """The encoder of request bodies of JSON with at most `most` rows."""
    short = _short_way(task)
    names = task.inputs

    def encode(body: bytes, name: str) -> Request:
        rows, single = _rows(body, most)
        values = _values(rows, names)
        x = short(values) if short is not None else None
        return Request(torch.from_numpy(_long_way(task, values) if x is None else x), single)

    return encode


def _rows(body: bytes, most: int) -> tuple[Sequence[Any], bool]:
    """The rows of `{"row": ..}` or `{"rows": [..]}`."""
    try:
        request = json.loads(body, parse_constant=_no_constant, object_pairs_hook=_distinct)
    except (ValueError, RecursionError):
        raise RequestError(400, "expected JSON") from None
    if not isinstance(request, dict) or len(request) != 1 or not {"row", "rows"} & set(request):
        raise RequestError(400, 'expected {"row": ..} or {"rows": [..]}')
    if "row" in request:
        return [request["row"]], True
    rows = request["rows"]
    if not isinstance(rows, list) or not rows:
        raise RequestError(400, "rows: expected a list of at least one row")
    if len(rows) > most:
        raise RequestError(413, f"rows: expected at most {most}, got {len(rows)}")
    return rows, False


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names are different, where JSON would keep the last of two."""
    names = dict(pairs)
    if len(names) < len(pairs):
        raise ValueError
    return names


def _no_constant(name: str) -> float:
    raise ValueError(name)


def _values(rows: Sequence[Any], names: Sequence[str]) -> list[Sequence[Any]]:
    """Each row as a list in the order of the columns: lists as they are, objects by name."""
    width = len(names)
    values: list[Sequence[Any]] = []
    for number, row in enumerate(rows):
        if isinstance(row, dict):
            missing = next((name for name in names if name not in row), None)
            if missing is not None:
                raise RequestError(422, f"row {number}, {missing}: expected a value, found none")
            row = [row[name] for name in names]
        elif not isinstance(row, list):
            raise RequestError(422, f"row {number}: expected an object or a list of values")
        if len(row) != width:
            raise RequestError(422, f"row {number}: expected {width} values, got {len(row)}")
        values.append(row)
    return values


def _short_way(task: Task) -> Callable[[list[Sequence[Any]]], NDArray[Any] | None] | None:
    """One vectorised step for columns that are plain bounded numbers; None where others are."""
    columns, front = task.columns, task.front
    if columns is None:
        return None
    numbers = [column for column in columns.inputs if isinstance(column, Number)]
    if len(numbers) != len(columns.inputs) or not all(column.plain for column in numbers):
        return None
    low = np.array([column.low for column in numbers])
    high = np.array([column.high for column in numbers])
    shift = np.array([1 + column.shift for column in numbers])

    def encode(rows: list[Sequence[Any]]) -> NDArray[Any] | None:
        if not all(type(value) in (int, float) for row in rows for value in row):
            return None
        try:
            values = np.array(rows, dtype=np.float64)
        except (ValueError, TypeError, OverflowError):
            return None
        if not np.isfinite(values).all():
            return None
        held = np.clip(values, low, high)
        scaled: NDArray[Any] = (2 * (held - low) / (high - low) - shift).astype(np.float32)
        if front is None:
            return scaled
        with torch.inference_mode():
            x: NDArray[Any] = front(torch.from_numpy(scaled)).numpy()
        return x

    return encode


def _long_way(task: Task, rows: list[Sequence[Any]]) -> NDArray[Any]:
    """Through the task's own encoding, as a file's rows go."""
    columns = {
        name: pa.array([_text(row[i], n, name) for n, row in enumerate(rows)], pa.string())
        for i, name in enumerate(task.inputs)
    }
    try:
        encoded = task.encode(pa.table(columns))
    except TaskError as error:
        raise RequestError(422, str(error)) from None
    if encoded.misfits:
        first = encoded.misfits[0]
        raise RequestError(422, f"row {first.row}, {first.column}: expected {first.expected}")
    return np.ascontiguousarray(encoded.x.numpy())


def _text(value: Any, row: int, name: str) -> str | None:
    """A JSON value as the text that a file would hold."""
    if value is None:
        return None
    if isinstance(value, str) and len(value) <= LONGEST and plain(value).isprintable():
        return value
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, int) and abs(value) < 2**63:
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    raise RequestError(422, f"row {row}, {name}: expected a number or a short text")
