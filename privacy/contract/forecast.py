"""Before a run: what each site will have spent after each round, and which round it will refuse.

The same `judge` and the same `spent` as in the run, over the events that the same plan yields, so
that the forecast and the run's ledgers agree.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from privacy.accounting.epsilon import spent, within
from privacy.accounting.events import Event
from privacy.accounting.segments import Budget
from privacy.contract.decision import EXHAUSTED, Accepted, Refusal, alone, judge, with_records
from privacy.contract.outputs import Output, outputs
from privacy.contract.pilots import released
from privacy.contract.plan import Plan, PlanError
from privacy.contract.plan_file import LIMITS
from privacy.contract.policy import Policy
from privacy.files import DocumentError, parse_toml

EVERY: Final = "every site"
"""The one site of a plan whose sites have their names from the data."""


@dataclass(frozen=True, slots=True)
class Course:
    """What the next rounds cost: `events` each, after so many `pilots` that cost `pilot` each.

    Paid metrics, the events after the first, count where `plan` has them, from round `number` on.
    """

    events: tuple[Event, ...]
    pilot: tuple[Event, ...] = ()
    pilots: int = 0
    plan: Plan | None = None
    number: int = 1

    @classmethod
    def of(
        cls, plan: Plan, site: str, policy: Policy, events: tuple[Event, ...], number: int = 1
    ) -> "Course":
        """From round `number` of a plan on, whose updates cost the first of `events` each.

        With a search they cost what the plan says, whatever `events` are.
        """
        if not plan.noised_at_site:
            return cls(events)
        planned = with_records(plan.events_of_round(site), policy)
        if plan.tune is None:
            return cls((*events[:1], *planned[1:]), plan=plan, number=number)
        pilot = with_records(plan.events_of_round(site, 1), policy)
        return cls(planned, pilot, max(0, plan.pilot_rounds - number + 1), plan, number)

    def taken(self, rounds: int) -> tuple[Event, ...]:
        """Everything that so many next rounds cost."""
        if self.plan is None or not self.plan.metrics:
            return released(self.events, self.pilot, self.pilots, rounds)
        before = self.number - 1
        asked = self.plan.metric_rounds(before + rounds) - self.plan.metric_rounds(before)
        metrics = (replace(e, count=e.count * asked) for e in self.events[1:] if asked)
        return (*released(self.events[:1], self.pilot[:1], self.pilots, rounds), *metrics)


@dataclass(frozen=True, slots=True)
class Forecast:
    """One site's future in a plan: the `course` of its rounds, the one it refuses, and why.

    `fits` is how many rounds the budgets hold; other refusals can be lifted by the owner.
    """

    site: str
    course: Course
    fits: int
    refusal: Refusal | None
    leaves: tuple[Output, ...]

    @property
    def events(self) -> tuple[Event, ...]:
        """What each round costs, after the pilots of a search."""
        return self.course.events

    @property
    def refused(self) -> int | None:
        """The first round that would be refused, or None."""
        if self.refusal is None:
            return None
        return self.fits + 1 if self.refusal.code == EXHAUSTED else 1


def sites_of(plan: Plan) -> tuple[str, ...]:
    """The sites that a plan speaks of, before anybody has joined."""
    if plan.split == "natural" or plan.sites is None:
        return tuple(sorted(plan.site)) or (EVERY,)
    numbered = tuple(f"site-{i}" for i in range(plan.sites))
    return numbered + tuple(name for name in sorted(plan.site) if name not in numbered)


def forecast(
    plan: Plan, site: str, policy: Policy | None = None, past: Sequence[Event] = ()
) -> Forecast:
    """The future of one site under its policy, or else under the plan's own limit alone."""
    policy = policy or Policy.simulated(plan, plan.limit_of(site))
    verdict = judge(plan, policy, past, site=site)
    barred = verdict if isinstance(verdict, Refusal) else None
    events = with_records(plan.events_of_round(site), policy)
    if isinstance(verdict, Accepted) and plan.noised_at_site:
        events = verdict.events
    course, fits = Course.of(plan, site, policy, events), plan.rounds
    for history, limit, records in (
        (past, policy.budget, None),
        ((), plan.limit_of(site), 1),
    ):
        if limit is not None and plan.noised_at_site:
            fits = rounds_that_fit(history, course, limit, records=records, most=fits)
    if plan.is_secure and (limit := policy.budget_alone) is not None:
        fits = rounds_that_fit(alone(past), Course(alone(events)), limit, most=fits)
    if fits < plan.rounds and barred is None:
        run = course.taken(fits)
        last = judge(plan, policy, (*past, *run), site=site, round=fits + 1, run=run)
        barred = last if isinstance(last, Refusal) else None
    return Forecast(site, course, fits, barred, outputs(plan, course.events))


def epsilons(
    outlook: Forecast,
    delta: float,
    rounds: Sequence[int],
    *,
    records: int = 1,
    colluding: bool = False,
) -> Iterator[tuple[int, float]]:
    """Epsilon of the site in this run after each of `rounds`, as far as it takes part.

    It is that of a person with so many `records`; `colluding`: against all other parties together.
    """
    for number in rounds:
        events = outlook.course.taken(min(number, outlook.fits))
        taken = alone(events) if colluding else events
        yield number, spent(taken, delta, records=records)


def names_subjects(plan: Plan) -> bool:
    """Whether the plan's schema says which column tells persons apart."""
    try:
        return plan.schema is not None and bool(parse_toml(plan.schema, LIMITS).get("subject"))
    except DocumentError:
        return False


def check_numbers(plan: Plan) -> None:
    """PlanError where all rounds have no finite epsilon, or a counted plan no learning rate.

    Nothing is run of which nothing could be said afterwards.
    """
    if plan.lr == "auto" and plan.nominal_units != "actual":
        float(plan.learning_rate)
    if not plan.private:
        return
    every = [plan.nominal_epsilon_after(plan.rounds)]
    every += [
        plan.epsilon_after(name, plan.rounds)
        for name, overrides in plan.site.items()
        if overrides.epsilon is not None
    ]
    if not all(epsilon is not None and math.isfinite(epsilon) for epsilon in every):
        raise PlanError(
            "delta must be larger, or sigma: no finite epsilon is known for all rounds, "
            f"got delta = {plan.delta}"
        )


def rounds_that_fit(
    past: Sequence[Event],
    course: Course,
    limit: Budget,
    *,
    records: int | None = None,
    most: int = 1_000_000,
) -> int:
    """How many rounds of `course` after `past` stay inside `limit`, at most `most`.

    `records` as in `privacy.accounting.epsilon.spent`: None takes each event's own.
    """

    def fits(rounds: int) -> bool:
        return within((*past, *course.taken(rounds)), limit, records=records)

    return last_true(fits, most)


def last_true(holds: Callable[[int], bool], most: int) -> int:
    """The largest n <= most at which a property holds that once lost stays lost; 0 if none."""
    if most > 0 and holds(most):
        return most
    step = 1
    while step < most and holds(step):
        step *= 2
    low, high = step // 2, min(step, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
