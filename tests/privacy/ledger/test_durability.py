"""A ledger that was made is on the disk before anybody spends: its files, then their folder."""

import os
import stat
from pathlib import Path

import pytest

from privacy.accounting.events import Event
from privacy.ledger.ledger import Ledger, LedgerError


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was synced, in order: the name of a file, or "folder"."""
    names: list[str] = []
    fsync = os.fsync

    def recording(fd: int) -> None:
        folder = stat.S_ISDIR(os.fstat(fd).st_mode)
        names.append("folder" if folder else Path(f"/proc/self/fd/{fd}").readlink().name)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", recording)
    return names


def test_a_new_ledger_and_its_folder_are_synced(tmp_path: Path, synced: list[str]) -> None:
    Ledger.create(tmp_path / "people.jsonl", population="people")
    assert any(name.startswith("people.jsonl") for name in synced)
    ledger = [i for i, name in enumerate(synced) if name == "people.jsonl" or ".tmp" in name]
    assert "folder" in synced[ledger[-1] :]


def test_an_entry_is_synced_before_the_spend_returns(tmp_path: Path, synced: list[str]) -> None:
    ledger = Ledger.create(tmp_path / "people.jsonl", population="people")
    synced.clear()
    ledger.spend(Event("record", 2.0, 0.1, 1), None, run="r", round=1, plan="p")
    assert "people.jsonl" in synced


def test_a_folder_that_cannot_be_synced_refuses_the_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def failing(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(5, "Input/output error")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises((LedgerError, OSError)):
        Ledger.create(tmp_path / "people.jsonl", population="people")
