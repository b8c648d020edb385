"""First weights and evaluation on public rows: the only part of the coordinator that needs torch.

`client` and torch are imported here alone, lazily; across machines this runs in a child process.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from privacy.arrays import Arrays
from privacy.contract.plan import Plan

Evaluate = Callable[[Arrays], Mapping[str, float]]
_ROWS: Final = 256  # evaluated at a time: activations stay in the cache, and are few


def initial_weights(plan: Plan) -> Arrays:
    """The task's fresh weights for the plan's seed."""
    from client.tasks.registry import task

    model = task(plan.task, plan.schema).model(plan.seed)
    return {
        name: np.array(p.detach().numpy(), dtype=np.float32) for name, p in model.named_parameters()
    }


def embedded_rows(plan: Plan) -> int | None:
    """The number of training rows of an embedded task, else None."""
    from client.tasks.registry import task

    learning = task(plan.task, plan.schema)
    return len(learning.load(None, "train")) if learning.embedded else None


def evaluator(plan: Plan, data: Path | None) -> Evaluate | None:
    """Metrics of weights on public test rows; None where there are no such rows; TaskError."""
    from client.tasks.registry import task

    learning = task(plan.task, plan.schema)
    if data is None and not learning.embedded:
        return None
    return evaluate_on(plan, learning.load(data, "test"))


def evaluate_on(plan: Plan, rows: object) -> Evaluate:
    """Metrics of weights on given test rows."""
    import torch

    from client.tasks.registry import task
    from client.tasks.rows import Rows

    if not isinstance(rows, Rows):
        raise TypeError(f"rows: expected Rows, got {type(rows).__name__}")
    learning = task(plan.task, plan.schema)
    model = learning.model(plan.seed).eval()

    def evaluate(weights: Arrays) -> Mapping[str, float]:
        with torch.inference_mode():
            for name, parameter in model.named_parameters():
                parameter.copy_(torch.from_numpy(weights[name]))
            outputs = torch.cat([model(part) for part in torch.split(rows.x, _ROWS)])
            return learning.metrics(outputs, rows.y)

    return evaluate
