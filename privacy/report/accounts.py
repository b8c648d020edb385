"""One ledger's spending in one run, round by round."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from privacy.accounting.events import Event

TOLERANCE: Final = 1e-3
"""How far a stated epsilon may lie from the recomputed one, and RDP below PLD."""


@dataclass(frozen=True, slots=True)
class Row:
    """One account after one round: what the round cost and what the run cost so far."""

    round: int
    status: str
    reason: str | None
    events: tuple[Event, ...]
    epsilon_round: float
    epsilon: float


@dataclass(frozen=True, slots=True)
class Account:
    """What one ledger shows for one run; `derived` says what from: itself, or plan and heads."""

    name: str
    covers: tuple[str, ...]
    derived: str
    rows: tuple[Row, ...]
    past: tuple[Event, ...]
    run: tuple[Event, ...]

    @property
    def events(self) -> tuple[Event, ...]:
        """The whole life of the ledger, other runs included."""
        return self.past + self.run


class Tally:
    """Releases so far, equal ones counted together: what a long run spent is asked every round."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.totals: dict[Event, int] = {}
        self.add(events)

    def add(self, events: Iterable[Event]) -> None:
        """Count these too, however their repetitions are grouped."""
        for event in events:
            one = event if event.count == 1 else replace(event, count=1)
            self.totals[one] = self.totals.get(one, 0) + event.count

    def events(self) -> tuple[Event, ...]:
        """Each release once, with its count."""
        return tuple(replace(event, count=count) for event, count in self.totals.items())
