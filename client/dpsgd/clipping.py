"""Per-example clipping by book-keeping: one forward, one backward, one weighted sum a layer.

Book-keeping (Bu et al., ICML 2023) keeps each layer's input a and output gradient g; from these
pairs come the per-example norms and then, with the clip factors known, the clipped sum. Parameters
carry no gradient meanwhile, so the backward is cheaper than that of ordinary training.

Norms are taken of exactly what is summed. The "ghost norm" of sequences and images, which forms
<a a', g g'>, is not used: crafted records whose terms cancel would make it too small.
"""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from opacus.grad_sample import AbstractGradSampleModule
from opacus.layers.dp_rnn import DPRNNBase
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from client.dpsgd.clipped_sum import Part, sum_of
from client.dpsgd.per_sample import Layer, ModelError, layer_of, parts

_log = logging.getLogger(__name__)


class BookKeeping(AbstractGradSampleModule):  # type: ignore[misc]
    """A model that adds the clipped sum of its examples' gradients to `p.grad`.

    It takes the place of Opacus' GradSampleModule before a DPOptimizerFastGradientClipping. An
    example whose gradient is not finite contributes exactly zero. In `precision` bfloat16 are the
    model's products and those of inputs with output gradients; norms, factors and sums are float32.
    """

    def __init__(self, model: nn.Module, *, clip: float, precision: str = "float32") -> None:
        model.train()
        errors = ModuleValidator.validate(model, strict=False)
        if errors:
            raise ModelError(f"model: expected one that Opacus supports: {errors[0]}")
        super().__init__(model, batch_first=True, loss_reduction="sum")
        self.clip, self.precision = clip, precision
        self._tape: list[tuple[Layer, Tensor, Tensor, int]] = []
        self._trained = [p for p in model.parameters() if p.requires_grad]
        if not self._trained:
            raise ModelError("model: expected parameters to train, got none")
        self._layers: list[Layer] = []
        self._attach(model)
        # An in-place activation would overwrite the output whose gradient is asked for.
        self._inplace: list[Any] = [
            m for m in model.modules() if getattr(m, "inplace", False) is True
        ]
        for module in self._inplace:
            module.inplace = False

    def _attach(self, module: nn.Module) -> None:
        if not any(p.requires_grad for p in module.parameters()):
            return
        own = any(p.requires_grad for p in module.parameters(recurse=False))
        if not own or isinstance(module, DPRNNBase):  # which shows its cells' parameters as its own
            for child in module.children():
                self._attach(child)
            return
        layer = layer_of(module)
        if layer.fallback:
            _log.info("%s: per-example gradients by Opacus", type(module).__name__)
        self._layers.append(layer)

        def forward(x: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                out = layer.forward(x)
                if not out.requires_grad:
                    out.requires_grad_()
                self._tape.append((layer, x.detach(), out, out._version))
                return out
            return layer.forward(x)

        module.forward = forward

    def remove_hooks(self) -> None:
        """Give the model its own forward back."""
        for layer in self._layers:
            vars(layer.module).pop("forward", None)
            vars(layer.module).pop("ft_compute_sample_grad", None)
        self._layers.clear()
        for module in self._inplace:
            module.inplace = True

    def examine(self, like: Tensor) -> None:
        """Refuse a model that mixes examples or moves them from the first dimension.

        Opacus' validator knows modules by type; this runs the model on two made-up batches shaped
        like `like`, of which no value is looked at, and compares what should not differ.
        """
        training = self.training
        self.eval()
        try:
            self._lay_out(channels_last=True)
            try:
                self._compare(like)
            except RuntimeError:  # perhaps a view that channels_last does not have
                self._lay_out(channels_last=False)
                self._compare(like)
        except RuntimeError as error:
            raise ModelError(f"model: {str(error).splitlines()[0]}") from error
        finally:
            self.train(training)

    def _lay_out(self, *, channels_last: bool) -> None:
        for layer in self._layers:
            layer.channels_last = channels_last

    def _compare(self, like: Tensor) -> None:
        outs = []
        for rows in (2, 3):
            with self._recording():
                outs.append(self(made_up(rows, like)).detach())
                for layer, a, _, _ in self._tape:
                    if len(a) != rows:
                        raise ModelError(f"model: expected the batch first in {layer.name}")
        if not torch.allclose(outs[0], outs[1][:2], rtol=1e-3, atol=1e-5, equal_nan=True):
            raise ModelError("model: expected one that keeps examples apart, got one that mixes")

    def accumulate(self, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Add sum_i clip(gradient of loss_i) to `p.grad` of every trained parameter.

        `loss` gives a loss per example [B]. Calling it for the parts of a batch adds up.
        """
        for p in self._trained:
            sum_of(p)
        if not len(x):
            return
        made, square = self.parts(x, y, loss)
        factors, broken = clip_factors(square, self.clip)
        with torch.no_grad():
            for part in made:
                part.add(factors, broken)

    def parts(
        self, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[list[Part], Tensor]:
        """The batch's gradients by layer, not yet clipped, and each example's squared norm."""
        half = self.precision == "bfloat16"
        lower = torch.autocast(x.device.type, torch.bfloat16) if half else nullcontext()
        with self._recording(), lower:
            out = self(x)
            losses = loss(out.float() if half else out, y)
            rows = x.shape[0]
            if losses.shape != (rows,):
                raise ModelError(f"loss: expected shape ({rows},), got {tuple(losses.shape)}")
            tape = list(self._tape)
            for layer, _, out, version in tape:
                if out._version != version:
                    raise ModelError(f"model: in-place operation on the output of {layer.name}")
            if not tape:
                raise ModelError("model: expected trained parameters to be used, got none")
            outs, each = [out for _, _, out, _ in tape], torch.ones_like(losses)
            gradients = torch.autograd.grad(losses, outs, each, allow_unused=True)
        uses: dict[Layer, list[tuple[Tensor, Tensor]]] = {}
        for (layer, a, _, _), g in zip(tape, gradients, strict=True):
            if g is not None:
                if a.shape[0] != rows or g.shape[0] != rows:
                    raise ModelError(f"model: expected the batch first in {layer.name}")
                uses.setdefault(layer, []).append(layer.cast(a, g) if half else (a, g))
        with torch.no_grad():
            made = parts(uses)
            return made, sum((part.square for part in made[1:]), made[0].square)

    @contextmanager
    def _recording(self) -> Iterator[None]:
        self._tape.clear()
        for p in self._trained:
            p.requires_grad_(False)
        try:
            with torch.enable_grad():
                yield
        finally:
            for p in self._trained:
                p.requires_grad_(True)
            self._tape.clear()


def at_most(square: Tensor, clip: float) -> Tensor:
    """The factors that bring finite norms, given squared, to at most `clip`."""
    return (clip / (square.sqrt() + 1e-6)).clamp_(max=1.0)


def clip_factors(square: Tensor, clip: float) -> tuple[Tensor, Tensor | None]:
    """What each example's gradient is multiplied by, from its squared norm; which are not finite.

    An example whose norm is not finite has the factor 0; None where there is no such example.
    """
    factors = at_most(square, clip)
    if math.isfinite(square.max()):
        return factors, None
    broken = ~torch.isfinite(square)
    return factors.masked_fill_(broken, 0), broken


def made_up(rows: int, like: Tensor) -> Tensor:
    """So many rows shaped like `like`, of which no value is looked at."""
    row = torch.arange(rows).view(-1, *[1] * (like.dim() - 1))
    if not like.is_floating_point():
        return (row % 2).expand(rows, *like.shape[1:]).to(like.device, like.dtype)
    values = torch.linspace(-1, 1, math.prod(like.shape[1:])).view(like.shape[1:])
    return (values * (row + 0.5) * (-1) ** row).to(like.device, like.dtype)
