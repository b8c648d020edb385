"""What a batch's clipped sum is made of, and where it is added up.

A `Part` is one layer's (or a group of layers' that share weights) share of the batch: the squared
norms of its examples' gradients, then their weighted sum. Norm and sum are taken of the same
numbers, in the same rounding, so that a factor made from the norm bounds what is summed.
`docs/randomness.md` bounds what rounding adds; `privacy.mechanism.sensitivity` has the figures.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from client.dpsgd.gpu.stream import without
from client.dpsgd.native import lookups
from privacy.mechanism.sensitivity import rows_per_block

SumOf = Callable[[Any], Tensor]
"""Where a parameter's sum is added up: a tensor of its shape, float32 or float64."""
ALL: Final = slice(None)
"""All rows of a batch."""

_MOST: Final = 1 << 24
"""Per-example gradients held at a time, in numbers; more are made again in chunks of examples."""
_HUGE: Final = 2.0**64
"""A factor of a product of squares above this counts as infinite, so that none can underflow."""
_BLOCK: Final = 1024
"""Numbers whose squares are added up in float32."""
_DOUBLE_ROWS: Final = 4096
"""Rows whose contributions are made in float64 at a time."""
_COMPENSATED: Final = 1 << 16
"""In batches of more rows, blocks add up with their rounding errors kept (Knuth's TwoSum)."""


def gradient_of(p: nn.Parameter) -> Tensor:
    """`p.grad`, which starts at zero."""
    if p.grad is None:
        p.grad = torch.zeros_like(p, memory_format=torch.contiguous_format)
    return p.grad


class Part(ABC):
    """Some parameters' share of a batch's per-example gradients."""

    square: Tensor
    """The squared norms [B] of the examples' gradients, float64; infinite or NaN where broken."""

    @abstractmethod
    def add(
        self,
        factors: Tensor,
        broken: Tensor | None,
        sum_of: SumOf = gradient_of,
        rows: slice = ALL,
    ) -> None:
        """Add sum_i factors_i * gradient_i over `rows` to each parameter's sum.

        `factors` [B] are float32, `broken` [B] is None where no row is broken; broken rows add
        zero.
        """


class Outer(Part):
    """A Linear on vectors: the gradient is the outer product g a', of norm |g| |a|."""

    def __init__(self, linear: nn.Linear, a: Tensor, g: Tensor) -> None:
        self._a, self._g = a, g
        self._weight, self._bias = linear.weight, linear.bias
        length = row_squares(g)
        if not self._weight.requires_grad:
            self.square = length
            return
        more = 0.0 if self._bias is None or not self._bias.requires_grad else 1.0
        width = row_squares(a)
        fits = torch.maximum(length, width) <= _HUGE
        self.square = torch.where(fits, length.mul_(width.add_(more)), math.inf)

    def add(
        self,
        factors: Tensor,
        broken: Tensor | None,
        sum_of: SumOf = gradient_of,
        rows: slice = ALL,
    ) -> None:
        a, g, factors = self._a[rows], self._g[rows], factors[rows]
        if broken is not None:
            zero = broken[rows, None]
            a, g = a.masked_fill(zero, 0), g.masked_fill(zero, 0)
        if self._weight.requires_grad:
            total = sum_of(self._weight)
            scaled = g * factors[:, None]
            total.addmm_(scaled.t().to(total.dtype), a.to(total.dtype))
        if self._bias is not None and self._bias.requires_grad:
            total = sum_of(self._bias)
            total.addmv_(g.t().to(total.dtype), factors.to(total.dtype))


