"""What the lines of a ledger and of its log mean, and whether a file of them is sound.

A ledger holds spends and nothing else, `{"v", "n", "run", "round", "plan", "coordinator", "event",
"prev", "digest"}` (version 1, of 0.1.0, has no coordinator and five keys of the event); its log
`PATH.log` holds the population, the salt, and other events.
"""

import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from privacy.accounting.events import Event
from privacy.ledger import anchor
from privacy.ledger.chain import (
    NEWEST,
    VERSION,
    ZERO,
    Chain,
    LedgerError,
    LedgerMissing,
    create_file,
    locked,
)

NOTES: Final = (
    *("created", "contents", "schema", "policy", "day"),
    *("tail-dropped", "acknowledged", "recovered", "anchored"),
)
"""What a log tells; `contents`: the data changed, `policy`: a limit or the cap was changed,
`anchored`: from here on the ledger has an anchor, and is refused without it."""
_LONGEST_NAME: Final = 200
_LARGEST_ROUND: Final = 10**9
_HEX: Final = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: `event` was spent for round `round` of `run` under the plan of that digest.

    `coordinator` is the verifying key of who asked; empty in a simulation and in version 1, which
    does not know how many records a person had either (`event.records` is 1 there).
    """

    n: int
    run: str
    round: int
    plan: str
    event: Event
    prev: str
    digest: str
    coordinator: str = ""
    version: int = NEWEST


@dataclass(frozen=True, slots=True)
class Note:
    """A line of the log: what happened when the ledger held `entries` entries ending in `head`."""

    what: str
    at: str
    entries: int
    head: str
    details: Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class Verified:
    """A sound ledger file, and its log where there is one."""

    entries: tuple[Entry, ...]
    digest: str
    log: tuple[Note, ...] | None

    @property
    def events(self) -> tuple[Event, ...]:
        return tuple(entry.event for entry in self.entries)


def log_path(path: Path) -> Path:
    """The side-car of a ledger."""
    return path.with_name(path.name + ".log")


def verify(path: Path | str, *, log: bool = True) -> Verified:
    """Check a ledger file, and its log where there is one; LedgerError says line and field."""
    path = Path(path)
    chain = ledger_chain(path)
    with locked(path, write=False) as fd:
        chain.refresh(fd)
        anchored = anchor.anchor_path(path).exists()
        last = anchor.read(path) if anchored else None
    if chain.incomplete:
        raise LedgerError(path, chain.incomplete, line=len(chain.rows) + 1)
    notes: list[Note] = []
    if log:
        beside = log_chain(log_path(path))
        with suppress(LedgerMissing), locked(beside.path, write=False) as fd:
            beside.refresh(fd)
        notes = beside.rows
    if notes and (lost := check_anchors(path, chain.rows, notes)):
        raise LedgerError(path, lost, line=len(chain.rows) + 1)
    if log and anchored and (lost := anchor.lost(last, path, chain.rows)):
        raise LedgerError(path, lost, line=len(chain.rows) + 1)
    return Verified(tuple(chain.rows), chain.head, without_salt(notes) or None)


def without_salt(log: list[Note]) -> tuple[Note, ...]:
    """The log without the salt, which guards what the entries' leaves tell outside."""
    shown = [{k: v for k, v in note.details.items() if k != "salt"} for note in log]
    return tuple(replace(note, details=details) for note, details in zip(log, shown, strict=True))


def check_anchors(path: Path, entries: list[Entry], log: list[Note]) -> str | None:
    """What the log remembers and the ledger lost since the last acknowledgement, or None."""
    for note in reversed(log):
        seen = entries[note.entries - 1].digest if 0 < note.entries <= len(entries) else ZERO
        if note.entries > len(entries) or seen != note.head:
            return (
                f"holds {len(entries)} entries, but {log_path(path).name} saw {note.entries} "
                f"ending in {note.head[:16]}: an older copy, a cut tail or another ledger's log"
            )
        if note.what == "acknowledged":
            break
    return None


