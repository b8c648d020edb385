"""One round of learning at many sites in one computation: their models stacked, a row each.

It is `client.training.train` for models of Linear layers, with the same steps, clipping, noise,
grid and optimizers: parameters of K sites are one tensor [K, numbers], every site draws its own
batch, and batches are padded to the longest. A padded or broken example contributes exactly zero.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.layers import ModelError, layer_of
from client.tasks import Rows, Task
from client.training import Trained, TrainingError, optimizer_of, proximal, rate_of
from privacy import noise
from privacy.plan import Plan
from privacy.wire import Arrays

ELEMENTWISE: Final = (
    *(nn.Tanh, nn.ReLU, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Softplus),
    *(nn.Hardtanh, nn.Identity),
)


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """One site's part: its rows, the weights asked, what its sums are divided by, its noise.

    `std` is the noise of a clipped sum. `context` holds the site's own reproducible draws, where a
    run is marked insecure; otherwise all sites' noise is drawn at once, which is the same law.
    """

    rows: Rows
    weights: Arrays
    denominator: float
    std: float
    context: Context | None = None


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
        self.numbers = sum(math.prod(shape) for shape in self.shapes)
        self.width = math.prod(shape) + 3 * sum(m.in_features + m.out_features for m in linear)

    def flat(self, weights: Arrays) -> NDArray[np.float32]:
        """One site's weights as a row."""
        return np.concatenate([weights[name].reshape(-1) for name in self.names])

    def named(self, row: NDArray[np.float32]) -> Arrays:
        """A row's weights by name."""
        sizes = [math.prod(shape) for shape in self.shapes]
        parts = np.split(row, np.cumsum(sizes)[:-1])
        pairs = zip(self.names, self.shapes, parts, strict=True)
        return {name: part.reshape(shape) for name, shape, part in pairs}

    def gradients(self, flat: Tensor, x: Tensor, y: Tensor, loss: Any) -> "Gradients":
        """Every example's gradient at weights [K, numbers], from x [K, B, ...] and y [K, B, ...].

        As book-keeping does (client/bookkeeping.py): each layer's input and output gradient.
        """
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
        made = torch.autograd.grad(losses.sum(), [out for _, _, out in tape])
        pairs = [(layer, a, g) for (layer, a, _), g in zip(tape, made, strict=True)]
        return Gradients(pairs, self._norms)


class Gradients:
    """The gradients of examples [K, B] by each layer's input and output gradient."""

    def __init__(self, pairs: Sequence[tuple[nn.Linear, Tensor, Tensor]], norms: Any) -> None:
        self._pairs = pairs
        self._norms = norms

    def squares(self) -> Tensor:
        """The squared norms [K, B], as the layers of book-keeping take them."""
        parts = [
            self._norms[id(layer)].part([(a.flatten(0, 1), g.flatten(0, 1))]).square
            for layer, a, g in self._pairs
        ]
        return torch.stack(parts).sum(0).view(self._pairs[0][1].shape[:2])

    def summed(self, factors: Tensor, dead: Tensor | None) -> Tensor:
        """sum_i factors_i * gradient_i [K, numbers]; `dead` examples are zero whatever they hold"""
        sums = []
        for layer, a, g in self._pairs:
            if dead is not None:
                a, g = a.masked_fill(dead[..., None], 0), g.masked_fill(dead[..., None], 0)
            g = g * factors[..., None]
            sums.append(torch.bmm(g.transpose(1, 2), a).flatten(1))
            if layer.bias is not None:
                sums.append(g.sum(1))
        return torch.cat(sums, 1)


def train_together(
    stack: Stack,
    members: Sequence[Member],
    task: Task,
    plan: Plan,
    *,
    rate: float,
    steps: int,
    round: int,
    private: bool,
) -> list[Trained]:
    """Train every member for one round (from 1): what each changed, in the members' order.

    Not `private`: plain sums without clipping or noise, of one member as of many.
    """
    flat = torch.from_numpy(np.stack([stack.flat(member.weights) for member in members]))
    old = flat.clone()
    inner = optimizer_of([flat], plan)
    pull = proximal([flat], plan.mu) if plan.aggregation == "fedprox" else None
    batches = Batches(members)
    if private and plan.clip is None:
        raise TrainingError("clip: expected a value in a private plan, got nothing")
    clip = plan.clip if private else None
    std = np.array([member.std for member in members], dtype=np.float64)
    if std.any() and not (private and std.all()):
        raise TrainingError("std: expected noise at every member of a private plan, or at none")
    step_of = torch.tensor([noise.grid(one) for one in std], dtype=torch.float32)[:, None]
    denominators = torch.tensor([m.denominator for m in members], dtype=torch.float32)[:, None]
    with torch.no_grad():
        for step in range(steps):
            for group in inner.param_groups:
                group["lr"] = rate_of(plan, (round - 1) * steps + step, plan.rounds * steps)
            drawn = batches.draw(rate)
            total = _summed(stack, flat, drawn, task, clip)
            if std.any():
                total = drawn_noise(members, std, stack.shapes).add_(total)
                # The grid's steps are powers of two, so that dividing by them is exact.
                total.div_(step_of).round_().mul_(step_of)
            flat.grad = total.div_(denominators)
            if pull is not None:
                pull()
            inner.step()
    moved = flat.sub_(old).numpy()
    return [Trained(stack.named(row), steps) for row in moved]


