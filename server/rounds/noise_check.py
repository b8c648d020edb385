"""Whether an update has the noise that its plan asks for: neither too quiet nor too loud.

The coordinator knows the law of an honest reply from the plan alone. A site that adds too little
noise harms the people in its data, and one that sends more than clipped sums harms the model.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from privacy.accounting.events import Event
from privacy.arrays import Arrays
from privacy.contract.plan import Plan
from privacy.mechanism.honest_noise import (
    FALSE_ALARM,
    HonestUpdate,
    are_too_quiet,
    figures_of,
    norm_of,
    sum_of_draws,
    too_loud,
)
from privacy.mechanism.sensitivity import MOST
from server.rounds.messages import Answer, ReplyError

_ROWS_MOST: Final = 2.0
"""How many times the plan's public number of rows or people a site may have."""
_SINGLE: Final = 2.0**-22
_WIRE: Final = {"float32": 0.0, "bfloat16": 2.0**-7, "int8": 1 / 100}
"""What the wire's rounding changes, relative to the largest number of an update."""


def check_noise(
    answer: Answer,
    plan: Plan,
    number: int,
    *,
    largest: float,
    sites: int,
    choice: int | None = None,
) -> None:
    """ReplyError "too-quiet" or "too-loud" where no honest site would have sent this update.

    `number` is the round it was made in, `largest` the largest weight that was sent out, `sites`
    how many replies share the chance of a false alarm, `choice` what a search has chosen.
    """
    planned = plan.events_of_round(answer.site, number) if plan.noised_at_site else ()
    plan, number = plan.stage(number, choice)
    if answer.arrays is None or not planned or plan.optimizer == "adam":
        return
    chance = FALSE_ALARM / (4 * max(sites, 1))
    sigma = answer.sigma or planned[0].sigma
    law = honest_update(plan, answer.site, planned[0], sigma, number, chance=chance)
    arrays = list(answer.arrays.values())
    numbers = sum(a.size for a in arrays)
    highest = max(map(largest_in, arrays))
    error = _WIRE[plan.wire] * highest + _SINGLE * (largest + highest)
    figures = figures_of(arrays, law, error=error)
    if are_too_quiet(figures, law, error=error, chance=2 * chance):
        raise ReplyError("too-quiet")
    if too_loud(norm_of(figures), numbers, law, error=error, chance=chance):
        raise ReplyError("too-loud")


def check_sum(
    arrays: Arrays,
    parts: Sequence[tuple[Answer, int, float]],
    plan: Plan,
    *,
    largest: float,
    sites: int,
) -> None:
    """The same of a sum of updates: each part is a site's answer, its round and its weight.

    Independent noises add up by their variances, and what bounds each site's signal adds up, so
    that the law of a sum follows from those of its parts: with one part it is that part's own. What
    rounding changed in an update is not seen in a sum; it is bounded by the longest honest update.
    """
    if not parts or not plan.noised_at_site or plan.optimizer == "adam":
        return
    chance = FALSE_ALARM / (4 * max(sites, 1))
    last = noise_square = signal = error = 0.0
    bounded = True
    values = list(arrays.values())
    numbers = sum(a.size for a in values)
    highest = max(map(largest_in, values))
    for answer, number, weight in parts:
        planned = plan.events_of_round(answer.site)[0]
        sigma, share = answer.sigma or planned.sigma, chance / len(parts)
        law = honest_update(plan, answer.site, planned, sigma, number, chance=share)
        last += (weight * law.last) ** 2
        longest = highest
        if law.noise is None or law.signal is None:
            bounded = False
        else:
            noise_square += (weight * law.noise) ** 2
            signal += weight * law.signal
            longest = law.signal + law.noise * math.sqrt(2 * math.log(2 * numbers / share))
        error += weight * (_WIRE[plan.wire] * longest + 2 * _SINGLE * (largest + longest))
    spread = math.sqrt(noise_square) if bounded else None
    sum_law = HonestUpdate(math.sqrt(last), spread, signal if bounded else None)
    figures = figures_of(values, sum_law, error=error)
    if are_too_quiet(figures, sum_law, error=error, chance=2 * chance):
        raise ReplyError("too-quiet")
    if too_loud(norm_of(figures), numbers, sum_law, error=error, chance=chance):
        raise ReplyError("too-loud")


def largest_in(array: NDArray[np.float32]) -> float:
    """The largest absolute value; 0 of no numbers."""
    return float(max(array.max(initial=0), -array.min(initial=0)))


def honest_update(
    plan: Plan, site: str, event: Event, sigma: float, number: int, *, chance: float
) -> HonestUpdate:
    """The law of an update of round `number` (from 1) with this noise multiplier.

    Its bound on the signal holds but with `chance`, where a site has at most twice the plan's rows.

    Momentum repeats a step's gradient in all later ones. What weight decay and FedProx add has no
    public bound, so that an update of theirs can be too quiet, but not too loud.
    """
    steps = event.steps * event.count
    first, last = (number - 1) * steps, plan.rounds * steps
    rates = [plan.lr_at(first + step, last) for step in range(steps)]
    momentum = plan.momentum if plan.optimizer == "momentum" else 0.0
    reach, after = [0.0] * steps, 0.0
    for step in reversed(range(steps)):  # what a step's gradient moves, until the round ends
        after = rates[step] + momentum * after
        reach[step] = after
    clip = plan.clip or 0.0
    # Statistics are sums over their bound; updates are divided by a public number as well.
    unit = 1.0 if plan.statistics is not None else clip / plan.denominator(site)
    quietest = rates[-1] * sigma * unit
    if plan.l2 or plan.aggregation == "fedprox":
        return HonestUpdate(quietest, None, None)
    units = _ROWS_MOST * plan.denominator(site) * steps
    most = units if event.rate == 1 else sum_of_draws(units, chance)
    return HonestUpdate(
        quietest,
        math.sqrt(sum(one**2 for one in reach)) * sigma * unit * (1 + 2 * MOST),
        max(reach) * unit * (1 + MOST) * most,
    )
