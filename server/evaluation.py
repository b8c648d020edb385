"""First weights and evaluation on public rows: the only part of the coordinator that needs torch.

`client` and torch are imported here alone, lazily; across machines this runs in a child process.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from privacy.arrays import Arrays, laid_out
from privacy.contract.plan import Plan
from privacy.statistics.columns import Column

Evaluate = Callable[[Arrays], Mapping[str, float]]
_ROWS: Final = 256  # evaluated at a time: activations stay in the cache, and are few


def provide_package(plan: Plan, tasks: Path) -> None:
    """Let this process find the plan's package in a folder of packed files; TaskError."""
    if plan.code is None:
        return
    from client.tasks.packages.package_task import package_task
    from client.tasks.registry import provide
    from client.tasks.rows import TaskError
    from privacy.task_package.archive import SUFFIX, PackageError, read_package

    path = tasks / f"{plan.code.removeprefix('sha256:')}{SUFFIX}"
    try:
        package = read_package(path)
    except PackageError as error:
        raise TaskError(f"{error} (tacit-server task add FILE)") from None
    if package.code != plan.code:
        raise TaskError(f"{path}: must be the package of its name, it holds other bytes")
    learning = package_task(package, plan.task_options, name=plan.task)
    provide(package.code, lambda request: learning)


def initial_weights(plan: Plan) -> Arrays:
    """The task's fresh trained weights for the plan's seed."""
    from client.dpsgd.weights import trained_of
    from client.tasks.registry import task_of

    named = trained_of(task_of(plan).model(plan.seed))
    weights = laid_out({name: tuple(p.shape) for name, p in named.items()})
    for name, p in named.items():
        weights[name][...] = p.detach().numpy()
    return weights


def frozen_base(plan: Plan) -> str:
    """The digest of what every site's model holds and training never changes; "" without such."""
    from client.dpsgd.weights import base_of
    from client.tasks.registry import task_of

    return base_of(task_of(plan), plan.seed)


def embedded_rows(plan: Plan) -> int | None:
    """The number of training rows of an embedded task, else None."""
    from client.tasks.registry import task_of

    learning = task_of(plan)
    return len(learning.load(None, "train")) if learning.embedded else None


def public_columns(plan: Plan) -> tuple[Column, ...]:
    """The public descriptions of the columns that a plan of statistics counts."""
    from client.tasks.registry import task_of

    questions = task_of(plan).statistics
    return () if questions is None else questions.columns


def evaluator(plan: Plan, data: Path | None) -> Evaluate | None:
    """Metrics of weights on public test rows; None where there are no such rows; TaskError."""
    from client.tasks.registry import task_of

    learning = task_of(plan)
    if plan.statistics is not None or (data is None and not learning.embedded):
        return None
    return evaluate_on(plan, learning.load(data, "test"))


def evaluate_on(plan: Plan, rows: object) -> Evaluate:
    """Metrics of weights on given test rows; TaskError where there is none."""
    from client.tasks.registry import task_of
    from client.tasks.rows import TaskError

    if not len(rows):  # type: ignore[arg-type]
        raise TaskError(f"{plan.task}: no row is held out to evaluate on, expected one at least")
    learning, outputs = task_of(plan), outputs_on(plan, rows)
    y = rows.y  # type: ignore[attr-defined]
    return lambda weights: learning.metrics(outputs(weights), y)


def _tensor(values: NDArray[np.float32]) -> Any:
    """A tensor in the memory of weights, or of a copy where they are read-only."""
    import torch

    return torch.from_numpy(values if values.flags.writeable else values.copy())


def outputs_on(plan: Plan, rows: object) -> Callable[[Arrays], Any]:
    """What the model of some weights gives for each of the rows: a tree of [rows, ...]."""
    import torch

    from client.dpsgd.trees import joined
    from client.dpsgd.weights import trained_of
    from client.tasks.registry import task_of
    from client.tasks.rows import Rows

    if not isinstance(rows, Rows):
        raise TypeError(f"rows: expected Rows, got {type(rows).__name__}")
    learning = task_of(plan)
    model = learning.model(plan.seed).eval()
    trained = trained_of(model)

    def outputs(weights: Arrays) -> Any:
        with torch.inference_mode():
            for name, parameter in trained.items():
                parameter.data = _tensor(weights[name]).to(parameter)
            parts = (range(i, min(i + _ROWS, len(rows))) for i in range(0, len(rows), _ROWS))
            return joined([model(rows.take(part).x) for part in parts])

    return outputs
