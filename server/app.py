"""The ServerApp: the composition root, where values, files and Flower meet.

`client` is imported here alone, lazily: for the first weights and for evaluation on public data.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from privacy.plan import Plan
from privacy.wire import Arrays
from server.federation import Job, Outcome, federate

Evaluate = Callable[[Arrays], Mapping[str, float]]


def make_app(job: Job, done: Callable[[Outcome], None]) -> ServerApp:
    """The ServerApp that plays one job; `done` hears how it ended."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        done(federate(grid, job))

    return app


def initial_weights(plan: Plan) -> Arrays:
    """The task's fresh weights for the plan's seed."""
    from client.tasks import task

    model = task(plan.task, plan.schema).model(plan.seed)
    return {
        name: np.array(p.detach().numpy(), dtype=np.float32) for name, p in model.named_parameters()
    }


def evaluator(plan: Plan, data: Path | None) -> Evaluate:
    """Metrics of weights on public test rows; TaskError where they cannot be read."""
    from client.tasks import task

    learning = task(plan.task, plan.schema)
    return evaluate_on(plan, learning.load(data, "test"))


def evaluate_on(plan: Plan, rows: object) -> Evaluate:
    """Metrics of weights on given test rows."""
    import torch

    from client.tasks import Rows, task

    if not isinstance(rows, Rows):
        raise TypeError(f"rows: expected Rows, got {type(rows).__name__}")
    learning = task(plan.task, plan.schema)
    model = learning.model(plan.seed).eval()

    def evaluate(weights: Arrays) -> Mapping[str, float]:
        with torch.inference_mode():
            for name, parameter in model.named_parameters():
                parameter.copy_(torch.from_numpy(weights[name]))
            outputs = torch.cat([model(part) for part in rows.x.split(4096)])
            return learning.metrics(outputs, rows.y)

    return evaluate
