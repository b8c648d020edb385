"""The one release of a plan of statistics, in the place of a round of training."""

from client.dpsgd.training import Trained, TrainingError
from client.statistics.statistics_task import SUMS
from client.tasks.rows import Rows
from client.tasks.task import Task
from privacy.accounting.events import Event
from privacy.contract.plan import Plan
from privacy.statistics.release import noisy_sums


def count(rows: Rows, task: Task, plan: Plan, event: Event | None) -> Trained:
    """The noisy sums of the rows' (or people's) answers, over their bound; paid by `event`."""
    if task.statistics is None or event is None:
        raise TrainingError("statistics: must be a plan of statistics that pays for its release")
    subject = None
    if plan.unit == "subject":
        if rows.subject is None and len(rows):
            raise TrainingError('unit: must have rows with a subject where unit = "subject"')
        subject = None if rows.subject is None else rows.subject.numpy()
    sums = noisy_sums(
        task.statistics,
        rows.x.numpy(),
        event.sigma,
        subject=subject,
        most=plan.rows_per_subject,
    )
    return Trained({SUMS: sums}, steps=1)
