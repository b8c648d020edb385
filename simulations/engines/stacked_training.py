"""One round of learning at many sites in one computation.

It is `client.dpsgd.training.train` for stacked models, with the same steps, clipping, noise, grid
and optimizers: every site draws its own batch, and batches are padded to the longest. A padded or
broken example contributes exactly zero.
"""

from collections.abc import Callable, Sequence
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.dpsgd.clipping import clip_factors
from client.dpsgd.gpu.stream import CudaStream, stream_on
from client.dpsgd.training import Trained, TrainingError, loss_of, optimizer_of, proximal
from client.tasks.rows import Rows
from client.tasks.task import Task
from privacy.arrays import Arrays
from privacy.contract.plan import Plan
from privacy.mechanism import noise
from privacy.mechanism.gaussian import Sums
from privacy.mechanism.sensitivity import rows_per_block, slack
from simulations.engines.stacked_models import Stack

T = TypeVar("T")
_DOUBLE_ROWS: Final = 4096
_CPU: Final = torch.device("cpu")


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
    device: torch.device = _CPU,
) -> list[Trained]:
    """Train every member for one round (from 1): what each changed, in the members' order.

    Not `private`: plain sums without clipping or noise, of one member as of many. The `device` is
    that of the stack. On a GPU noise is made there, but where draws are reproducible.
    """
    loss = loss_of(task, plan)
    flat = torch.from_numpy(np.stack([stack.flat(member.weights) for member in members])).to(device)
    old = flat.clone()
    inner = optimizer_of([flat], plan)
    pull = proximal([flat], plan.mu) if plan.aggregation == "fedprox" else None
    batches = Batches(members, rate, steps, device)
    alone = any(member.context is not None for member in members)
    stream = stream_on(device, flat.numel()) if private and not alone else None
    if stream is not None:
        noise.start_on(stream)
    if private and plan.clip is None:
        raise TrainingError("clip: expected a value in a private plan, got nothing")
    clip = plan.clip if private else None
    allowed = min(slack(member.denominator) for member in members)
    if not private and any(member.std for member in members):
        raise TrainingError("std: expected no noise where a plan is not private")
    with torch.no_grad():
        for step in range(steps):
            for group in inner.param_groups:
                group["lr"] = plan.lr_at((round - 1) * steps + step, plan.rounds * steps)
            drawn = batches.draw()
            total = _summed(stack, flat, drawn, loss, clip, allowed)
            if stream is None:
                means = torch.from_numpy(noisy_means(total.cpu().numpy(), members))
                flat.grad = means.to(device)
            else:
                flat.grad = noisy_means_on(stream, total, members)
            if pull is not None:
                pull()
            inner.step()
    if stream is not None and stream.failed():
        raise noise.NoiseError("noise: more numbers are undecided on the device than there can be")
    moved = flat.sub_(old).cpu().numpy()
    return [Trained(stack.named(row), steps) for row in moved]


