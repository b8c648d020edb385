"""The one release of a plan of statistics, in the place of a round of training."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.dpsgd.training import Trained, TrainingError
from client.tasks.rows import Rows
from client.tasks.task import Task
from privacy.accounting.events import Event
from privacy.contract.plan import Plan
from privacy.statistics.release import MODEL, SUMS, noisy_sums


def count(
    rows: Rows, task: Task, plan: Plan, event: Event | None, model: Callable[[], nn.Module]
) -> Trained:
    """The noisy sums of the rows' (or people's) answers, over their bound; paid by `event`.

    `model()` makes the module with the weights that were asked, where predictions are counted.
    """
    if task.statistics is None or event is None:
        raise TrainingError("statistics: must be a plan of statistics that pays for its release")
    subject = None
    if plan.unit == "subject":
        if rows.subject is None and len(rows):
            raise TrainingError('unit: must have rows with a subject where unit = "subject"')
        subject = None if rows.subject is None else rows.subject.numpy()
    values = rows.x.numpy()
    if task.statistics.plan.groups:
        values = _predicted(rows, task, model())
    sums = noisy_sums(
        task.statistics, values, event.sigma, subject=subject, most=plan.rows_per_subject
    )
    return Trained({SUMS: sums}, steps=1)


def _predicted(rows: Rows, task: Task, module: nn.Module) -> NDArray[np.float64]:
    """The rows' values, then each one's predicted class and the probability of the last class.

    Each row goes through the model by itself: in a batch its numbers could depend, in the last
    digits, on how many others there are, and a row more could move the cells of others.
    """
    wide = len(task.inputs)
    raw, features = rows.x[:, :wide], rows.x[:, wide:].to(torch.float32)
    out = torch.full((len(rows), 2), torch.nan, dtype=torch.float64)
    module.eval()
    model = module.get_submodule(MODEL)
    with torch.inference_mode():
        for at in torch.isfinite(features).all(1).nonzero()[:, 0].tolist():
            chances = task.decode(model(features[at : at + 1]))[0]
            out[at, 0] = float(chances.argmax())
            out[at, 1] = float(chances[-1])
    return torch.cat([raw, out], 1).numpy()
