"""An installed package by what is in it: the same wheel has the same digest at every site.

A wheel's RECORD lists each of its files with its SHA-256 (PyPA's "Recording installed projects").
What an installer adds by itself, as scripts and compiled modules, is left out.
"""

import base64
import csv
import hashlib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath

from privacy.task_package.archive import PackageError


def digest_of(name: str) -> str:
    """SHA-256 over the names and digests of an installed package's files, with `sha256:` before it.

    Every file is read: PackageError where one is not what RECORD says, or where there is no RECORD.
    """
    try:
        found = distribution(name)
    except PackageNotFoundError:
        raise PackageError(f"{name}: must be installed") from None
    lines = sorted(f"{path} {_digest(found, path, hashed)}" for path, hashed in _files(found, name))
    return "sha256:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _files(found: Distribution, name: str) -> list[tuple[str, str]]:
    """The paths that RECORD lists, with their digests; those that are gone among them.

    Not `Distribution.files`, which may leave out what is not there any more.
    """
    rows = csv.reader((found.read_text("RECORD") or "").splitlines())
    listed = [(PurePosixPath(row[0]), row[1]) for row in rows if len(row) == 3 and row[1]]
    made_here = ("INSTALLER", "REQUESTED", "direct_url.json")
    files = [
        (path.as_posix(), hashed)
        for path, hashed in listed
        if ".." not in path.parts
        and path.suffix != ".pyc"
        and not (path.parts[0].endswith(".dist-info") and path.name in made_here)
    ]
    if not files:
        raise PackageError(f"{name}: must be installed from a wheel, which records its files")
    return files


def _digest(found: Distribution, path: str, hashed: str) -> str:
    """The digest of a file as it is now, which must be the one that RECORD says."""
    mode, _, recorded = hashed.partition("=")
    if mode != "sha256":
        raise PackageError(f"{path}: must be recorded by its SHA-256")
    try:
        with Path(str(found.locate_file(path))).open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").digest()
    except OSError:
        raise PackageError(f"{path}: must be there as it was installed") from None
    text = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    if text != recorded:
        raise PackageError(f"{path}: must be as it was installed, got other bytes")
    return text
