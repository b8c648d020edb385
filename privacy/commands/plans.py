"""`tacit-privacy plan`: before a run, what it will cost each site and what will leave it."""

import json
import math
import sys
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from privacy.accounting.epsilon import json_number, spent
from privacy.accounting.events import Event
from privacy.accounting.rounding import spent_text
from privacy.accounting.segments import Budget
from privacy.contract.cadence import fewest_rounds
from privacy.contract.forecast import (
    Forecast,
    epsilons,
    forecast,
    names_subjects,
    sites_of,
)
from privacy.contract.plan import Plan, PlanError, SitePlan
from privacy.contract.plan_file import load_plan
from privacy.contract.policy import Policy, load_policy
from privacy.contract.rules.table import warnings
from privacy.ledger.entries import verify
from privacy.runtime import ACCOUNTANTS, load

_SHOWN: Final = 20
_COUNTED: Final = 1000


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("plan")(show)


def show(
    plan: Annotated[str, typer.Argument(help="A shipped plan's name, or the path of a TOML file.")],
    policy: Annotated[Path | None, typer.Option(help="A site's policy to judge it by.")] = None,
    ledger: Annotated[Path | None, typer.Option(help="A site's ledger to go on from.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the plan (repeatable)."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.")
    ] = False,
) -> None:
    """Epsilon after each round at each site, the round that would be refused, and what leaves."""
    chosen = load_plan(plan, set_ or [])
    rules = load_policy(policy) if policy is not None else None
    past = verify(ledger).events if ledger is not None else ()
    groups = _groups(chosen)
    load(ACCOUNTANTS)
    outlooks = {terms: forecast(chosen, sites[0], rules, past) for terms, sites in groups.items()}
    rounds = _rounds(chosen, _COUNTED if as_json else _SHOWN, list(outlooks.values()))
    work = [(terms, number) for terms in outlooks for number in rounds] if chosen.private else []
    counted: dict[SitePlan, list[tuple[int, float]]] = defaultdict(list)
    for terms, number in track(
        work, "counting", console=Console(stderr=True), disable=not sys.stderr.isatty()
    ):
        counted[terms] += epsilons(outlooks[terms], chosen.required_delta, [number])
    records = rules.records_per_subject if rules is not None else 1
    persons: dict[SitePlan, list[tuple[int, float]]] = {}
    if records > 1 and chosen.unit == "record":
        persons = {
            terms: list(epsilons(one, chosen.required_delta, [chosen.rounds], records=records))
            for terms, one in outlooks.items()
        }
    for text in warnings(chosen):
        typer.echo(f"tacit-privacy: warning: {text}", err=True)
    if as_json:
        sites = {
            name: _facts(chosen, outlooks[terms], counted[terms], rules, past)
            | ({"epsilon_person": _finite(persons[terms][0][1])} if terms in persons else {})
            for terms, names in groups.items()
            for name in names
        }
        typer.echo(json.dumps(_about(chosen) | {"sites": sites, "leaves": _leaves(outlooks)}))
    else:
        people = {
            terms: (records, persons[terms][0][1]) if terms in persons else None for terms in groups
        }
        _print(Console(), chosen, groups, outlooks, counted, rules, people)


def _groups(plan: Plan) -> dict[SitePlan, tuple[str, ...]]:
    """Sites of the same terms share one account."""
    groups: dict[SitePlan, tuple[str, ...]] = {}
    for name in sites_of(plan):
        terms = SitePlan(None, plan.site_overrides(name).epsilon, plan.site_overrides(name).limit)
        groups[terms] = (*groups.get(terms, ()), name)
    return groups


def _rounds(plan: Plan, most: int, outlooks: list[Forecast]) -> list[int]:
    """Every round, or, of a long run, so many of them with the last and those before a refusal."""
    step = max(1, -(-plan.rounds // most))
    chosen = set(range(step, plan.rounds + 1, step)) | {1, plan.rounds, fewest_rounds(plan)}
    chosen |= {plan.pilot_rounds} - {0}
    return sorted(chosen | {f.fits for f in outlooks if f.fits})


def _about(plan: Plan) -> dict[str, Any]:
    return {
        "plan": plan.digest,
        "task": plan.task,
        "unit": plan.unit,
        "rounds": plan.rounds,
        "delta": plan.delta,
        "fewest_rounds": fewest_rounds(plan),
        "lr": _learning_rate(plan),
    }


def _learning_rate(plan: Plan) -> float | None:
    """The learning rate; None while that of lr = auto waits for numbers of sites and units."""
    try:
        return plan.learning_rate
    except PlanError:
        return None


def _facts(
    plan: Plan,
    outlook: Forecast,
    counted: list[tuple[int, float]],
    rules: Policy | None,
    past: tuple[Event, ...],
) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "sigma": outlook.events[0].sigma if outlook.events else None,
        "events": [event.to_dict() for event in outlook.events],
        "rounds": [{"round": number, "epsilon": value} for number, value in counted],
        "epsilon": counted[-1][1] if counted else None,
        "limit": _limit(plan.limit_of(outlook.site)),
        "refused": None,
    }
    if outlook.refusal is not None:
        facts["refused"] = {
            "round": outlook.refused,
            "code": outlook.refusal.code,
            "message": outlook.refusal.message,
        }
    if plan.tune is not None:
        facts["pilots"] = {
            "candidates": plan.candidates,
            "rounds": plan.pilot_rounds,
            "sigma": outlook.course.pilot[0].sigma,
            "epsilon": _finite(_pilots(plan, outlook)),
        }
    if plan.is_secure:
        last = list(epsilons(outlook, plan.required_delta, [plan.rounds], colluding=True))
        facts["epsilon_alone"] = _finite(last[0][1])
        facts["secure"] = {
            "parties": plan.terms.parties,
            "dropouts": plan.terms.dropouts,
            "colluding": plan.terms.colluding,
        }
    if rules is not None and rules.budget is not None:
        before = json_number(spent(past, rules.delta, records=None))
        facts["policy"] = {**_limit(rules.budget), "spent": before}
    return facts


def _pilots(plan: Plan, outlook: Forecast) -> float:
    """What all pilots of a search cost together, in one record's epsilon."""
    return spent(outlook.course.taken(plan.pilot_rounds), plan.required_delta)


def _search(plan: Plan, outlook: Forecast) -> str | None:
    """A search in one line: how many pilots, and what they cost of the whole."""
    if plan.tune is None:
        return None
    return (
        f"rounds 1 to {plan.pilot_rounds} are {plan.candidates} pilots of {plan.pilot_length} at "
        f"sigma {outlook.course.pilot[0].sigma:.4g}, together epsilon "
        f"{spent_text(_pilots(plan, outlook))}; the sigma above is of the "
        f"{plan.rounds - plan.pilot_rounds} rounds after them"
    )


def _limit(budget: Budget | None) -> Any:
    return None if budget is None else {"epsilon": budget.epsilon, "delta": budget.delta}


def _leaves(outlooks: dict[SitePlan, Forecast]) -> list[dict[str, Any]]:
    first = next(iter(outlooks.values()))
    return [
        {
            "field": one.name,
            "paid_by": None if one.event is None else one.event.to_dict(),
            "data_independent": one.event is None and one.protected,
            "why": one.why,
        }
        for one in first.leaves
    ]


def _finite(epsilon: float) -> float | None:
    return epsilon if math.isfinite(epsilon) else None


def _person(plan: Plan, person: tuple[int, float] | None) -> str | None:
    """What a person with several records has, or that this is not known."""
    if person is not None:
        records, epsilon = person
        figure = spent_text(_finite(epsilon)) if math.isfinite(epsilon) else "no finite value"
        return f"epsilon of a person with {records} records, after all rounds: {figure}"
    if plan.unit == "record" and names_subjects(plan):
        return (
            "these figures are for one record, and the schema names subjects: a person with more "
            "records has less protection (--policy with records_per_subject counts it)"
        )
    if plan.unit == "subject":
        return "these figures are for one person, with all their rows at a site"
    return None


def _ends(plan: Plan, counted: list[tuple[int, float]]) -> str | None:
    """Both ends of a run that may stop by itself: what is not asked is not paid."""
    first, prices = fewest_rounds(plan), dict(counted)
    if first == plan.rounds or first not in prices:
        return None
    early, late = spent_text(prices[first]), spent_text(prices[plan.rounds])
    return (
        f"it may stop by itself after round {first}, at epsilon {early}; "
        f"after round {plan.rounds} at the latest, at {late}"
    )


def _print(
    console: Console,
    plan: Plan,
    groups: dict[SitePlan, tuple[str, ...]],
    outlooks: dict[SitePlan, Forecast],
    counted: dict[SitePlan, list[tuple[int, float]]],
    rules: Policy | None,
    people: dict[SitePlan, tuple[int, float] | None],
) -> None:
    console.print(f"plan {plan.digest}", highlight=False, soft_wrap=True)
    if plan.lr == "auto":
        lr = _learning_rate(plan)
        figure = "known once sites and their units are counted" if lr is None else f"{lr:g}"
        console.print(f"lr: {figure}, by the rule for auto", highlight=False, soft_wrap=True)
    for terms, names in groups.items():
        one = outlooks[terms]
        label = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} like it"
        if plan.private:
            title = f"{escape(label)}: sigma {one.events[0].sigma:.4g}"
            console.print(title, highlight=False, soft_wrap=True)
            if (text := _search(plan, one)) is not None:
                console.print(text, highlight=False, soft_wrap=True)
            table = Table(box=None, header_style="bold", pad_edge=False)
            table.add_column("round", justify="right")
            table.add_column(f"epsilon at delta {plan.delta:g}", justify="right")
            for number, value in counted[terms]:
                if number <= one.fits:
                    table.add_row(str(number), spent_text(value))
            console.print(table, highlight=False)
            if plan.is_secure:
                (last,) = epsilons(one, plan.required_delta, [plan.rounds], colluding=True)
                console.print(
                    f"this holds while at most {plan.terms.colluding} other parties work with the "
                    f"coordinator; after all rounds, if all others do: {spent_text(last[1])}",
                    highlight=False,
                    soft_wrap=True,
                )
            if (text := _person(plan, people[terms])) is not None:
                console.print(text, highlight=False, soft_wrap=True)
        else:
            console.print(f"{escape(label)}: no privacy is claimed; epsilon has no value")
        if plan.private and (text := _ends(plan, counted[terms])) is not None:
            console.print(text, highlight=False, soft_wrap=True)
        if one.refusal is not None:
            console.print(
                f"round {one.refused} would be refused: {one.refusal.code} "
                f"({escape(one.refusal.message)})",
                highlight=False,
                soft_wrap=True,
            )
        elif rules is not None:
            console.print("the policy would accept every round", highlight=False)
    console.print("what leaves in each round")
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("field", "paid by", "what it is"):
        table.add_column(name, overflow="fold")
    for output in next(iter(outlooks.values())).leaves:
        event = output.event
        paid = "data-independent" if output.protected else "NOT PROTECTED from the coordinator"
        if event is not None:
            paid = f"{event.steps} x Gaussian, sigma {event.sigma:.4g}, rate {event.rate:g}"
        table.add_row(output.name, paid, output.why)
    console.print(table, highlight=False)
