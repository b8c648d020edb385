"""A task: what is learnt from which rows, all of it public except the rows themselves.

A task's model, bounds, categories and preprocessing are constants: nothing here is ever computed
from more than one row at a time, so nothing here has to be paid for.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

if TYPE_CHECKING:
    from client.tasks.preprocessing import Columns

PARTS: Final = ("train", "test", "all")
"""The parts of a data set that `Task.load` knows."""


class TaskError(ValueError):
    """A task, a schema or a data file that cannot be used; always one line."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Encoded rows: `x` [n, ...], `y` [n], and where known each row's natural site and subject.

    `subject` numbers the people behind the rows: equal numbers, one person.
    """

    x: Tensor
    y: Tensor
    site: tuple[str, ...] | None = None
    subject: Tensor | None = None

    def __post_init__(self) -> None:
        for name, value in (("y", self.y), ("site", self.site), ("subject", self.subject)):
            if value is not None and len(value) != len(self.x):
                raise TaskError(f"{name}: expected {len(self.x)} values, got {len(value)}")

    def __len__(self) -> int:
        return len(self.x)

    def take(self, indices: Sequence[int] | NDArray[np.int64] | Tensor) -> "Rows":
        """The rows at `indices`, in that order."""
        at = torch.as_tensor(indices, dtype=torch.int64)
        site = None if self.site is None else tuple(self.site[i] for i in at.tolist())
        subject = None if self.subject is None else self.subject[at]
        # Rows whole, by copying memory: `x[at]` gathers number by number.
        return Rows(self.x.index_select(0, at), self.y[at], site, subject)


@dataclass(frozen=True, slots=True)
class Misfit:
    """A value that does not fit its column, or is `absent`; it never holds the value itself."""

    row: int
    column: str
    expected: str
    absent: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """Raw columns encoded: `x` and `y` (None without a label column) of the rows that fit.

    `kept` are the positions of these rows in the raw table; `misfits` says why others are absent;
    `raw` are the scaled columns (-1..1) that a task's `front` turns into x.
    """

    x: Tensor
    y: Tensor | None
    kept: NDArray[np.int64]
    misfits: tuple[Misfit, ...] = ()
    raw: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What to learn, from which columns, by which model, and how well it was learnt.

    * `kind`: "classification" (outputs are logits [B, len(classes)]; y is int64) or "regression"
      (outputs are [B, 1]; y is float32, the label's public bounds mapped to -1..1);
    * `inputs`, `label`: the raw columns; `shape`: one row's x;
    * `model(seed)`: fresh weights, the same for the same seed, without touching global generators;
    * `load(path, part)`: the rows of "train", "test" or "all"; `path` is a file, a folder, or None
      where the task is embedded; raises `TaskError`;
    * `read(path)`: raw columns of a file, batch after batch, as pyarrow tables;
    * `encode(table)`: raw columns to `Encoded`, the same for training and for prediction;
    * `loss(outputs, y)`: a loss per row [B];
    * `metrics(outputs, y)`: accuracy, precision, recall, f1, loss; or mse, r2, loss;
    * `decode(outputs)`: probabilities [B, classes], or values in the label's unit [B];
    * `features`: where x is flat, the raw column behind each of its features;
    * `columns`: the public columns that are scaled first, where the task has such;
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
    read: Callable[[Path], Iterator[Any]]
    encode: Callable[[Any], Encoded]
    loss: Callable[[Tensor, Tensor], Tensor]
    metrics: Callable[[Tensor, Tensor], dict[str, float]]
    decode: Callable[[Tensor], Tensor]
    embedded: bool = False
    features: tuple[str, ...] = ()
    columns: "Columns | None" = None
    front: Callable[[Tensor], Tensor] | None = None


def builtin(rows: Rows, part: int, parts: int) -> Rows:
    """Part 0..`parts`-1 of an embedded task's rows: disjoint parts, which together are all rows."""
    if not 1 <= parts <= len(rows):
        raise TaskError(f"builtin: expected 1 <= parts <= {len(rows)}, got {parts}")
    if not 0 <= part < parts:
        raise TaskError(f"builtin: expected 0 <= part < {parts}, got {part}")
    order = np.random.default_rng(0).permutation(len(rows))
    return rows.take(np.array_split(order, parts)[part])


def cap(rows: Rows, most: int) -> Rows:
    """The first `most` rows of every subject, in the rows' order; all rows without subjects."""
    if most < 1:
        raise TaskError(f"cap: expected 1 <= rows per subject, got {most}")
    if rows.subject is None:
        return rows
    seen: dict[int, int] = {}
    kept: list[int] = []
    for row, subject in enumerate(rows.subject.tolist()):
        seen[subject] = seen.get(subject, 0) + 1
        if seen[subject] <= most:
            kept.append(row)
    return rows.take(kept)


def check_part(part: str) -> None:
    """Refuse a part of a data set that does not exist."""
    if part not in PARTS:
        raise TaskError(f"part: expected one of {', '.join(PARTS)}, got {part!r}")
