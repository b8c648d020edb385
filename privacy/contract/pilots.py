"""Search under the plan's budget: short pilots of other learning rates, before the run itself.

The first rounds of a plan with `[tune]` are its pilots', each from the first weights and with more
noise than the run itself; the last ones are the run's, with what did best. All of them stand in one
contract with one price. The choice is post-processing of what the pilots have released: by public
rows, or by metrics that the contract pays for.

Papernot and Steinke 2022 price a search at little more than its best run, where only that run is
seen. Here the coordinator sees every pilot's updates, so that their releases compose.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

from privacy.accounting.events import Event
from privacy.contract.keys.contract import Contract
from privacy.contract.keys.tables import TunePlan
from privacy.contract.learning_rate import whole_steps

PILOT: Final = "pilot"
CHOICE: Final = "choice"
"""Keys of a round's line in the history: whose pilot it is, or which candidate is trained."""
_MOST: Final = 32
_SHARE: Final = 5
"""A pilot has this part of the run's rounds; after a 20th, large rates had not settled."""
_FEWEST: Final = 5
"""Rounds of a pilot whose length the plan does not give, however short the run is."""

P = TypeVar("P", bound=Contract)


def candidates(tune: TunePlan) -> tuple[tuple[float, float], ...]:
    """What is tried: factors of the plan's learning rate and clip, in the order of the pilots."""
    return tuple(itertools.product(tune.lr_times, tune.clip_times))


