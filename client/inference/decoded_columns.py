"""What a model's outputs say of each row, as columns: one rule for each kind of task."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from client.models.loading import ModelError
from client.tasks.described.outcomes import LIST
from client.tasks.task import Task

MOST: Final = 4096
"""Columns of one model's outputs, at most."""
Columns = dict[str, Any]
"""Arrow arrays by name, each of as many values as there are rows; classes are a dictionary's."""


def columns(task: Task, scores: Any, *, every: bool = False) -> Columns:
    """The predictions of raw outputs (a tree of [rows, ...]); ModelError where they do not fit.

    `prediction` is a class, several classes (`;` between them), a number in the label's unit, a
    sequence of classes (blanks between them) or, of a survival, the mean time within the public
    bins; `probability` is that of the class, with six digits. A task of kind "values" has a column
    for each of its outputs instead. `every` adds what stands behind a prediction: `p_CLASS` for
    each class, or `beyond_TIME`, the probability of having come through each bin.
    """
    decoded = task.decode(scores)
    if task.kind == "values":
        return _values(decoded)
    if not isinstance(decoded, Tensor):
        raise ModelError(f"decode must give a tensor where kind = {task.kind!r}, got a tree")
    if task.kind in ("classification", "ordinal", "multi-label"):
        wanted: tuple[int, ...] = (len(decoded), len(task.classes))
        if tuple(decoded.shape) != wanted:
            raise ModelError(f"decode must give {list(wanted)}, got {list(decoded.shape)}")
    return _KINDS[task.kind](task, decoded, every)


def best(task: Task, decoded: Tensor) -> Tensor:
    """The class that is predicted, as an index [rows]: the likeliest; of ordered ones the median.

    The median of ordered classes is the class that more than half of the probability reaches.
    """
    if task.kind == "ordinal":
        above = 1 - decoded.double().cumsum(1)[:, :-1]
        return (above > 0.5).sum(1)
    return decoded.max(1).indices


def _classified(task: Task, decoded: Tensor, every: bool) -> Columns:
    if task.kind == "ordinal":
        at = best(task, decoded)
        likeliest = decoded.gather(1, at[:, None])[:, 0]
    else:
        likeliest, at = decoded.max(1)
    classes = pa.array(task.classes, pa.string())
    names = pa.DictionaryArray.from_arrays(pa.array(at.numpy()), classes)
    columns = {"prediction": names, "probability": _rounded(likeliest)}
    return columns | (_each(task, decoded) if every else {})


def _several(task: Task, decoded: Tensor, every: bool) -> Columns:
    names = np.array(task.classes, dtype=object)
    texts = [LIST.join(names[row]) for row in (decoded > 0.5).numpy()]
    columns = {"prediction": pa.array(texts, pa.string()), "probability": _none(len(texts))}
    return columns | (_each(task, decoded) if every else {})


def _number(task: Task, decoded: Tensor, every: bool) -> Columns:
    values = decoded.reshape(-1).double().numpy()
    return {"prediction": pa.array(values, pa.float64()), "probability": _none(len(values))}


def _sequence(task: Task, decoded: Tensor, every: bool) -> Columns:
    """Each token's likeliest class, by name where the task names its classes, else by number."""
    at = decoded.argmax(-1).reshape(len(decoded), -1).tolist()
    names = task.classes if len(task.classes) == decoded.shape[-1] else ()
    texts = [" ".join(names[i] if names else str(i) for i in row) for row in at]
    return {"prediction": pa.array(texts, pa.string()), "probability": _none(len(texts))}


def _survived(task: Task, decoded: Tensor, every: bool) -> Columns:
    """The restricted mean time (Royston & Parmar 2013): the area under the curve, by trapezoids."""
    curve = torch.cat([torch.ones(len(decoded), 1), decoded.float()], 1).double()
    widths = torch.tensor(task.times, dtype=torch.float64).diff()
    mean = task.times[0] + ((curve[:, 1:] + curve[:, :-1]) / 2 * widths).sum(1)
    columns = {"prediction": pa.array(mean.numpy()), "probability": _none(len(decoded))}
    if every:
        for index, time in enumerate(task.times[1:]):
            columns[f"beyond_{time:g}"] = _rounded(decoded[:, index])
    return columns


_KINDS: Final[dict[str, Callable[[Task, Tensor, bool], Columns]]] = {
    "classification": _classified,
    "ordinal": _classified,
    "multi-label": _several,
    "regression": _number,
    "counts": _number,
    "tokens": _sequence,
    "survival": _survived,
}


def _values(decoded: Any) -> Columns:
    columns: Columns = {}
    for name, values in leaves(decoded).items():
        flat = values.reshape(len(values), -1)
        single = flat.shape[1] == 1
        if len(columns) + flat.shape[1] > MOST:
            raise ModelError(f"decode must give at most {MOST} numbers a row")
        for index in range(flat.shape[1]):
            label = name or "prediction"
            columns[label if single else f"{label}_{index}"] = pa.array(flat[:, index].numpy())
    if not columns:
        raise ModelError("decode must give at least one tensor")
    return columns


def leaves(tree: Any) -> dict[str, Tensor]:
    """The tensors of a tree by their path, as `age` or `head_0`; one alone has no name."""
    paths, _ = pytree.tree_flatten_with_path(tree)
    named = {}
    for path, leaf in paths:
        if isinstance(leaf, Tensor):
            parts = [getattr(key, "key", getattr(key, "idx", "")) for key in path]
            named["_".join(str(part) for part in parts)] = leaf
    return named


def _each(task: Task, decoded: Tensor) -> Columns:
    return {f"p_{name}": _rounded(decoded[:, i]) for i, name in enumerate(task.classes)}


def _rounded(values: Tensor) -> Any:
    numbers: NDArray[np.float64] = values.double().numpy()
    return pa.array(np.round(numbers, 6))


def _none(count: int) -> Any:
    return pa.nulls(count, pa.float64())
