"""A task: what is learnt from which rows, all of it public except the rows themselves.

A task's model, bounds, categories and preprocessing are constants: nothing here is ever computed
from more than one row at a time, so nothing here has to be paid for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from client.data.wanted import Wanted
from client.tasks.preprocessing import Columns
from client.tasks.rows import Encoded, Rows


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What to learn, from which columns, by which model, and how well it was learnt.

    * `kind`: "classification" (outputs are logits [B, len(classes)]; y is int64) or "regression"
      (outputs are [B, 1]; y is float32, the label's public bounds mapped to -1..1);
    * `inputs`, `label`: the raw columns; `shape`: one row's x;
    * `model(seed)`: fresh weights, the same for the same seed, without touching global generators;
    * `load(path, part)`: the rows of "train", "test" or "all"; `path` is a file, a folder, or None
      where the task is embedded; raises `TaskError`;
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
    * `front`: where x is computed from scaled columns, that step, differentiable, for explanations.
    """

    name: str
    kind: Literal["classification", "regression"]
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


def none_of(task: Task) -> Rows:
    """No rows of a task: x [0, ...] and y [0] in the types that it trains on."""
    kind = torch.int64 if task.kind == "classification" else torch.float32
    x = torch.zeros((0, *task.shape), dtype=task.dtype)
    return Rows(x, torch.zeros(0, dtype=kind))
