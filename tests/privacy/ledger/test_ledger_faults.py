"""The ledger under faults: torn tails, copies, full disks, other processes."""

import fcntl
import os
import resource
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accounting.epsilon import spent
from privacy.accounting.events import Event
from privacy.ledger.anchor import anchor_path
from privacy.ledger.entries import check_anchors
from privacy.ledger.ledger import Ledger, LedgerError, SpendingState, log_path, verify
from tests.support.ledgers import EVENT, LIMIT, filled, refused, spend


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "people.jsonl"


@pytest.mark.long
def test_cut_at_any_byte_the_tail_is_spent_or_dropped_but_never_believed(path: Path) -> None:
    filled(path, 2)
    whole = path.read_bytes()
    log = log_path(path).read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):
        path.write_bytes(whole[:cut])
        log_path(path).write_bytes(log)
        complete = cut >= len(whole) - 1
        if complete or cut == first:
            assert len(verify(path).entries) == (2 if complete else 1)
        else:
            with pytest.raises(LedgerError, match="incomplete tail") as error:
                verify(path)
            assert error.value.line == 2
        before = anchor_path(path).read_bytes()
        ledger = Ledger.open(path, durable=False)
        assert len(ledger.entries()) == 2  # completed from the anchor
        assert path.read_bytes().rstrip(b"\n") == whole[:-1]
        spend(ledger)
        assert [entry.n for entry in verify(path).entries] == [1, 2, 3]
        anchor_path(path).write_bytes(before)


def test_a_whole_last_line_that_was_changed_is_no_torn_tail(path: Path) -> None:
    filled(path, 2)
    whole = path.read_bytes()
    for changed in (
        whole[:-1] + b"X",
        whole[:-1].replace(b'"round": 2', b'"round": 3'),
        whole[:-2] + b"X",
        whole[:-1].replace(b"}, ", b"}; "),
    ):
        refused(path, changed)


def test_an_older_or_another_content_is_refused_by_who_saw_more(path: Path) -> None:
    ledger = filled(path)
    older = path.read_bytes()
    spend(ledger)
    path.write_bytes(older)
    for act in (lambda: spend(ledger), ledger.entries, lambda: ledger.head):
        with pytest.raises(LedgerError, match="lost or changed"):
            act()
    assert path.read_bytes() == older


def test_a_change_behind_the_back_is_seen_at_once(path: Path) -> None:
    ledger = filled(path, 30)
    size = path.stat().st_size
    for number in range(20):
        before = path.read_bytes()
        at = number * size // 20
        path.write_bytes(before[:at] + bytes([before[at] ^ 1]) + before[at + 1 :])
        with pytest.raises(LedgerError):
            spend(ledger)
        path.write_bytes(before)
        spend(ledger)


def test_two_openings_see_each_other_spend(path: Path) -> None:
    one = filled(path)
    other = Ledger.open(path, durable=False)
    for _ in range(5):
        spend(one)
        spend(other)
    assert one.entries() == other.entries()
    assert one.head == other.head
    assert len(one.entries()) == 13


def test_the_log_remembers_what_a_restored_copy_lost(path: Path) -> None:
    ledger = filled(path)
    older = path.read_bytes()
    spend(ledger)
    spend(ledger)
    ledger.note("contents", sha256="0" * 64)
    path.write_bytes(older)
    with pytest.raises(LedgerError, match="older copy"):
        verify(path)
    restored = Ledger.open(path)
    assert not restored.trusted()
    with pytest.raises(LedgerError, match="older copy"):
        spend(restored)
    restored.acknowledge("the disk was restored")
    assert restored.trusted()
    spend(restored)
    assert [note.what for note in restored.notes()] == [
        "created",
        "anchored",
        "day",
        "contents",
        "acknowledged",
    ]


def test_a_later_note_does_not_hide_what_an_earlier_one_saw(path: Path) -> None:
    ledger = filled(path)
    ledger.note("contents", sha256="0" * 64)
    notes, entries = list(ledger.notes()), list(ledger.entries())
    after = replace(notes[-1], what="policy", entries=1, head=entries[0].digest)
    assert check_anchors(path, entries[:1], [*notes[:-1], after]) is None
    assert "an older copy" in str(check_anchors(path, entries[:1], [*notes, after]))
    acknowledged = replace(after, what="acknowledged")
    assert check_anchors(path, entries[:1], [*notes, acknowledged, after]) is None


