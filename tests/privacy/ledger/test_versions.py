"""Ledgers of both versions: what 0.1.0 wrote is read, and the past is never priced again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from privacy.accounting.epsilon import spent
from privacy.accounting.events import Event
from privacy.accounting.segments import Budget
from privacy.ledger.chain import ZERO, seal
from privacy.ledger.ledger import Exhausted, Ledger, LedgerError, verify

OLD = Path(__file__).parent / "data" / "ledger-0.1.0.jsonl"
"""Made by 0.1.0: three rounds of training and paid metrics at a cap of 4, and another run."""
EVENT = Event("record", 2.0, 0.02, 50)
LIMIT = Budget(4.0, 1e-5)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "people.jsonl"
    shutil.copy(OLD, path)
    shutil.copy(OLD.with_name(OLD.name + ".log"), path.with_name(path.name + ".log"))
    return path


@pytest.mark.long
def test_a_ledger_of_the_first_version_is_read_as_it_was(old: Path) -> None:
    before = old.read_bytes()
    found = verify(old)
    assert len(found.entries) == 7
    assert found.entries[0].event == EVENT
    assert found.entries[0].version == 1
    ledger = Ledger.open(old)
    assert ledger.head.digest == "9879f7f6dcfa0ac0abfd257b8ed7a2224bc473dc684176ae3e54af64a31d09ea"
    assert ledger.spent(1e-5) == pytest.approx(0.6696681023047367, rel=1e-4)
    assert ledger.trusted()
    assert old.read_bytes() == before


@pytest.mark.slow
def test_a_ledger_of_the_first_version_costs_a_group_what_it_did(old: Path) -> None:
    ledger = Ledger.open(old)
    assert ledger.spent(1e-5, records=4) == pytest.approx(3.1296814462934477, rel=1e-4)


def test_it_goes_on_in_the_second_version_and_stays_sound(old: Path) -> None:
    before = old.read_bytes()
    ledger = Ledger.open(old)
    entry = ledger.spend(EVENT, LIMIT, run="new", round=1, plan="c", coordinator="k" * 64)
    assert (entry.version, entry.coordinator, entry.event.records) == (2, "k" * 64, 1)
    assert old.read_bytes().startswith(before)
    assert [one.version for one in verify(old).entries] == [1] * 7 + [2]
    assert Ledger.open(old).trusted()
    last = json.loads(old.read_text().splitlines()[-1])
    assert (last["v"], last["event"]["records"], last["event"]["sensitivity"]) == (2, 1, 1.0)


@pytest.mark.long
def test_old_entries_are_priced_for_the_largest_cap_since(old: Path) -> None:
    ledger = Ledger.open(old)
    at_two = ledger.spent(1e-5, records=2)
    assert at_two > 1.5 * ledger.spent(1e-5)
    ledger.note("policy", epsilon="4.0", delta="1e-05", records=2)
    assert ledger.spent(1e-5) == pytest.approx(at_two)
    ledger.note("policy", epsilon="4.0", delta="1e-05", records=1)
    assert ledger.spent(1e-5) == pytest.approx(at_two)


def test_the_first_version_never_follows_the_second(old: Path) -> None:
    ledger = Ledger.open(old)
    entry = ledger.spend(EVENT, LIMIT, run="new", round=1, plan="c")
    body = {"run": "r", "round": 1, "plan": "p", "event": EVENT.to_dict_of_0_1()}
    line, _ = seal(entry.n + 1, body, entry.digest, 1)
    old.write_bytes(old.read_bytes() + line + b"\n")
    with pytest.raises(LedgerError, match="v must be 2 after"):
        verify(old)


@pytest.mark.parametrize("version", [0, 3, True, "2", None])
def test_an_unknown_version_is_refused(tmp_path: Path, version: object) -> None:
    path = tmp_path / "people.jsonl"
    Ledger.create(path, population="people", durable=False)
    body = {"run": "r", "round": 1, "plan": "p", "coordinator": "", "event": EVENT.to_dict()}
    path.write_bytes(seal(1, body, ZERO, version)[0] + b"\n")  # type: ignore[arg-type]
    with pytest.raises(LedgerError, match="v must be 1 or 2"):
        verify(path)


@pytest.mark.slow
def test_changing_the_cap_never_prices_the_past_again(tmp_path: Path) -> None:
    """Eight rounds at a cap of 4, then a cap of 1: what a person with 4 records then had counts."""
    ledger = Ledger.create(tmp_path / "people.jsonl", population="people", durable=False)
    rounds = 0
    with pytest.raises(Exhausted):
        for rounds in range(100):
            ledger.spend(EVENT, LIMIT, run="r", round=rounds, plan="p", records=4)
    assert rounds == 8
    before = ledger.spent(1e-5)
    assert before == pytest.approx(spent([Event("record", 2.0, 0.02, 50, 8)], 1e-5, records=4))
    more = 0
    with pytest.raises(Exhausted):
        for more in range(400):
            ledger.spend(EVENT, LIMIT, run="r2", round=more, plan="p", records=1)
    assert 0 < more < 139
    assert before < ledger.spent(1e-5) <= 4.0
    assert Ledger.open(ledger.path, durable=False).spent(1e-5) == ledger.spent(1e-5)


@pytest.mark.long
def test_a_higher_cap_does_not_price_the_past_dearer(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "people.jsonl", population="people", durable=False)
    event = Event("record", 30.0, 1.0, 50)  # of every row: its price has a closed form
    ledger.spend(event, LIMIT, run="r", round=1, plan="p", records=1)
    ledger.spend(event, LIMIT, run="r", round=2, plan="p", records=3)
    events = [event, replace(event, records=3)]
    assert ledger.spent(1e-5) == pytest.approx(spent(events, 1e-5, records=None))
    assert ledger.spent(1e-5) < ledger.spent(1e-5, records=3)


def test_a_run_is_its_coordinators_own(tmp_path: Path) -> None:
    """Another coordinator that names the run learns nothing of what it spent."""
    ledger = Ledger.create(tmp_path / "people.jsonl", population="people", durable=False)
    ledger.spend(EVENT, LIMIT, run="r", round=1, plan="p", coordinator="a" * 64)
    assert ledger.merged("r", coordinator="a" * 64) == (EVENT,)
    assert ledger.merged("r", coordinator="b" * 64) == ()
    assert ledger.merged("r") == ()
    state = ledger.spending_state("r", "2000-01-01", coordinator="b" * 64)
    assert (state.spent, state.run) == ((EVENT,), ())


def test_a_run_of_the_first_version_counts_for_every_coordinator(old: Path) -> None:
    ledger = Ledger.open(old)
    run = "fedcba9876543210"
    assert ledger.merged(run, coordinator="a" * 64) == ledger.merged(run) != ()
