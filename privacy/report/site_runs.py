"""A site's own folder, seen run by run: one ledger, several runs, plans known by their digest."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from privacy.accounting.segments import AccountingError, Budget
from privacy.report.sources import Source


def site_limit(source: Source) -> Budget | None:
    """The budget of the site's policy, for the whole life of its data."""
    policy: Mapping[str, Any] = source.policy or {}
    try:
        return Budget(float(policy["epsilon"]), float(policy["delta"]))
    except (KeyError, TypeError, ValueError, AccountingError):
        return None


def by_run(source: Source) -> tuple[Source, ...]:
    """One source a run in the site's ledgers, with its plan where the site kept it."""
    runs: dict[str, str] = {}
    for book in source.books.values():
        for entry in book.entries:
            runs.setdefault(entry.run, entry.plan)
    return tuple(
        replace(
            source,
            name=f"{source.name}: run {run}",
            run={"id": run},
            plan=source.plans.get(digest),
            plan_digest=digest,
            damage=(),
        )
        for run, digest in runs.items()
    )
