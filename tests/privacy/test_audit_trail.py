"""Who did what is kept in order, and a line that is changed or removed is found."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from privacy import audit_trail
from privacy.audit_trail import FILE, HEAD, read, record, recorded
from privacy.ledger.chain import LedgerError


def trail(folder: Path, count: int = 3) -> list[str]:
    for number in range(count):
        record(folder, "approve", f"plan-{number}", fingerprint="ab" * 32, reason="agreed")
    return (folder / FILE).read_text().splitlines(keepends=True)


def test_an_act_is_told_with_its_time_user_object_and_reason(tmp_path: Path) -> None:
    trail(tmp_path, 1)
    (act,) = read(tmp_path)
    assert (act.command, act.object, act.reason) == ("approve", "plan-0", "agreed")
    assert act.user == audit_trail.user() and act.user
    assert act.time.endswith("+00:00")
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_a_folder_without_acts_has_an_empty_trail(tmp_path: Path) -> None:
    assert read(tmp_path) == ()


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_removed_line_is_found_the_last_one_too(tmp_path: Path, lost: int) -> None:
    lines = trail(tmp_path)
    (tmp_path / FILE).write_text("".join(lines[:lost] + lines[lost + 1 :]))
    with pytest.raises(LedgerError):
        read(tmp_path)
    with pytest.raises(LedgerError):
        record(tmp_path, "deny", "plan-9")


@pytest.mark.parametrize("number", range(3))
def test_a_changed_line_is_found(tmp_path: Path, number: int) -> None:
    lines = trail(tmp_path)
    lines[number] = lines[number].replace("approve", "denied!")
    (tmp_path / FILE).write_text("".join(lines))
    with pytest.raises(LedgerError, match=f"line {number + 1}"):
        read(tmp_path)


def test_a_trail_that_is_gone_or_lost_its_head_is_found(tmp_path: Path) -> None:
    trail(tmp_path)
    head = (tmp_path / HEAD).read_bytes()
    (tmp_path / HEAD).unlink()
    with pytest.raises(LedgerError, match="missing or damaged"):
        read(tmp_path)
    (tmp_path / HEAD).write_bytes(head)
    (tmp_path / FILE).unlink()
    with pytest.raises(LedgerError, match="is missing"):
        read(tmp_path)


def test_a_kill_between_the_line_and_its_head_loses_nothing(tmp_path: Path) -> None:
    trail(tmp_path, 2)
    before = (tmp_path / HEAD).read_bytes()
    trail(tmp_path, 1)
    (tmp_path / HEAD).write_bytes(before)
    assert len(read(tmp_path)) == 3
    record(tmp_path, "deny", "plan-9")
    assert [act.command for act in read(tmp_path)] == [*["approve"] * 3, "deny"]


def test_an_act_that_fails_is_told_as_failed(tmp_path: Path) -> None:
    with pytest.raises(KeyError), recorded(tmp_path, "revoke", "north"):
        raise KeyError("north")
    assert [act.reason for act in read(tmp_path)] == ["", "failed: KeyError"]


def test_what_others_wrote_is_printable_and_bounded(tmp_path: Path) -> None:
    record(tmp_path, "deny", "a\x1b[2Jb\n", reason="x" * 10_000)
    (act,) = read(tmp_path)
    assert act.object == "a\\x1b[2Jb\\n"
    assert len(act.reason) == 500


def test_processes_that_write_at_once_lose_no_line(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from privacy.audit_trail import record\n"
        "for n in range(20): record(Path(sys.argv[1]), 'pause', f'{sys.argv[2]}-{n}')"
    )
    many = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name], env=os.environ)
        for name in ("a", "b", "c")
    ]
    assert [one.wait(120) for one in many] == [0, 0, 0]
    assert len({act.object for act in read(tmp_path)}) == 60
    heads = json.loads((tmp_path / HEAD).read_text())
    assert heads["n"] == 60
