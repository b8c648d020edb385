"""Small models of parts and functions, rows for them, and the round that trains them."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from client.dpsgd.training import train
from client.tasks.rows import Rows
from client.tasks.task import Task
from privacy.accounting.events import Event
from privacy.contract.plan import Plan

WIDTH, TIME, WORDS = 8, 6, 9
PLAN = Plan(task="t", rounds=1, rate=1.0, rows=24, lr=0.1, sites=1, clip=1.0, sigma=1.0, delta=1e-5)
EVENT = Event("record", 1.0, 1.0, 1)

Forward = Callable[[Any, Any], Any]


class Made(nn.Module):
    """A module of the parts given, whose forward is a function of itself and x."""

    def __init__(self, run: Forward, **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = run

    def forward(self, x: Any) -> Any:
        return self.run(self, x)


def cross_entropy(out: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(out, y, reduction="none")


def head() -> nn.Module:
    """A head that starts at zero, as the shipped models do: its outputs say nothing of x."""
    last = nn.Linear(16, 2)
    nn.init.zeros_(last.weight)
    return nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), last)


def data(kind: str = "flat", rows: int = 24) -> Rows:
    made = {
        "flat": torch.randn(rows, WIDTH),
        "sequence": torch.randn(rows, TIME, WIDTH),
        "ids": torch.randint(1, WORDS, (rows, TIME)),
        "images": torch.randn(rows, 3, 10, 10),
    }[kind]
    return Rows(made, torch.randint(0, 2, (rows,)))


def trained(model: nn.Module, rows: Rows, loss: Callable[..., Tensor] = cross_entropy) -> None:
    """End to end: the round that a client trains."""
    task = cast(Task, SimpleNamespace(loss=loss, classes=("a", "b")))
    train(model, rows, task, PLAN, site="s", event=EVENT, round=1)


class InEval(nn.Sequential):
    """A model that keeps its first module in eval()."""

    def train(self, mode: bool = True) -> "InEval":
        super().train(mode)
        self[0].eval()
        return self


def words(run: Forward, **parts: Any) -> nn.Module:
    return Made(run, e=nn.Embedding(WORDS, 5), h=nn.Linear(5, 2), **parts)
