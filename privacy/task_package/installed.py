"""An installed package by what is in it: the same wheel has the same digest at every site.

A wheel's RECORD lists each of its files with its SHA-256 (PyPA's "Recording installed projects").
What an installer adds by itself, as scripts and compiled modules, is left out.
"""

import base64
import hashlib
from importlib.metadata import Distribution, PackageNotFoundError, PackagePath, distribution
from pathlib import Path

from privacy.task_package.archive import PackageError


def digest_of(name: str) -> str:
    """SHA-256 over the names and digests of an installed package's files, with `sha256:` before it.

    Every file is read: PackageError where one is not what RECORD says, or where there is no RECORD.
    """
    try:
        found = distribution(name)
    except PackageNotFoundError:
        raise PackageError(f"{name}: must be installed") from None
    lines = sorted(f"{file.as_posix()} {_digest(found, file)}" for file in _files(found, name))
    return "sha256:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _files(found: Distribution, name: str) -> list[PackagePath]:
    files = [file for file in found.files or () if file.hash is not None and ".." not in file.parts]
    made_here = ("INSTALLER", "REQUESTED", "direct_url.json")
    kept = [f for f in files if not (f.parts[0].endswith(".dist-info") and f.name in made_here)]
    kept = [file for file in kept if file.suffix != ".pyc"]
    if not kept:
        raise PackageError(f"{name}: must be installed from a wheel, which records its files")
    return kept


def _digest(found: Distribution, file: PackagePath) -> str:
    """The digest of a file as it is now, which must be the one that RECORD says."""
    recorded = file.hash
    if recorded is None or recorded.mode != "sha256":
        raise PackageError(f"{file}: must be recorded by its SHA-256")
    try:
        with Path(str(found.locate_file(file))).open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").digest()
    except OSError:
        raise PackageError(f"{file}: must be there as it was installed") from None
    text = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    if text != recorded.value:
        raise PackageError(f"{file}: must be as it was installed, got other bytes")
    return text
