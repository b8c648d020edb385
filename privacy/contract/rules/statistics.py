"""What a plan of statistics must say."""

from typing import Final

from privacy.contract.keys.contract import Contract

_ONE_RELEASE: Final = {"rounds": 1, "steps": 1, "rate": 1.0, "lr": 1.0, "clip": 1.0}
_NOT_COUNTED: Final = ("metrics", "model", "code", "task_options", "average", "cohort")


def statistics_are_one_release(plan: Contract) -> str | None:
    """Everything that is counted leaves in one vector, once, with one record's part at most 1."""
    if (plan.task == "statistics") != (plan.statistics is not None):
        return 'the table [statistics] and task = "statistics" must be given together, got one'
    if plan.statistics is None:
        return None
    if not plan.noised_at_site:
        return f'unit must be "record" or "subject" for statistics, got "{plan.unit}"'
    for key, value in _ONE_RELEASE.items():
        if getattr(plan, key) != value:
            return f"{key} must be {value:g}, or left out, for statistics, got {getattr(plan, key)}"
    for key in _NOT_COUNTED:
        if getattr(plan, key):
            return f"{key} must be left out for statistics, got {getattr(plan, key)}"
    if (plan.wire, plan.precision) != ("float32", "float32"):
        return "wire and precision must be float32 for statistics"
    if plan.simulation.engine == "vector":
        return "simulation.engine must be serial, processes or ray for statistics"
    if plan.aggregation != "fedavg":
        return f'aggregation must be "fedavg" for statistics, got "{plan.aggregation}"'
    if plan.combine != "mean":
        return f'combine must be "mean" for statistics, got "{plan.combine}"'
    if plan.statistics.of == "statistics":
        return 'statistics.of must be a task with rows, got "statistics"'
    return None
