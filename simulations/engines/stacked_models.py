"""Models of Linear layers stacked, a row of numbers each: gradients of many at once.

As in book-keeping (client/dpsgd/clipping.py) each layer keeps its inputs and output gradients; from
these pairs come every example's norm, and each model's weighted sum in one matrix product a layer.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.dpsgd.per_sample import Layer, ModelError, layer_of
from client.tasks.features.public_layers import RandomFeatures, RowNorm
from privacy.arrays import Arrays

ELEMENTWISE: Final = (
    *(nn.Tanh, nn.ReLU, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Softplus),
    *(nn.Hardtanh, nn.Identity, RowNorm, RandomFeatures),
)
"""Layers without parameters that see each row, or each number, by itself."""

_ALL: Final = slice(None)


class Stack:
    """A model of Linear layers, elementwise activations and Flatten, for many sites at once."""

    def __init__(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        """ModelError for any other model; `shape` is that of one example."""
        self._layers = list(_flat(model))
        self.names: list[str] = []
        self.shapes: list[tuple[int, ...]] = []
        vectors = len(shape) == 1
        for layer in self._layers:
            vectors = vectors or isinstance(layer, nn.Flatten)
            if isinstance(layer, nn.Linear) and not vectors:
                raise ModelError("model: expected Linear layers on vectors only")
        linear = [layer for layer in self._layers if isinstance(layer, nn.Linear)]
        parameters = [p for layer in linear for p in layer.parameters()]
        if len(set(map(id, parameters))) < len(parameters) or not linear:
            raise ModelError("model: expected Linear layers, each with parameters of its own")
        for name, p in model.named_parameters():
            if not p.requires_grad or p.dtype != torch.float32:
                raise ModelError(f"model: expected trained float32 parameters, got {name}")
            self.names.append(name)
            self.shapes.append(tuple(p.shape))
        self._norms = {id(layer): layer_of(layer) for layer in linear}
        self._ends = list(accumulate(math.prod(shape) for shape in self.shapes))
        self.numbers = self._ends[-1]
        self.width = math.prod(shape) + 3 * sum(m.in_features + m.out_features for m in linear)

    def to(self, device: torch.device) -> None:
        """Move what layers hold beside parameters to where the rows will be."""
        for layer in self._layers:
            if not isinstance(layer, nn.Linear):
                layer.to(device)

    def flat(self, weights: Arrays) -> NDArray[np.float32]:
        """One site's weights as a row."""
        return np.concatenate([weights[name].reshape(-1) for name in self.names])

    def named(self, row: NDArray[np.float32]) -> Arrays:
        """A row's weights by name."""
        lying = zip(self.names, self.shapes, pairwise([0, *self._ends]), strict=True)
        return {name: row[first:end].reshape(shape) for name, shape, (first, end) in lying}

    def gradients(self, flat: Tensor, x: Tensor, y: Tensor, loss: Any) -> "Gradients":
        """The gradients at weights [K, numbers] of each example of x [K, B, ...] with y [K, B]."""
        tape: list[tuple[nn.Linear, Tensor, Tensor]] = []
        at = 0

        def taken(shape: torch.Size) -> Tensor:
            nonlocal at
            at += shape.numel()
            return flat[:, at - shape.numel() : at].view(len(flat), *shape)

        a = x
        for layer in self._layers:
            if isinstance(layer, nn.Linear):
                weight = taken(layer.weight.shape).transpose(1, 2)
                if layer.bias is None:
                    out = torch.bmm(a, weight)
                else:
                    out = torch.baddbmm(taken(layer.bias.shape).unsqueeze(1), a, weight)
                if not out.requires_grad:
                    out.requires_grad_()
                tape.append((layer, a.detach(), out))
                a = out
            else:
                a = a.flatten(2) if isinstance(layer, nn.Flatten) else layer(a)
        losses = loss(a.flatten(0, 1), y.flatten(0, 1))
        if losses.shape != (a.shape[0] * a.shape[1],):
            raise ModelError(f"loss: expected one an example, got shape {tuple(losses.shape)}")
        output_gradients = torch.autograd.grad(losses.sum(), [out for _, _, out in tape])
        pairs = [(layer, a, g) for (layer, a, _), g in zip(tape, output_gradients, strict=True)]
        return Gradients(pairs, self._norms)


class Gradients:
    """The gradients of examples [K, B] by each layer's input and output gradient."""

    def __init__(
        self, pairs: Sequence[tuple[nn.Linear, Tensor, Tensor]], norms: Mapping[int, Layer]
    ) -> None:
        self._pairs = pairs
        self._norms = norms

    def squares(self) -> Tensor:
        """The squared norms [K, B], as the layers of book-keeping take them."""
        parts = [
            self._norms[id(layer)].part([(a.flatten(0, 1), g.flatten(0, 1))]).square
            for layer, a, g in self._pairs
        ]
        return torch.stack(parts).sum(0).view(self._pairs[0][1].shape[:2])

    def summed(
        self,
        factors: Tensor,
        dead: Tensor | None,
        rows: slice = _ALL,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """sum_i factors_i * gradient_i [K, numbers] over `rows` of the examples, in `dtype`.

        Examples that are `dead` are zero, whatever they hold.
        """
        sums = []
        factors = factors[:, rows, None]
        for layer, a, g in self._pairs:
            a, g = a[:, rows], g[:, rows]
            if dead is not None:
                away = dead[:, rows, None]
                a, g = a.masked_fill(away, 0), g.masked_fill(away, 0)
            g = (g * factors).to(dtype)
            sums.append(torch.bmm(g.transpose(1, 2), a.to(dtype)).flatten(1))
            if layer.bias is not None:
                sums.append(g.sum(1))
        return torch.cat(sums, 1)


def _flat(model: nn.Module) -> Iterator[nn.Module]:
    """The layers of a model in the order in which they are applied."""
    kind = type(model)
    if isinstance(model, nn.Sequential) and kind is nn.Sequential:
        for child in model:  # not `children()`, which names a layer used twice once
            yield from _flat(child)
    elif (
        kind is nn.Linear
        or (kind in ELEMENTWISE and not getattr(model, "inplace", False))
        or (isinstance(model, nn.Flatten) and model.start_dim == 1 and model.end_dim == -1)
    ):
        yield model
    else:
        raise ModelError(f"model: expected Linear layers and activations, got {kind.__name__}")
