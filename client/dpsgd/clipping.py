"""Per-example clipping by book-keeping: one forward, one backward, one weighted sum a layer.

Book-keeping (Bu et al., ICML 2023) keeps each layer's input a and output gradient g; from these
pairs come the per-example norms and then, with the clip factors known, the clipped sum. Parameters
carry no gradient meanwhile, so the backward is cheaper than that of ordinary training.

Norms are taken of exactly what is summed, or certified: the "ghost norm" of sequences and images,
which forms <a a', g g'>, would be too small for crafted records whose terms cancel, so all that
rounding can have taken from it is added (`matrix_products`).
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from opacus.grad_sample import AbstractGradSampleModule
from opacus.layers.dp_rnn import DPRNNBase
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from client.dpsgd.calls import (
    Call,
    batch_not_first,
    check_halves,
    half_of,
    inputs_of,
    joined,
)
from client.dpsgd.clipped_sum import ALL, BatchSum, Part, SumOf, gradient_of, on_host
from client.dpsgd.fused import cells
from client.dpsgd.people import Group, of_people
from client.dpsgd.per_sample import (
    EXPANDED,
    FUNCTIONAL,
    Layer,
    ModelError,
    Uses,
    layer_of,
    parts,
)
from client.dpsgd.trees import (
    Batch,
    examples_first,
    floats,
    mapped,
    outline,
    replaced,
    tensors,
)

_log = logging.getLogger(__name__)

Loss = Callable[[Any, Tensor], Tensor]
"""(outputs, y) -> a loss per example [B]."""


class BookKeeping(AbstractGradSampleModule):  # type: ignore[misc]
    """A model that adds the clipped sum of its examples' gradients to `p.grad`.

    It takes the place of Opacus' GradSampleModule before a DPOptimizerFastGradientClipping. An
    example whose gradient is not finite contributes exactly zero. In `precision` bfloat16 are the
    model's products and those of inputs with output gradients. With `sums` they add up there, in
    blocks that keep the error of float32 within its bound; else all at once.

    Row i of every layer is taken for example i. An examination finds out whether that is so, and
    `watch()` has the next batch show it as well.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        clip: float,
        precision: str = "float32",
        sums: BatchSum | None = None,
    ) -> None:
        model.train()
        super().__init__(model, batch_first=True, loss_reduction="sum")
        self.clip, self.precision, self._sums = clip, precision, sums
        self.tape: list[Call] = []
        self._rows = 0
        self._recording = False
        self._networks: list[DPRNNBase] = []
        self._watching: Callable[[], None] | None = None
        self._trained = [p for p in model.parameters() if p.requires_grad]
        if not self._trained:
            raise ModelError("model: expected parameters to train, got none")
        self.layers: list[Layer] = []
        self._attach(model, {module: path for path, module in model.named_modules()})
        # An in-place activation would overwrite the output whose gradient is asked for.
        self._inplace: list[Any] = [
            m for m in model.modules() if getattr(m, "inplace", False) is True
        ]
        for module in self._inplace:
            module.inplace = False

    @property
    def model(self) -> nn.Module:
        """The model itself."""
        module: nn.Module = self._module
        return module

    def _attach(self, module: nn.Module, paths: dict[nn.Module, str]) -> None:
        if not any(p.requires_grad for p in module.parameters()):
            return
        has_parameters = any(p.requires_grad for p in module.parameters(recurse=False))
        # weight_norm and its like: one layer with its parts
        has_parameters = has_parameters or is_parametrized(module)
        # which shows its cells' parameters as its own
        if not has_parameters or isinstance(module, DPRNNBase):
            if isinstance(module, DPRNNBase):
                self._networks.append(module)
                module.forward_layer = self._over_time(module)
            for child in module.children():
                self._attach(child, paths)
            return
        layer = layer_of(module, paths.get(module, ""))
        if layer.by:
            _log.info("%s: per-example gradients by %s", layer.name, layer.by)
        self.layers.append(layer)

        def forward(*args: Any, **kwargs: Any) -> Any:
            if layer.direct or not torch.is_grad_enabled():
                return layer.forward(*args, **kwargs)
            return self._call(layer, args, kwargs)

        module.forward = forward

    def _call(self, layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not args and len(kwargs) == 1 and not layer.by:  # Linear(input=x)
            args, kwargs = tuple(kwargs.values()), {}
        tree: Any = (args, kwargs)
        single = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
        given = (args[0],) if single else tuple(tensors(tree))
        dims = inputs_of(layer, given, self._rows)
        values = given
        if EXPANDED in dims:
            values = tuple(
                x.expand(self._rows, *x.shape[1:]) if dim == EXPANDED else x
                for x, dim in zip(given, dims, strict=True)
            )
            args, kwargs = replaced(tree, values)
            dims = tuple(0 if dim == EXPANDED else dim for dim in dims)
        out = layer.forward(*args, **kwargs)
        outs = tuple(x for x in tensors(out) if x.is_floating_point())
        for x in outs:
            if not x.requires_grad:
                x.requires_grad_()
        a: Tensor | Batch
        if single and layer.by != FUNCTIONAL:
            a = examples_first(values[0].detach(), dims[0])
        else:
            pairs = zip(values, dims, strict=True)
            each = tuple(examples_first(x.detach(), dim) for x, dim in pairs)
            a = Batch(outline((args, kwargs)), each, dims)
        returned = outs
        if layer.copied:
            out = mapped(torch.clone, out)
            returned = tuple(x for x in tensors(out) if x.is_floating_point())
        versions = tuple(x._version for x in returned)
        self.tape.append(Call(layer, given, a, outs, returned, versions))
        return out

    def _over_time(self, network: DPRNNBase) -> Callable[..., Any]:
        """Opacus' `forward_layer`: in one pass over time while it is recorded."""

        def forward_layer(
            x: Any, h: Tensor, c: Tensor | None, sizes: Any, *, cell: Any, **named: Any
        ) -> Any:
            known = {layer.module: layer for layer in self.layers}
            recorded = self._recording and not {cell.ih, cell.hh} - known.keys()
            if not recorded or not cells.suits(network, cell, packed=named["is_packed"]):
                slow = type(network).forward_layer
                return slow(network, x, h, c, sizes, cell=cell, **named)

            def record(module: Any, a: Tensor, out: Tensor) -> None:
                outs = (out,)
                self.tape.append(Call(known[module], (a,), a.detach(), outs, outs, (out._version,)))

            return cells.run(cell, x, h, c, record, backwards=named["reverse_layer"])

        return forward_layer

    def remove_hooks(self) -> None:
        """Give the model its own forward back."""
        for network in self._networks:
            vars(network).pop("forward_layer", None)
        self._networks.clear()
        for layer in self.layers:
            vars(layer.module).pop("forward", None)
        self.layers.clear()
        for module in self._inplace:
            module.inplace = True

    def watch(self, passed: Callable[[], None]) -> None:
        """Have the next batch show that its halves do not touch each other, then call `passed`."""
        self._watching = passed

    def accumulate(
        self,
        x: Any,
        y: Tensor,
        loss: Loss,
        group: Group | None = None,
        real: Tensor | None = None,
    ) -> None:
        """Add sum_i clip(gradient of loss_i) to `p.grad` of every trained parameter.

        `x` is a tensor or a tree of tensors [B, ...]; `loss` gives a loss per example [B]. With a
        `group` the examples i are its people, each with the mean of their rows' losses. Of examples
        that are not `real` [B] nothing is added. Calling it for the parts of a batch adds up.
        """
        for p in self._trained:
            gradient_of(p)
        rows = len(y)
        if not rows:
            return
        uses = self._uses(x, y, loss, group)
        units = rows if group is None else len(group)
        whole: Iterable[tuple[slice, SumOf]] = ((ALL, gradient_of),)
        with torch.no_grad():
            every = parts(uses, certify=group is None)
            factors, broken = clip_factors(_squares(every), self.clip, real)
            for block, sum_of in whole if self._sums is None else self._sums.blocks(units):
                for part in every:
                    part.add(factors, broken, sum_of, block)

    def parts(
        self, x: Any, y: Tensor, loss: Loss, group: Group | None = None
    ) -> tuple[list[Part], Tensor]:
        """The batch's gradients by layer, not yet clipped, and each example's squared norm."""
        uses = self._uses(x, y, loss, group)
        with torch.no_grad():
            every = parts(uses, certify=group is None)
            return every, _squares(every)

    def _uses(self, x: Any, y: Tensor, loss: Loss, group: Group | None) -> dict[Layer, Uses]:
        """Every layer's inputs and output gradients on a batch, by example or by person."""
        half, rows = self.precision == "bfloat16", len(y)
        device = tensors(x)[0].device.type
        lower = torch.autocast(device, torch.bfloat16) if half else nullcontext()
        with self.recording(rows), lower:
            losses = self.losses(x, y, loss)
            if group is not None:
                losses = losses * group.weights.to(losses.device)
            tape = list(self.tape)
            gradients = self.gradients(losses, rows)
        uses: dict[Layer, list[tuple[Any, Any]]] = {}
        for call, g in zip(tape, gradients, strict=True):
            if g is not None:
                if call.a.shape[0] != rows:
                    raise batch_not_first(call.layer, call.given[0].shape)
                layer, a = call.layer, call.a
                uses.setdefault(layer, []).append(layer.cast(a, g) if half else (a, g))
        if not uses:
            raise ModelError("model: expected a loss that depends on trained parameters, got none")
        if group is None:
            return dict(uses)
        with torch.no_grad():
            return dict(of_people(uses, group))

    def losses(self, x: Any, y: Tensor, loss: Loss) -> Tensor:
        """A loss per example [B], while the layers are recorded."""
        out = self.model(x)
        losses = loss(floats(out) if self.precision == "bfloat16" else out, y)
        if losses.shape != (len(y),):
            raise ModelError(f"loss: expected shape ({len(y)},), got {tuple(losses.shape)}")
        for call in self.tape:
            if call.lost():
                raise ModelError(
                    f"model: {call.layer.name}: expected no in-place operation on its output"
                )
        if not self.tape:
            raise ModelError("model: expected trained parameters to be used, got none")
        return losses

    def gradients(self, losses: Tensor, rows: int) -> list[Tensor | Batch | None]:
        """Each call's output gradient, of every example's own loss."""
        if self._watching is None or rows < 2:
            return self.gradients_of(losses, torch.ones_like(losses))
        chosen = half_of(rows).to(losses.device)
        here = self.gradients_of(losses, chosen.to(losses.dtype), keep=True)
        there = self.gradients_of(losses, (~chosen).to(losses.dtype))
        check_halves(self.tape, here, ~chosen)
        check_halves(self.tape, there, chosen)
        self._watching()
        self._watching = None
        return [joined(one, other, chosen) for one, other in zip(here, there, strict=True)]

    def gradients_of(
        self, losses: Tensor, each: Tensor, *, keep: bool = False
    ) -> list[Tensor | Batch | None]:
        """Each call's output gradient of sum_i each_i * loss_i; None where it has none."""
        outs = [out for call in self.tape for out in call.outs]
        if not losses.requires_grad:
            return [None] * len(self.tape)
        flat = iter(
            torch.autograd.grad(losses, outs, each, allow_unused=True, retain_graph=keep or None)
        )
        gradients = [[next(flat) for _ in call.outs] for call in self.tape]
        return [call.gradient(g, len(losses)) for call, g in zip(self.tape, gradients, strict=True)]

    @contextmanager
    def passive(self) -> Iterator[None]:
        """While the model runs as if nothing recorded it."""
        self._direct(True)
        try:
            yield
        finally:
            self._direct(False)

    def _direct(self, value: bool) -> None:
        for layer in self.layers:
            layer.direct = value

    @contextmanager
    def outside(self, rows: int) -> Iterator[None]:
        """While a forward runs in which parameters carry gradients outside their modules alone."""
        forwards = [layer.forward for layer in self.layers]

        def closed(layer: Layer, forward: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                for p in layer.trained:
                    p.requires_grad_(False)
                try:
                    return forward(*args, **kwargs)
                finally:
                    for p in layer.trained:
                        p.requires_grad_(True)

            return run

        for layer, forward in zip(self.layers, forwards, strict=True):
            layer.forward = closed(layer, forward)  # type: ignore[method-assign]
        self.tape.clear()
        self._rows = rows
        try:
            with torch.enable_grad():
                yield
        finally:
            for layer in self.layers:
                del layer.forward
            self.tape.clear()

    @contextmanager
    def recording(self, rows: int) -> Iterator[None]:
        """While a forward of `rows` examples runs: its layers' calls are on `tape`."""
        self.tape.clear()
        self.__dict__.update(_rows=rows, _recording=True)  # a Module sets attributes slowly
        for p in self._trained:
            p.requires_grad_(False)
        try:
            with torch.enable_grad():
                yield
        finally:
            self.__dict__["_recording"] = False
            for p in self._trained:
                p.requires_grad_(True)
            self.tape.clear()


def _squares(every: Sequence[Part]) -> Tensor:
    """Each example's squared norm over all parts [B], float64."""
    return sum((part.square for part in every[1:]), every[0].square)


def clip_factors(
    square: Tensor, clip: float, real: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """What each example's gradient is multiplied by, from its squared norm; which are broken.

    (factors [B], float32; broken [B] or None where there is none). A factor brings the norm to at
    most `clip`. An example whose norm is not finite is broken and has the factor 0; one that is not
    `real` [B] counts as broken. On a GPU nobody asks whether there is one: that would wait for it.
    """
    factors = (clip / (square.sqrt() + 1e-6)).clamp_(max=1.0).float()
    if real is None and on_host(square) and math.isfinite(square.max()):
        return factors, None
    broken = ~torch.isfinite(square)
    if real is not None:
        broken |= ~real
    return factors.masked_fill_(broken, 0), broken
