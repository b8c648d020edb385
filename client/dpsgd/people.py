"""People as the unit: which rows are whose, and a person's gradient as one contribution.

A person's contribution is the mean of the gradients of at most `most` of the person's rows, clipped
once ("user-level DP-SGD": Charles et al. 2024; Chua et al. 2024). All rows of the people drawn go
through the model together; then every layer's inputs and output gradients are laid out as
[people, rows, ...], as those of a sequence are, so that what sums over time sums over a person.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from client.dpsgd.per_sample import Embedding, Layer, Linear, Norm
from client.dpsgd.trees import Batch


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Whose the rows of a batch are: `at` [people, R] are places in the batch, `real` says which.

    A place that is not real repeats a row of the same person, and counts zero. `weights` [rows] is
    what each row's loss counts: 1 / the person's number of rows.
    """

    at: Tensor
    real: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.at)

    def laid_out(self, a: Any, g: Any) -> tuple[Any, Any]:
        """A layer's inputs and output gradients as [people, R, ...]."""
        return _gathered(a, self.at, None), _gathered(g, self.at, self.real)


def of_views(group: Group | None, records: int, count: int) -> Group:
    """Whose the views of a batch's records are: `count` beside each other for each record.

    Without a `group` each record is a unit of its own; its gradient is the mean of its views'.
    """
    if group is None:
        each = torch.arange(records)[:, None]
        group = Group(each, torch.ones_like(each, dtype=torch.bool), torch.ones(records))
    at = (group.at[:, :, None] * count + torch.arange(count)).flatten(1)
    real = group.real.repeat_interleave(count, 1)
    return Group(at, real, (group.weights / count).repeat_interleave(count))


@dataclass(frozen=True, slots=True, eq=False)
class People:
    """The rows of each person: `rows` [people, R] are row numbers, `counts` [people] how many."""

    rows: Tensor
    counts: Tensor

    @classmethod
    def of(cls, subject: Tensor | None, most: int | None, count: int) -> "People":
        """The people of `count` rows, with at most `most` rows each, the first in their order."""
        if not count or subject is None:
            return cls(torch.zeros(0, 0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
        _, person, counts = subject.cpu().unique(return_inverse=True, return_counts=True)
        order = person.argsort(stable=True)
        starts = counts.cumsum(0) - counts
        counts = counts.clamp(max=most) if most else counts
        place = torch.arange(int(counts.max())).minimum(counts[:, None] - 1)
        return cls(order[starts[:, None] + place], counts)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, drawn: Tensor) -> tuple[Tensor, Group]:
        """The rows of the people drawn, one after the other, and whose they are."""
        counts = self.counts[drawn]
        rows = self.rows[drawn, : int(counts.max()) if len(counts) else 0]
        real = torch.arange(rows.shape[1]) < counts[:, None]
        starts = (counts.cumsum(0) - counts)[:, None]
        at = starts + torch.arange(rows.shape[1]).minimum(counts[:, None] - 1)
        weights = (1 / counts.to(torch.float32)).repeat_interleave(counts)
        return rows[real], Group(at, real, weights)


class OfPeople(Layer):
    """A layer whose own code knows no rows beside examples: by row, then added up by person."""

    def __init__(self, layer: Layer, rows: int) -> None:
        self.inner, self.module, self.name = layer, layer.module, layer.name
        self.trained, self.rows = layer.trained, rows

    def samples(self, a: Any, g: Any) -> Iterator[tuple[nn.Parameter, Tensor]]:
        people = g.shape[0]
        for p, sample in self.inner.samples(_flat(a), _flat(g)):
            yield p, sample.unflatten(0, (people, -1)).sum(1)


def of_people(
    uses: Mapping[Layer, Sequence[tuple[Any, Any]]], group: Group
) -> dict[Layer, list[tuple[Any, Any]]]:
    """Every layer's uses on rows as its uses on people."""
    laid: dict[Layer, list[tuple[Any, Any]]] = {}
    for layer, pairs in uses.items():
        laid[_layer_of_people(layer, group.at.shape[1])] = [group.laid_out(a, g) for a, g in pairs]
    return laid


def _layer_of_people(layer: Layer, rows: int) -> Layer:
    """The layer that adds up rows by person: itself where it adds up over time anyhow."""
    if isinstance(layer, Linear | Embedding):
        return layer
    if isinstance(layer, Norm) and isinstance(layer.module, nn.LayerNorm):
        return layer
    return OfPeople(layer, rows)


def _gathered(value: Any, at: Tensor, real: Tensor | None) -> Any:
    if isinstance(value, Batch):
        pairs = zip(value.values, value.dims, strict=True)
        cut = tuple(v if dim is None else _gathered(v, at, real) for v, dim in pairs)
        return Batch(value.outline, cut, value.dims)
    at = at.to(value.device)
    laid = value.index_select(0, at.flatten()).unflatten(0, at.shape)
    if real is not None:
        laid.masked_fill_(~real.to(value.device).view(*at.shape, *[1] * (laid.dim() - 2)), 0)
    return laid


def _flat(value: Any) -> Any:
    if isinstance(value, Batch):
        pairs = zip(value.values, value.dims, strict=True)
        return Batch(
            value.outline,
            tuple(v if dim is None else v.flatten(0, 1) for v, dim in pairs),
            value.dims,
        )
    return value.flatten(0, 1)
