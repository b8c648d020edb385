"""The ledger: spends are written first, never lost, never taken back, and every change shows."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accounting.epsilon import spent
from privacy.accounting.events import Event
from privacy.accounting.segments import Budget
from privacy.ledger.chain import LONGEST_LINE, seal
from privacy.ledger.entries import entry_body
from privacy.ledger.ledger import Exhausted, Ledger, LedgerError, LedgerMissing, log_path, verify
from tests.support.ledgers import EVENT, LIMIT, filled, refused, spend


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "people.jsonl"


def test_a_line_is_exactly_as_documented(path: Path) -> None:
    filled(path)
    raw = path.read_bytes()
    lines = [json.loads(line) for line in raw.split(b"\n")[:-1]]
    assert raw.endswith(b"\n")
    head = ["v", "n", "run", "round", "plan", "coordinator", "event", "prev", "digest"]
    assert list(lines[0]) == head
    five = ["unit", "sigma", "rate", "steps", "count"]
    assert list(lines[0]["event"]) == [*five, "sampling", "records", "sensitivity"]
    assert [line["n"] for line in lines] == [1, 2, 3]
    assert [line["prev"] for line in lines] == ["0" * 64, lines[0]["digest"], lines[1]["digest"]]
    assert oct(path.stat().st_mode & 0o777) == "0o600"
    assert oct(log_path(path).stat().st_mode & 0o777) == "0o600"


def test_a_spend_is_read_back_by_every_later_opening(path: Path) -> None:
    ledger = filled(path)
    again = Ledger.open(path)
    assert again.entries() == ledger.entries()
    assert again.events("run") == (EVENT,) * 3
    assert again.events("another run") == ()
    assert again.head == ledger.head
    assert again.population == "people"
    assert again.spent(1e-5) == spent([EVENT] * 3, 1e-5)
    assert verify(path).events == (EVENT,) * 3


def test_every_spend_is_on_the_disk_before_it_returns(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = filled(path)
    ledger.durable = True
    order: list[str] = []
    write, sync = os.write, os.fsync
    monkeypatch.setattr(os, "write", lambda *a: (order.append("write"), write(*a))[1])
    monkeypatch.setattr(os, "fsync", lambda *a: (order.append("fsync"), sync(*a))[1])
    ledger.spend(EVENT, LIMIT, run="run", round=4, plan="p")
    assert order == ["write", "fsync"]
    ledger.durable = False
    ledger.spend(EVENT, LIMIT, run="run", round=5, plan="p")
    assert order == ["write", "fsync", "write"]


def test_above_the_limit_nothing_is_written(path: Path) -> None:
    ledger = filled(path)
    limit = Budget(spent([EVENT] * 4, 1e-5), 1e-5)
    ledger.spend(EVENT, limit, run="run", round=4, plan="p")
    before, beside = path.read_bytes(), log_path(path).read_bytes()
    with pytest.raises(Exhausted):
        ledger.spend(EVENT, limit, run="run", round=5, plan="p")
    assert (path.read_bytes(), log_path(path).read_bytes()) == (before, beside)
    ledger.spend(EVENT, LIMIT, run="run", round=5, plan="p")


def test_the_refusal_also_leaves_a_torn_tail_as_it_is(path: Path) -> None:
    ledger = filled(path)
    with path.open("ab") as file:
        file.write(b'{"v": 1, "n": 4, "run"')
    before = path.read_bytes()
    with pytest.raises(Exhausted):
        ledger.spend(EVENT, Budget(0.01, 1e-5), run="run", round=4, plan="p")
    assert path.read_bytes() == before


def test_a_release_without_noise_fits_no_limit(path: Path) -> None:
    with pytest.raises(Exhausted):
        filled(path).spend(
            Event("record", 0.0, 0.1, 1), Budget(1e6, 0.5), run="r", round=1, plan="p"
        )


@pytest.mark.long
def test_the_limit_binds_a_group_of_records(path: Path) -> None:
    ledger = filled(path)
    limit = Budget(spent([EVENT] * 5, 1e-5), 1e-5)
    with pytest.raises(Exhausted):
        ledger.spend(EVENT, limit, run="run", round=4, plan="p", records=3)
    ledger.spend(EVENT, limit, run="run", round=4, plan="p")


def test_units_never_mix(path: Path) -> None:
    ledger = filled(path)
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="cannot add"):
        ledger.spend(Event("client", 4.0, 1.0, 1), LIMIT, run="run", round=4, plan="p")
    assert path.read_bytes() == before
    last = ledger.entries()[-1]
    line, _ = seal(4, entry_body("run", 4, "p", Event("client", 4.0, 1.0, 1)), last.digest, 2)
    assert "cannot add a client event" in str(refused(path, before + line + b"\n"))


def test_the_events_of_a_round_are_spent_together_or_not_at_all(path: Path) -> None:
    ledger = filled(path)
    extra = Event("record", 20.0, 1.0, 1)
    entries = ledger.spend_all([EVENT, extra], LIMIT, run="run", round=4, plan="p")
    assert [entry.event for entry in entries] == [EVENT, extra]
    before = path.read_bytes()
    with pytest.raises(Exhausted):
        ledger.spend_all([EVENT, Event("record", 0.1, 1.0, 1)], LIMIT, run="run", round=5, plan="p")
    assert path.read_bytes() == before
    assert ledger.spend_all([], LIMIT, run="run", round=5, plan="p") == ()


@pytest.mark.parametrize(
    ("run", "number", "plan"),
    [("", 1, "p"), ("r" * 201, 1, "p"), ("r", -1, "p"), ("r", True, "p"), ("r", 1, "")],
)
def test_nothing_nameless_is_written(path: Path, run: str, number: int, plan: str) -> None:
    ledger = filled(path)
    before = path.read_bytes()
    with pytest.raises(LedgerError):
        ledger.spend(EVENT, LIMIT, run=run, round=number, plan=plan)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["a\rb", "a\nb", "a\u2028b", "a\u0085b", 'a"} b', "\ud800", "ü"])
def test_only_a_newline_ends_a_line(path: Path, name: str) -> None:
    ledger = filled(path)
    ledger.spend(EVENT, LIMIT, run=name, round=4, plan=name)
    ledger.spend(EVENT, LIMIT, run="after", round=5, plan="p")
    assert len(path.read_bytes().split(b"\n")) == 6
    assert verify(path).entries[3].run == name


def test_a_missing_ledger_is_refused_and_none_is_started(path: Path) -> None:
    for use in (Ledger.open, verify):
        with pytest.raises(LedgerMissing):
            use(path)
    assert not path.exists()
    ledger = filled(path)
    path.unlink()
    for act in (lambda: ledger.spent(1e-5), lambda: spend(ledger), ledger.entries):
        with pytest.raises(LedgerMissing):
            act()
    assert not path.exists()


def test_a_ledger_is_not_created_over_another(path: Path) -> None:
    filled(path)
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="exists already"):
        Ledger.create(path, population="people")
    path.unlink()
    with pytest.raises(LedgerError, match="exists already"):
        Ledger.create(path, population="people")
    path.write_bytes(before)
    log_path(path).unlink()
    with pytest.raises(LedgerError, match="exists already"):
        Ledger.create(path, population="people")
    with pytest.raises(LedgerMissing, match=r"people\.jsonl\.log"):
        Ledger.open(path)


@pytest.mark.long
@pytest.mark.parametrize("flip", [lambda b: b ^ 1, lambda b: b ^ 0x80, lambda b: 0x0A, lambda b: 0])
def test_a_ledger_changed_at_any_byte_is_refused(path: Path, flip: Callable[[int], int]) -> None:
    filled(path, 2)
    before = path.read_bytes()
    for at in range(len(before)):
        changed = bytearray(before)
        changed[at] = flip(before[at])
        if bytes(changed) == before:
            continue
        refused(path, bytes(changed))


@pytest.mark.long
def test_a_log_changed_at_any_byte_is_refused(path: Path) -> None:
    filled(path, 1)
    log = log_path(path)
    before = log.read_bytes()
    for at in range(len(before) - 1):
        log.write_bytes(before[:at] + bytes([before[at] ^ 1]) + before[at + 1 :])
        with pytest.raises(LedgerError):
            Ledger.open(path)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_lines_removed_swapped_or_repeated_are_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "people.jsonl"
    filled(path, 5)
    lines = path.read_bytes().splitlines(keepends=True)
    kind = data.draw(st.sampled_from(["remove", "swap", "repeat", "insert blank"]))
    at = data.draw(st.integers(0, 3))
    changed = list(lines)
    if kind == "remove":
        del changed[at]
    elif kind == "swap":
        other = data.draw(st.integers(0, 4).filter(lambda i: i != at))
        changed[at], changed[other] = changed[other], changed[at]
    elif kind == "repeat":
        changed.insert(data.draw(st.integers(at, 5)), lines[at])
    else:
        changed.insert(at, data.draw(st.sampled_from([b"\n", b" \n", b"\r\n"])))
    assert refused(path, b"".join(changed)).line is not None


def resealed(entry: dict[str, object], **changes: object) -> bytes:
    """A line that is sound as a chain goes, whatever it says."""
    body = {k: v for k, v in entry.items() if k not in ("v", "n", "prev", "digest")}
    return seal(int(str(entry["n"])), body | changes, str(entry["prev"]))[0] + b"\n"


@pytest.mark.parametrize(
    "changes",
    [
        {"event": {"unit": "record", "sigma": 4.0, "rate": 0.1, "steps": 1}},
        {"event": {"unit": "record", "sigma": 4.0, "rate": 0.1, "steps": 1, "count": -1}},
        {"event": {"unit": "record", "sigma": -4.0, "rate": 0.1, "steps": 1, "count": 1}},
        {"event": {"unit": "people", "sigma": 4.0, "rate": 0.1, "steps": 1, "count": 1}},
        {"event": {"unit": "record", "sigma": 4.0, "rate": 0.1, "steps": 1.5, "count": 1}},
        {"event": {"steps": 1, "unit": "record", "sigma": 4.0, "rate": 0.1, "count": 1, "x": 1}},
        {"event": None},
        {"round": "1"},
        {"round": 1.0},
        {"run": 7},
        {"plan": ["p"]},
        {"epsilon": 0.1},
    ],
)
def test_a_line_that_says_another_thing_is_refused_however_well_it_is_sealed(
    path: Path, changes: dict[str, object]
) -> None:
    filled(path, 1)
    entry = json.loads(path.read_bytes())
    assert refused(path, resealed(entry, **changes)).line == 1


@pytest.mark.parametrize(
    "spelling",
    [
        lambda t: t.replace('"sigma": 4.0', '"sigma": 4'),
        lambda t: t.replace('"sigma": 4.0', '"sigma": 4.00'),
        lambda t: t.replace('"sigma": 4.0', '"sigma": NaN'),
        lambda t: t.replace('"sigma": 4.0', '"sigma": 1e999'),
        lambda t: t.replace('"sigma": 4.0', '"sigma": 4.0, "sigma": 4.0'),
        lambda t: t.replace('"run": "run"', '"run": "r\\u0075n"'),
        lambda t: t.replace(", ", ","),
        lambda t: t.replace('"v": 2', '"v": 1'),
        lambda t: t.replace('"v": 2', '"v": 2.0'),
        lambda t: t.replace('"v": 2', '"v": true'),
        lambda t: t.replace('"n": 1', '"n": 2'),
        lambda t: t.replace('"n": 1', '"n": 1, "n": 1'),
        lambda t: t + " ",
        lambda t: " " + t,
        lambda t: "\ufeff" + t,
        lambda t: "[" * 20_000,
        lambda t: "9" * 20_000,
        lambda t: "null",
        lambda t: "",
    ],
)
def test_any_other_spelling_of_a_line_is_refused(
    path: Path, spelling: Callable[[str], str]
) -> None:
    filled(path, 1)
    text = path.read_text()[:-1]
    changed = spelling(text)
    assert changed != text
    assert refused(path, changed.encode() + b"\n").line == 1


@settings(max_examples=200, deadline=None)
@given(content=st.binary(min_size=1, max_size=300))
def test_garbage_is_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("ledger") / "people.jsonl"
    Ledger.create(path, population="people", durable=False)
    path.write_bytes(content)
    with pytest.raises(LedgerError):
        verify(path)


def test_an_endless_line_is_refused_without_being_read(path: Path) -> None:
    filled(path)
    refused(path, path.read_bytes() + b"{" * (LONGEST_LINE + 1))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    folder, pipe = tmp_path / "folder", tmp_path / "pipe"
    folder.mkdir()
    os.mkfifo(pipe)
    for strange in (folder, pipe, Path("/dev/null")):
        with pytest.raises(LedgerError):
            verify(strange)
