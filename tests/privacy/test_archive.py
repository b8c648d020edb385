"""A backup is whole or refused, private, and restored only where nothing is."""

import io
import sqlite3
import stat
import tarfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.archive import ArchiveError, backup, restore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    (home / "runs" / "one").mkdir(parents=True)
    (home / "secret.key").write_bytes(b"key")
    (home / "secret.key").chmod(0o600)
    (home / "runs" / "one" / "history.jsonl").write_bytes(b"{}\n")
    (home / ".lock").touch()
    (home / ".secret.key.1.tmp").write_bytes(b"half")
    return home


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), stat.S_IMODE(path.stat().st_mode))
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_what_is_restored_is_what_was_there_and_no_leftover(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "backup.tar.gz"
    backup(folder, archive, kind="coordinator", without=(".lock",))
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    restore(archive, tmp_path / "again", kind="coordinator")
    found = contents(tmp_path / "again")
    assert set(found) == {"secret.key", "runs/one/history.jsonl"}
    assert found["secret.key"] == (b"key", 0o600)
    assert stat.S_IMODE((tmp_path / "again").stat().st_mode) == 0o700


def test_nothing_that_exists_is_ever_overwritten(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "backup.tar.gz"
    backup(folder, archive, kind="coordinator")
    with pytest.raises(ArchiveError, match="exists"):
        backup(folder, archive, kind="coordinator")
    before = contents(folder)
    with pytest.raises(ArchiveError, match="must be new or empty"):
        restore(archive, folder, kind="coordinator")
    assert contents(folder) == before
    with pytest.raises(ArchiveError, match="not a site"):
        restore(archive, tmp_path / "other", kind="site")
    assert not (tmp_path / "other").exists()
    with pytest.raises(ArchiveError, match="outside"):
        backup(folder, folder / "inside.tar.gz", kind="coordinator")


@given(share=st.floats(0.05, 1, exclude_max=True), change=st.integers(1, 255))
def test_a_damaged_archive_leaves_nothing_behind(
    share: float, change: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("damaged")
    (place / "home").mkdir()
    (place / "home" / "a").write_bytes(bytes(range(256)) * 8)
    archive = place / "backup.tar.gz"
    backup(place / "home", archive, kind="site")
    content = bytearray(archive.read_bytes())
    content[int(share * len(content))] ^= change
    archive.write_bytes(bytes(content))
    try:
        restore(archive, place / "again", kind="site")
    except (ArchiveError, OSError):
        assert not (place / "again").exists()
    else:
        assert (place / "again" / "a").read_bytes() == bytes(range(256)) * 8


@pytest.mark.parametrize("name", ["../escaped", "/absolute", "a/../../escaped"])
def test_a_hostile_archive_writes_nowhere(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "hostile.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = 1
        tar.addfile(entry, io.BytesIO(b"x"))
    with pytest.raises(ArchiveError, match="plain files"):
        restore(archive, tmp_path / "again", kind="site")
    assert [path.name for path in tmp_path.iterdir()] == ["hostile.tar.gz"]


def test_a_database_that_is_written_meanwhile_is_copied_as_one_state(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with closing(sqlite3.connect(home / "queue.sqlite", isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE t (n INTEGER)")
        database.execute("INSERT INTO t VALUES (7)")  # it stands in the write-ahead log alone
        backup(home, tmp_path / "b.tar.gz", kind="coordinator")
    restore(tmp_path / "b.tar.gz", tmp_path / "again", kind="coordinator")
    with closing(sqlite3.connect(tmp_path / "again" / "queue.sqlite")) as database:
        assert database.execute("SELECT n FROM t").fetchall() == [(7,)]


@pytest.mark.long
def test_a_passphrase_keeps_an_archive_closed_and_opens_it_again(
    folder: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "backup.age"
    backup(folder, archive, kind="site", passphrase="correct horse")
    assert archive.read_bytes().startswith(b"age-encryption.org/v1")
    assert b"secret" not in archive.read_bytes()
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    for wrong, words in (("", "is encrypted"), ("other", "the passphrase is another")):
        with pytest.raises(ArchiveError, match=words):
            restore(archive, tmp_path / "again", kind="site", passphrase=wrong)
    assert not (tmp_path / "again").exists()
    restore(archive, tmp_path / "again", kind="site", passphrase="correct horse")
    assert contents(tmp_path / "again")["secret.key"] == (b"key", 0o600)


@pytest.mark.slow  # a passphrase is made dear to try
def test_a_changed_encrypted_archive_is_refused(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "backup.age"
    backup(folder, archive, kind="site", passphrase="x")
    content = bytearray(archive.read_bytes())
    content[-20] ^= 1
    archive.write_bytes(content)
    with pytest.raises(ArchiveError, match="is damaged"):
        restore(archive, tmp_path / "again", kind="site", passphrase="x")


def test_a_folder_too_large_to_be_encrypted_in_memory_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("privacy.archive.MOST_ENCRYPTED", 5)
    with pytest.raises(ArchiveError, match="at most 5 can be encrypted"):
        backup(folder, tmp_path / "backup.age", kind="site", passphrase="x")
    assert not (tmp_path / "backup.age").exists()
