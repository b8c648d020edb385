"""What a batch's clipped sum is made of.

A `Part` is one layer's (or a group of layers' that share weights) share of the batch: the squared
norms of its examples' gradients, then their weighted sum. Norm and sum are taken of the same
numbers, in the same rounding, so that a factor made from the norm bounds what is summed.
"""

import math
from abc import ABC, abstractmethod
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from client.dpsgd.native import lookups, outer

_HUGE: Final = 1e30
"""A factor of a product of squares above this counts as infinite, so that none can underflow."""


class Part(ABC):
    """Some parameters' share of a batch's per-example gradients."""

    square: Tensor

    @abstractmethod
    def add(self, factors: Tensor, broken: Tensor | None) -> None:
        """Add sum_i factors_i * gradient_i to each `p.grad`; rows where `broken` are zero."""


class Outer(Part):
    """A Linear on vectors: the gradient is the outer product g a', of norm |g| |a|."""

    def __init__(self, linear: nn.Linear, a: Tensor, g: Tensor) -> None:
        self._a, self._g = a, g
        self._weight, self._bias = linear.weight, linear.bias
        if not self._weight.requires_grad:
            self.square = torch.linalg.vector_norm(g, dim=1).square_()
            return
        more = 0.0 if self._bias is None or not self._bias.requires_grad else 1.0
        made = outer(a, g, more, _HUGE)
        self.square = _outer(a, g, more) if made is None else made

    def add(self, factors: Tensor, broken: Tensor | None) -> None:
        a, g = self._a, self._g
        if broken is not None:
            a, g = a.masked_fill(broken[:, None], 0), g.masked_fill(broken[:, None], 0)
        if self._weight.requires_grad:
            sum_of(self._weight).addmm_((g * factors[:, None]).t(), a)
        if self._bias is not None and self._bias.requires_grad:
            sum_of(self._bias).addmv_(g.t(), factors)


def _outer(a: Tensor, g: Tensor, more: float) -> Tensor:
    """|g|^2 (|a|^2 + more) of every row, infinite where a factor is huge or no number."""
    length = torch.linalg.vector_norm(g, dim=1).square_()
    width = torch.linalg.vector_norm(a, dim=1).square_()
    fine = torch.maximum(length, width) <= _HUGE
    return torch.where(fine, length.mul_(width.add_(more)), math.inf)


class Lookup(Part):
    """An Embedding: gradients of an example's equal tokens add up before the norm is taken."""

    def __init__(self, embedding: nn.Embedding, tokens: Tensor, g: Tensor) -> None:
        self._weight = embedding.weight
        self._tokens = tokens.reshape(len(tokens), -1)
        self._g = g = g.reshape(*self._tokens.shape, -1)
        padding = embedding.padding_idx
        self._compiled = lookups(self._tokens, g, padding)
        if self._compiled is not None:
            self.square = self._compiled.square
            return
        if padding is not None:
            self._g = g = g.masked_fill((self._tokens == padding)[..., None], 0)
        self.square = torch.linalg.vector_norm(g.flatten(1), dim=1).square_()
        ordered = _sorted(self._tokens)
        again = ordered[:, 1:] == ordered[:, :-1]
        self._repeating = again.any(1).nonzero().flatten()
        if len(self._repeating):
            at = self._repeating
            self._merged = _merged(g[at], self._tokens[at])
            self.square[at] = torch.linalg.vector_norm(self._merged.flatten(1), dim=1).square_()

    def add(self, factors: Tensor, broken: Tensor | None) -> None:
        if self._compiled is not None:
            self._compiled.add(sum_of(self._weight), factors)
            return
        g = self._g
        if broken is not None:
            g = g.masked_fill(broken[:, None, None], 0)
        scaled = g * factors[:, None, None]
        if len(self._repeating):
            at = self._repeating
            merged = self._merged
            if broken is not None:
                merged = merged.masked_fill(broken[at, None, None], 0)
            scaled[at] = merged * factors[at, None, None]
        sum_of(self._weight).index_add_(0, self._tokens.flatten(), scaled.flatten(0, 1))


def _sorted(tokens: Tensor) -> Tensor:
    if tokens.device.type == "cpu":  # numpy sorts without branches: six times as fast as torch
        return torch.from_numpy(np.sort(tokens.numpy(), axis=1))
    return tokens.sort(1).values


def _merged(g: Tensor, tokens: Tensor) -> Tensor:
    """g [B, L, d] with each token's gradients added up at one of its places, and zero elsewhere."""
    rows, length, _ = g.shape
    ordered, order = tokens.sort(1)
    first = torch.searchsorted(ordered, ordered)
    place = torch.empty_like(order).scatter_(1, order, order.gather(1, first))
    place += torch.arange(rows, device=g.device)[:, None] * length
    made = torch.zeros_like(g, memory_format=torch.contiguous_format).view(rows * length, -1)
    return made.index_add_(0, place.flatten(), g.flatten(0, 1)).view(g.shape)


def sum_of(p: Tensor) -> Tensor:
    """`p.grad`, which starts at zero."""
    if p.grad is None:
        p.grad = torch.zeros_like(p, memory_format=torch.contiguous_format)
    return p.grad
