"""All that one batch of made-up rows makes of a model, so that two batches can be compared."""

import random
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from client.dpsgd.calls import check_halves
from client.dpsgd.clipping import BookKeeping, Loss
from client.dpsgd.examination.made_up_rows import Examples
from client.dpsgd.per_sample import DROPOUTS, ModelError
from client.dpsgd.trees import Batch

_CLOSE: Final = 1e-4
"""How far a row may be off, of its largest number: kernels on a GPU add in changing orders."""
OWN: Final = frozenset(vars(nn.Module())) - {"training"} | {"forward", "forward_layer"}
"""Attributes that every module has, and those that book-keeping lends it."""
_PLAIN: Final = (int, float, str)


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """All that one batch made of a model: losses, every layer's inputs and output gradients."""

    names: tuple[str, ...]
    values: tuple[Tensor, ...]

    @classmethod
    def of(
        cls, book: BookKeeping, rows: Examples, loss: Loss, only: Tensor | None = None
    ) -> "Trace":
        """Run a batch through model and loss, forward and backward; buffers may not change.

        Gradients are of all losses, or of those in the mask `only` [B]: then those of the other
        rows must be zero (ModelError). There is no backward where the mask is empty.
        """
        buffers = {name: b.clone() for name, b in book.model.named_buffers()}
        names, values = ["loss: it"], []
        count = len(rows.y)
        try:
            with book.recording(count), seeded():
                losses = book.losses(rows.x, rows.y, loss)
                values.append(losses.detach())
                tape = list(book.tape)
                gradients: list[Tensor | Batch | None] = [None] * len(tape)
                if only is None:
                    gradients = book.gradients_of(losses, torch.ones_like(losses))
                elif only.any():
                    only = only.to(losses.device)
                    gradients = book.gradients_of(losses, only.to(losses.dtype))
                    check_halves(tape, gradients, ~only)
            for name, buffer in book.model.named_buffers():
                if name not in buffers or not _same(buffers[name], buffer):
                    raise ModelError(
                        f"model: the buffer {name} changes in a forward and carries examples into "
                        "later batches (use GroupNorm or LayerNorm, or keep the module in eval())"
                    )
        finally:
            for name, buffer in book.model.named_buffers():
                if name in buffers and buffer.shape == buffers[name].shape:
                    buffer.copy_(buffers[name])
        for call, g in zip(tape, gradients, strict=True):
            for what, held in (("input", call.a), ("output gradient", g)):
                for value in _examples(held):
                    names.append(f"model: {call.layer.name}: its {what}")
                    values.append(value)
        for value in values:
            if len(value) != count:
                raise ModelError("model: expected one row for each example in every layer")
        return cls(tuple(names), tuple(values))

    def shortened(self, other: "Trace") -> str:
        """The name of the first value that depends on how many rows `other` has; "" if none."""
        count = len(other.values[0])
        if self.names != other.names:
            return "model: which layers are called"
        for name, one, two in zip(self.names, self.values, other.values, strict=True):
            if not close(one[:count], two, 1e-3, 1e-5):  # kernels differ with the number of rows
                return name
        return ""

    def take(self, rows: Sequence[int]) -> "Trace":
        """Copies of these rows alone."""
        return Trace(self.names, tuple(v[list(rows)] for v in self.values))

    def forward(self) -> "Trace":
        """Without the gradients."""
        pairs = zip(self.names, self.values, strict=True)
        kept = [(n, v) for n, v in pairs if "gradient" not in n]
        return Trace(tuple(n for n, _ in kept), tuple(v for _, v in kept))

    def differs(self, other: "Trace", mask: Tensor | None = None) -> str:
        """The name of the first value that is another one in the rows `mask`; "" if none."""
        if self.names != other.names:
            return "model: which layers are called"
        for name, one, two in zip(self.names, self.values, other.values, strict=True):
            rows = slice(None) if mask is None else mask.to(one.device)
            if not close(one[rows], two[rows], _CLOSE):
                return name
        return ""

    def alive(self) -> bool:
        """Whether some example has a finite loss and some layer a gradient."""
        gradients = [v for n, v in zip(self.names, self.values, strict=True) if "gradient" in n]
        return bool(torch.isfinite(self.values[0]).any()) and any(bool(g.any()) for g in gradients)


