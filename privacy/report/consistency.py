"""What was said of a run against what was recounted: each misfit is a problem in the report."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from privacy.accounting.epsilon import spent
from privacy.accounting.events import Event
from privacy.contract.plan import Plan
from privacy.report.accounts import TOLERANCE, Account, Row, Tally
from privacy.report.sources import Problem, Source


def answer_of(line: Mapping[str, Any], covers: Sequence[str]) -> Mapping[str, Any]:
    """What the history says of an account in a round; of several sites, trained if any was."""
    answers = [line["sites"][site] for site in covers if site in line["sites"]]
    if not answers:
        return {"status": "absent", "reason": None}
    return next((one for one in answers if one["status"] == "trained"), answers[0])


def against_history(
    source: Source, plan: Plan, account: Account, notes: list[str]
) -> list[Problem]:
    """Every epsilon that the history states, against the one recounted for that round."""
    if account.name in source.books and source.books[account.name].error is not None:
        return []  # said already, and nothing to compare with
    problems: list[Problem] = []
    recounted = {row.round: row for row in account.rows}
    once = Tally()
    latest = 0.0
    for index, line in enumerate(source.history, start=1):
        row = recounted.get(line["round"])
        if row is None:
            continue
        late = [line.get("late", {}).get(site) for site in account.covers]
        for one in (row if row.status == "trained" else None, *map(recounted.get, late)):
            once.add(_one_try(one, plan, account.name) if one else ())
        for site in account.covers:
            answer = line["sites"].get(site)
            if answer is None:
                continue
            place = f"{source.name}/history.jsonl line {index}, {site}"
            stated = answer.get("epsilon")
            if stated is None:
                if answer["status"] == "trained":
                    problems.append(Problem("epsilon-differs", place, "no epsilon is stated"))
                continue
            if abs(stated - row.epsilon) <= TOLERANCE:
                latest = row.epsilon
            elif answer["status"] != "trained" and (
                (known := _known(account, line["round"], latest, stated)) is not None
            ):
                latest = known  # what was spent on a reply that has not come shows with the next
            elif abs(stated - spent(once.events(), plan.required_delta)) <= TOLERANCE:
                notes.append(
                    f"{account.name}: rounds that were paid for and never completed are in the "
                    "ledger and in this report's totals, not in the history's"
                )
            else:
                message = f"epsilon {stated:.6g} is stated, recomputed is {row.epsilon:.6g}"
                problems.append(Problem("epsilon-differs", place, message))
            problems += _stated(answer, row, plan, account.name, place)
    return problems


def _known(account: Account, number: int, latest: float, stated: float) -> float | None:
    """The epsilon after an earlier round, not before the `latest` known, that was stated."""
    epsilons = [latest, *(row.epsilon for row in account.rows if row.round < number)]
    return next((e for e in epsilons if e >= latest and abs(stated - e) <= TOLERANCE), None)


def _one_try(row: Row, plan: Plan, name: str) -> tuple[Event, ...]:
    """What a round costs where it is paid for once."""
    return row.events[: len(plan.events_of_round(name, row.round))]


def _stated(
    answer: Mapping[str, Any], row: Row, plan: Plan, name: str, place: str
) -> list[Problem]:
    """The other figures of a trained site's line: cost of the round, delta, and the mechanism."""
    if row.status != "trained" or not row.events:
        return []
    problems: list[Problem] = []
    marginal = answer.get("epsilon_round")
    if marginal is None or (
        abs(marginal - row.epsilon_round) > TOLERANCE
        and not 0 <= marginal <= spent(row.events, plan.required_delta) + TOLERANCE
    ):
        alone = spent(_one_try(row, plan, name), plan.required_delta)
        message = f"epsilon_round {marginal} is stated, the round by itself costs {alone:.6g}"
        problems.append(Problem("epsilon-differs", place, message))
    if answer.get("delta") is not None and answer["delta"] != plan.required_delta:
        message = f"delta {answer['delta']:g} is stated, the plan's is {plan.required_delta:g}"
        problems.append(Problem("epsilon-differs", place, message))
    for key in ("sigma", "rate", "steps"):
        stated = answer.get(key)
        if stated is None or any(
            math.isclose(stated, getattr(event, key), rel_tol=1e-9) for event in row.events
        ):
            continue
        message = f"{key} {stated:g} is stated, paid for was {getattr(row.events[0], key):g}"
        problems.append(Problem("event-differs", place, message))
    return problems


def two_accountants(source: Source, account: Account, delta: float) -> list[Problem]:
    pld, rdp = spent(account.run, delta), spent(account.run, delta, accountant="rdp")
    if rdp >= pld - TOLERANCE:
        return []
    message = f"RDP gives {rdp:.6g}, less than PLD's {pld:.6g}: one of the two accountants is wrong"
    return [Problem("accountants-disagree", f"{source.name}, {account.name}", message)]


def _reached(account: Account, number: int) -> float:
    """What an account had spent after a round; who was not asked in it keeps what it had."""
    at = bisect_right(account.rows, number, key=lambda row: row.round)
    return account.rows[at - 1].epsilon if at else 0.0


def within_limit(source: Source, plan: Plan, account: Account) -> list[Problem]:
    """A limit that the plan sets for this run must have held."""
    limit = plan.limit_of(account.covers[0] if account.covers else account.name)
    if limit is None:
        return []
    epsilon = spent(account.run, limit.delta)
    if epsilon <= limit.epsilon + TOLERANCE:
        return []
    message = f"epsilon {epsilon:.6g} was spent, the limit is {limit.epsilon:g}"
    return [Problem("limit-passed", f"{source.name}, {account.name}", message)]


def federation(source: Source, accounts: Sequence[Account]) -> list[Problem]:
    """The history's federation total is the largest over the sites, never an average."""
    problems: list[Problem] = []
    for index, line in enumerate(source.history, start=1):
        stated = [s["epsilon"] for s in line["sites"].values() if s.get("epsilon") is not None]
        total = line.get("epsilon")
        if not stated or any(
            source.books[a.name].error for a in accounts if a.name in source.books
        ):
            continue
        so_far = [_reached(account, line["round"]) for account in accounts]
        most = max([*stated, *so_far], default=0.0)
        if total is None or (
            abs(total - most) > TOLERANCE and abs(total - max(stated)) > TOLERANCE
        ):
            message = f"epsilon {total} is stated, the largest over the sites is {most:.6g}"
            place = f"{source.name}/history.jsonl line {index}"
            problems.append(Problem("epsilon-differs", place, message))
    return problems
