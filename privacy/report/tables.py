"""The numbers of a report: each account's guarantee, what it means, and the life of its budget.

Pure; every epsilon is computed here from events, with both accountants.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from privacy.accounting.attacker import PRIOR, best_success, curve, detection, profile
from privacy.accounting.epsilon import json_number as number
from privacy.accounting.epsilon import spent
from privacy.accounting.events import Event
from privacy.accounting.segments import Budget
from privacy.contract.decision import alone
from privacy.contract.plan import Plan
from privacy.ledger.entries import Entry
from privacy.report.accounts import Tally
from privacy.report.recount import Account, Reckoning

DELTAS: Final = (1e-3, 1e-4, 1e-5, 1e-6, 1e-8)
GROUPS: Final = (2, 5)
FALSE_ALARMS: Final = 0.01


def guarantee(
    plan: Plan, reckoning: Reckoning, rows: int | None, *, subject: int = 1
) -> dict[str, Any] | None:
    """D: the promise, per account and for the federation; None where none is made.

    `rows` is a public number of records, `subject` the most records of one person at a site.
    """
    if not plan.private or reckoning.delta is None:
        return None
    delta = reckoning.delta
    accounts = [account_figures(a, plan, delta) for a in reckoning.accounts]
    together: tuple[Event, ...] = tuple(e for a in reckoning.accounts for e in a.run)
    worst = max((spent(a.run, delta) for a in reckoning.accounts), default=0.0)
    composed = spent(together, delta) if len(reckoning.accounts) > 1 else worst
    dearest = max(reckoning.accounts, key=lambda a: spent(a.run, delta), default=None)
    several = sorted({*GROUPS, subject} - {1})
    groups = several if plan.unit == "record" and 0 < worst < math.inf else ()
    return {
        "variant": "(epsilon, delta)-differential privacy",
        "unit": plan.unit,
        "records_per_person": subject,
        "neighbours": "two data sets that differ by one unit added or removed",
        "delta": delta,
        "delta_times_rows": number(delta * rows) if rows is not None else None,
        "accounts": accounts,
        "groups": [
            {"records": k, "epsilon": number(spent(dearest.run, delta, records=k))}
            for k in groups
            if dearest is not None
        ],
        "federation": {
            "epsilon": number(worst),
            "rule": "the largest over the sites: no person is at two of them",
            "epsilon_if_shared": number(composed),
            "rule_if_shared": "composed over all sites: somebody is at every one of them",
            **_colluding(plan, reckoning, delta),
        },
    }


def _colluding(plan: Plan, reckoning: Reckoning, delta: float) -> dict[str, Any]:
    """Secure aggregation: the largest epsilon where all other parties work together."""
    if not plan.is_secure:
        return {}
    each = [spent(alone(account.run), delta) for account in reckoning.accounts]
    return {
        "epsilon_colluding": number(max(each, default=0.0)),
        "rule_colluding": "all other sites and the coordinator work together against one site",
    }


def account_figures(account: Account, plan: Plan, delta: float) -> dict[str, Any]:
    """One account's guarantee in this run, what it means, and what is left of its limit."""
    name = account.covers[0] if account.covers else account.name
    limit = plan.limit_of(name)
    epsilon = spent(account.run, delta)
    known = account.run and math.isfinite(epsilon)
    pairs = profile(account.run) if known else ()
    points = curve(pairs) if pairs else []
    unsampled = [replace(event, rate=1.0) for event in account.run]
    return {
        "name": account.name,
        "covers": list(account.covers),
        "derived_from": account.derived,
        "epsilon": number(epsilon),
        "epsilon_rdp": number(spent(account.run, delta, accountant="rdp")),
        "epsilon_without_amplification": number(spent(unsampled, delta)),
        "delta": delta,
        "at_other_deltas": [{"delta": d, "epsilon": number(spent(account.run, d))} for d in DELTAS],
        "planned": number(planned(plan, name)),
        "limit": budget(limit),
        "earlier": number(spent(account.past, delta)),
        "life": number(spent(account.events, delta)),
        "left": left(limit, account.events),
        "attack": {
            "prior": PRIOR,
            "by_the_guarantee": number(best_success(epsilon, delta)),
            "by_the_mechanism": number((1 + pairs[-1][1]) / 2) if pairs else None,
            "found_at_1_percent_false_alarms": number(detection(points, FALSE_ALARMS))
            if points
            else None,
            "curve": [[a, b] for a, b in points],
        },
    }