def pilot_length(plan: Contract) -> int:
    """Rounds of one pilot: given, or a fifth of the run's own rounds and at least 5; 0 without.

    With k candidates the run has rounds - k * length rounds, so its fifth is rounds / (k + 5).
    """
    if plan.tune is None:
        return 0
    if plan.tune.rounds is not None:
        return plan.tune.rounds
    return max(_FEWEST, plan.rounds // (len(candidates(plan.tune)) + _SHARE))


def pilot_rounds(plan: Contract) -> int:
    """How many of the plan's rounds are pilots'; the others come after them."""
    return 0 if plan.tune is None else pilot_length(plan) * len(candidates(plan.tune))


def pilot_of(plan: Contract, number: int) -> int | None:
    """Which candidate's pilot a round (from 1) belongs to, counted from 0; None after the last."""
    if plan.tune is None or number > pilot_rounds(plan):
        return None
    return (number - 1) // pilot_length(plan)


def released(
    events: Iterable[Event], pilot: Iterable[Event], pilots: int, rounds: int
) -> tuple[Event, ...]:
    """What so many rounds release, `events` each, of which the first `pilots` release `pilot`."""
    first = min(rounds, pilots)
    before = [replace(e, count=e.count * first) for e in pilot] if first else []
    return (*before, *(replace(e, count=e.count * (rounds - first)) for e in events))


def chosen(plan: Contract, history: Sequence[Mapping[str, Any]]) -> int | None:
    """The candidate whose pilot ended best, of equal ones the first.

    A pilot that ended without a finite metric is never chosen. None without a search, before the
    pilots' end, and where no pilot can be chosen.
    """
    if plan.tune is None:
        return None
    lines = {line["round"]: line for line in history}
    last = [pilot_length(plan) * (i + 1) for i in range(len(candidates(plan.tune)))]
    if not all(number in lines for number in last):
        return None
    sign = -1.0 if plan.tune.metric.endswith("accuracy") else 1.0
    scores = [sign * _metric(lines[number], plan.tune.metric) for number in last]
    ranked = [score if math.isfinite(score) else math.inf for score in scores]
    return ranked.index(min(ranked)) if min(ranked) < math.inf else None


def searched(plan: Contract) -> str:
    """How the settings were chosen, in words for the report: by what, and who paid."""
    if plan.tune is None:
        return (
            "The settings come with the plan. Whether they were chosen on these records is not "
            "known to this report; no budget was charged for it."
        )
    tune, count = plan.tune, len(candidates(plan.tune))
    paid = (
        "which the plan's paid metrics gave" if tune.metric.startswith("site_") else "which is free"
    )
    where = "" if tune.metric.startswith("site_") else " on the coordinator's public rows"
    return (
        f"The learning rate and the clip were chosen among {count} candidates, by {tune.metric}"
        f"{where}, {paid}, after a pilot of {pilot_length(plan)} rounds each. The pilots "
        f"are rounds 1 to {pilot_rounds(plan)} of this run: they were trained on these records, "
        "and paid for like all others, from the same ledgers and in the same epsilon. The "
        "coordinator saw every pilot's updates, so all of them count, not the best alone."
    )


def clip_words(plan: Contract) -> str:
    """The bound of one contribution, times the factors that a search may choose."""
    factors = (1.0,) if plan.tune is None else plan.tune.clip_times
    words = "" if factors == (1.0,) else f" x {' or '.join(f'{one:g}' for one in factors)}"
    return f"{plan.clip:g}{words}"


def stage_of(
    plan: P, candidate: int, *, pilot: bool, middle: float, sigma: float, run_sigma: float
) -> P:
    """One candidate's pilot, or its run: a plan without a search, whose `sigma` is given.

    `middle` is the plan's learning rate as a number, which candidates are factors of.

    With the same signal a run's steps add up to lr * rounds, and its noise to lr * sqrt(rounds) *
    sigma, where schedules count by the squares of their rates. A pilot's learning rate is such that
    its noise adds up to the run's. Its signal is then less by as much as its epsilon is: by the
    linear scaling rule (Panda et al. 2024: the best lr * rounds is proportional to epsilon) what is
    best for one is best for the other. Adam and its like move by their learning rate whatever the
    noise is, and keep it.
    """
    if plan.tune is None or plan.clip is None:
        raise ValueError("plan: expected a search and a clip, got none")
    lr_times, clip_times = candidates(plan.tune)[candidate]
    run, length, lr = plan.rounds - pilot_rounds(plan), pilot_length(plan), middle * lr_times
    if pilot and plan.optimizer != "adam" and plan.server_optimizer == "sgd":
        lr *= math.sqrt(whole_steps(plan, run) / whole_steps(plan, length)) * run_sigma / sigma
    rounds = length if pilot else run
    return replace(
        plan,
        tune=None,
        rounds=rounds,
        lr=lr,
        clip=plan.clip * clip_times,
        sigma=sigma,
        epsilon=None,
        limit=None,
        warmup=min(plan.warmup, rounds - 1),
        metrics_every=1,  # which rounds have them follows from the whole plan
        site={n: replace(one, epsilon=None, limit=None) for n, one in plan.site.items()},
    )


def _metric(line: Mapping[str, Any], name: str) -> float:
    value = line.get("metrics", {}).get(name)
    return float(value) if isinstance(value, int | float) else math.nan


def tuning_is_whole(plan: Contract) -> str | None:
    """A search needs noise at the sites, rounds for all pilots, and something to choose by."""
    tune = plan.tune
    if tune is None:
        return None
    if plan.unit == "client":
        return (
            'tune must be left out where unit = "client": the price of a search whose winner alone '
            "is seen (Papernot and Steinke 2022) needs pilots that no site is sent"
        )
    if not plan.private:
        return 'tune must be left out where unit = "none": use --sweep, which costs nothing'
    if plan.is_secure:
        return 'tune must be left out where aggregation = "secure": its sums have one noise'
    if plan.statistics is not None:
        return "tune must be left out for statistics"
    count = len(candidates(tune))
    if not 2 <= count <= _MOST:
        return f"tune must have 2 to {_MOST} candidates, lr_times x clip_times, got {count}"
    if plan.rounds <= pilot_rounds(plan):
        return (
            f"rounds must be above the pilots' {count} x {pilot_length(plan)} = "
            f"{pilot_rounds(plan)}: it counts them too, got {plan.rounds}"
        )
    metric = tune.metric.removeprefix("site_")
    if metric == tune.metric:
        return None
    if metric not in plan.metrics:
        return f'metrics must list "{metric}" where tune.metric = "{tune.metric}"'
    if pilot_length(plan) < 2:  # a round's paid metrics are of the weights that it began with
        return f'tune.rounds must be at least 2 where tune.metric = "{tune.metric}", got 1'
    return None


def run_as_short_as_a_pilot(plan: Contract) -> str | None:
    """Rounds count the pilots too: a plan that was written without a search needs more of them."""
    length, left = pilot_length(plan), plan.rounds - pilot_rounds(plan)
    if plan.tune is None or left >= 2 * length:
        return None
    need = (len(candidates(plan.tune)) + _SHARE) * length
    return (
        f"rounds = {plan.rounds} leave {left} for the run itself after pilots of {length} each: "
        f"rounds = {need} leave it {_SHARE * length}"
    )
