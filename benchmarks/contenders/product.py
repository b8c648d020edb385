"""The benchmarks' own tasks, made known to the product; all else of it runs as it is."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn
from workload import Data

from client import tasks
from client.tasks.losses import classification_metrics, cross_entropy, probabilities
from client.tasks.rows import Rows
from client.tasks.task import Task


def register(name: str, model: Callable[[int], nn.Module], data: Callable[[str], Data]) -> str:
    """Add a task of ten classes, in this process and in those that it starts."""

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
        shape=(1,),
        model=model,
        load=load,
        read=absent,
        encode=absent,
        loss=cross_entropy,
        metrics=classification_metrics,
        decode=probabilities,
    )
    module = ModuleType(f"client.tasks.{name.replace('-', '_')}")
    module.task = lambda: task  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    tasks.NAMES = (*tasks.NAMES, name)  # type: ignore[misc]
    return name
