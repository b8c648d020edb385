"""The benchmarks' own tasks, made known to the product; all else of it runs as it is."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import turns
from torch import nn
from workload import Data

from client.data.wanted import Wanted
from client.tasks.losses import classification_metrics, cross_entropy, probabilities
from client.tasks.registry import provided
from client.tasks.rows import Rows
from client.tasks.task import Task
from privacy.contract.plan import Plan

_KNOWN = ExitStack()  # for as long as the process lasts


def register(
    name: str, model: Callable[[int], nn.Module], data: Callable[[str], Data], width: int = 784
) -> str:
    """Add a task of ten classes and rows of bytes, in this process and in those that it forks."""

    def load(path: Path | None, part: str) -> Rows:
        found = data(part)
        return Rows(found.x, found.y)

    def absent(*_: object) -> Any:
        raise NotImplementedError("the benchmark neither reads nor predicts")

    task = Task(
        name=name,
        kind="classification",
        classes=tuple("0123456789"),
        inputs=(),
        label="",
        shape=(width,),
        dtype=torch.uint8,
        model=model,
        load=load,
        wanted=Wanted(()),
        encode=absent,
        loss=cross_entropy,
        metrics=classification_metrics,
        decode=probabilities,
    )
    _KNOWN.enter_context(provided(task))
    return name


def plan_of(task: str, rounds: int, **more: Any) -> Plan:
    """What every contender is told, as a plan of a task."""
    return Plan(
        task=task,
        rounds=rounds,
        rate=turns.RATE,
        rows=turns.ROWS,
        lr=turns.LR,
        sites=turns.CLIENTS,
        cohort=turns.COHORT,
        steps=turns.STEPS,
        clip=turns.CLIP,
        sigma=turns.SIGMA,
        delta=turns.DELTA,
        **more,
    )
