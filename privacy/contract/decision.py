"""What a site says to a plan: a coordinator's plan is a request, the owner's policy decides.

`judge` is pure: the plan, the policy and what was spent before go in; an acceptance with the events
to spend, or a refusal with a code, comes out. It reads nothing of the data, so that a refusal tells
nothing of it; the ledger checks the limit again under its lock.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from privacy.accounting.epsilon import calibrate, spent, within
from privacy.accounting.events import Event
from privacy.accounting.rounding import spent_text
from privacy.accounting.segments import AccountingError, Budget
from privacy.contract.plan import Plan, PlanError
from privacy.contract.policy import ANY, NO_CODE, Policy, outputs_of

EXHAUSTED: Final = "budget-exhausted"
TOO_MANY_TODAY: Final = "too-many-rounds-today"
_MOST_NOISE: Final = 10.0


@dataclass(frozen=True, slots=True)
class Accepted:
    """The site takes part and spends `events`; `event` is its training's, the first of them.

    There is none where the coordinator adds the noise (unit "client") or nobody does ("none").
    `sigma` is at least the plan's: more, where the policy allows to answer with more noise.
    """

    event: Event | None
    events: tuple[Event, ...]

    @property
    def sigma(self) -> float | None:
        return self.event.sigma if self.event is not None else None


@dataclass(frozen=True, slots=True)
class Refusal:
    """The site declines: `code` leaves the site, `message` is for its operator alone."""

    code: str
    message: str


def judge(
    plan: Plan,
    policy: Policy,
    spent: Sequence[Event],
    *,
    site: str,
    round: int = 1,
    run: Sequence[Event] = (),
    rounds_today: int = 0,
) -> Accepted | Refusal:
    """Whether a site takes part in one round of `plan`, and with which event.

    `spent` is everything its ledger holds, `run` the part of this run (for the plan's own limit),
    `rounds_today` how many rounds it has spent on today.
    """
    if refusal := permitted(plan, policy, rounds_today):
        return refusal
    if not plan.noised_at_site:
        return Accepted(None, ())
    if any(event.unit != plan.unit for event in spent):
        return Refusal("ledger-untrusted", f"the ledger's unit is not the plan's, {plan.unit}")
    try:
        events = with_records(_offer(plan, policy, spent, site, round), policy)
    except (AccountingError, PlanError) as error:
        return Refusal(EXHAUSTED, f"no noise keeps the rounds left inside: {error}")
    if refusal := _bounded(policy, (*events, *_later(plan, site))):
        return refusal
    for past, limit, records in (
        (spent, policy.budget, None),
        (run, plan.limit_of(site), 1),
    ):
        if limit is not None and not within((*past, *events), limit, records=records):
            return Refusal(EXHAUSTED, _over(past, events, limit, records))
    if plan.is_secure and (limit := policy.budget_alone) is not None:
        before, after = alone(spent), alone(events)
        if not within((*before, *after), limit, records=None):
            text = _over(before, after, limit, None)
            return Refusal(EXHAUSTED, f"if all other parties collude, {text} (epsilon_alone)")
    return Accepted(events[0], events)


def alone(events: Sequence[Event]) -> tuple[Event, ...]:
    """What the events are where all other parties of secure aggregation collude."""
    return tuple(event.alone() for event in events)


def with_records(events: Sequence[Event], policy: Policy) -> tuple[Event, ...]:
    """The events as the ledger will hold them: with the records that a person has at this site."""
    return tuple(event.for_records(policy.records_per_subject) for event in events)


def permitted(plan: Plan, policy: Policy, rounds_today: int = 0) -> Refusal | None:
    """The rules that no amount of noise can satisfy; they need neither weights nor a ledger."""
    if not plan.noised_at_site and not policy.trust_coordinator:
        text = f'unit = "{plan.unit}" shows un-noised updates to the coordinator'
        return Refusal(
            "coordinator-not-trusted", f"{text}; the policy has trust_coordinator = false"
        )
    if policy.unit not in ("any", plan.unit):
        return Refusal("unit-not-allowed", f'unit must be "{policy.unit}", got "{plan.unit}"')
    described = plan.code is None and plan.schema is not None and NO_CODE in policy.tasks
    if plan.task not in policy.tasks and ANY not in policy.tasks and not described:
        return Refusal(
            "task-not-allowed", f"tasks allows {', '.join(policy.tasks)}, not {plan.task}"
        )
    if plan.code is not None and plan.code not in policy.packages:
        return Refusal("task-not-approved", f"packages does not list {plan.code}")
    if plan.digest in policy.denied:
        return Refusal("plan-denied", f"the plan {plan.digest[:16]} was denied")
    if policy.approve == "list" and plan.digest not in policy.plans:
        return Refusal("plan-not-approved", f"plans does not list {plan.digest}")
    if plan.is_secure and (refusal := _parties(plan, policy)):
        return refusal
    if missing := [name for name in outputs_of(plan) if name not in policy.outputs]:
        return Refusal("output-not-allowed", f"outputs does not list {', '.join(missing)}")
    if plan.steps > policy.max_steps:
        return Refusal("too-many-steps", f"max_steps is {policy.max_steps}, asked {plan.steps}")
    if rounds_today >= policy.max_rounds_per_day:
        return Refusal(TOO_MANY_TODAY, f"{rounds_today} rounds were spent on today")
    return None


def _parties(plan: Plan, policy: Policy) -> Refusal | None:
    """Whether the owner takes these parties for independent ones, and the plan holds enough."""
    terms = plan.terms
    if policy.epsilon_alone == 0:
        return Refusal("secure-not-allowed", "epsilon_alone is 0: no secure aggregation")
    if terms.parties < policy.min_parties:
        return Refusal(
            "too-few-parties", f"min_parties is {policy.min_parties}, asked {terms.parties}"
        )
    if terms.colluding < policy.max_colluding:
        return Refusal(
            "too-many-colluding",
            f"max_colluding is {policy.max_colluding}, the plan holds against {terms.colluding}",
        )
    if ANY in policy.parties:
        return None
    if not plan.roster:
        return Refusal("parties-not-known", "the plan names no party's key (site.NAME.key)")
    if plan.digest in policy.plans:  # its owner approved the keys with it
        return None
    strangers = [name for name, key in plan.roster.items() if key not in policy.parties]
    if strangers:
        return Refusal("parties-not-known", f"parties lists no key of {', '.join(strangers)}")
    return None


def _bounded(policy: Policy, events: tuple[Event, ...]) -> Refusal | None:
    """The least noise, of every release, and the most rate, of the training."""
    least = min(event.sigma for event in events)
    if least < policy.min_sigma:
        return Refusal("noise-too-low", f"min_sigma is {policy.min_sigma:g}, asked {least:.4g}")
    if events[0].rate > policy.max_rate:
        return Refusal(
            "rate-too-high", f"max_rate is {policy.max_rate:g}, asked {events[0].rate:g}"
        )
    return None


def _later(plan: Plan, site: str) -> tuple[Event, ...]:
    """What later rounds have and this one may not: none is paid for where those are refused."""
    every = plan.events_of_round(site)
    return every if plan.tune is not None else every[1:]


def _offer(
    plan: Plan, policy: Policy, past: Sequence[Event], site: str, round: int
) -> tuple[Event, ...]:
    """The round's events: the plan's, or with as much more noise as all rounds left need to fit.

    A noise level that the ledger already holds is preferred, so that a whole run keeps to one.
    """
    events, left = plan.events_of_round(site, round), plan.rounds - round + 1
    groups = any(event.records > 1 for event in with_records(events, policy))
    if not policy.more_noise or groups or policy.budget is None or plan.is_secure:
        return events
    if plan.tune is not None:  # its learning rates are chosen for the noise that it names
        return events
    asked = plan.metric_rounds(plan.rounds) - plan.metric_rounds(round - 1)
    metrics = plan.events_of_round(site)[1:] if asked else ()
    first, beside = events[0], tuple(replace(e, count=asked) for e in metrics)
    most = _MOST_NOISE * first.sigma  # a coordinator takes no reply with more noise than this
    if policy.min_sigma > most:
        return events
    first = replace(first, sigma=max(first.sigma, policy.min_sigma))

    def fits(sigma: float) -> bool:
        rest = replace(first, sigma=sigma, count=left)
        budget = policy.budget or Budget(0, policy.delta)
        return within((*past, *beside, rest), budget, records=None)

    known = {e.sigma for e in past if (e.rate, e.steps) == (first.rate, first.steps)}
    for sigma in sorted({first.sigma} | {s for s in known if first.sigma < s <= most}):
        if fits(sigma):
            return (replace(first, sigma=sigma), *events[1:])
    need = calibrate(
        policy.budget, rate=first.rate, steps=first.steps * left, beside=(*past, *beside)
    )
    if need > most:
        raise AccountingError(f"sigma {need:.4g} would drown what is asked at {first.sigma:.4g}")
    return (replace(first, sigma=max(first.sigma, need)), *events[1:])


def _over(
    past: Sequence[Event], events: tuple[Event, ...], limit: Budget, records: int | None
) -> str:
    before = spent(past, limit.delta, records=records)
    after = spent((*past, *events), limit.delta, records=records)
    most = max(event.records for event in events) if records is None else records
    group = f" for {most} records of one person" if most > 1 else ""
    return (
        f"epsilon would go from {spent_text(before)} to {spent_text(after)} of {limit.epsilon:g} "
        f"at delta {limit.delta:g}{group}"
    )