def _examples(held: Tensor | Batch | None) -> Sequence[Tensor]:
    if held is None:
        return ()
    if isinstance(held, Tensor):
        return (held,)
    return [v for v, dim in zip(held.values, held.dims, strict=True) if dim is not None]


def close(one: Tensor, other: Tensor, within: float, beside: float = 0.0) -> bool:
    """Whether the rows are equal up to `within` of a row's, `beside` of all rows' largest."""
    if one.shape != other.shape:
        return False
    if torch.equal(one, other):
        return True
    if not one.is_floating_point():
        return False
    one, other = (v.reshape(len(v), -1).double() for v in (one, other))
    same = (one == other) | (one.isnan() & other.isnan())
    size = one.abs().nan_to_num(0.0, 0.0, 0.0).amax(1, keepdim=True)
    allowed = within * size + beside * size.max()
    return bool((same | ((one - other).abs() <= allowed)).all())


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    equal = one == other
    if one.is_floating_point():
        equal |= one.isnan() & other.isnan()
    return bool(equal.all())


@contextmanager
def nothing_kept(model: nn.Module) -> Iterator[None]:
    """Refuse a model whose attributes other than tensors change in the forwards within.

    What counts its calls can do in a later batch what it never did on made-up rows, and how many
    batches there are depends on who was drawn.
    """
    before = _memory(model)
    yield
    after = _memory(model)
    for name, value in before.items():
        if after.get(name) != value:
            raise ModelError(
                f"model: the attribute {name} changes in a forward (expected nothing to be kept "
                "from one batch to the next)"
            )


def _memory(model: nn.Module) -> dict[str, Any]:
    """What the modules' own attributes hold beside tensors: numbers, words, lengths of lists."""
    return {
        f"{path}.{name}".lstrip("."): value if isinstance(value, _PLAIN) else len(value)
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if name not in OWN and isinstance(value, (*_PLAIN, list, tuple, dict, set, deque))
    }


@contextmanager
def seeded() -> Iterator[None]:
    """Random numbers that are the same every time; the generators are left as they were."""
    python, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        # torch.manual_seed formats a stack trace for every kind of device that is not there
        torch.default_generator.manual_seed(0)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(0)
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)


@contextmanager
def as_in_training(model: nn.Module) -> Iterator[None]:
    """Dropout keeps everything, since what it drops cannot be seen to mix; buffers are put back."""
    dropped = [(m, m.p) for m in model.modules() if isinstance(m, DROPOUTS)]
    buffers = [(b, b.clone()) for b in model.buffers()]
    for module, _ in dropped:
        module.p = 0.0
    try:
        yield
    finally:
        for buffer, value in buffers:
            buffer.copy_(value)
        for module, p in dropped:
            module.p = p


@contextmanager
def other_weights(model: nn.Module) -> Iterator[None]:
    """Trained weights moved at random: a layer that starts at zero shows nothing of its input."""
    trained = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in trained:
            width = p[0].numel() if p.dim() > 1 else 4
            moved = torch.randn(p.shape, generator=draw) / max(width, 1) ** 0.5
            p.add_(moved.to(p.device, p.dtype))
    try:
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(trained, before, strict=True):
                p.copy_(old)


def length(tensors: Sequence[Tensor | None]) -> float:
    """The L2 norm of all together, in float64."""
    squares = [
        torch.linalg.vector_norm(t, dtype=torch.float64).square() for t in tensors if t is not None
    ]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


def negated(gradient: Tensor | None, others: Sequence[Tensor | None]) -> Tensor | None:
    """A contiguous -gradient, in its own memory where no other has that: a model may be large."""
    if gradient is None:
        return None
    place = gradient.untyped_storage().data_ptr()
    sharing = [t for t in others if t is not None and t.untyped_storage().data_ptr() == place]
    if len(sharing) == 1 and gradient.is_contiguous():
        return gradient.neg_()
    return gradient.neg().contiguous()
