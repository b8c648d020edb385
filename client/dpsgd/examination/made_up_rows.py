"""Made-up rows for the examination of a model: random, of several scales, inside a domain."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Final

import torch
from torch import Tensor, nn

from client.dpsgd.trees import joined, mapped, replaced, tensors

_KINDS: Final = ("wide", "unit", "ids", "bits")
"""Numbers around 0; in 0..1; whole numbers that every Embedding knows; 0 and 1."""


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Rows made up: `x`, a tensor or a tree of tensors [n, ...], and `y` [n, ...]."""

    x: Any
    y: Tensor

    def first(self, count: int) -> "Examples":
        """The first so many."""
        return Examples(mapped(lambda t: t[:count], self.x), self.y[:count])

    @classmethod
    def joined(cls, parts: Sequence["Examples"]) -> "Examples":
        """All of them, one after the other."""
        return cls(joined([part.x for part in parts]), torch.cat([part.y for part in parts]))

    def take(self, rows: Sequence[int]) -> "Examples":
        """These rows, in this order."""
        return Examples(mapped(lambda t: t[list(rows)], self.x), self.y[list(rows)])

    def put(self, places: Tensor, rows: "Examples") -> "Examples":
        """The same with `rows` in the places [n] of those that are there."""

        def with_rows(value: Tensor, other: Tensor) -> Tensor:
            return value.index_copy(0, places.to(value.device), other)

        pairs = zip(tensors(self.x), tensors(rows.x), strict=True)
        x = replaced(self.x, [with_rows(one, other) for one, other in pairs])
        return Examples(x, with_rows(self.y, rows.y))

    def alike(self) -> "Examples":
        """As many, each one equal to the first."""

        def repeated(value: Tensor) -> Tensor:
            return value[:1].expand_as(value).clone()

        return Examples(mapped(repeated, self.x), repeated(self.y))


Sample = Callable[[int, torch.Generator], Any]
"""(n, generator) -> n rows, with their x and y, that a task's model is made for.

Nothing private is told by them."""


@dataclass(frozen=True, slots=True, eq=False)
class Domain:
    """What rows look like: shapes and types of `x` and `y` (without rows), and what is known else.

    `classes`: how many labels there are; `sample`: the task's own made-up rows, where it has such.
    """

    x: Any
    y: Tensor
    classes: int = 2
    sample: Sample | None = None

    @classmethod
    def of(cls, x: Any, y: Tensor, *, classes: int = 2, sample: Sample | None = None) -> "Domain":
        """The domain of these rows, of which no value is looked at."""
        return cls(mapped(lambda t: t[:0], x), y[:0], max(classes, 1), sample)

    def key(self) -> tuple[Any, ...]:
        """What tells two domains apart."""
        leaves = [*tensors(self.x), self.y]
        return (tuple((t.shape, t.dtype, t.device) for t in leaves), self.classes, self.sample)


@dataclass(frozen=True, slots=True, eq=False)
class MadeUp:
    """Rows of a domain for a model: the same for the same number and scale."""

    domain: Domain
    vocabulary: int
    kind: str = _KINDS[0]
    labels: str = _KINDS[0]

    @classmethod
    def of(cls, domain: Domain, model: nn.Module) -> "MadeUp":
        """Ids stay inside the smallest Embedding of the model."""
        sizes = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
        return cls(domain, min(sizes, default=2))

    def kinds(self) -> Iterator["MadeUp"]:
        """From the widest kind of rows to the narrowest."""
        if self.domain.sample is not None:
            yield self
            return
        for labels, kind in product(("wide", "unit", "bits"), _KINDS):
            yield replace(self, kind=kind, labels=labels)

    def rows(self, count: int, scale: float, seed: int = 0) -> Examples:
        """So many rows of a scale, in no order."""
        draw = torch.Generator().manual_seed(int(scale * 1000) + 1_000_003 * count + seed)
        if self.domain.sample is not None:
            rows = self.domain.sample(count, draw)
            on = self.domain.y.device
            return Examples(mapped(lambda t: t.to(on), rows.x), rows.y.to(on))
        x = mapped(lambda t: self._drawn_like(t, count, scale, draw), self.domain.x)
        return Examples(x, self._labels(count, draw))

    def with_another(self, rows: Examples, at: int, scale: float) -> Examples:
        """The same rows with another example, of another scale and label, in the place `at`."""
        other = self.rows(len(rows.y), scale, seed=1)
        pairs = iter(tensors(other.x))

        def put(value: Tensor) -> Tensor:
            value = value.clone()
            value[at] = next(pairs)[at]
            return value

        y = rows.y.clone()
        y[at] = other.y[at]
        if self.domain.sample is None and not y.is_floating_point() and y.dtype != torch.bool:
            y[at] = (rows.y[at] + 1) % self.domain.classes
        return Examples(mapped(put, rows.x), y)

    def _drawn_like(self, like: Tensor, count: int, scale: float, draw: torch.Generator) -> Tensor:
        shape = (count, *like.shape[1:])
        if like.dtype == torch.bool:
            values = torch.rand(shape, generator=draw) < 0.5
            values.view(count, -1)[:, :1] = True  # a mask leaves something
        elif like.is_floating_point() and self.kind == "wide":
            values = torch.randn(shape, generator=draw) * scale
        elif like.is_floating_point() and self.kind == "unit":
            values = torch.rand(shape, generator=draw) * min(scale, 1.0)
        else:
            high = 2 if self.kind == "bits" else self.vocabulary
            values = torch.randint(high, shape, generator=draw)
            if values.dim() > 1 and scale != 1.0:  # as if padded: of several lengths
                lengths = torch.randint(1, shape[-1] + 1, (count, 1), generator=draw)
                flat = values.view(count, -1, shape[-1])
                flat *= (torch.arange(shape[-1]) < lengths)[:, None]
        return values.to(like.device, like.dtype)

    def _labels(self, count: int, draw: torch.Generator) -> Tensor:
        like = self.domain.y
        shape = (count, *like.shape[1:])
        if like.is_floating_point():
            labels = torch.rand(shape, generator=draw)
            labels = labels * 2 - 1 if self.labels == "wide" else labels
            labels = labels.round() if self.labels == "bits" else labels
        else:
            labels = torch.randint(self.domain.classes, shape, generator=draw)
        return labels.to(like.device, like.dtype)
