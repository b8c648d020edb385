"""The smallest ledgers and logs, and the exact bytes that a coordinator signs."""

import math
from pathlib import Path

import pytest

from privacy.accounting.events import Event
from privacy.accounting.segments import Budget
from privacy.ledger.heads import Head, payload
from privacy.ledger.ledger import Exhausted, Ledger, LedgerError, log_path
from tests.support.ledgers import EVENT, LIMIT, filled, spend


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "people.jsonl"


@pytest.mark.parametrize("entries", [0, 1, 2])
@pytest.mark.parametrize("unit", ["record", "client"])
def test_a_ledger_that_is_closed_affords_nothing_whatever_it_held(
    path: Path, entries: int, unit: str
) -> None:
    ledger = Ledger.create(path, population="people", durable=False)
    for number in range(entries):
        ledger.spend(Event(unit, 8.0, 1.0, 1), None, run="r", round=number + 1, plan="p")
    ledger.close_fully_spent("lost")
    again = Ledger.open(path, durable=False)
    assert len(again.entries()) == entries + 1
    assert again.entries()[-1].event.unit == (unit if entries else "record")
    assert again.spent(1e-5) == math.inf
    assert again.spent(0.5) == math.inf
    event = again.entries()[-1].event
    with pytest.raises(Exhausted):
        again.spend(Event(event.unit, 1e5, 1.0, 1), Budget(1e6, 0.5), run="r", round=9, plan="p")
    assert len(again.entries()) == entries + 1


@pytest.mark.parametrize("length", [0, 201])
def test_a_population_has_1_to_200_characters(path: Path, length: int) -> None:
    with pytest.raises(LedgerError, match="population"):
        Ledger.create(path, population="p" * length, durable=False)
    assert not path.exists()
    for fits in (1, 200):
        Ledger.create(path.with_name(f"{fits}.jsonl"), population="p" * fits, durable=False)


def test_a_log_without_a_line_is_refused_and_nothing_is_spent(path: Path) -> None:
    ledger = filled(path, 1)
    before = path.read_bytes()
    log_path(path).write_bytes(b"")
    with pytest.raises(LedgerError):
        Ledger.open(path)
    with pytest.raises(LedgerError):
        spend(ledger)
    assert path.read_bytes() == before


def test_a_spend_that_lands_on_the_limit_is_made_and_one_above_it_is_not(path: Path) -> None:
    ledger = Ledger.create(path, population="people", durable=False)
    ledger.spend(EVENT, None, run="r", round=1, plan="p")
    ledger.spend(EVENT, None, run="r", round=2, plan="p")
    exactly = ledger.spent(LIMIT.delta)
    other = Ledger.create(path.with_name("others.jsonl"), population="others", durable=False)
    limit = Budget(exactly, LIMIT.delta)
    other.spend(EVENT, limit, run="r", round=1, plan="p")
    other.spend(EVENT, limit, run="r", round=2, plan="p")
    assert other.spent(LIMIT.delta) == exactly
    with pytest.raises(Exhausted):
        other.spend(EVENT, limit, run="r", round=3, plan="p")
    assert len(other.entries()) == 2


def test_the_bytes_that_a_coordinator_signs_are_these() -> None:
    """A change of them would refuse every head that was signed before."""
    assert payload("north", Head(3, "ab" * 32)) == (
        b'{"digest": "' + b"ab" * 32 + b'", "n": 3, "site": "north", "v": 1, '
        b'"what": "tacit counter-signed head"}'
    )
