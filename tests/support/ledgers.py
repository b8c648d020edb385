"""Ledgers for tests, and how a refused one looks."""

from pathlib import Path

import pytest

from privacy.accounting.events import Event
from privacy.accounting.segments import Budget
from privacy.ledger.ledger import Ledger, LedgerError, verify

EVENT = Event("record", 4.0, 0.1, 1)
LIMIT = Budget(3.0, 1e-5)


def filled(path: Path, entries: int = 3) -> Ledger:
    ledger = Ledger.create(path, population="people", durable=False)
    for number in range(1, entries + 1):
        ledger.spend(EVENT, LIMIT, run="run", round=number, plan="p" * 64)
    return ledger


def refused(path: Path, content: bytes) -> LedgerError:
    """The content is refused by verify, by open, and by a ledger that was open before."""
    path.write_bytes(content)
    with pytest.raises(LedgerError) as error:
        verify(path)
    with pytest.raises(LedgerError):
        Ledger.open(path)
    assert path.read_bytes() == content
    return error.value


def spend(ledger: Ledger) -> object:
    return ledger.spend(EVENT, LIMIT, run="run", round=9, plan="p")
