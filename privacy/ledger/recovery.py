"""After a lost disk: a ledger from what the coordinator counter-signed, or one that is closed.

A coordinator keeps, for each site, a line for every head that it counter-signed: the leaves since
the one before, and the events of its own run so far. Where the known events account for every entry
of the last head, the count is rebuilt from them; one entry that nobody can name, and the ledger is
marked fully spent. Guessing low is the one thing that must not happen.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from privacy.accounting.events import Event, EventError
from privacy.accounting.segments import merge
from privacy.ledger.anchor import anchor_path
from privacy.ledger.entries import log_path, verify
from privacy.ledger.heads import GENESIS, Head, HeadError, extends, payload
from privacy.ledger.ledger import Ledger, LedgerError

Known = tuple[tuple[str, Event], ...]
"""Runs and what each of them spent."""

Verify = Callable[[bytes, bytes], bool]
"""(payload, signature) -> whether a coordinator that the site knows signed it."""


class RecoveryError(ValueError):
    """A record that is not one coordinator's chain of counter-signed heads."""


def known_events(records: Sequence[Sequence[Mapping[str, Any]]], verify: Verify) -> Known | None:
    """What the coordinators' records (each one's lines, in order) show to be spent.

    None where they leave an entry without its event. Where a site's operator acknowledged a break,
    both sides of it count: more than was spent perhaps, never less.
    """
    runs: list[dict[str, tuple[Event, ...]]] = []
    entries = 0
    for lines in records:
        last, current = GENESIS, dict[str, tuple[Event, ...]]()
        for number, line in enumerate(lines, start=1):
            try:
                base, head, broken = _step(line, verify)
                events = tuple(Event.from_dict(event) for event in line["events"])
                run = line["run"]
            except (KeyError, TypeError, ValueError) as error:
                raise RecoveryError(f"record line {number}: {error}") from None
            if base != last:
                if not broken:
                    raise RecoveryError(f"record line {number}: does not follow the line before")
                runs.append(dict(current))
            current[run] = events
            last, entries = head, max(entries, head.n)
        runs.append(current)
    known = tuple((run, event) for one in runs for run, events in one.items() for event in events)
    return known if sum(event.count for _, event in known) >= entries > 0 else None


def recover(path: Path, *, population: str, known: Known | None, durable: bool = True) -> Ledger:
    """A ledger where there is none that can be trusted; what is left of the old one is kept aside.

    A ledger that is sound but for its log keeps its entries. Either way the break is acknowledged
    in the new log. Until all is counted again there is no ledger of that name to spend from.
    """
    lost = _what_is_lost(path)
    if lost is None:
        raise LedgerError(path, "is sound: there is nothing to recover")
    if lost == log_path(path):
        _put_aside(lost)
        ledger = Ledger.with_new_log(path, population=population, durable=durable)
        _finish(ledger, "entries kept")
        return ledger
    making = path.with_name(f".{path.name}.recovering")
    for stale in (making, log_path(making), anchor_path(making)):
        stale.unlink(missing_ok=True)
    ledger = Ledger.create(making, population=population, durable=durable)
    _finish(ledger, _refill(ledger, known))
    for old in (path, log_path(path), anchor_path(path)):
        _put_aside(old)
    log_path(making).rename(log_path(path))
    anchor_path(making).rename(anchor_path(path))
    making.rename(path)
    return Ledger.open(path, durable=durable)


def _step(line: Mapping[str, Any], verify: Verify) -> tuple[Head, Head, bool]:
    """One counter-signed step: from which head, to which, and whether over a break."""
    base, head = Head.from_dict(line["base"]), Head(line["n"], line["digest"])
    if not extends(base, line["leaves"], head):
        raise HeadError("its leaves do not lead to its head")
    if not verify(payload(line["site"], head), bytes.fromhex(line["signature"])):
        raise HeadError("signature: not by a coordinator that this site knows")
    if not isinstance(line["run"], str) or not isinstance(line["events"], list):
        raise EventError("run, events: expected a text and a list")
    return base, head, bool(line["acknowledged"])


def _finish(ledger: Ledger, result: str) -> None:
    ledger.note("recovered", result=result)
    ledger.acknowledge("recovered")


def _what_is_lost(path: Path) -> Path | None:
    """The file that cannot be used: the ledger, its log alone, or neither."""
    try:
        return None if Ledger.open(path).trusted() else path
    except LedgerError as error:
        if error.path != str(log_path(path)):
            return path
    try:
        verify(path, log=False)
    except LedgerError:
        return path
    return log_path(path)


def _put_aside(path: Path) -> None:
    if path.exists() or path.is_symlink():
        path.rename(path.with_name(f"{path.name}.lost-{time.time_ns()}"))


def _refill(ledger: Ledger, known: Known | None) -> str:
    if known is None or not merge(event for _, event in known):
        ledger.close_fully_spent("the events are not known")
        return "fully spent"
    for run, event in known:
        ledger.spend(event, None, run=run, round=0, plan="recovered")
    return f"{len(known)} entries from the coordinator's record"
