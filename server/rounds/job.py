"""One run and what it needs from outside: a plan, a folder, a Grid, and three small protocols."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from privacy.arrays import Arrays
from privacy.contract.plan import Plan
from privacy.ledger.ledger import Ledger
from privacy.secagg.parties import Roster
from server.rounds.messages import Answer
from server.rounds.run_folder import RunFolder
from server.rounds.site_grid import SiteGrid


class Interrupted(Exception):
    """The run ends here for a reason outside of it; `reason` is the outcome's."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Evaluator(Protocol):
    """The task's model, as far as a coordinator needs it."""

    def initial(self) -> Arrays:
        """The weights before the first round."""

    def evaluate(self, weights: Arrays) -> Mapping[str, float]:
        """Metrics of `weights` on public rows; empty where there are none."""


@dataclass(frozen=True, slots=True)
class Model:
    """An Evaluator made of two functions."""

    initial: Callable[[], Arrays]
    evaluate: Callable[[Arrays], Mapping[str, float]] = lambda weights: {}


class Heads(Protocol):
    """The counter-signed heads of the sites' ledgers (server/registry/heads.py)."""

    def last(self, site: str) -> Mapping[str, Any]:
        """The last head that was counter-signed for `site`."""

    def check(self, answers: Iterable[Answer]) -> None:
        """HeadError unless `accept` would take all their heads, in this order."""

    def accept(self, site: str, number: int, answer: Answer) -> None:
        """Verify the answer's proof and counter-sign its head; HeadError where it does not hold."""

    def flush(self) -> None:
        """Put the heads that were accepted on disk, before anybody is told of them."""


class Listener(Protocol):
    """Whoever follows a run: it decides which sites may be asked, and is told what happened."""

    def ready(
        self, grid: SiteGrid, number: int, declined: Mapping[str, Answer]
    ) -> Collection[str] | None:
        """The connected sites that may be asked in round `number`.

        `declined` holds each site's last refusal in this run. Blocks until enough sites can take
        part; None where they never can. Interrupted ends the run.
        """

    def absent(self) -> Mapping[str, Answer]:
        """Why sites are not asked in the round that `ready` was last called for."""

    def waiting(self) -> None:
        """Called several times a second while replies are awaited; Interrupted ends the run."""

    def on_answer(self, number: int, answer: Answer) -> None:
        """One site's answer, without its arrays."""

    def on_round(self, line: Mapping[str, Any]) -> None:
        """A complete round's line of the history, after its checkpoint is on disk."""


@dataclass(frozen=True, slots=True)
class Silent:
    """A Listener for a run without an audience; `report` is called with each complete round."""

    report: Callable[[Mapping[str, Any]], None] | None = None

    def ready(
        self, grid: SiteGrid, number: int, declined: Mapping[str, Answer]
    ) -> Collection[str] | None:
        able = set(grid.names().values()) - declined.keys()  # simulated owners stay with it
        return able if able or not declined else None

    def absent(self) -> Mapping[str, Answer]:
        return {}

    def waiting(self) -> None:
        return None

    def on_answer(self, number: int, answer: Answer) -> None:
        return None

    def on_round(self, line: Mapping[str, Any]) -> None:
        if self.report is not None:
            self.report(line)


@dataclass(frozen=True, slots=True)
class Attempts:
    """How patient a run is: nothing here is part of the contract with the sites.

    A round that too few sites trained is tried `most` times in all, after a `pause` in seconds
    that grows. A round waits `round_timeout` seconds for replies (None: as long as a site is
    connected); sites have `hand_out` seconds to fetch the released model at the end (0: none).
    """

    most: int = 1
    pause: float = 0.0
    round_timeout: float | None = None
    hand_out: float = 0.0


@dataclass(frozen=True, slots=True)
class Job:
    """One run; `ledger` is the coordinator's own, which pays where it adds the noise.

    `records_per_person` says, where it is known, how many records of one person a site holds at
    most: then the history states the epsilon of a person beside that of a record. `base` is the
    digest of the model's frozen part, which does not travel. `roster` has the verifying keys of the
    parties of secure aggregation where the plan does not name them, and `masks` is False where
    there are none: both in a simulation alone. `relays()` are those of the Grid's parties that
    pass sums of their own sites.
    """

    plan: Plan
    folder: RunFolder
    grid: SiteGrid
    evaluator: Evaluator
    heads: Heads | None = None
    listener: Listener = field(default_factory=Silent)
    ledger: Ledger | None = None
    attempts: Attempts = Attempts()
    records_per_person: Mapping[str, int] = field(default_factory=dict)
    base: str = ""
    roster: Roster = field(default_factory=dict)
    masks: bool = True
    relays: Callable[[], Collection[str]] = frozenset
