"""The ledger: what was released of one population, written before it happens and never taken back.

Its key is the population, an id given once to the people in the data: every run, coordinator and
re-installation spends from the same file. `spend` holds the file's lock while it computes epsilon
of everything past and the next event, refuses above the limit without touching the file, and
returns only after the entry is on the disk. Beside `PATH` stands `PATH.log` with the population,
the salt of the two-sided chain (privacy/ledger/heads.py) and what happened to the ledger but
spending.
"""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import RLock
from typing import Final

from privacy.accounting.epsilon import spent, within
from privacy.accounting.events import Event
from privacy.accounting.segments import Budget
from privacy.ledger.chain import (
    ZERO,
    LedgerError,
    LedgerMissing,
    LedgerNotWritten,
    create_file,
    locked,
)
from privacy.ledger.entries import (
    Entry,
    Note,
    Verified,
    check_anchors,
    entry_body,
    ledger_chain,
    log_chain,
    log_path,
    note_body,
    told,
    verify,
)
from privacy.ledger.heads import GENESIS, Head, Proof, extends, fold, leaf

__all__ = [
    "Entry",
    "Exhausted",
    "Head",
    "Ledger",
    "LedgerError",
    "LedgerMissing",
    "LedgerNotWritten",
    "Note",
    "Standing",
    "Untrusted",
    "Verified",
    "extends",
    "log_path",
    "verify",
]

FULLY_SPENT: Final = "fully-spent"
"""The run that a ledger's closing entry names: a release without noise, of infinite epsilon."""


class Exhausted(LedgerError):
    """The next event would pass the limit; nothing was written."""


class Untrusted(LedgerError):
    """Its log remembers entries that the ledger no longer holds: a restored copy or a cut tail."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What a judgement needs of a ledger, in one look: all that was spent, in one run, on a day."""

    spent: tuple[Event, ...] = ()
    run: tuple[Event, ...] = ()
    rounds_today: int = 0


Counts = dict[tuple[str, float, float, int], int]


