"""The ledger: what was released of one population, written before it happens and never taken back.

Its key is the population, an id given once to the people in the data: every run, coordinator and
re-installation spends from the same file. `spend` holds the file's lock while it computes epsilon
of everything past and the next event, refuses above the limit without touching the file, and
returns only after the entry is on the disk. Beside `PATH` stand `PATH.log` with the population, the
salt of the two-sided chain (privacy/ledger/heads.py) and other events, and `PATH.anchor`, against a
file that was cut (privacy/ledger/anchor.py). docs/ledger.md describes all three.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import RLock
from typing import Any, Final

from privacy.accounting.epsilon import spent
from privacy.accounting.events import Event
from privacy.accounting.segments import Budget
from privacy.ledger import anchor
from privacy.ledger.chain import (
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
    create_log,
    entry_body,
    ledger_chain,
    log_chain,
    log_path,
    note_body,
    now,
    verify,
    without_salt,
)
from privacy.ledger.heads import GENESIS, Head, Proof, extends, fold, leaf
from privacy.ledger.totals import SpendingState, Totals, exceeded

__all__ = [
    "Entry",
    "Exhausted",
    "Head",
    "Ledger",
    "LedgerError",
    "LedgerMissing",
    "LedgerNotWritten",
    "Note",
    "SpendingState",
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
    """Its log or anchor remembers entries that are no longer there: an old copy or a cut tail."""


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
        self._totals = Totals()
        self._snapshot = False

    @classmethod
    def create(cls, path: Path | str, *, population: str, durable: bool = True) -> "Ledger":
        """Start the ledger of a population that never released anything; never over another."""
        path = Path(path)
        for taken in (path, log_path(path), anchor.anchor_path(path)):
            if taken.exists() or taken.is_symlink():
                raise LedgerError(taken, "exists already; a ledger is never started again")
        create_log(path, population, durable=durable)
        anchor.create(path, durable=durable)
        create_file(path, durable=durable)
        ledger = cls(path, durable=durable)
        with ledger._writing() as (_, log_fd):
            ledger._anchor(log_fd, ())
        return ledger

    @classmethod
    def with_new_log(cls, path: Path, *, population: str, durable: bool = True) -> "Ledger":
        """The same entries under a new log and salt, where the old log is lost: for recovery."""
        create_log(path, population, durable=durable)
        return cls.open(path, durable=durable)

    @classmethod
    def open(cls, path: Path | str, *, durable: bool = True) -> "Ledger":
        """Open and verify a ledger; LedgerMissing or LedgerError, never an empty start.

        `durable=False` leaves out fsync alone: safe against a kill, not against a power cut.
        """
        ledger = cls(Path(path), durable=durable)
        with ledger._reading():
            incomplete = ledger._unwritten()
        if incomplete:
            with ledger._writing() as (fd, _):
                ledger._complete(fd)
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
            return without_salt(self._log.rows)

    def merged(self, run: str | None = None, *, coordinator: str = "") -> tuple[Event, ...]:
        """All events, or those of a coordinator's run, equal ones counted together."""
        with self._reading():
            if run is None:
                return self._totals.past(self._log.rows)
            return self._totals.of(run, coordinator)

    def spending_state(self, run: str, day: str, *, coordinator: str = "") -> SpendingState:
        """What was spent: in all, in the coordinator's `run`, and in how many rounds of `day`.

        `day` is YYYY-MM-DD in UTC. Another coordinator's run of the same name does not count.
        """
        with self._reading():
            return SpendingState(
                self._totals.past(self._log.rows),
                self._totals.of(run, coordinator),
                self._totals.rounds(day, self._chain.rows, self._log.rows),
            )

    def contains(self, entry: Entry) -> bool:
        """Whether this very entry stands in this ledger."""
        with self._reading():
            return 0 < entry.n <= len(self._chain.rows) and self._chain.rows[entry.n - 1] == entry

    def spent(self, delta: float, *, records: int | None = None, accountant: str = "pld") -> float:
        """Epsilon at `delta` of everything that was ever spent.

        Each release counts for the records that a person had then; `records` asks for another.
        """
        return spent(self.merged(), delta, records=records, accountant=accountant)

    def spend(
        self,
        event: Event,
        limit: Budget | None,
        *,
        run: str,
        round: int,
        plan: str,
        records: int | None = None,
        coordinator: str = "",
    ) -> Entry:
        """Write `event` before it happens; Exhausted, the file byte-identical, above `limit`.

        `records` is how many records one person has in the data (else the event says it): the
        limit binds them together, and the entry holds it for good. None counts without a limit.
        """
        (entry,) = self.spend_all(
            *([event], limit),
            run=run,
            round=round,
            plan=plan,
            records=records,
            coordinator=coordinator,
        )
        return entry

    def spend_all(
        self,
        events: Sequence[Event],
        limit: Budget | None,
        *,
        run: str,
        round: int,
        plan: str,
        records: int | None = None,
        coordinator: str = "",
        alone: Budget | None = None,
    ) -> tuple[Entry, ...]:
        """Spend the events of one round (its steps, its paid metrics) together or not at all.

        `alone` limits what is spent where all other parties of secure aggregation collude.
        """
        if not events:
            return ()
        if records is not None:
            events = [event.for_records(records) for event in events]
        try:
            bodies = [
                entry_body(run, round, plan, event, coordinator=coordinator) for event in events
            ]
        except ValueError as error:
            raise LedgerError(self.path, str(error)) from error
        with self._writing() as (fd, log_fd):
            self._check_trusted()
            self._complete(fd)
            past = self._totals.past(self._log.rows)
            if len(units := {event.unit for event in (*past, *events)}) > 1:
                raise LedgerError(
                    self.path, f"holds {past[0].unit} events; cannot add others ({sorted(units)})"
                )
            if (text := exceeded(past, events, limit, alone)) is not None:
                raise Exhausted(self.path, text)
            self._mark_day(log_fd)
            if torn := self._chain.torn:
                self._write_note(log_fd, "tail-dropped", {"bytes": len(torn)})
            first = len(self._chain.rows)
            self._anchor(log_fd, bodies)
            try:
                self._chain.append(fd, bodies, durable=self.durable)
            except LedgerNotWritten:
                with suppress(LedgerError):  # nothing will be released: nothing is to be completed
                    anchor.write(self.path, self._chain, (), again=True)
                raise
            self._advance()
            return tuple(self._chain.rows[first:])

    def leaves(self, since: int) -> tuple[str, ...]:
        """The salted digests of the entries after the n-th: what the other side folds."""
        with self._reading():
            return tuple(self._leaves[max(0, since) :])

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
        with self._writing() as (_, log_fd):
            details = {"reason": reason, "digest": self._heads[-1].digest}
            self._write_note(log_fd, "acknowledged", details)
            self._anchor(log_fd, ())
        return self.head

    def trusted(self) -> bool:
        """Whether the ledger still holds every entry that its log and its anchor remember."""
        with self._reading():
            return self._lost() is None

    def close_fully_spent(self, reason: str) -> None:
        """Mark everything as spent: an entry without noise, whose epsilon is infinite."""
        unit = self._chain.rows[0].event.unit if self._chain.rows else "record"
        event = Event(unit, 0.0, 1.0, 1)
        self.spend(event, None, run=FULLY_SPENT, round=0, plan=reason)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """One view for all that is read within: nobody writes meanwhile, nor may its caller."""
        with self._reading():
            before, self._snapshot = self._snapshot, True
            try:
                yield
            finally:
                self._snapshot = before

    def _supports(self, head: Head) -> bool:
        return head.n < len(self._heads) and self._heads[head.n] == head

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._mutex:
            if self._snapshot:
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
            if self._snapshot:
                raise LedgerError(self.path, "is being read by the caller: nothing can be written")
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
            self._totals.add(entry)

    def _lost(self) -> str | None:
        """What the log or the anchor remembers and the ledger no longer holds, or None."""
        if lost := check_anchors(self.path, self._chain.rows, self._log.rows):
            return lost
        if not self._anchored():
            return None
        return anchor.lost(anchor.read(self.path), self.path, self._chain.rows)

    def _anchored(self) -> bool:
        return any(note.what == "anchored" for note in self._log.rows)

    def _anchor(self, log_fd: int, bodies: Sequence[Mapping[str, Any]]) -> None:
        """Write down where the ledger stands and what will be appended; a 0.1.0 ledger's first."""
        if not anchor.anchor_path(self.path).exists():
            anchor.create(self.path, durable=self.durable)
        if not self._anchored():
            self._write_note(log_fd, "anchored", {})
        anchor.write(self.path, self._chain, bodies)

    def _unwritten(self) -> tuple[Mapping[str, Any], ...]:
        """The last spend, where a crash or a cut left the ledger exactly without it."""
        last = anchor.read(self.path) if self._anchored() else None
        if last is None or (last.n, last.head) != (len(self._chain.rows), self._chain.head):
            return ()
        return last.pending

    def _complete(self, fd: int) -> None:
        """Append what was about to be spent and is not there: it may have been released."""
        if pending := self._unwritten():
            self._chain.append(fd, pending, durable=self.durable)
            self._advance()

    def _check_trusted(self) -> None:
        if lost := self._lost():
            raise Untrusted(self.path, lost)

    def _mark_day(self, log_fd: int) -> None:
        today = datetime.now(UTC).date().isoformat()
        days = [note for note in self._log.rows if note.what == "day"]
        if not days or days[-1].details.get("day") != today:
            self._write_note(log_fd, "day", {"day": today})

    def _write_note(self, log_fd: int, what: str, details: Mapping[str, str | int]) -> None:
        try:
            body = note_body(what, now(), len(self._chain.rows), self._chain.head, details)
        except ValueError as error:
            raise LedgerError(self._log.path, str(error)) from error
        self._log.append(log_fd, [body], durable=self.durable)
