"""What a ledger's entries add up to: over its life, in one coordinator's run, and on one day."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from privacy.accounting.epsilon import spent, within
from privacy.accounting.events import Event
from privacy.accounting.rounding import spent_text
from privacy.accounting.segments import Budget
from privacy.ledger.chain import VERSION
from privacy.ledger.entries import Entry, Note

Counts = dict[Event, int]
"""How often each event was spent, apart from its own count."""


@dataclass(frozen=True, slots=True)
class SpendingState:
    """What a judgement needs of a ledger, in one look: all that was spent, in one run, on a day."""

    spent: tuple[Event, ...] = ()
    run: tuple[Event, ...] = ()
    rounds_today: int = 0


class Totals:
    """Entries counted as they come; equal events together."""

    def __init__(self) -> None:
        self._merged: Counts = {}
        self._merged_of_0_1: Counts = {}  # whose entries do not say how many records a person had
        self._runs: dict[tuple[str, str], Counts] = {}  # by run and coordinator
        self._day = (0, 0, set[tuple[str, int]]())  # from which entry, to which, the rounds

    def add(self, entry: Entry) -> None:
        """Count the next entry."""
        count, key = entry.event.count, replace(entry.event, count=1)
        merged = self._merged_of_0_1 if entry.version == VERSION else self._merged
        for counts in (merged, self._runs.setdefault((entry.run, entry.coordinator), {})):
            counts[key] = counts.get(key, 0) + count

    def past(self, log: Sequence[Note]) -> tuple[Event, ...]:
        """All events; those of 0.1.0 for the largest cap that the log ever noted."""
        merged = dict(self._merged)
        if self._merged_of_0_1:
            records = _largest_cap(log)
            for event, count in self._merged_of_0_1.items():
                key = event.for_records(max(event.records, records))
                merged[key] = merged.get(key, 0) + count
        return tuple(
            replace(event, count=count) for event, count in sorted(merged.items(), key=_order)
        )

    def of(self, run: str, coordinator: str) -> tuple[Event, ...]:
        """A coordinator's run, in the order in which its events first came.

        An entry that names no coordinator (of 0.1.0, or recovered) counts for every one.
        """
        merged: Counts = {}
        for by in dict.fromkeys(("", coordinator)):
            for event, count in self._runs.get((run, by), {}).items():
                merged[event] = merged.get(event, 0) + count
        return tuple(replace(event, count=count) for event, count in merged.items())

    def rounds(self, day: str, entries: Sequence[Entry], log: Sequence[Note]) -> int:
        """How many rounds were spent on since the log's first line of that day."""
        last = next((note for note in reversed(log) if note.what == "day"), None)
        if last is None or last.details.get("day") != day:
            return 0
        first, seen, met = self._day
        if first != last.entries:
            first, seen, met = last.entries, last.entries, set()
        met |= {(entry.run, entry.round) for entry in entries[seen:]}
        self._day = (first, len(entries), met)
        return len(met)


def exceeded(
    past: Sequence[Event], events: Sequence[Event], limit: Budget | None, alone: Budget | None
) -> str | None:
    """Which limit `events` would pass after `past`, in one line; None where they fit.

    `alone` limits what is spent where all other parties of secure aggregation collude.
    """
    every = (*past, *events)
    if limit is not None and not within(every, limit, records=None):
        epsilon = spent(every, limit.delta, records=None)
        return (
            f"spending would reach epsilon {spent_text(epsilon, 6)} of {limit.epsilon:.6g} at "
            f"delta {limit.delta:.3g}"
        )
    colluding = tuple(event.alone() for event in every)
    if alone is not None and not within(colluding, alone, records=None):
        epsilon = spent(colluding, alone.delta, records=None)
        return (
            f"spending would reach epsilon {spent_text(epsilon, 6)} of {alone.epsilon:.6g} at "
            f"delta {alone.delta:.3g} if all other parties collude"
        )
    return None


def _largest_cap(log: Sequence[Note]) -> int:
    caps = [note.details.get("records") for note in log if note.what == "policy"]
    return max((cap for cap in caps if isinstance(cap, int)), default=1)


def _order(item: tuple[Event, int]) -> tuple[Any, ...]:
    event = item[0]
    return (
        *(event.unit, event.sigma, event.rate, event.steps, event.records),
        *(event.sensitivity, event.shares),
    )
