"""The ring of a plan: everything in it is public, so that all parties compute the same."""

import math

from privacy.contract.plan import Plan, PlanError
from privacy.mechanism.sensitivity import SensitivityError, slack
from privacy.secagg.ring import Ring, RingError, ring_for


def ring_of(plan: Plan, numbers: int) -> Ring:
    """The ring of a plan's sums of so many numbers; PlanError where there is none.

    A batch is taken to have at most six deviations above its expected size, at the largest party; a
    larger sum is clamped, which costs accuracy and no privacy.
    """
    sigma, clip, terms = plan.nominal_sigma(), plan.clip, plan.terms
    if sigma is None or clip is None:
        raise PlanError('clip and sigma must be known where aggregation = "secure"')
    expected = largest_batch(plan) if plan.per_example else 0.0
    try:
        return ring_for(
            sigma=sigma,
            clip=clip,
            shares=terms.shares,
            parties=terms.parties,
            numbers=numbers,
            slack=slack(expected) if plan.per_example else 0.0,
            largest=expected + 6 * math.sqrt(expected) + 8,
        )
    except (SensitivityError, RingError) as error:
        raise PlanError(str(error)) from None


def largest_batch(plan: Plan) -> float:
    """The public number of units that a step draws at the largest party, on average."""
    return max(plan.denominator(name) for name in ("", *plan.site))
