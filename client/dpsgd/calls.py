"""The calls of a model's layers in one forward, and which rows of them belong to which example."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from opacus.layers.dp_rnn import RNNLinear
from torch import Tensor

from client.dpsgd.per_sample import EXPANDED, Layer, ModelError
from client.dpsgd.trees import Batch, examples_first

PACKED: Final = "pad sequences to one length instead of packing them, with batch_first=True"
"""The remedy for a recurrent layer whose sequences are packed."""


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One call of a layer in a forward.

    `given` are its input tensors before anything was expanded; `a` is what its gradients are made
    of; `outs` are its floating outputs, and `returned` what the model got: these, or copies.
    `versions` is how often each of the latter had been written to when it left.
    """

    layer: Layer
    given: tuple[Tensor, ...]
    a: Tensor | Batch
    outs: tuple[Tensor, ...]
    returned: tuple[Tensor, ...]
    versions: tuple[int, ...]

    def written(self) -> bool:
        """Whether the model has written into what it got."""
        return any(x._version != v for x, v in zip(self.returned, self.versions, strict=True))

    def lost(self) -> bool:
        """Whether it thereby changed the very output whose gradient is asked for."""
        return self.written() and any(x is y for x, y in zip(self.outs, self.returned, strict=True))

    def gradient(self, gradients: Sequence[Tensor | None], rows: int) -> Tensor | Batch | None:
        """The gradients of `outs`, examples first, in the form of `a`; None where there is none."""
        if all(g is None for g in gradients):
            return None
        layout = self.layer.layout
        dims = (0,) * len(self.outs) if layout is None else layout.outputs
        values = []
        for x, g, dim in zip(self.outs, gradients, dims, strict=True):
            if g is None:
                g = torch.zeros_like(x)
            if dim is None or dim >= g.dim() or g.shape[dim] != rows:
                raise batch_not_first(self.layer, x.shape)
            values.append(examples_first(g, dim))
        return values[0] if isinstance(self.a, Tensor) else Batch(None, tuple(values), dims)


def inputs_of(layer: Layer, given: tuple[Tensor, ...], rows: int) -> tuple[int | None, ...]:
    """In which dimension of its input tensors a layer's examples lie."""
    if layer.layout is not None:
        if len(layer.layout.inputs) != len(given):
            raise ModelError(f"model: {layer.name}: expected the same number of tensors every time")
        return layer.layout.inputs
    return tuple(
        None if not x.dim() else 0 if len(x) == rows else EXPANDED if len(x) == 1 else None
        for x in given
    )


def half_of(rows: int) -> Tensor:
    """A random half of the examples, as a mask [B] with true and false in it."""
    chosen = torch.zeros(rows, dtype=torch.bool)
    chosen[torch.randperm(rows, generator=torch.Generator().manual_seed(rows))[: rows // 2]] = True
    return chosen


def check_halves(
    tape: Sequence[Call], gradients: Sequence[Tensor | Batch | None], others: Tensor
) -> None:
    """ModelError where a loss of some examples has a gradient in the rows of `others`."""
    for call, g in zip(tape, gradients, strict=True):
        for value in () if g is None else (g,) if isinstance(g, Tensor) else g.values:
            rest = value[others]
            if bool(rest.any()) and bool(((rest != 0) & torch.isfinite(rest)).any()):
                raise ModelError(
                    f"model: {call.layer.name}: expected row i of its output to belong to example "
                    "i alone, got rows that are mixed or reordered inside the model"
                )


def joined(
    here: Tensor | Batch | None, there: Tensor | Batch | None, chosen: Tensor
) -> Tensor | Batch | None:
    """The gradients of two halves of the examples as those of all."""
    if here is None or there is None:
        return here if there is None else there
    if isinstance(here, Batch) and isinstance(there, Batch):
        pairs = zip(here.values, there.values, strict=True)
        values = tuple(_where(chosen, one, other) for one, other in pairs)
        return Batch(None, values, here.dims)
    if isinstance(here, Tensor) and isinstance(there, Tensor):
        return _where(chosen, here, there)
    raise ModelError("model: expected the same gradients of both halves of a batch")


def _where(chosen: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return torch.where(chosen.view(-1, *[1] * (one.dim() - 1)), one, other)


def batch_not_first(layer: Layer, shape: Sequence[int]) -> ModelError:
    """The refusal of a layer whose tensors do not hold one example in each row."""
    remedy = "use batch_first=True, and positions as [1, T]"
    if isinstance(layer.module, RNNLinear):
        remedy = PACKED
    return ModelError(
        f"model: {layer.name}: expected the batch first, got shape {tuple(shape)} ({remedy})"
    )


def of_packed(layers: Sequence[Layer], mixed: str) -> str:
    """The remedy where a recurrent layer shows what mixes: packing sorts examples by length."""
    for layer in layers:
        if isinstance(layer.module, RNNLinear) and f"model: {layer.name}:" in mixed:
            return f" (where sequences are packed: {PACKED})"
    return ""
