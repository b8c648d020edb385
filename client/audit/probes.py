"""Small models and made-up records through which the production trainer is watched from outside.

Everything here goes through `client.dpsgd.training.train` and looks only at what that releases.
"""

import copy
import os
import select
import signal
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.layers import DPLSTM
from torch import Tensor, nn

from client.audit.settings import Setting
from client.data.wanted import Wanted
from client.dpsgd import training
from client.tasks.losses import seeded
from client.tasks.rows import Encoded, Rows, TaskError
from client.tasks.task import Task
from privacy.accounting.events import Event

Sums: TypeAlias = dict[str, NDArray[np.float64]]

CLIP: Final = 1.0
_DEADLINE: Final = 20.0  # seconds for a forked process


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """A model of one kind of layer with records for it; `y` scales each record's gradient."""

    name: str
    model: Callable[[int], nn.Module]
    rows: Rows

    @property
    def task(self) -> Task:
        """The probe as a task whose loss is y times a fixed combination of the outputs."""
        return made_up(self.name, self.model, self.rows, linear_loss)

    def scaled(self, y: float) -> "Probe":
        """The same records with all gradients scaled: 0 makes them silent."""
        rows = Rows(self.rows.x, torch.full_like(self.rows.y, y))
        return Probe(self.name, self.model, rows)


def linear_loss(outputs: Tensor, y: Tensor) -> Tensor:
    """y * sum_j c_j outputs_j with c = 1, -2, 3, ...: its gradient in the outputs is constant."""
    width = outputs.shape[1]
    signs = torch.arange(1, width + 1, dtype=outputs.dtype, device=outputs.device)
    signs[1::2] *= -1
    return y.to(outputs.dtype) * (outputs * signs).sum(1)