def _summed(
    stack: Stack, flat: Tensor, batch: "Batch", loss: Any, clip: float | None, allowed: float
) -> Tensor:
    """Each member's sum over its batch, of clipped gradients where there is a clip.

    As in `client.dpsgd.clipped_sum.BatchSum`, in blocks that keep float32 within `allowed`; the
    sums are float64 where there are several.
    """
    if not batch.real.numel():
        return torch.zeros_like(flat)
    with torch.enable_grad():
        gradients = stack.gradients(flat, batch.x, batch.y, loss)
    if clip is None:
        dead = ~batch.real
        return gradients.summed(batch.real.to(flat.dtype), dead if bool(dead.any()) else None)
    factors, broken = clip_factors(gradients.squares(), clip)
    factors.masked_fill_(~batch.real, 0)
    rows = factors.shape[1]
    block = rows_per_block(rows, allowed)
    if block >= rows:
        return gradients.summed(factors, broken)
    total = torch.zeros_like(flat, dtype=torch.float64)
    kind, size = (torch.float32, block) if block else (torch.float64, _DOUBLE_ROWS)
    for at in range(0, rows, size):
        total += gradients.summed(factors, broken, slice(at, at + size), kind)
    return total


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Examples [K, B, ...], of which those that are `real` were drawn and the others are zeros."""

    x: Tensor
    y: Tensor
    real: Tensor


class Batches:
    """All members' rows in one tensor, a row of zeros behind them, and a draw for each step."""

    def __init__(
        self, members: Sequence[Member], rate: float, steps: int, device: torch.device = _CPU
    ) -> None:
        self._members = members
        self._sizes = [len(member.rows) for member in members]
        self._ends = np.cumsum(self._sizes)
        xs, ys = [m.rows.x for m in members], [m.rows.y for m in members]
        # Each row is drawn by itself, so that one draw does for all; but not where draws repeat.
        alone = any(member.context is not None for member in members)
        parts = self._sizes if alone else [sum(self._sizes)]
        self._draws = [noise.batches(part, rate, steps) for part in parts]
        x = torch.cat([*xs, torch.zeros_like(xs[0][:1]) if len(xs[0]) else _zero(xs[0])])
        y = torch.cat([*ys, torch.zeros_like(ys[0][:1]) if len(ys[0]) else _zero(ys[0])])
        self._x, self._y = x.to(device), y.to(device)

    def draw(self) -> Batch:
        """The next Poisson batch of every member."""
        rows = self._drawn()
        owner = np.searchsorted(self._ends, rows, side="right")
        counts = np.bincount(owner, minlength=len(self._sizes))
        longest = int(counts.max(initial=0))
        slot = np.arange(len(rows)) - (np.cumsum(counts) - counts)[owner]
        at = np.full((len(self._sizes), longest), len(self._x) - 1, dtype=np.int64)
        at[owner, slot] = rows
        index = torch.from_numpy(at).to(self._x.device)
        x, y = self._x[index], self._y[index]
        return Batch(x, y, index < len(self._x) - 1)

    def _drawn(self) -> NDArray[np.int64]:
        if len(self._draws) == 1:
            return _in(self._members[0], partial(next, self._draws[0]))
        drawn = [
            _in(member, partial(next, draws))
            for member, draws in zip(self._members, self._draws, strict=True)
        ]
        starts = self._ends - self._sizes
        return np.concatenate([rows + start for rows, start in zip(drawn, starts, strict=True)])


def noisy_means(sums: Sums, members: Sequence[Member]) -> NDArray[np.float32]:
    """Make of clipped sums [K, numbers] the noisy means, each on the grid of its member's std.

    Members of one std share a draw; reproducible ones draw by themselves. Float32 sums are
    overwritten.
    """
    levels: dict[float, list[int]] = {}
    for i, member in enumerate(members):
        if member.context is None:
            levels.setdefault(member.std, []).append(i)
        else:
            _in(member, partial(noise.privatise, sums[i], member.std))
    for std, equal in levels.items():
        noised = sums if len(equal) == len(members) else sums[equal]
        noise.privatise(noised, std)
        if noised is not sums:
            sums[equal] = noised
    means = sums.astype(np.float32, copy=False)
    means /= np.array([member.denominator for member in members], dtype=np.float32)[:, None]
    return means


def noisy_means_on(stream: CudaStream, sums: Tensor, members: Sequence[Member]) -> Tensor:
    """`noisy_means` of sums on a GPU, by its stream, of members whose draws are real."""
    levels: dict[float, list[int]] = {}
    for i, member in enumerate(members):
        levels.setdefault(member.std, []).append(i)
    for std, equal in levels.items():
        if len(equal) == len(members):
            noise.privatise_on(stream, sums, std)
            continue
        for i in equal:
            noise.privatise_on(stream, sums[i], std)
    over = torch.tensor([member.denominator for member in members], dtype=torch.float32)
    return sums.float().div_(over.to(sums.device)[:, None])


def _in(member: Member, draw: Callable[[], T]) -> T:
    return draw() if member.context is None else member.context.copy().run(draw)


def _zero(like: Tensor) -> Tensor:
    return like.new_zeros(1, *like.shape[1:])
