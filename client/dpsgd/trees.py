"""Nested tuples, lists and dictionaries of tensors: what layers, models and tasks pass around.

A `Batch` is such a tree whose tensors hold one example in each row, so that it can be cut by
examples as a single tensor can.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

_PLACE: Final = object()
"""Where a tensor stands in an outline."""


def tensors(tree: Any) -> list[Tensor]:
    """The tensors of a tree, in its order; whatever else it holds is left out."""
    if isinstance(tree, Tensor):
        return [tree]
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def mapped(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The same tree with `function` of every tensor in the tensor's place."""
    if isinstance(tree, Tensor):
        return function(tree)
    return pytree.tree_map(lambda x: function(x) if isinstance(x, Tensor) else x, tree)


def joined(trees: Sequence[Any]) -> Any:
    """Trees of one form as one, the rows of their tensors one after the other."""
    if all(isinstance(tree, Tensor) for tree in trees):
        return torch.cat(list(trees))
    lists = [tensors(tree) for tree in trees]
    return replaced(trees[0], [torch.cat(parts) for parts in zip(*lists, strict=True)])


def replaced(tree: Any, values: Sequence[Tensor]) -> Any:
    """The same tree with `values` in the place of its tensors."""
    following = iter(values)
    return mapped(lambda _: next(following), tree)


def cut(tree: Any, at: slice) -> Any:
    """The same tree with the rows `at` of every tensor."""
    return mapped(lambda x: x[at], tree)


def floats(tree: Any) -> Any:
    """The same tree with floating tensors as float32."""
    return mapped(lambda x: x.float() if x.is_floating_point() else x, tree)


def outline(tree: Any) -> Any:
    """The same tree without its tensors, so that it keeps no memory and no graph alive."""
    return pytree.tree_map(lambda x: _PLACE if isinstance(x, Tensor) else x, tree)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Tensors of one call of a layer: those [B, ...] of its examples, and those that all share.

    `outline` is that of the call's (arguments, keyword arguments), or of its output. `dims` says
    of each tensor in which dimension the examples lie when the layer is called; None where it is
    shared. In `values` the examples lie first.
    """

    outline: Any
    values: tuple[Tensor, ...]
    dims: tuple[int | None, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of examples."""
        pairs = zip(self.values, self.dims, strict=True)
        return (next(len(value) for value, dim in pairs if dim is not None),)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, at: slice) -> "Batch":
        pairs = zip(self.values, self.dims, strict=True)
        cut = tuple(value if dim is None else value[at] for value, dim in pairs)
        return Batch(self.outline, cut, self.dims)

    def float(self) -> "Batch":
        """The same in float32."""
        return Batch(self.outline, tuple(floats(list(self.values))), self.dims)

    def one(self, values: Sequence[Tensor]) -> Any:
        """The tree of a single example's values, each in a batch of one where it belongs to it."""
        pairs = zip(values, self.dims, strict=True)
        following = iter([v if dim is None else v.unsqueeze(dim) for v, dim in pairs])
        return pytree.tree_map(lambda x: next(following) if x is _PLACE else x, self.outline)


def examples_first(value: Tensor, dim: int | None) -> Tensor:
    """`value` with the examples' dimension first."""
    return value if not dim else value.movedim(dim, 0)
