"""The queue: every run that was proposed or submitted, the sites' answers to it, and its log.

One SQLite file in the coordinator's folder (write-ahead log, full fsync). Every change is one
transaction, so that a kill at any moment leaves the state before or after it. Commands and the
resident coordinator share the file; a command never talks to the coordinator in another way.
"""

import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from privacy.contract.plan import Plan
from privacy.contract.plan_file import parse

FILE: Final = "queue.sqlite"
VERSION: Final = 2
STATES: Final = (
    "proposed",
    "queued",
    "waiting",
    "running",
    "paused",
    "stopped",
    "done",
    "budget",
    "failed",
)
DUE: Final = ("running", "waiting", "queued")
"""The states in which the coordinator may play a run, the most urgent first."""

_ANSWERS: Final = (
    "SELECT site, status, reason, round, rounds, time, ledger FROM answers WHERE digest = ?"
)
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS runs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    plan TEXT NOT NULL,
    digest TEXT NOT NULL,
    data TEXT,
    after TEXT,
    at REAL NOT NULL,
    parent TEXT,
    state TEXT NOT NULL,
    request TEXT NOT NULL DEFAULT '',
    detail TEXT NOT NULL DEFAULT '',
    created REAL NOT NULL,
    changed REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS answers (
    digest TEXT NOT NULL,
    site TEXT NOT NULL,
    status TEXT NOT NULL,
    reason TEXT NOT NULL,
    round INTEGER NOT NULL,
    rounds INTEGER NOT NULL,
    time REAL NOT NULL,
    ledger TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (digest, site)
);
CREATE TABLE IF NOT EXISTS log (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    time REAL NOT NULL,
    run TEXT NOT NULL,
    event TEXT NOT NULL,
    facts TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS log_of_run ON log (run, number);
"""


class QueueError(ValueError):
    """A request that the queue cannot serve: one line."""


@dataclass(frozen=True, slots=True)
class Submission:
    """One row of the queue. `at` and the times are seconds since the epoch.

    `request` is "", "pause" or "stop": what an operator asked of a run that is being played.
    `after` names a run that must be done first, `parent` a run whose model this one starts from.
    """

    number: int
    name: str
    plan: Plan
    state: str
    data: str | None = None
    after: str | None = None
    at: float = 0.0
    parent: str | None = None
    request: str = ""
    detail: str = ""
    created: float = 0.0
    changed: float = 0.0


@dataclass(frozen=True, slots=True)
class SiteAnswer:
    """A site's last answer to a plan: `rounds` more rounds, counted from `round`, fit its budgets.

    `status` is "approved", "declined" or "failed"; `reason` a code; `ledger` tells which of the
    site's ledgers pays ("": its first).
    """

    site: str
    status: str
    reason: str
    round: int
    rounds: int
    time: float
    ledger: str = ""


class Queue:
    """The queue of one coordinator's folder; safe between processes and between threads."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        os.close(descriptor)
        with self._transaction() as database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version not in (0, 1, VERSION):
                raise QueueError(f"{self.path}: version must be {VERSION}, got {version}")
            if version == 1:
                database.execute("ALTER TABLE answers ADD COLUMN ledger TEXT NOT NULL DEFAULT ''")
            for statement in _SCHEMA.split(";"):  # executescript would end the transaction
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {VERSION}")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            database = sqlite3.connect(self.path, timeout=30.0, isolation_level=None)
            try:
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("PRAGMA synchronous = FULL")
                database.execute("BEGIN IMMEDIATE")
                yield database
                if database.in_transaction:
                    database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise
            finally:
                database.close()
        except sqlite3.DatabaseError as error:
            raise OSError(f"{self.path}: {error}") from None

    def add(
        self,
        name: str,
        plan: Plan,
        *,
        state: str = "queued",
        data: str | None = None,
        after: str | None = None,
        at: float = 0.0,
        parent: str | None = None,
    ) -> Submission:
        """One more run at the end of the queue; QueueError where the name is taken."""
        now = time.time()
        row = (name, _text(plan), plan.digest, data, after, at, parent, state, now, now)
        with self._transaction() as database:
            for other in (after, parent):
                if other is not None and not _exists(database, other):
                    raise QueueError(f"{other}: must be a run of this coordinator, found none")
            if _exists(database, name):
                raise QueueError(f"{name}: a run of this name exists; choose another --name")
            database.execute(
                "INSERT INTO runs (name, plan, digest, data, after, at, parent, state, created,"
                " changed) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
        return self.find(name)

    def submit(
        self, name: str, *, data: str | None, after: str | None, at: float, parent: str | None
    ) -> None:
        """Queue what was proposed."""
        with self._transaction() as database:
            for other in (after, parent):
                if other is not None and not _exists(database, other):
                    raise QueueError(f"{other}: must be a run of this coordinator, found none")
            database.execute(
                "UPDATE runs SET state = 'queued', data = ?, after = ?, at = ?, parent = ?,"
                " changed = ? WHERE name = ? AND state = 'proposed'",
                (data, after, at, parent, time.time(), name),
            )

    def take(self, name: str, plan: Plan, *, exists: bool, resume: bool) -> Submission:
        """A run for the foreground: a new one, or with `resume` one that goes on.

        `exists` says whether it has a folder: a run of before there was a queue is added to it.
        """
        known = next((one for one in self.runs() if one.name == name), None)
        if known is None:
            if exists and not resume:
                raise QueueError(f"{name}: this run exists, use --resume or another --name")
            return self.add(name, plan, state="running")
        if exists and not resume:
            raise QueueError(f"{name}: this run exists, use --resume or another --name")
        self.operate(name, plan)
        self.move(name, "running")
        return self.find(name)

    def runs(self) -> list[Submission]:
        """Every run, in the order in which they came."""
        with self._transaction() as database:
            return [_submission(row) for row in database.execute(_SELECT + " ORDER BY number")]

    def find(self, name: str) -> Submission:
        """The run of this name; QueueError."""
        with self._transaction() as database:
            row = database.execute(_SELECT + " WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise QueueError(f"{name}: must be a run of this coordinator (tacit-server runs)")
        return _submission(row)

    def move(self, name: str, state: str, detail: str = "") -> None:
        """Set a run's state; an operator's request is served with it."""
        if state not in STATES:
            raise ValueError(f"state must be one of {', '.join(STATES)}, got {state}")
        with self._transaction() as database:
            database.execute(
                "UPDATE runs SET state = ?, detail = ?, request = '', changed = ? WHERE name = ?",
                (state, detail[:1000], time.time(), name),
            )

    def operate(self, name: str, plan: Plan) -> None:
        """Change a run's `[operation]`; the contract must stay the same."""
        with self._transaction() as database:
            changed = database.execute(
                "UPDATE runs SET plan = ? WHERE name = ? AND digest = ?",
                (_text(plan), name, plan.digest),
            )
            if not changed.rowcount:
                raise QueueError(
                    f"{name}: was submitted under another plan, only [operation] may change"
                )

    def ask(self, name: str, request: str) -> Submission:
        """Pause, stop or resume a run: at once where it is not being played; else on request."""
        with self._transaction() as database:
            row = database.execute(_SELECT + " WHERE name = ?", (name,)).fetchone()
            if row is None:
                raise QueueError(f"{name}: must be a run of this coordinator (tacit-server runs)")
            state = _submission(row).state
            allowed = _REQUESTS[request]
            if state not in allowed:
                raise QueueError(f"{name}: is {state}, must be {' or '.join(sorted(allowed))}")
            after = allowed[state]
            if after is None:
                change: tuple[str, str] = (state, request)
            else:
                change = (after, "")
            database.execute(
                "UPDATE runs SET state = ?, request = ?, changed = ? WHERE name = ?",
                (*change, time.time(), name),
            )
        return self.find(name)

    def answers(self, digest: str) -> dict[str, SiteAnswer]:
        """The sites' last answers to a plan."""
        with self._transaction() as database:
            rows = database.execute(f"{_ANSWERS} ORDER BY site", (digest,)).fetchall()
        return {row[0]: SiteAnswer(*row) for row in rows}

    def ledger_of(self, digest: str, site: str) -> str:
        """Which of its ledgers a site said that a plan is paid from."""
        with self._transaction() as database:
            row = database.execute(f"{_ANSWERS} AND site = ?", (digest, site)).fetchone()
        return "" if row is None else SiteAnswer(*row).ledger

    def answer(self, digest: str, answer: SiteAnswer) -> bool:
        """Store a site's answer; True where it says something else than the last one."""
        row = (digest, answer.site, answer.status, answer.reason, answer.round, answer.rounds)
        with self._transaction() as database:
            before = database.execute(
                "SELECT status, reason, round + rounds FROM answers WHERE digest = ? AND site = ?",
                (digest, answer.site),
            ).fetchone()
            database.execute(
                "INSERT OR REPLACE INTO answers (digest, site, status, reason, round, rounds, time,"
                " ledger) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (*row, answer.time, answer.ledger),
            )
        return bool(before != (answer.status, answer.reason, answer.round + answer.rounds))

    def note(self, run: str, event: str, facts: Mapping[str, Any]) -> None:
        """Append a line to a run's log."""
        with self._transaction() as database:
            database.execute(
                "INSERT INTO log (time, run, event, facts) VALUES (?, ?, ?, ?)",
                (time.time(), run, event, json.dumps(dict(facts), default=str)),
            )

    def log(self, run: str, after: int = 0) -> list[tuple[int, float, str, dict[str, Any]]]:
        """The lines of a run's log after line `after`: number, time, event, facts."""
        with self._transaction() as database:
            rows = database.execute(
                "SELECT number, time, event, facts FROM log WHERE run = ? AND number > ?"
                " ORDER BY number",
                (run, after),
            ).fetchall()
        return [(number, when, event, json.loads(facts)) for number, when, event, facts in rows]


_SELECT: Final = (
    "SELECT number, name, plan, state, data, after, at, parent, request, detail, created, changed"
    " FROM runs"
)

_REQUESTS: Final[Mapping[str, Mapping[str, str | None]]] = {
    "pause": {"running": None, "queued": "paused", "waiting": "paused"},
    "stop": {
        "running": None,
        "queued": "stopped",
        "waiting": "stopped",
        "paused": "stopped",
        "proposed": "stopped",
    },
    "resume": {"paused": "queued", "stopped": "queued", "failed": "queued", "budget": "queued"},
}
"""For each request the states in which it can be served, and the state that follows at once.

None: the run is being played, and the coordinator serves the request.
"""


def _exists(database: sqlite3.Connection, name: str) -> bool:
    return database.execute("SELECT 1 FROM runs WHERE name = ?", (name,)).fetchone() is not None


def _submission(row: tuple[Any, ...]) -> Submission:
    number, name, text, *others = row
    return Submission(number, name, _plan(text), *others)


def _text(plan: Plan) -> str:
    return json.dumps(plan.to_dict())


@lru_cache(maxsize=64)
def _plan(text: str) -> Plan:
    return parse(json.loads(text))
