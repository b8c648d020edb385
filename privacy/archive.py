"""Backup and restore of a folder (a coordinator's or a site's): one archive with a manifest.

The archive holds private keys and ledgers: it is written with mode 0600 and belongs where keys
belong. The manifest lists every file with its mode and SHA-256. A restore checks all of them before
it writes anything, and never touches a folder in which anything is. With a passphrase the archive
is a file of age (age-encryption.org), which `age -d` opens too; it is built in memory.
"""

import hashlib
import io
import json
import os
import re
import shutil
import sqlite3
import tarfile
import time
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from gzip import BadGzipFile
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final

from privacy.files import Limits, make_durable, open_atomic, parse_json, write_atomic

MANIFEST: Final = "manifest.json"
VERSION: Final = 1
MOST_ENCRYPTED: Final = 2 << 30
_AGE: Final = b"age-encryption.org/"
_MOST_FILES: Final = 1_000_000
_LIMITS: Final = Limits(size=512 * 2**20, digits=64, count=8 * _MOST_FILES)
"""Of a manifest."""
_TEMPORARY: Final = re.compile(r"\..*\.(tmp|part|new)(/|$)")


class ArchiveError(ValueError):
    """A backup that cannot be made or restored: one line; nothing was changed."""


def backup(
    folder: Path,
    archive: Path,
    *,
    kind: str,
    without: Collection[str] = (),
    passphrase: str = "",
) -> dict[str, Any]:
    """Write everything in `folder` into a new archive, encrypted where there is a passphrase.

    Returns its manifest.

    `without` are names in the folder that only a running process needs. A SQLite file is copied as
    one consistent state, whatever is written meanwhile.
    """
    check_target(folder, archive)
    files = list(_files(folder, without))
    if not passphrase:
        with open_atomic(archive, mode=0o600) as file:
            return _pack(files, file, kind)
    total = sum(path.stat().st_size for path, _ in files)
    if total > MOST_ENCRYPTED:
        raise ArchiveError(
            f"{folder}: holds {total} bytes, at most {MOST_ENCRYPTED} can be encrypted; leave out "
            "the passphrase and encrypt the archive by other means"
        )
    age, content = _age(), io.BytesIO()
    manifest = _pack(files, content, kind)
    write_atomic(archive, age.passphrase.encrypt(content.getvalue(), passphrase), mode=0o600)
    return manifest


