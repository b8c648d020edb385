"""The two-sided chain, and recovery: a ledger cannot lose entries behind the coordinator's back."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accounting.epsilon import spent
from privacy.accounting.events import Event
from privacy.accounting.segments import Budget
from privacy.ledger.anchor import anchor_path
from privacy.ledger.heads import (
    GENESIS,
    Head,
    HeadError,
    Proof,
    accept,
    extends,
    fold,
    leaf,
    payload,
)
from privacy.ledger.ledger import Exhausted, Ledger, LedgerError, log_path, verify
from privacy.ledger.recovery import RecoveryError, known_events, recover

EVENT = Event("record", 4.0, 0.1, 1)
OTHER = Event("record", 9.0, 1.0, 1)
LIMIT = Budget(100.0, 1e-5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "people.jsonl"


def filled(path: Path, entries: int) -> Ledger:
    ledger = Ledger.create(path, population="people", durable=False)
    for number in range(entries):
        spend(ledger, "run", number)
    return ledger


def spend(ledger: Ledger, run: str = "run", number: int = 0, event: Event = EVENT) -> None:
    ledger.spend(event, LIMIT, run=run, round=number, plan="p")


def files(path: Path) -> tuple[Path, Path, Path]:
    return path, log_path(path), anchor_path(path)


def snapshot(path: Path) -> list[bytes]:
    return [file.read_bytes() for file in files(path)]


def restore(path: Path, copy: list[bytes]) -> Ledger:
    for file, content in zip(files(path), copy, strict=True):
        file.write_bytes(content)
    return Ledger.open(path, durable=False)


@settings(max_examples=50, deadline=None)
@given(parts=st.lists(st.integers(0, 4), min_size=1, max_size=5), wrong=st.integers(0, 3))
def test_a_head_is_reached_by_its_own_leaves_alone(parts: list[int], wrong: int) -> None:
    leaves = [leaf(b"salt", f"{n:064x}") for n in range(sum(parts))]
    head, at = GENESIS, 0
    for part in parts:
        new = fold(head, leaves[at : at + part])
        assert extends(head, leaves[at : at + part], new)
        assert not extends(head, [*leaves[at : at + part], leaf(b"other", "0" * 64)], new)
        head, at = new, at + part
    assert head == fold(GENESIS, leaves)
    if leaves:
        changed = list(leaves)
        changed[wrong % len(leaves)] = leaf(b"other", "0" * 64)
        assert fold(GENESIS, changed) != head
        assert not extends(GENESIS, leaves[:-1], head)
        assert not extends(GENESIS, leaves, Head(head.n - 1, head.digest))


def test_what_leaves_tells_nothing_without_the_salt(tmp_path: Path) -> None:
    one, two = filled(tmp_path / "a.jsonl", 2), filled(tmp_path / "b.jsonl", 2)
    assert [e.digest for e in one.entries()] == [e.digest for e in two.entries()]
    assert not set(one.leaves(0)) & set(two.leaves(0))


def test_an_honest_site_is_counter_signed_from_head_to_head(path: Path) -> None:
    ledger = filled(path, 0)
    last = GENESIS
    for number in range(5):
        spend(ledger)
        if number % 2:
            last = accept(last, Proof.from_dict(ledger.proof(last).to_dict()))
            assert last == ledger.head
    assert accept(last, ledger.proof(last)) == ledger.head
    assert ledger.proof(last).base == last


def test_a_cut_tail_is_refused_by_the_coordinator(path: Path) -> None:
    ledger = filled(path, 5)
    last = accept(GENESIS, ledger.proof(GENESIS))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]))
    cut = Ledger.open(path)
    assert cut.proof(last).base != last
    with pytest.raises(HeadError, match="no extension"):
        accept(last, cut.proof(last))


@pytest.mark.parametrize("more", [0, 1, 2, 3, 10])
def test_an_older_copy_is_refused_even_when_it_was_spent_on_since(path: Path, more: int) -> None:
    ledger = filled(path, 3)
    copy = snapshot(path)
    spend(ledger)
    spend(ledger)
    last = accept(GENESIS, ledger.proof(GENESIS))
    older = restore(path, copy)
    for _ in range(more):
        spend(older, "another run")
    with pytest.raises(HeadError):
        accept(last, older.proof(last))
    lying = Proof(last, older.leaves(last.n), older.head)
    with pytest.raises(HeadError, match="do not lead"):
        accept(last, lying)


def test_an_acknowledged_break_is_accepted_once(path: Path) -> None:
    ledger = filled(path, 3)
    copy = snapshot(path)
    spend(ledger)
    last = accept(GENESIS, ledger.proof(GENESIS))
    older = restore(path, copy)
    older.acknowledge("the disk was restored")
    acknowledged = snapshot(path)
    spend(older, "another run")
    proof = older.proof(last)
    assert proof.acknowledged
    new = accept(last, proof)
    assert new == older.head
    spend(older, "another run")
    assert accept(new, older.proof(new), {proof.base.digest}) == older.head
    again = restore(path, acknowledged)
    spend(again, "a third run")
    with pytest.raises(HeadError, match="used before"):
        accept(new, again.proof(new), {proof.base.digest})


def test_a_proof_that_is_none_is_refused(path: Path) -> None:
    good = filled(path, 2).proof(GENESIS).to_dict()
    for bad in (
        None,
        [],
        {},
        good | {"more": 1},
        good | {"leaves": "x"},
        good | {"leaves": ["x"]},
        good | {"leaves": [None]},
        good | {"acknowledged": 1},
        good | {"head": {"n": -1, "digest": "0" * 64}},
        good | {"head": {"n": True, "digest": "0" * 64}},
        good | {"base": {"n": 0, "digest": "0" * 63 + "\n"}},
    ):
        with pytest.raises(HeadError):
            Proof.from_dict(bad)


def signed(payload: bytes, signature: bytes) -> bool:
    return signature == payload[::-1]


class Record:
    """A coordinator's lines for one site."""

    def __init__(self, run: str = "run") -> None:
        self.run, self.last, self.lines = run, GENESIS, list[Mapping[str, Any]]()

    def accept(self, ledger: Ledger) -> None:
        proof = ledger.proof(self.last)
        head = accept(self.last, proof)
        self.lines.append(
            {
                "site": "here",
                "run": self.run,
                "base": proof.base.to_dict(),
                "leaves": list(proof.leaves),
                "events": [e.to_dict() for e in ledger.events(self.run)],
                "acknowledged": proof.acknowledged,
                **head.to_dict(),
                "signature": payload("here", head)[::-1].hex(),
            }
        )
        self.last = head


