"""Which rounds have paid metrics: a round's number says so, to sites and auditors alike."""

import math

from privacy.accounting.events import Event
from privacy.contract.keys.contract import Contract
from privacy.contract.pilots import candidates, pilot_rounds


def metric_rounds(plan: Contract, last: int) -> int:
    """How many of the rounds up to `last` have paid metrics: each `metrics_every`-th.

    Pilots of a search and the run after them count their own rounds. A pilot's last round has them
    too, since they are what it is chosen by.
    """
    if not plan.metrics or last < 1:
        return 0
    every, pilots, rest, before = plan.metrics_every, 0, 0, pilot_rounds(plan)
    if plan.tune is not None:
        length = before // len(candidates(plan.tune))
        whole, rest = divmod(min(last, before), length)
        pilots = whole * math.ceil(length / every)
    return pilots + rest // every + max(0, last - before) // every


def metric_events(plan: Contract, rounds: int) -> tuple[Event, ...]:
    """What the paid metrics of so many rounds release; nothing where a plan asks for none."""
    if not plan.metrics or plan.metrics_sigma is None or not rounds:
        return ()
    return (Event(plan.unit, plan.metrics_sigma, 1.0, 1, count=rounds),)


def often(plan: Contract) -> str:
    """How often metrics leave a site, in words."""
    every = plan.metrics_every
    return "once a round and site" if every == 1 else f"once in {every} rounds and site"


def smoothed_over(patience: int) -> int:
    """Looks of which the mean is taken: half of those that a run waits for a better one."""
    return (patience + 1) // 2


def stop_metrics(plan: Contract) -> tuple[str, ...]:
    """By what a run stops by itself: one metric, or loss and accuracy together."""
    metric = plan.operation.stop_metric
    if metric == "public":
        return ("loss", "accuracy")
    if metric == "site":
        return tuple(f"site_{name}" for name in ("loss", "accuracy") if name in plan.metrics)
    return (metric,)


def fewest_rounds(plan: Contract) -> int:
    """After how many rounds a run may stop by itself at the earliest; all where it does not.

    The first mean needs its looks, and then as many in vain as the patience says. A first round's
    paid metrics are of an untrained model, and no look.
    """
    patience = plan.operation.patience
    if patience is None:
        return plan.rounds
    looks = smoothed_over(patience) + patience
    if plan.operation.stop_metric.startswith("site"):
        looks = max(looks * plan.metrics_every, looks + 1)
    return min(plan.rounds, pilot_rounds(plan) + looks)