class Sampled(Part):
    """Per-example gradients as they are, in chunks of at most `most` examples.

    `uses` are (layer, input, output gradient) of every call of the layers that share parameters.
    """

    def __init__(self, uses: Sequence[tuple[Any, Any, Any]]) -> None:
        self._uses = uses
        rows = uses[0][1].shape[0]
        width = sum(p.numel() for p in {p for layer, _, _ in uses for p in layer.trained})
        self.most = max(1, _MOST // (width * max(layer.rows for layer, _, _ in uses)))
        self._rows = rows
        self._cached: Mapping[nn.Parameter, Tensor] | None = None
        squares: list[Any] = []
        for at in range(0, rows, self.most):
            samples = self._samples(slice(at, at + self.most))
            squares.append(sum(row_squares(_flat(x)[0]) for x in samples.values()))
            if rows <= self.most:
                self._cached = samples
        self.square = torch.cat(squares)

    def _samples(self, at: slice) -> dict[nn.Parameter, Tensor]:
        samples: dict[nn.Parameter, Tensor] = {}
        for layer, a, g in self._uses:
            for p, sample in layer.samples(a[at], g[at]):
                samples[p] = samples[p] + sample if p in samples else sample
        return samples

    def add(
        self,
        factors: Tensor,
        broken: Tensor | None,
        sum_of: SumOf = gradient_of,
        rows: slice = ALL,
    ) -> None:
        start, stop, _ = rows.indices(self._rows)
        step = stop - start if self._cached else self.most
        for at in (slice(x, min(x + step, stop)) for x in range(start, stop, step)):
            for p, sample in (self._cached or self._samples(at)).items():
                flat, restored = _flat(sample[at] if self._cached else sample)
                if broken is not None:
                    flat = without(flat, broken[at])
                total = sum_of(p)
                total.add_(restored(factors[at].to(total.dtype) @ flat.to(total.dtype)))


def _flat(sample: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """[B, ...] as [B, n] in memory order, without copying; and the way back for one row."""
    if sample.dim() == 1:  # of a parameter that is one number
        return sample[:, None], lambda row: row.view(())
    if sample.is_contiguous():
        return sample.flatten(1), lambda row: row.view(sample.shape[1:])
    strides = sample.stride()
    order = sorted(range(1, sample.dim()), key=lambda dim: -strides[dim])
    laid = sample.permute(0, *order)
    back = [order.index(dim) for dim in range(1, sample.dim())]
    return laid.flatten(1), lambda row: row.view(laid.shape[1:]).permute(back)


class Lookup(Part):
    """An Embedding: gradients of an example's equal tokens add up before the norm is taken.

    On a GPU those of all examples do, whether a token is repeated or not.
    """

    def __init__(self, embedding: nn.Embedding, tokens: Tensor, g: Tensor) -> None:
        self._weight = embedding.weight
        self._tokens = tokens.reshape(len(tokens), -1)
        self._g = g = g.reshape(*self._tokens.shape, -1)
        padding = embedding.padding_idx
        self._native = lookups(self._tokens, g, padding)
        if self._native is not None:
            self.square = self._native.square
            return
        if padding is not None:
            self._g = g = g.masked_fill((self._tokens == padding)[..., None], 0)
        self._repeating: Tensor | None = None
        if not on_host(g):  # where asking which examples repeat a token would wait for the device
            self._g = g = _merged(g, self._tokens)
            self.square = row_squares(g.flatten(1))
            return
        self.square = row_squares(g.flatten(1))
        ordered = _sorted(self._tokens)
        again = ordered[:, 1:] == ordered[:, :-1]
        self._repeating = again.any(1).nonzero().flatten()
        at = self._repeating
        self._merged = _merged(g[at], self._tokens[at]) if len(at) else g[at]
        self.square[at] = row_squares(self._merged.flatten(1))

    def add(
        self,
        factors: Tensor,
        broken: Tensor | None,
        sum_of: SumOf = gradient_of,
        rows: slice = ALL,
    ) -> None:
        total = sum_of(self._weight)
        if self._native is not None:
            self._native.add(total, factors, rows)
            return
        g = self._g[rows]
        if broken is not None:
            g = g.masked_fill(broken[rows, None, None], 0)
        scaled = g * factors[rows, None, None]
        at = self._repeating
        if at is not None:
            start, stop, _ = rows.indices(len(self._tokens))
            inside = (start <= at) & (at < stop)
            at, merged = at[inside], self._merged[inside]
            if broken is not None:
                merged = merged.masked_fill(broken[at, None, None], 0)
            scaled[at - start] = merged * factors[at, None, None]
        total.index_add_(0, self._tokens[rows].flatten(), scaled.flatten(0, 1).to(total.dtype))


def row_squares(x: Tensor) -> Tensor:
    """The squared norms [B] of the rows of x [B, n], float64.

    Blocks of 1,024 squares add up in float32, blocks in float64: off by 2^-13 of itself at most.
    """
    whole = x.shape[1] // _BLOCK
    last = x[:, whole * _BLOCK :] if whole else x
    rest: Tensor = torch.linalg.vector_norm(last, dim=1).double().square_()
    if not whole:
        return rest
    blocks = torch.linalg.vector_norm(x[:, : whole * _BLOCK].unflatten(1, (whole, _BLOCK)), dim=2)
    rest += blocks.double().square_().sum(1)
    return rest


def on_host(x: Tensor) -> bool:
    """Whether a number of x can be asked for without waiting for a device."""
    return x.device.type == "cpu"


def _sorted(tokens: Tensor) -> Tensor:
    if on_host(tokens):  # numpy sorts without branches: six times as fast as torch
        return torch.from_numpy(np.sort(tokens.numpy(), axis=1))
    return tokens.sort(1).values


def _merged(g: Tensor, tokens: Tensor) -> Tensor:
    """g [B, L, d] with each token's gradients added up at one of its places, and zero elsewhere."""
    rows, length, _ = g.shape
    ordered, order = tokens.sort(1)
    first = torch.searchsorted(ordered, ordered)
    place = torch.empty_like(order).scatter_(1, order, order.gather(1, first))
    place += torch.arange(rows, device=g.device)[:, None] * length
    merged = torch.zeros_like(g, memory_format=torch.contiguous_format).view(rows * length, -1)
    return merged.index_add_(0, place.flatten(), g.flatten(0, 1)).view(g.shape)


class BatchSum:
    """One step's sum over its batch: in float32 within blocks of rows, in float64 across them.

    Each `p.grad` is a part of one float32 vector. A batch that is one block is summed there alone.
    A second block lies beside it, and the noise adds up the two where it is made in the same
    memory; float64 numbers are twice as dear, and are made from the third block on.
    """

    def __init__(self, trained: Sequence[nn.Parameter], slack: float) -> None:
        """`slack`: see `privacy.mechanism.sensitivity.rows_per_block`."""
        self._trained, self._slack = list(trained), slack
        self.gradient = trained[0].new_zeros(sum(p.numel() for p in trained), requires_grad=False)
        self._gradients = self.by_parameter(self.gradient)
        self._kept: dict[tuple[str, torch.dtype], tuple[Tensor, dict[nn.Parameter, Tensor]]] = {}
        self._start(0)

    def begin(self, rows: int) -> None:
        """Start at zero; so many rows will come, in one call of `blocks` or in several."""
        self.gradient.zero_()
        self._start(rows)

    def _start(self, rows: int) -> None:
        for p, gradient in self._gradients.items():
            p.grad = gradient
        self._block = rows_per_block(rows, self._slack)
        self._alone = self._block >= rows
        self._compensated = rows > _COMPENSATED
        self._made, self._open = 0, False
        self._total: Tensor | None = None
        self._lost: Tensor | None = None

    def blocks(self, rows: int) -> Iterator[tuple[slice, SumOf]]:
        """The blocks of the next so many rows, and where each is to be summed."""
        if self._alone:
            yield ALL, gradient_of
            return
        size = self._block or _DOUBLE_ROWS
        for at in range(0, rows, size):
            yield slice(at, at + size), self._opened().__getitem__

    def summands(self, *, two: bool = False) -> tuple[Tensor, Tensor | None]:
        """What was added since `begin`: one vector, or two whose sum in float64 it is.

        Of two the first is `gradient`, and both are float32. There may be `two` on a CPU, or where
        the noise is made on the device.
        """
        beside = self._made == 2 and self._open and self._block > 0
        if beside and (two or self.gradient.device.type == "cpu"):
            return self.gradient, self._memory("block", torch.float32)[0]
        return self.total()[0], None

    def total(self) -> tuple[Tensor, dict[nn.Parameter, Tensor]]:
        """What was added since `begin`: all parameters in one vector, and each one's part of it.

        Float32 or float64.
        """
        if not self._made or (self._made == 1 and self._block):
            return self.gradient, self._gradients
        self._close()
        total = self._first()
        if self._lost is not None:
            total += self._lost
            self._lost = None
        return self._memory("total", torch.float64)

    def by_parameter(self, vector: Tensor) -> dict[nn.Parameter, Tensor]:
        """Each parameter's part of a vector of all."""
        parts = vector.split([p.numel() for p in self._trained])
        return {p: part.view(p.shape) for p, part in zip(self._trained, parts, strict=True)}

    def _opened(self) -> dict[nn.Parameter, Tensor]:
        """Zeros for the next block, by parameter; the blocks before the last add up in float64."""
        self._made += 1
        if self._made == 1 and self._block:
            return self._gradients
        self._close()
        self._open = self._made > 1
        dtype = torch.float32 if self._block else torch.float64
        zeros, parts = self._memory("block" if self._open else "total", dtype)
        zeros.zero_()
        return parts

    def _memory(self, use: str, dtype: torch.dtype) -> tuple[Tensor, dict[nn.Parameter, Tensor]]:
        """A vector and its parts, once for all steps."""
        if (use, dtype) not in self._kept:
            vector = torch.empty_like(self.gradient, dtype=dtype)
            self._kept[use, dtype] = vector, self.by_parameter(vector)
        return self._kept[use, dtype]

    def _first(self) -> Tensor:
        """The blocks that are closed, in float64."""
        total = self._memory("total", torch.float64)[0]
        if self._total is None:
            self._total = total
            if self._block:
                total.copy_(self.gradient)
            if self._compensated:
                self._lost = torch.zeros_like(total)
        return total

    def _close(self) -> None:
        """Add the last block to those before it, if it lies beside them."""
        if not self._open:
            return
        self._open, total = False, self._first()
        sums = self._memory("block", torch.float32 if self._block else torch.float64)[0]
        if self._lost is None:
            total += sums
            return
        # total + block = s + what rounding lost, exactly
        block = sums.double()
        s = total + block
        back = s - total
        self._lost += (total - (s - back)) + (block - back)
        total.copy_(s)
