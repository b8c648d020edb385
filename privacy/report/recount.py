"""Counts again what a run spent, from ledgers or counter-signed heads, and compares what was said.

Pure. An account is one ledger's spending in one run: a site's, or the coordinator's where the unit
is the client. Whatever the history claims, the figures here come from the events.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from privacy.accounting.epsilon import spent
from privacy.accounting.events import Event, EventError
from privacy.accounting.segments import AccountingError
from privacy.contract.plan import Plan, PlanError
from privacy.report.accounts import TOLERANCE, Account, Row, Tally
from privacy.report.consistency import (
    against_history,
    answer_of,
    federation,
    two_accountants,
    within_limit,
)
from privacy.report.sources import FEDERATION, SITE, Problem, Source


@dataclass(frozen=True, slots=True)
class Reckoning:
    """One run recounted, with everything that does not fit."""

    accounts: tuple[Account, ...]
    delta: float | None
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


def reckon(source: Source) -> Reckoning:
    """Recount a run folder's accounts and hold the history, the ledgers and the plan together."""
    plan = source.plan
    problems = [*source.damage, *_chains(source)]
    if plan is None:
        return Reckoning((), None, tuple(problems), ())
    problems += _digests(source)
    if source.run.get("insecure") or source.summary.get("insecure"):
        message = "the noise of this run can be reproduced from its seed: it protects nobody"
        problems.append(Problem("noise-reproducible", source.name, message))
    if not plan.private:
        return Reckoning((), None, tuple(problems), ())
    notes: list[str] = []
    if source.kind == FEDERATION and plan.noised_at_site:
        accounts = [_from_heads(source, plan, s, problems) for s in _sites(source)]
    else:
        accounts = [
            _from_book(source, plan, name, covers, problems)
            for name, covers in _payers(source, plan)
        ]
    for account in accounts:
        problems += against_history(source, plan, account, notes)
        problems += two_accountants(source, account, plan.required_delta)
        problems += within_limit(source, plan, account)
    problems += federation(source, accounts)
    return Reckoning(
        tuple(accounts), plan.required_delta, tuple(problems), tuple(dict.fromkeys(notes))
    )


def _chains(source: Source) -> list[Problem]:
    problems: list[Problem] = []
    for site, book in sorted(source.books.items()):
        where = f"{source.name}/ledgers/{site}.jsonl"
        if book.error is not None:
            problems.append(Problem("ledger-broken", where, book.error))
        for note in book.notes:
            if note["what"] == "untrusted":
                problems.append(Problem("ledger-untrusted", where, str(note.get("lost"))))
    return problems


def _digests(source: Source) -> list[Problem]:
    """The plan that was read must be the one that the run and its ledgers name."""
    problems: list[Problem] = []
    claimed = source.run.get("plan")
    if isinstance(claimed, str) and claimed != source.plan_digest:
        message = f"its digest is not {claimed[:16]}, which run.json names"
        problems.append(Problem("plan-changed", f"{source.name}/plan.toml", message))
    for site, book in sorted(source.books.items()):
        other = {e.plan for e in book.entries if e.run == source.run_id} - {source.plan_digest}
        if other:
            names = ", ".join(sorted(digest[:16] for digest in other))
            message = f"spent under a plan of digest {names}, not under this run's plan.toml"
            problems.append(Problem("plan-changed", f"{source.name}/ledgers/{site}.jsonl", message))
    return problems


def _sites(source: Source) -> list[str]:
    """Every site that the history names or that has a ledger or heads here."""
    return sorted(
        {site for row in source.history for site in row["sites"]}
        | set(source.heads)
        | set(source.books)
    )


def _payers(source: Source, plan: Plan) -> list[tuple[str, tuple[str, ...]]]:
    """Which ledger paid for whom: each site's for itself, or the coordinator's for all."""
    sites = _sites(source)
    if plan.noised_at_site:
        return [(site, (site,)) for site in sites]
    named = {site for row in source.history for site in row["sites"]}
    unnamed = [name for name in source.books if name not in named] or ["coordinator"]
    return [(name, tuple(s for s in sites if s in named)) for name in unnamed[:1]]


def _from_book(
    source: Source, plan: Plan, name: str, covers: tuple[str, ...], problems: list[Problem]
) -> Account:
    book = source.books.get(name)
    where = f"{source.name}/ledgers/{name}.jsonl"
    entries = book.entries if book is not None else ()
    mine = [e for e in entries if e.run == source.run_id]
    answers = {r["round"]: answer_of(r, covers) for r in source.history}
    trained = {number for number, status in answers.items() if status["status"] == "trained"}
    if book is None and trained:
        problems.append(Problem("ledger-missing", where, "there is no such ledger"))
    if book is None or book.error is None:
        for number in sorted(trained - {e.round for e in mine}):
            message = f"round {number} was trained, but the ledger has no entry for it"
            problems.append(Problem("entry-missing", where, message))
    rows: list[Row] = []
    by_round: dict[int, list[Event]] = {}
    for entry in mine:
        by_round.setdefault(entry.round, []).append(entry.event)
    so_far, before = Tally(), 0.0
    for number in sorted({*answers, *by_round}):
        paid = tuple(by_round.get(number, ()))
        alone = "spent" if source.kind == SITE else "unfinished"
        status = answers.get(number, {"status": alone, "reason": None})
        if status["status"] == "trained" and paid:
            planned = plan.events_of_round(name, number)
            problems += _weaker(paid, planned, f"{where} round {number}")
        so_far.add(paid)
        rows.append(_row(number, status, before, paid, so_far, plan.required_delta))
        before = rows[-1].epsilon
    past = tuple(e.event for e in entries if e.run != source.run_id)
    return Account(name, covers, "ledger", tuple(rows), past, so_far.events())