def test_another_ledgers_log_is_not_taken_for_its_own(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "others.jsonl"
    filled(path, 3)
    another = Ledger.create(other, population="others", durable=False)
    another.spend(EVENT, LIMIT, run="another run", round=1, plan="p")
    another.note("contents", sha256="0" * 64)
    log_path(path).write_bytes(log_path(other).read_bytes())
    with pytest.raises(LedgerError, match="another ledger's log"):
        spend(Ledger.open(path))


def test_the_salt_is_never_told(path: Path) -> None:
    ledger = filled(path)
    assert b"salt" in log_path(path).read_bytes()
    for notes in (ledger.notes(), verify(path).log or ()):
        assert notes
        assert all("salt" not in note.details for note in notes)


def test_rounds_are_counted_by_the_day(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = filled(path)
    today = ledger.notes()[2].details["day"]
    assert ledger.spending_state("run", str(today)).rounds_today == 3
    assert ledger.spending_state("run", "1999-01-01").rounds_today == 0
    assert Ledger.open(path).spending_state("run", str(today)).rounds_today == 3
    another = Ledger.open(path)
    spend(another)
    another.spend(EVENT, LIMIT, run="another run", round=9, plan="p")
    assert ledger.spending_state("run", str(today)).rounds_today == 5


def test_a_standing_is_what_was_spent_in_all_in_a_run_and_on_a_day(path: Path) -> None:
    ledger = filled(path)
    today = str(ledger.notes()[2].details["day"])
    ledger.spend(EVENT, LIMIT, run="another run", round=1, plan="p")
    stands = ledger.spending_state("another run", today)
    assert stands == SpendingState(ledger.merged(), (EVENT,), 4)
    assert stands.spent == (replace(EVENT, count=4),)
    assert (
        ledger.spending_state("run", today).run
        == ledger.merged("run")
        == (replace(EVENT, count=3),)
    )
    assert ledger.spending_state("no run", "1999-01-01") == SpendingState(ledger.merged())


def test_a_steady_look_is_one_look_in_which_nothing_is_written(path: Path) -> None:
    ledger = filled(path)
    with ledger.snapshot():
        assert ledger.merged("run") == (replace(EVENT, count=3),)
        with ledger.snapshot():
            assert ledger.contains(ledger.entries()[0])
        with pytest.raises(LedgerError, match="nothing can be written"):
            spend(ledger)
        with path.open("rb") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    spend(ledger)
    assert len(verify(path).entries) == 4
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(LedgerError), ledger.snapshot():
        pass


def test_a_ledger_holds_its_own_entries_and_no_other(path: Path, tmp_path: Path) -> None:
    ledger, other = filled(path), Ledger.create(tmp_path / "other.jsonl", population="others")
    assert all(ledger.contains(entry) for entry in ledger.entries())
    stranger = other.spend(EVENT, LIMIT, run="run", round=1, plan="q")
    assert not ledger.contains(stranger)
    assert not ledger.contains(replace(ledger.entries()[0], event=replace(EVENT, sigma=9.0)))
    assert not ledger.contains(replace(ledger.entries()[0], n=0))
    assert not ledger.contains(replace(ledger.entries()[0], n=4))


def test_a_full_disk_leaves_the_ledger_as_it_was(path: Path) -> None:
    ledger = filled(path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, hard))
    try:
        with pytest.raises(LedgerError, match="could not be written"):
            spend(ledger)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    spend(ledger)
    assert len(verify(path).entries) == 4


def test_a_failed_fsync_is_no_spend_that_anyone_may_use(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = filled(path)
    ledger.durable = True

    def fail(_: int) -> None:
        raise OSError("input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(LedgerError, match="durable"):
            spend(ledger)
    assert len(ledger.entries()) == 4


def test_a_spend_waits_for_the_lock(path: Path) -> None:
    ledger = filled(path)
    holder = os.open(path, os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    other = os.open(path, os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)
    os.close(holder)
    spend(ledger)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    events=st.lists(
        st.builds(
            Event,
            unit=st.just("record"),
            sigma=st.sampled_from([0.7, 1.0, 2.0, 8.0]),
            rate=st.sampled_from([0.01, 0.1, 1.0]),
            steps=st.integers(0, 3),
            count=st.integers(0, 3),
        ),
        max_size=6,
    )
)
def test_the_ledger_accounts_as_its_events_do(
    tmp_path_factory: pytest.TempPathFactory, events: list[Event]
) -> None:
    ledger = Ledger.create(
        tmp_path_factory.mktemp("ledger") / "l.jsonl", population="p", durable=False
    )
    for number, event in enumerate(events):
        before = ledger.spent(1e-5, accountant="rdp")
        ledger.spend(event, None, run="r", round=number, plan="p")
        assert before <= ledger.spent(1e-5, accountant="rdp") + 1e-12
    assert ledger.events() == tuple(events)
    assert ledger.spent(1e-5) == spent(events, 1e-5)
    assert spent(ledger.merged(), 1e-5) == spent(events, 1e-5)
