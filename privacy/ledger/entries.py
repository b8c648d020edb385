"""What the lines of a ledger and of its log mean, and whether a file of them is sound.

A ledger holds spends and nothing else, `{"v", "n", "run", "round", "plan", "event", "prev",
"digest"}`; its log `PATH.log` holds the population, the salt, and whatever else befell it.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from privacy.accounting.events import Event
from privacy.ledger.chain import ZERO, Chain, LedgerError, LedgerMissing, locked

NOTES: Final = (
    *("created", "contents", "schema", "policy", "day"),
    *("tail-dropped", "acknowledged", "recovered"),
)
"""What a log tells; `contents`: the data changed, `policy`: a limit was raised or lowered."""
_LONGEST_NAME: Final = 200
_HEX: Final = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: `event` was spent for round `round` of `run` under the plan of that digest."""

    n: int
    run: str
    round: int
    plan: str
    event: Event
    prev: str
    digest: str


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
    return Verified(tuple(chain.rows), chain.head, told(notes) or None)


def told(log: list[Note]) -> tuple[Note, ...]:
    """The log without the salt, which guards what the entries' leaves tell outside."""
    shown = [{k: v for k, v in note.details.items() if k != "salt"} for note in log]
    return tuple(replace(note, details=kept) for note, kept in zip(log, shown, strict=True))


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
    """The chain of spends; units never mix in it."""
    unit: list[str] = []

    def parse(n: int, body: Mapping[str, Any], prev: str, digest: str) -> Entry:
        _expect_keys(body, ("run", "round", "plan", "event"))
        event = Event.from_dict(body["event"])
        entry = Entry(n, body["run"], body["round"], body["plan"], event, prev, digest)
        if entry_body(entry.run, entry.round, entry.plan, event) != body:
            raise ValueError("event: expected its canonical spelling")
        if unit and unit[0] != event.unit:
            raise ValueError(f"event: units never mix, got {event.unit} after {unit[0]}")
        unit[:] = [event.unit]
        return entry

    return Chain(path, parse)


def log_chain(path: Path) -> Chain[Note]:
    """The chain of notes; the first one says `created`."""

    def parse(n: int, body: Mapping[str, Any], prev: str, digest: str) -> Note:
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


def entry_body(run: str, round: int, plan: str, event: Event) -> dict[str, Any]:
    """The middle of a ledger line; ValueError for what may not stand there."""
    for name, value in (("run", run), ("plan", plan)):
        if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_NAME:
            raise ValueError(f"{name}: expected 1 to {_LONGEST_NAME} characters, got {value!r:.80}")
    if not _is_count(round):
        raise ValueError(f"round: expected a whole number >= 0, got {round!r:.80}")
    fields = event.to_dict() | {"sigma": float(event.sigma), "rate": float(event.rate)}
    return {"run": run, "round": round, "plan": plan, "event": fields}


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