def planned(plan: Plan, site: str) -> float | None:
    """The epsilon that the plan aims at for a site, all rounds done."""
    if not plan.private:
        return None
    override = plan.site_overrides(site).epsilon
    return (
        override if override is not None else plan.epsilon or plan.epsilon_after(site, plan.rounds)
    )


def budget(limit: Budget | None) -> dict[str, float] | None:
    """A limit as JSON values."""
    return None if limit is None else {"epsilon": limit.epsilon, "delta": limit.delta}


def left(limit: Budget | None, events: Sequence[Event]) -> float | str | None:
    """What is left of a limit; None without one."""
    if limit is None:
        return None
    return number(max(0.0, limit.epsilon - spent(events, limit.delta)))


def table(account: Account, limit: Budget | None) -> list[dict[str, Any]]:
    """G: a line a round: what was released, its cost by itself and so far, what is left."""
    lines: list[dict[str, Any]] = []
    so_far, remaining = Tally(account.past), left(limit, account.past)
    for row in account.rows:
        if row.events and limit is not None:
            so_far.add(row.events)
            remaining = left(limit, so_far.events())
        lines.append(
            {
                "round": row.round,
                "decision": row.status,
                "reason": row.reason,
                "releases": [
                    {"sigma": e.sigma, "rate": e.rate, "steps": e.steps * e.count}
                    for e in row.events
                ],
                "epsilon_round": number(row.epsilon_round),
                "epsilon": number(row.epsilon),
                "left": remaining,
            }
        )
    return lines


def life(
    name: str, entries: Sequence[Entry], delta: float, limit: Budget | None, covers: Sequence[str]
) -> dict[str, Any]:
    """The life of one data set's budget: what each run took of it, in the ledger's order."""
    runs: list[dict[str, Any]] = []
    tally, total = Tally(), 0.0
    at = limit.delta if limit is not None else delta
    by_run: dict[str, list[Entry]] = {}
    for entry in entries:
        by_run.setdefault(entry.run, []).append(entry)
    for run, its_entries in by_run.items():
        events = Tally(e.event for e in its_entries).events()
        tally.add(events)
        before, total = total, spent(tally.events(), at)
        runs.append(
            {
                "run": run,
                "rounds": len({e.round for e in its_entries}),
                "entries": len(its_entries),
                "epsilon_alone": number(spent(events, at)),
                "epsilon_added": number(total - before if math.isfinite(total) else total),
                "epsilon_so_far": number(total),
            }
        )
    so_far = tally.events()
    epsilon = spent(so_far, at)
    pairs = profile(so_far) if math.isfinite(epsilon) else ()
    return {
        "name": name,
        "covers": list(covers),
        "entries": len(entries),
        "delta": at,
        "runs": runs,
        "epsilon": number(epsilon),
        "epsilon_rdp": number(spent(so_far, at, accountant="rdp")),
        "attack": {
            "by_the_guarantee": number(best_success(epsilon, at)),
            "by_the_mechanism": number((1 + pairs[-1][1]) / 2) if pairs else None,
        },
        "limit": budget(limit),
        "left": left(limit, so_far),
    }


_LEADING: Final = ("accuracy", "r2", "mse", "c_index", "deviance", "mae", "loss")


def utility(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """K: the metrics a round, and which one leads."""
    names = sorted({name for line in history for name in line.get("metrics", {})})
    lead = next((n for n in _LEADING if n in names), None)
    per_round = [
        {"round": line["round"], **{n: metric(line["metrics"].get(n)) for n in names}}
        for line in history
        if line.get("metrics")
    ]
    return {"lead": lead, "names": names, "rounds": per_round}


def metric(value: object) -> float | None:
    """A metric, or None for anything that is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value