def ledger_chain(path: Path) -> Chain[Entry]:
    """The chain of spends: all of one unit, lines of version 1 before those of version 2."""
    unit: list[str] = []
    newest = [VERSION]

    def parse(version: int, n: int, body: Mapping[str, Any], prev: str, digest: str) -> Entry:
        keys: tuple[str, ...] = ("run", "round", "plan", "event")
        if version == NEWEST:
            keys = ("run", "round", "plan", "coordinator", "event")
        _expect_keys(body, keys)
        event = Event.from_dict(body["event"])
        if version < newest[0]:
            raise ValueError(f"v must be {newest[0]} after a line of that version, got {version}")
        run, number, plan = body["run"], body["round"], body["plan"]
        by = body.get("coordinator", "")
        entry = Entry(n, run, number, plan, event, prev, digest, by, version)
        if entry_body(run, number, plan, event, coordinator=by, version=version) != body:
            raise ValueError("event must be in its canonical spelling")
        if unit and unit[0] != event.unit:
            raise ValueError(
                f"event: this ledger holds {unit[0]} events; cannot add a {event.unit} event"
            )
        unit[:], newest[0] = [event.unit], version
        return entry

    return Chain(path, parse, NEWEST)


def log_chain(path: Path) -> Chain[Note]:
    """The chain of notes; the first one says `created`."""

    def parse(version: int, n: int, body: Mapping[str, Any], prev: str, digest: str) -> Note:
        if version != VERSION:
            raise ValueError(f"v must be {VERSION} in a log, got {version}")
        _expect_keys(body, ("what", "at", "entries", "head", "details"))
        if body["what"] not in NOTES or (body["what"] == "created") != (n == 1):
            raise ValueError(f"what: expected one of {', '.join(NOTES)}, got {body['what']!r}")
        entries, head, details = body["entries"], body["head"], body["details"]
        if not _is_count(entries) or not isinstance(body["at"], str) or not _is_hex(head):
            raise ValueError("note: expected a time, a number of entries and their head")
        if not isinstance(details, dict) or not all(
            isinstance(value, str) or _is_count(value) for value in details.values()
        ):
            raise ValueError("details: expected texts and whole numbers")
        if n == 1 and not (
            isinstance(details.get("population"), str) and _is_hex(details.get("salt"))
        ):
            raise ValueError("details: expected a population and a salt")
        return Note(body["what"], body["at"], entries, head, details)

    return Chain(path, parse)


def entry_body(
    run: str,
    round: int,
    plan: str,
    event: Event,
    *,
    coordinator: str = "",
    version: int = NEWEST,
) -> dict[str, Any]:
    """The middle of a ledger line; ValueError for what may not stand there."""
    for name, value in (("run", run), ("plan", plan)):
        if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_NAME:
            raise ValueError(f"{name} must have 1 to {_LONGEST_NAME} characters, got {value!r:.80}")
    if not _is_count(round) or round > _LARGEST_ROUND:
        raise ValueError(
            f"round must be an integer >= 0 and <= {_LARGEST_ROUND}, got {round!r:.80}"
        )
    reals = {"sigma": float(event.sigma), "rate": float(event.rate)}
    if version == VERSION:
        fields = event.to_dict_of_0_1() | reals
        return {"run": run, "round": round, "plan": plan, "event": fields}
    if not isinstance(coordinator, str) or len(coordinator) > _LONGEST_NAME:
        raise ValueError(f"coordinator must be a verifying key or empty, got {coordinator!r:.80}")
    fields = event.to_dict() | reals | {"sensitivity": float(event.sensitivity)}
    return {"run": run, "round": round, "plan": plan, "coordinator": coordinator, "event": fields}


def note_body(
    what: str, at: str, entries: int, head: str, details: Mapping[str, str | int]
) -> dict[str, Any]:
    """The middle of a log line."""
    if what not in NOTES:
        raise ValueError(f"what: expected one of {', '.join(NOTES)}, got {what!r}")
    return {"what": what, "at": at, "entries": entries, "head": head, "details": dict(details)}


def _expect_keys(body: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    if tuple(body) != keys:
        raise ValueError(f"expected the keys v, n, {', '.join(keys)}, prev, digest in this order")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_hex(value: object) -> bool:
    return isinstance(value, str) and _HEX.match(value) is not None


def create_log(path: Path, population: str, *, durable: bool) -> None:
    """Start a ledger's log: the population and a secret salt."""
    if not isinstance(population, str) or not 0 < len(population) <= 200:
        raise LedgerError(path, f"population: must have 1 to 200 characters, got {population!r}")
    log = log_chain(log_path(path))
    create_file(log.path, durable=durable)
    details = {"population": population, "salt": secrets.token_hex(32)}
    with locked(log.path, write=True) as fd:
        log.append(fd, [note_body("created", now(), 0, ZERO, details)], durable=durable)


def now() -> str:
    """The time in UTC, as the log tells it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