class Ledger:
    """One population's ledger, open for spending; safe between threads and between processes."""

    def __init__(self, path: Path, *, durable: bool) -> None:
        self.path = path
        self.durable = durable
        self._mutex = RLock()
        self._chain = ledger_chain(path)
        self._log = log_chain(log_path(path))
        self._heads: list[Head] = [GENESIS]
        self._leaves: list[str] = []
        self._merged: Counts = {}
        self._runs: dict[str, Counts] = {}
        self._day = (0, 0, set[tuple[str, int]]())  # from which entry, to which, rounds met
        self._steady = False

    @classmethod
    def create(cls, path: Path | str, *, population: str, durable: bool = True) -> "Ledger":
        """Start the ledger of a population that never released anything; never over another."""
        path = Path(path)
        for taken in (path, log_path(path)):
            if taken.exists() or taken.is_symlink():
                raise LedgerError(taken, "exists already; a ledger is never started again")
        _create_log(path, population, durable=durable)
        create_file(path, durable=durable)
        return cls.open(path, durable=durable)

    @classmethod
    def with_new_log(cls, path: Path, *, population: str, durable: bool = True) -> "Ledger":
        """The same entries under a new log and salt, where the old log is lost: for recovery."""
        _create_log(path, population, durable=durable)
        return cls.open(path, durable=durable)

    @classmethod
    def open(cls, path: Path | str, *, durable: bool = True) -> "Ledger":
        """Open and verify a ledger; LedgerMissing or LedgerError, never an empty start.

        `durable=False` leaves out fsync alone: safe against a kill, not against a power cut.
        """
        ledger = cls(Path(path), durable=durable)
        with ledger._reading():
            return ledger

    @property
    def population(self) -> str:
        """The id of the people in the data."""
        return str(self._log.rows[0].details["population"])

    @property
    def head(self) -> Head:
        """Where the two-sided chain stands."""
        with self._reading():
            return self._heads[-1]

    def entries(self) -> tuple[Entry, ...]:
        with self._reading():
            return tuple(self._chain.rows)

    def events(self, run: str | None = None) -> tuple[Event, ...]:
        """The events of all entries, or of one run."""
        return tuple(e.event for e in self.entries() if run is None or e.run == run)

    def notes(self) -> tuple[Note, ...]:
        """The log: every note, of the kinds of `NOTES`."""
        with self._reading():
            return told(self._log.rows)

    def merged(self, run: str | None = None) -> tuple[Event, ...]:
        """All events, or one run's, equal ones counted together: shorter than `events(run)`."""
        with self._reading():
            return self._past() if run is None else self._of(run)

    def standing(self, run: str, day: str) -> Standing:
        """What was spent: in all, in `run`, and on how many rounds of `day` (YYYY-MM-DD, UTC)."""
        with self._reading():
            return Standing(self._past(), self._of(run), self._rounds(day))

    def holds(self, entry: Entry) -> bool:
        """Whether this very entry stands in this ledger."""
        with self._reading():
            return 0 < entry.n <= len(self._chain.rows) and self._chain.rows[entry.n - 1] == entry

    def spent(self, delta: float, *, records: int = 1, accountant: str = "pld") -> float:
        """Epsilon at `delta` of everything that was ever spent."""
        return spent(self.merged(), delta, records=records, accountant=accountant)

    def spend(
        self,
        event: Event,
        limit: Budget | None,
        *,
        run: str,
        round: int,
        plan: str,
        records: int = 1,
    ) -> Entry:
        """Write `event` before it happens; Exhausted, the file byte-identical, above `limit`.

        The limit binds a group of `records` records of one subject. None counts without a limit.
        """
        (entry,) = self.spend_all([event], limit, run=run, round=round, plan=plan, records=records)
        return entry

    def spend_all(
        self,
        events: Sequence[Event],
        limit: Budget | None,
        *,
        run: str,
        round: int,
        plan: str,
        records: int = 1,
    ) -> tuple[Entry, ...]:
        """Spend the events of one round (its steps, its paid metrics) together or not at all."""
        if not events:
            return ()
        try:
            bodies = [entry_body(run, round, plan, event) for event in events]
        except ValueError as error:
            raise LedgerError(self.path, str(error)) from error
        with self._writing() as (fd, log_fd):
            self._check_trusted()
            past = self._past()
            if len(units := {event.unit for event in (*past, *events)}) > 1:
                raise LedgerError(self.path, f"event: units never mix, got {' and '.join(units)}")
            if limit is not None and not within((*past, *events), limit, records=records):
                asked = spent((*past, *events), limit.delta, records=records)
                raise Exhausted(
                    self.path,
                    f"spending would reach epsilon {asked:.6g} of {limit.epsilon:.6g} "
                    f"at delta {limit.delta:.3g}",
                )
            self._mark_day(log_fd)
            if torn := self._chain.torn:
                self._write_note(log_fd, "tail-dropped", {"bytes": len(torn)})
            first = len(self._chain.rows)
            self._chain.append(fd, bodies, durable=self.durable)
            self._advance()
            return tuple(self._chain.rows[first:])

    def leaves(self, since: int) -> tuple[str, ...]:
        """The salted digests of the entries after the n-th: what the other side folds."""
        with self._reading():
            return tuple(self._leaves[max(0, since) :])

    def supports(self, head: Head) -> bool:
        """Whether the ledger stood at `head` once, and so is an extension of it."""
        with self._reading():
            return self._supports(head)

    def proof(self, last: Head) -> Proof:
        """How the head is reached from the coordinator's `last`, or from an acknowledged break."""
        with self._reading():
            head = self._heads[-1]
            if self._supports(last):
                return Proof(last, tuple(self._leaves[last.n :]), head)
            for note in reversed(self._log.rows):
                if note.what == "acknowledged" and note.entries <= head.n:
                    base = self._heads[note.entries]
                    return Proof(base, tuple(self._leaves[base.n :]), head, acknowledged=True)
            return Proof(head, (), head)

    def note(self, what: str, **details: str | int) -> None:
        """Log a change other than spending, such as `contents` or `policy` (a raised limit)."""
        with self._writing() as (_, log_fd):
            self._write_note(log_fd, what, details)

    def acknowledge(self, reason: str) -> Head:
        """Declare, on the operator's word, that the ledger goes on from here despite lost entries.

        Ends the refusal of its own log, and of a coordinator, once; it stays in the log for good.
        """
        self.note("acknowledged", reason=reason, digest=self.head.digest)
        return self.head

    def rounds_on(self, day: str) -> int:
        """How many rounds were spent on since the log's first line of that UTC day (YYYY-MM-DD)."""
        with self._reading():
            return self._rounds(day)

    def trusted(self) -> bool:
        """Whether the ledger still holds every entry that its log remembers."""
        with self._reading():
            return check_anchors(self.path, self._chain.rows, self._log.rows) is None

    def close_fully_spent(self, reason: str) -> None:
        """Mark everything as spent: an entry without noise, whose epsilon is infinite."""
        unit = self._chain.rows[0].event.unit if self._chain.rows else "record"
        event = Event(unit, 0.0, 1.0, 1, 1)
        self.spend(event, None, run=FULLY_SPENT, round=0, plan=reason)

    @contextmanager
    def steady(self) -> Iterator[None]:
        """One look for all that is read within: nobody writes meanwhile, nor may its caller."""
        with self._reading():
            before, self._steady = self._steady, True
            try:
                yield
            finally:
                self._steady = before

    def _supports(self, head: Head) -> bool:
        return head.n < len(self._heads) and self._heads[head.n] == head

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._mutex:
            if self._steady:
                yield
                return
            with locked(self.path, write=False) as fd:
                with locked(self._log.path, write=False) as log_fd:
                    self._log.refresh(log_fd)
                self._chain.refresh(fd)
                self._advance()
                yield

    @contextmanager
    def _writing(self) -> Iterator[tuple[int, int]]:
        with self._mutex:
            if self._steady:
                raise LedgerError(self.path, "is read by the caller: nothing can be written")
            with (
                locked(self.path, write=True) as fd,
                locked(self._log.path, write=True) as log_fd,
            ):
                self._log.refresh(log_fd)
                self._chain.refresh(fd)
                self._advance()
                yield fd, log_fd

    def _advance(self) -> None:
        if not self._log.rows:
            raise LedgerError(self._log.path, "expected a line `created`", line=1)
        salt = bytes.fromhex(str(self._log.rows[0].details["salt"]))
        for entry in self._chain.rows[len(self._leaves) :]:
            self._leaves.append(leaf(salt, entry.digest))
            self._heads.append(fold(self._heads[-1], self._leaves[-1:]))
            event = entry.event
            key = (event.unit, event.sigma, event.rate, event.steps)
            for counts in (self._merged, self._runs.setdefault(entry.run, {})):
                counts[key] = counts.get(key, 0) + event.count

    def _past(self) -> tuple[Event, ...]:
        return tuple(Event(*key, count) for key, count in sorted(self._merged.items()))

    def _of(self, run: str) -> tuple[Event, ...]:
        """One run's events, merged, in the order in which they first came."""
        return tuple(Event(*key, count) for key, count in self._runs.get(run, {}).items())

    def _rounds(self, day: str) -> int:
        last = next((note for note in reversed(self._log.rows) if note.what == "day"), None)
        if last is None or last.details.get("day") != day:
            return 0
        first, seen, met = self._day
        if first != last.entries:
            first, seen, met = last.entries, last.entries, set()
        met |= {(e.run, e.round) for e in self._chain.rows[seen:]}
        self._day = (first, len(self._chain.rows), met)
        return len(met)

    def _check_trusted(self) -> None:
        if lost := check_anchors(self.path, self._chain.rows, self._log.rows):
            raise Untrusted(self.path, lost)

    def _mark_day(self, log_fd: int) -> None:
        today = datetime.now(UTC).date().isoformat()
        days = [note for note in self._log.rows if note.what == "day"]
        if not days or days[-1].details.get("day") != today:
            self._write_note(log_fd, "day", {"day": today})

    def _write_note(self, log_fd: int, what: str, details: Mapping[str, str | int]) -> None:
        try:
            body = note_body(what, _now(), len(self._chain.rows), self._chain.head, details)
        except ValueError as error:
            raise LedgerError(self._log.path, str(error)) from error
        self._log.append(log_fd, [body], durable=self.durable)


def _create_log(path: Path, population: str, *, durable: bool) -> None:
    if not isinstance(population, str) or not 0 < len(population) <= 200:
        raise LedgerError(path, f"population: expected 1 to 200 characters, got {population!r}")
    log = log_chain(log_path(path))
    create_file(log.path, durable=durable)
    details = {"population": population, "salt": secrets.token_hex(32)}
    with locked(log.path, write=True) as fd:
        log.append(fd, [note_body("created", _now(), 0, ZERO, details)], durable=durable)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