def made_up(
    name: str,
    model: Callable[[int], nn.Module],
    rows: Rows,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> Task:
    """A task of rows in memory, enough to be trained: it reads no files."""

    def refuse(_: object) -> Encoded:
        raise TaskError(f"{name}: expected rows in memory, this task reads no files")

    return Task(
        name=name,
        kind="regression",
        classes=(),
        inputs=(),
        label="",
        shape=tuple(rows.x.shape[1:]),
        model=model,
        load=lambda path, part: rows,
        wanted=Wanted(()),
        encode=refuse,
        loss=loss,
        metrics=lambda outputs, y: {},
        decode=lambda outputs: outputs,
        embedded=True,
    )


class _LastState(nn.Module):
    """An LSTM, which the trainer hands to Opacus' own per-example gradients, and a read-out."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = DPLSTM(3, 5, batch_first=True)
        self.out = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(x)
        out: Tensor = self.out(states[:, -1])
        return out


class _Mean(nn.Module):
    """The mean over the tokens of a text."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def kinds(count: int = 12) -> tuple[Probe, ...]:
    """One probe for every kind of layer that the trainer treats in its own way."""
    source = torch.Generator().manual_seed(20)
    y = torch.linspace(0.05, 4.0, count)  # gradients on both sides of the clip

    def numbers(*shape: int) -> Tensor:
        return torch.randn((count, *shape), generator=source)

    tokens = torch.randint(30, (count, 6), generator=source)
    return (
        Probe(
            "linear",
            seeded(lambda: nn.Sequential(nn.Linear(9, 16), nn.Tanh(), nn.Linear(16, 3))),
            Rows(numbers(9), y),
        ),
        Probe(
            "convolution",
            seeded(
                lambda: nn.Sequential(
                    nn.Conv2d(1, 4, 3),
                    nn.GroupNorm(2, 4),
                    nn.Tanh(),
                    nn.Flatten(),
                    nn.Linear(64, 3),
                )
            ),
            Rows(numbers(1, 6, 6), y),
        ),
        Probe(
            "embedding",
            seeded(
                lambda: nn.Sequential(
                    nn.Embedding(30, 8), _Mean(), nn.LayerNorm(8), nn.Linear(8, 3)
                )
            ),
            Rows(tokens, y),
        ),
        Probe("recurrent", seeded(_LastState), Rows(numbers(4, 3), y)),
    )


class _Twice(nn.Module):
    """One layer used twice, and one weight that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.left, self.right = nn.Linear(6, 3), nn.Linear(6, 3)
        self.right.weight = self.left.weight

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.inner(torch.tanh(self.inner(x))))
        out: Tensor = self.left(h) + self.right(h * h)
        return out


def every_kind(count: int, clip: float) -> tuple[Probe, ...]:
    """`kinds`, and layers on sequences, in one dimension, shared or sparse, for a given clip."""
    source = torch.Generator().manual_seed(21)
    y = torch.linspace(0.05, 4.0, count)

    def numbers(*shape: int) -> Tensor:
        return torch.randn((count, *shape), generator=source)

    more = (
        Probe("one weight used twice", seeded(_Twice), Rows(numbers(6), y)),
        Probe(
            "convolution in one dimension",
            seeded(
                lambda: nn.Sequential(
                    nn.Conv1d(2, 4, 3, padding=1, groups=2),
                    nn.Tanh(),
                    nn.Flatten(),
                    nn.Linear(32, 3),
                )
            ),
            Rows(numbers(2, 8), y),
        ),
        Probe(
            "linear on a sequence",
            seeded(
                lambda: nn.Sequential(
                    nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), _Mean(), nn.Linear(6, 3)
                )
            ),
            Rows(numbers(5, 4), y),
        ),
        Probe(
            "a large layer",
            seeded(lambda: nn.Sequential(nn.Linear(12, 4096), nn.Tanh(), nn.Linear(4096, 3))),
            Rows(numbers(12), y),
        ),
    )
    return tuple(
        Probe(one.name, one.model, Rows(one.rows.x, one.rows.y * clip))
        for one in (*kinds(count), *more)
    )


def wide(width: int = 128) -> Probe:
    """Silent records under many parameters, for looking at the noise alone."""
    return Probe(
        "wide",
        seeded(lambda: nn.Sequential(nn.Linear(width, width), nn.Linear(width, width))),
        Rows(torch.zeros(4, width), torch.zeros(4)),
    )


def one_hot(count: int, clip: float = CLIP) -> Probe:
    """Record i moves the i-th weight alone, by exactly the clip: a release shows who was drawn."""
    return Probe(
        "one-hot",
        seeded(lambda: nn.Linear(count, 1, bias=False)),
        Rows(torch.eye(count), torch.full((count,), -10.0 * clip)),
    )


def release(probe: Probe, setting: Setting, event: Event | None = None) -> Sums:
    """What plain steps of learning rate 1 release, in the unit of the noisy sums, by tensor."""
    unit = -setting.plan.denominator(setting.site)
    return {name: value * unit for name, value in updated(probe, setting, event).items()}


def updated(probe: Probe, setting: Setting, event: Event | None = None) -> Sums:
    """New minus old weights after a round of the production trainer, tensor by tensor."""
    model = probe.model(0)
    names = [name for name, _ in model.named_parameters()]  # a state_dict may name a tensor twice
    before = torch.get_num_threads()
    torch.set_num_threads(setting.threads)
    try:
        trained = _train(probe, setting, event, model)
    finally:
        torch.set_num_threads(before)
    return {name: trained.update[name].astype(np.float64) for name in names}


def _train(
    probe: Probe, setting: Setting, event: Event | None, model: nn.Module
) -> training.Trained:
    rows = probe.rows
    if setting.unit == "subject" and rows.subject is None:  # each row is a person's
        rows = replace(rows, subject=torch.arange(len(rows)))
    return training.train(
        model,
        rows,
        probe.task,
        setting.plan,
        site=setting.site,
        event=setting.event if event is None else event,
        round=setting.round,
        device=setting.device,
    )


def clipped_sum(probe: Probe, clip: float = CLIP) -> Sums:
    """The sum of the records' clipped gradients, by plain autograd, one by one, in float64."""
    model = copy.deepcopy(probe.model(0)).double()
    named = dict(model.named_parameters())
    total: Sums = {name: np.zeros(tuple(p.shape)) for name, p in named.items()}
    x = probe.rows.x if probe.rows.x.dtype == torch.int64 else probe.rows.x.double()
    for i in range(len(x)):
        loss = linear_loss(model(x[i : i + 1]), probe.rows.y[i : i + 1]).sum()
        gradients = torch.autograd.grad(loss, list(named.values()))
        norm = float(torch.cat([g.reshape(-1) for g in gradients]).norm())
        for name, g in zip(named, gradients, strict=True):
            total[name] += g.numpy() * min(1.0, clip / max(norm, 1e-12))
    return total


def flat(sums: Sums) -> NDArray[np.float64]:
    """All tensors as one vector."""
    return np.concatenate([value.reshape(-1) for value in sums.values()])


def in_a_fork(work: Callable[[], bytes]) -> bytes | None:
    """What `work` gives in a copy of this process; None where no copy can be made or it fails."""
    if not hasattr(os, "fork"):
        return None
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads: the child uses none of them
        child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(work())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    output = bytearray()
    try:
        while select.select([reader], [], [], _DEADLINE)[0]:
            if not (part := os.read(reader, 1 << 16)):
                break
            output += part
        else:
            os.kill(child, signal.SIGKILL)
    finally:
        os.close(reader)
    _, status = os.waitpid(child, 0)
    return bytes(output) if status == 0 else None


def package_root() -> Path:
    """Where the packages lie, for a fresh interpreter."""
    return Path(__file__).resolve().parents[2]