def _pack(files: Sequence[tuple[Path, str]], file: BinaryIO, kind: str) -> dict[str, Any]:
    entries: list[dict[str, Any]] = []
    with tarfile.open(fileobj=file, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
        for path, name in files:
            content = _content(path)
            digest = hashlib.sha256(content).hexdigest()
            mode = path.stat().st_mode & 0o777
            entries.append({"name": name, "mode": mode, "size": len(content), "sha256": digest})
            _add(tar, name, content, mode)
        manifest = {"v": VERSION, "kind": kind, "time": time.time(), "files": entries}
        _add(tar, MANIFEST, json.dumps(manifest, indent=1).encode(), 0o600)
    return manifest


def check_target(folder: Path, archive: Path) -> None:
    """ArchiveError where a backup of `folder` cannot go there."""
    if archive.exists():
        raise ArchiveError(f"{archive}: exists, choose another name")
    if archive.absolute().is_relative_to(folder.absolute()):
        raise ArchiveError(f"{archive}: must lie outside of {folder}")


def restore(archive: Path, folder: Path, *, kind: str, passphrase: str = "") -> dict[str, Any]:
    """Unpack a whole backup of this kind into a new or empty folder; its manifest."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArchiveError(f"--dir {folder}: must be new or empty, a restore overwrites nothing")
    making = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    making.mkdir(mode=0o700, parents=True)
    try:
        manifest = _unpack(archive, making, passphrase)
        if manifest.get("kind") != kind:
            raise ArchiveError(f"{archive}: is a backup of a {manifest.get('kind')}, not a {kind}")
        if folder.exists():
            folder.rmdir()
        making.rename(folder)
        make_durable(folder.parent)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return manifest


def _files(folder: Path, without: Collection[str]) -> Iterator[tuple[Path, str]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not path.is_file() or name.split("/")[0] in without:
            continue
        if not _TEMPORARY.search(name) and not name.endswith(("-wal", "-shm")):
            yield path, name


def _content(path: Path) -> bytes:
    if path.suffix != ".sqlite":
        return path.read_bytes()
    with closing(sqlite3.connect(path)) as source:
        return source.serialize()


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = len(content), mode, int(time.time())
    tar.addfile(entry, io.BytesIO(content))


@contextmanager
def _opened(archive: Path, passphrase: str) -> Iterator[BinaryIO]:
    """The archive's plain bytes; ArchiveError where it is encrypted and the passphrase is wrong."""
    with archive.open("rb") as file:
        encrypted = file.read(len(_AGE)) == _AGE
        file.seek(0)
        if not encrypted:
            yield file
            return
        if not passphrase:
            raise ArchiveError(f"{archive}: is encrypted, expected --passphrase")
        age = _age()
        try:
            content = age.passphrase.decrypt(file.read(), passphrase)
        except age.DecryptError:
            raise ArchiveError(f"{archive}: is damaged, or the passphrase is another") from None
    yield io.BytesIO(content)


def _age() -> Any:
    try:
        import pyrage
    except ImportError:
        raise ArchiveError("--passphrase needs pyrage (pip install 'tacit[backup]')") from None
    return pyrage


def _unpack(archive: Path, folder: Path, passphrase: str) -> dict[str, Any]:
    """Write the files into `folder` and check them against the manifest; ArchiveError."""
    files: dict[str, tuple[str, int]] = {}
    manifest: dict[str, Any] | None = None
    try:
        with _opened(archive, passphrase) as plain, tarfile.open(fileobj=plain, mode="r:gz") as tar:
            for count, entry in enumerate(tar):
                content = tar.extractfile(entry)
                name = PurePosixPath(entry.name)
                unsafe = name.is_absolute() or ".." in name.parts or "\\" in entry.name
                if unsafe or content is None or not entry.isfile() or count > _MOST_FILES:
                    raise ArchiveError(f"{archive}: must hold plain files, got {entry.name!r:.80}")
                if entry.name == MANIFEST:
                    manifest = parse_json(content.read(_LIMITS.size + 1), _LIMITS)
                    continue
                path = folder / name
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                digest, size = hashlib.sha256(), 0
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, entry.mode & 0o700)
                with os.fdopen(handle, "wb") as file:
                    while block := content.read(1 << 20):
                        digest.update(block)
                        size += file.write(block)
                    file.flush()
                    os.fsync(file.fileno())
                files[entry.name] = digest.hexdigest(), size
        listed = _listed(manifest)
    except ArchiveError:
        raise
    except (tarfile.TarError, EOFError, ValueError, KeyError, zlib.error, BadGzipFile) as error:
        raise ArchiveError(f"{archive}: must be a whole backup ({error})") from None
    if manifest is None or listed is None:
        raise ArchiveError(f"{archive}: must hold a manifest of version {VERSION}")
    if listed != files:
        wrong = sorted(name for name in listed | files if listed.get(name) != files.get(name))
        raise ArchiveError(f"{archive}: is damaged, {wrong[0]} is not what the manifest says")
    return manifest


def _listed(manifest: Any) -> dict[str, tuple[str, int]] | None:
    """The hash and the size of every file in a manifest; None where it is none of this version."""
    if not isinstance(manifest, dict) or manifest.get("v") != VERSION:
        return None
    files = manifest.get("files")
    if not isinstance(files, list) or not all(isinstance(one, dict) for one in files):
        return None
    return {str(e.get("name")): (str(e.get("sha256")), int(e.get("size") or 0)) for e in files}