def test_a_lost_ledger_is_rebuilt_from_the_coordinators_record(path: Path) -> None:
    ledger, record = filled(path, 0), Record()
    for number in range(4):
        spend(ledger, number=number)
        spend(ledger, number=number, event=OTHER)
        record.accept(ledger)
    path.unlink()
    log_path(path).unlink()
    found = recover(path, population="people", known=known_events([record.lines], signed))
    assert found.spent(1e-5) == spent([EVENT, OTHER] * 4, 1e-5)
    assert found.population == "people"
    spend(found)
    record.accept(found)
    assert [note.what for note in found.notes()][-2:] == ["recovered", "acknowledged"]
    assert len(verify(path).entries) == 9


def test_two_coordinators_records_are_added_up(path: Path) -> None:
    ledger, one, two = filled(path, 0), Record("one"), Record("two")
    for _ in range(3):
        spend(ledger, "one")
        one.accept(ledger)
        spend(ledger, "two", event=OTHER)
        two.accept(ledger)
    assert known_events([one.lines], signed) is None
    both_ = known_events([one.lines, two.lines], signed)
    assert both_ is not None
    assert spent([e for _, e in both_], 1e-5) == spent([EVENT, OTHER] * 3, 1e-5)


def test_entries_that_nobody_can_name_close_the_ledger(path: Path) -> None:
    ledger, record = filled(path, 0), Record()
    spend(ledger, "another coordinator's")
    spend(ledger)
    record.accept(ledger)
    for known in (known_events([record.lines], signed), known_events([], signed), None):
        path.unlink()
        found = recover(path, population="people", known=known)
        assert found.spent(1e-5) == float("inf")
        with pytest.raises(Exhausted):
            spend(found)


@pytest.mark.long
def test_a_break_is_never_counted_low(path: Path) -> None:
    ledger, record = filled(path, 0), Record()
    spend(ledger)
    copy = snapshot(path)
    spend(ledger)
    spend(ledger)
    record.accept(ledger)
    older = restore(path, copy)
    older.acknowledge("restored")
    spend(older)
    record.accept(older)
    known = known_events([record.lines], signed)
    assert known is not None
    assert spent([e for _, e in known], 1e-5) >= spent([EVENT] * 4, 1e-5)


@pytest.mark.parametrize(
    "change",
    [
        lambda line: {"n": line["n"] + 1},
        lambda line: {"site": "there"},
        lambda line: {"signature": "00"},
        lambda line: {"leaves": line["leaves"][:-1]},
        lambda line: {"events": None},
        lambda line: {"events": [{"unit": "record"}]},
        lambda line: {"base": GENESIS.to_dict(), "leaves": []},
        lambda line: {"digest": "0" * 64},
    ],
)
def test_a_record_that_was_changed_is_refused(
    path: Path, change: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> None:
    ledger, record = filled(path, 0), Record()
    for _ in range(2):
        spend(ledger)
        record.accept(ledger)
    lines = [record.lines[0], {**record.lines[1], **change(record.lines[1])}]
    with pytest.raises(RecoveryError, match="record line 2"):
        known_events([lines], signed)
    with pytest.raises(RecoveryError, match="record line 1"):
        known_events([record.lines[1:]], signed)


def test_a_sound_ledger_is_not_recovered_over(path: Path) -> None:
    filled(path, 3)
    before = snapshot(path)
    with pytest.raises(LedgerError, match="nothing to recover"):
        recover(path, population="people", known=None)
    assert snapshot(path) == before


def test_a_lost_log_keeps_the_entries(path: Path) -> None:
    filled(path, 3)
    before = path.read_bytes()
    log_path(path).unlink()
    found = recover(path, population="people", known=None)
    assert path.read_bytes() == before
    spend(found)
    assert len(found.entries()) == 4


@pytest.mark.parametrize("at", [0, 100, -2])
def test_a_damaged_ledger_is_kept_aside(path: Path, at: int) -> None:
    filled(path, 3)
    damaged = bytearray(path.read_bytes())
    damaged[at] ^= 1
    path.write_bytes(damaged)
    found = recover(path, population="people", known=None)
    assert found.spent(1e-5) == float("inf")
    kept = [p.read_bytes() for p in path.parent.glob("people.jsonl.lost-*")]
    assert bytes(damaged) in kept