def _from_heads(source: Source, plan: Plan, site: str, problems: list[Problem]) -> Account:
    """The coordinator's side: what each head was said to hold, which is at least the plan's."""
    where = f"{source.name}/heads/{site}.jsonl"
    heads = [h for h in source.heads.get(site, ()) if h.get("run") == source.run_id]
    rows: list[Row] = []
    by_round = {head.get("round"): head for head in heads}
    so_far, before = Tally(), 0.0
    reached = -1
    for line in source.history:
        if site not in line["sites"]:
            continue
        status, number = answer_of(line, (site,)), line["round"]
        paid: tuple[Event, ...] = ()
        if status["status"] == "trained":
            head = by_round.get(number)
            place = f"{where} round {number}"
            if head is None:
                message = f"round {number} was trained, but no head was counter-signed for it"
                problems.append(Problem("entry-missing", where, message))
                paid = _planned(plan, site, number, place, problems)
            else:
                paid = _added_by(head, so_far, place, problems)
                planned = _planned(plan, site, number, place, problems)
                problems += _weaker(paid, planned, place)
                grown = head["n"] - (reached if reached >= 0 else head["n"] - len(head["leaves"]))
                if grown < sum(event.count for event in paid):
                    message = f"the ledger grew by {grown} entries, more releases were told"
                    problems.append(Problem("entry-missing", place, message))
                reached = head["n"]
        so_far.add(paid)
        rows.append(_row(number, status, before, paid, so_far, plan.required_delta))
        before = rows[-1].epsilon
    derived = "plan and counter-signed heads"
    return Account(site, (site,), derived, tuple(rows), (), so_far.events())


def _planned(
    plan: Plan, site: str, number: int, where: str, problems: list[Problem]
) -> tuple[Event, ...]:
    try:
        return plan.events_of_round(site, number)
    except (PlanError, AccountingError) as error:
        problems.append(Problem("event-unknown", where, str(error)))
        return ()


def _added_by(
    head: Mapping[str, Any], so_far: Tally, where: str, problems: list[Problem]
) -> tuple[Event, ...]:
    """The run's events that a head adds to those before; a head tells all of the run so far."""
    try:
        totals = counted(Event.from_dict(event) for event in head["events"])
    except (EventError, KeyError, TypeError):
        problems.append(Problem("event-unknown", where, "expected the run's events in the head"))
        return ()
    known = so_far.totals
    if any(totals.get(event, 0) < count for event, count in known.items()):
        message = "the events told no longer hold those told before"
        problems.append(Problem("event-differs", where, message))
    more = ((event, totals[event] - known.get(event, 0)) for event in sorted(totals, key=repr))
    return tuple(replace(event, count=count) for event, count in more if count > 0)


def counted(events: Iterable[Event]) -> dict[Event, int]:
    """How often each release was made, however the repetitions were grouped."""
    return Tally(events).totals


def _weaker(paid: Sequence[Event], planned: Sequence[Event], where: str) -> list[Problem]:
    """A ledger may show more noise than the plan asks, never another or a smaller release."""
    for event in planned:
        fits = any(
            e.unit == event.unit
            and e.rate <= event.rate * (1 + 1e-12)
            and e.steps == event.steps
            and e.shares <= event.shares
            and e.noise >= event.noise * (1 - 1e-9)
            for e in paid
        )
        if not fits:
            got = "; ".join(f"sigma {e.sigma:g}, rate {e.rate:g}, {e.steps} steps" for e in paid)
            message = (
                f"the plan's release is sigma {event.sigma:g}, rate {event.rate:g}, "
                f"{event.steps} steps; recorded: {got}"
            )
            return [Problem("event-differs", where, message)]
    return []


def _row(
    number: int,
    status: Mapping[str, Any],
    before: float,
    paid: tuple[Event, ...],
    so_far: Tally,
    delta: float,
) -> Row:
    """A round's line: the epsilon `before` it, what was paid in it, and all `so_far` with that."""
    epsilon = spent(so_far.events(), delta) if paid else before
    return Row(
        number,
        str(status["status"]),
        status.get("reason"),
        paid,
        max(0.0, epsilon - before) if math.isfinite(epsilon) else epsilon,
        epsilon,
    )


def lives(sources: Sequence[Source]) -> dict[str, tuple[Any, ...]]:
    """Each ledger's entries over all sources: a grown copy takes the place of the shorter one.

    Ledgers of one name that share no history (each simulation starts fresh ones) follow each other,
    as the same people's data used twice.
    """
    books: dict[str, list[tuple[Any, ...]]] = {}
    for source in sources:
        for site, book in source.books.items():
            chains = books.setdefault(site, [])
            chain = tuple(book.entries)
            for index, other in enumerate(chains):
                short, long = sorted((chain, other), key=len)
                if short == long[: len(short)]:
                    chains[index] = long
                    break
            else:
                chains.append(chain)
    return {site: tuple(e for chain in chains for e in chain) for site, chains in books.items()}


__all__ = [
    "SITE",
    "TOLERANCE",
    "Account",
    "Reckoning",
    "Row",
    "counted",
    "lives",
    "reckon",
]