def _summed(stack: Stack, flat: Tensor, batch: "Batch", task: Task, clip: float | None) -> Tensor:
    """Each member's sum over its batch, of clipped gradients where there is a clip."""
    if not batch.real.numel():
        return torch.zeros_like(flat)
    with torch.enable_grad():
        made = stack.gradients(flat, batch.x, batch.y, task.loss)
    if clip is None:
        dead = ~batch.real
        return made.summed(batch.real.to(flat.dtype), dead if bool(dead.any()) else None)
    square = made.squares()
    fine = torch.isfinite(square)
    factors = torch.where(fine, clip / (square.sqrt() + 1e-6), 0.0).clamp(max=1.0)
    factors = torch.where(batch.real, factors, 0.0)
    return made.summed(factors, None if bool(fine.all()) else ~fine)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Examples [K, B, ...], of which those that are `real` were drawn and the others are zeros."""

    x: Tensor
    y: Tensor
    real: Tensor


class Batches:
    """All members' rows in one tensor, a row of zeros behind them, and draws from it."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = members
        self._sizes = [len(member.rows) for member in members]
        self._ends = np.cumsum(self._sizes)
        xs, ys = [m.rows.x for m in members], [m.rows.y for m in members]
        self._x = torch.cat([*xs, torch.zeros_like(xs[0][:1]) if len(xs[0]) else _zero(xs[0])])
        self._y = torch.cat([*ys, torch.zeros_like(ys[0][:1]) if len(ys[0]) else _zero(ys[0])])

    def draw(self, rate: float) -> Batch:
        """A Poisson batch for every member."""
        rows = self._drawn(rate)
        owner = np.searchsorted(self._ends, rows, side="right")
        counts = np.bincount(owner, minlength=len(self._sizes))
        longest = int(counts.max(initial=0))
        slot = np.arange(len(rows)) - (np.cumsum(counts) - counts)[owner]
        at = np.full((len(self._sizes), longest), len(self._x) - 1, dtype=np.int64)
        at[owner, slot] = rows
        index = torch.from_numpy(at)
        x, y = self._x[index], self._y[index]
        return Batch(x, y, index < len(self._x) - 1)

    def _drawn(self, rate: float) -> NDArray[np.int64]:
        if all(member.context is None for member in self._members):
            return noise.poisson(sum(self._sizes), rate)  # each row by itself: one draw for all
        drawn = [
            _in(member, partial(noise.poisson, size, rate))
            for member, size in zip(self._members, self._sizes, strict=True)
        ]
        starts = self._ends - self._sizes
        return np.concatenate([rows + start for rows, start in zip(drawn, starts, strict=True)])


def drawn_noise(
    members: Sequence[Member], std: NDArray[np.float64], shapes: Sequence[tuple[int, ...]]
) -> Tensor:
    """Noise [K, numbers] of each member's own std: equal ones at once, marked ones by themselves"""
    numbers = sum(math.prod(shape) for shape in shapes)
    if any(member.context is not None for member in members):
        rows = []
        for member in members:
            parts = [
                _in(member, partial(noise.normal, shape, member.std)).reshape(-1)
                for shape in shapes
            ]
            rows.append(np.concatenate(parts))
        return torch.from_numpy(np.stack(rows))
    levels = np.unique(std)
    if len(levels) == 1:
        return torch.from_numpy(noise.normal((len(members), numbers), float(levels[0])))
    made = np.empty((len(members), numbers), dtype=np.float32)
    for level in levels:
        equal = std == level
        made[equal] = noise.normal((int(equal.sum()), numbers), float(level))
    return torch.from_numpy(made)


def _in(member: Member, draw: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    return draw() if member.context is None else member.context.copy().run(draw)


def _zero(like: Tensor) -> Tensor:
    return like.new_zeros(1, *like.shape[1:])


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
