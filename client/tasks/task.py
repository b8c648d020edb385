"""A task: what is learnt from which rows, all of it public except the rows themselves.

A task's model, bounds, categories and preprocessing are constants: nothing here is ever computed
from more than one row at a time, so nothing here has to be paid for.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from client.data.wanted import Wanted
from client.tasks.preprocessing import Columns
from client.tasks.rows import Encoded, Rows
from privacy.statistics.design import Design
from privacy.task_package.manifest import Kind

Read = Callable[[Path, bool], Iterator[tuple[Rows, Any]]]


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What to learn, from which columns, by which model, and how well it was learnt.

    * `kind`: "classification" (outputs are logits [B, len(classes)]; y is int64) or "regression"
      (outputs are [B, 1]; y is float32, the label's public bounds mapped to -1..1);
    * `inputs`, `label`: the raw columns; `shape`: one row's x;
    * `model(seed)`: fresh weights, the same for the same seed, without touching global generators;
    * `load(path, part)`: the rows of "train", "test" or "all"; `path` is a file, a folder, or None
      where the task is embedded; raises `TaskError`;
    * `load_both(path)`: the rows of "train" and of "test", where one reading of the files for both
      costs less than two;
    * `wanted`: the columns that a file of rows is read for (`client.data.reader`);
    * `encode(table)`: raw columns to `Encoded`, the same for training and for prediction;
    * `loss(outputs, y)`: a loss per row [B];
    * `metrics(outputs, y)`: accuracy, precision, recall, f1, loss; or mse, r2, loss;
    * `decode(outputs)`: probabilities [B, classes], or values in the label's unit [B];
    * `features`: where x is flat, the raw column behind each of its features;
    * `columns`: the public columns that are scaled first, where the task has such;
    * `dtype`: of x; `subjects`: whether the rows say whose they are;
    * `sample(n, generator)`: n made-up rows, where a model cannot take any numbers in place of x
      (masks, ids beyond its embeddings): what its examination runs on;
    * `x_shapes`: where x is a tree of several arrays by name, each one's shape and type;
    * `y_shape`, `y_dtype`: of a label, where it is not one class or number;
    * `read(path, labels)`: rows of a file piece by piece, where the task has a reader of its own;
    * `held_open(folder)`: such a `read` for many files below one folder, where each alone costs a
      start;
    * `times`: the public edges of a survival's bins;
    * `code`, `options`: of the task package that it comes from, as the plan has them; `changed()`
      says what it changed of the product, or remembers, since it was loaded: nothing may;
    * `pretrained`: what frozen models the rows are seen through, in words; `costly`: whether rows
      take long to encode, as they do then: a copy of them is kept;
    * `front`: where x is computed from scaled columns, that step, differentiable, for explanations.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...]
    inputs: tuple[str, ...]
    label: str
    shape: tuple[int, ...]
    model: Callable[[int], nn.Module]
    load: Callable[[Path | None, str], Rows]
    wanted: Wanted
    encode: Callable[[Any], Encoded]
    loss: Callable[[Tensor, Tensor], Tensor]
    metrics: Callable[[Tensor, Tensor], dict[str, float]]
    decode: Callable[[Tensor], Tensor]
    embedded: bool = False
    features: tuple[str, ...] = ()
    columns: Columns | None = None
    front: Callable[[Tensor], Tensor] | None = None
    dtype: torch.dtype = torch.float32
    subjects: bool = False
    sample: Callable[[int, torch.Generator], Rows] | None = None
    x_shapes: Mapping[str, tuple[tuple[int, ...], torch.dtype]] = field(default_factory=dict)
    y_shape: tuple[int, ...] = ()
    y_dtype: torch.dtype | None = None
    load_both: Callable[[Path | None], tuple[Rows, Rows]] | None = None
    read: Read | None = None
    held_open: Callable[[Path], AbstractContextManager[Read]] | None = None
    times: tuple[float, ...] = ()
    load_with: Callable[[Path | None, Callable[[Any], Encoded]], Rows] | None = None
    statistics: Design | None = None
    code: str = ""
    options: str = ""
    changed: Callable[[], str] = lambda: ""
    pretrained: tuple[str, ...] = ()
    costly: bool = False


def none_of(task: Task) -> Rows:
    """No rows of a task: x [0, ...] and y [0] in the types that it trains on."""
    kind = torch.int64 if task.kind == "classification" else torch.float32
    y = torch.zeros((0, *task.y_shape), dtype=task.y_dtype or kind)
    if task.x_shapes:
        shapes = task.x_shapes.items()
        return Rows({n: torch.zeros((0, *shape), dtype=of) for n, (shape, of) in shapes}, y)
    return Rows(torch.zeros((0, *task.shape), dtype=task.dtype), y)
