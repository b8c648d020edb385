"""A ledger cut at any point of any day is refused, or completed from its anchor."""

import os
from pathlib import Path

import pytest

from privacy.accounting.events import Event
from privacy.ledger import anchor
from privacy.ledger.chain import LedgerNotWritten
from privacy.ledger.ledger import Ledger, LedgerError, Untrusted, log_path, verify
from tests.support.ledgers import EVENT, LIMIT, filled, spend


def test_a_ledger_cut_at_any_line_of_the_day_is_refused_or_completed(tmp_path: Path) -> None:
    path = tmp_path / "people.jsonl"
    filled(path, entries=5)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for kept in range(4):
        path.write_bytes(b"".join(lines[:kept]))
        assert not Ledger.open(path).trusted()
        with pytest.raises(Untrusted, match=r"saw 4 ending in|an older copy"):
            spend(Ledger.open(path))
        with pytest.raises(LedgerError, match="older copy"):
            verify(path)
        assert path.read_bytes() == b"".join(lines[:kept])
    path.write_bytes(b"".join(lines[:4]))
    ledger = Ledger.open(path)
    assert path.read_bytes() == whole
    assert ledger.trusted()


def test_a_ledger_cut_at_any_byte_never_forgets_a_spend(tmp_path: Path) -> None:
    path = tmp_path / "people.jsonl"
    filled(path, entries=2)
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        try:
            ledger = Ledger.open(path)
            trusted = ledger.trusted()
        except LedgerError:
            continue
        assert not trusted or ledger.head.n == 2
    path.write_bytes(whole)
    assert Ledger.open(path).trusted()


def test_a_ledger_cut_under_an_open_one_is_completed_before_it_spends(tmp_path: Path) -> None:
    path = tmp_path / "people.jsonl"
    filled(path, entries=3)
    ledger = Ledger.open(path)
    whole = path.read_bytes()
    cut = b"".join(whole.splitlines(keepends=True)[:2])
    fresh = Ledger(path, durable=False)  # opened between the cut and the spend
    path.write_bytes(cut)
    with pytest.raises(LedgerError, match="lost or changed lines"):
        spend(ledger)
    fresh.spend(EVENT, LIMIT, run="run", round=9, plan="p")
    assert path.read_bytes().startswith(whole)
    assert len(verify(path).entries) == 4


@pytest.mark.parametrize("left", [b"", b"x" * 8192, None])
def test_a_ledger_without_its_anchor_is_refused_until_it_is_acknowledged(
    tmp_path: Path, left: bytes | None
) -> None:
    path = tmp_path / "people.jsonl"
    filled(path)
    file = anchor.anchor_path(path)
    if left is None:
        file.unlink()
    else:
        file.write_bytes(left)
    ledger = Ledger.open(path, durable=False)
    with pytest.raises(Untrusted, match="is missing or damaged"):
        spend(ledger)
    ledger.acknowledge("moved without it")
    assert spend(ledger)
    assert Ledger.open(path).trusted()


def test_another_ledgers_anchor_does_not_fit(tmp_path: Path) -> None:
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    filled(one, entries=3)
    Ledger.create(other, population="people", durable=False)
    ledger = Ledger.open(other, durable=False)
    for number in range(3):
        ledger.spend(Event("record", 5.0, 0.1, 1), LIMIT, run="other", round=number, plan="p")
    anchor.anchor_path(one).write_bytes(anchor.anchor_path(other).read_bytes())
    assert not Ledger.open(one).trusted()


def test_a_torn_page_leaves_the_other(tmp_path: Path) -> None:
    path = tmp_path / "people.jsonl"
    filled(path, entries=3)
    file = anchor.anchor_path(path)
    pages = file.read_bytes()
    last = anchor.read(path)
    assert last is not None and last.n == 2
    for page in (0, 1):
        torn = bytearray(pages)
        torn[page * 4096 + 100 : page * 4096 + 200] = b"\0" * 100
        file.write_bytes(torn)
        one = anchor.read(path)
        assert one is not None and one.n in (1, 2)
        assert Ledger.open(path).trusted()


def test_the_anchor_is_written_before_the_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between the two: the spend counts, since it may have been on the disk."""
    path = tmp_path / "people.jsonl"
    ledger = filled(path, entries=2)
    whole = path.read_bytes()

    class Killed(BaseException):
        pass

    def kill(*args: object, **more: object) -> None:
        raise Killed

    monkeypatch.setattr("privacy.ledger.chain.Chain.append", kill)
    with pytest.raises(Killed):
        ledger.spend(EVENT, LIMIT, run="run", round=3, plan="p" * 64)
    monkeypatch.undo()
    assert path.read_bytes() == whole
    again = Ledger.open(path, durable=False)
    assert [entry.round for entry in again.entries()] == [1, 2, 3]
    assert verify(path).entries == again.entries()


def test_a_full_disk_spends_nothing_then_or_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "people.jsonl"
    ledger = filled(path, entries=2)
    whole, write = path.read_bytes(), os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:10]))
    with pytest.raises(LedgerNotWritten):
        ledger.spend(EVENT, LIMIT, run="run", round=3, plan="p" * 64)
    monkeypatch.undo()
    assert path.read_bytes() == whole
    assert len(Ledger.open(path).entries()) == 2


def test_a_batch_beyond_a_page_is_anchored_without_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "people.jsonl"
    ledger = filled(path, entries=2)
    ledger.spend_all([EVENT] * 50, None, run="run", round=3, plan="p" * 64)
    last = anchor.read(path)
    assert last is not None and (last.n, last.pending) == (2, ())
    assert len(Ledger.open(path).entries()) == 52
    spend(ledger)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:51]))
    assert not Ledger.open(path).trusted()


def test_the_log_says_from_when_on_there_is_an_anchor(tmp_path: Path) -> None:
    path = tmp_path / "people.jsonl"
    filled(path)
    assert b'"anchored"' in log_path(path).read_bytes()
