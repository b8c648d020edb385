"""A task package as one file: the same folder gives the same bytes, and so the same SHA-256.

The file is a zip archive without compression: entries sorted by name, with fixed times and modes.
Reading accepts exactly what writing gives, so that no two files are one package.
"""

import hashlib
import io
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from privacy.files import DocumentError, read_bounded
from privacy.printable import printable

MANIFEST: Final = "task.toml"
SOURCE: Final = "task.py"
SUFFIX: Final = ".tacit-task"
MOST_BYTES: Final = 2 * 2**30
MOST_SOURCE: Final = 400_000
MOST_SHOWN: Final = 4 * 2**20
"""The largest package that goes with a proposal; larger ones reach the sites in another way."""
_MOST_FILES: Final = 200
_NAME: Final = re.compile(
    r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}){0,3}"
)
_TIME: Final = (1980, 1, 1, 0, 0, 0)
_MODE: Final = 0o100644 << 16
_LEFT_OUT: Final = ("__pycache__",)
_PICKLES: Final = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".pyc")
"""Formats that can carry code: weights belong into safetensors, numbers into npy or npz."""


class PackageError(ValueError):
    """A task package that cannot be used: one line with what is wrong and what was expected."""


@dataclass(frozen=True)
class Package:
    """The files of a task package by name, and the one file that holds them."""

    files: Mapping[str, bytes]
    content: bytes

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file: what a plan's `code` and an approval name."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def code(self) -> str:
        """The digest as a plan writes it."""
        return f"sha256:{self.digest}"

    @property
    def source(self) -> str:
        """The text of task.py."""
        return self.files[SOURCE].decode("utf-8")


def load_package(path: Path) -> Package:
    """The package of a folder, or of a packed file; PackageError, one line."""
    return pack(path) if path.is_dir() else read_package(path)


def pack(folder: Path) -> Package:
    """The package of a folder; PackageError where it cannot be one."""
    files: dict[str, bytes] = {}
    try:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            hidden = any(part.startswith(".") for part in name.split("/"))
            if hidden or any(part in _LEFT_OUT for part in name.split("/")) or path.is_dir():
                continue
            if path.is_symlink():
                raise PackageError(f"{path}: must be a file of the folder itself, got a link")
            files[name] = read_bounded(path, MOST_BYTES)
            if len(files) > _MOST_FILES:
                raise PackageError(f"{folder}: must hold at most {_MOST_FILES} files")
    except (OSError, DocumentError) as error:
        raise PackageError(f"{folder}: must be a folder that can be read ({error})") from None
    _check(files)
    return Package(files, _written(files))


def read_package(path: Path) -> Package:
    """The package of a packed file; PackageError, one line."""
    try:
        content = read_bounded(path, MOST_BYTES)
    except FileNotFoundError:
        raise PackageError(f"{path}: must be a package's folder or file, found none") from None
    except (OSError, DocumentError) as error:
        raise PackageError(f"{path}: must be a file that can be read ({error})") from None
    try:
        return unpack(content)
    except PackageError as error:
        raise PackageError(f"{path}: {error}") from None


def unpack(content: bytes) -> Package:
    """The package in these bytes; PackageError unless they are exactly what `pack` would write."""
    if len(content) > MOST_BYTES:
        raise PackageError(f"must have at most {MOST_BYTES} bytes, got {len(content)}")
    files: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            if len(entries) > _MOST_FILES:
                raise PackageError(f"must hold at most {_MOST_FILES} files, got {len(entries)}")
            for entry in entries:
                if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > len(content):
                    raise PackageError("must be a file that `tacit-privacy task pack` wrote")
                files[entry.filename] = archive.read(entry)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        if isinstance(error, PackageError):
            raise
        raise PackageError("must be a task package, got another or a damaged file") from None
    _check(files)
    if _written(files) != content:
        raise PackageError("must be a file that `tacit-privacy task pack` wrote, got another form")
    return Package(files, content)


def _written(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _TIME)
            entry.external_attr, entry.create_system = _MODE, 3
            archive.writestr(entry, files[name])
    return buffer.getvalue()


def _check(files: Mapping[str, bytes]) -> None:
    for name in (MANIFEST, SOURCE):
        if name not in files:
            raise PackageError(f"must hold {MANIFEST} and {SOURCE}, found no {name}")
    for name, content in files.items():
        if not _NAME.fullmatch(name):
            raise PackageError(f"{printable(name, 80)}: must be a plain file name")
        if name.lower().endswith(_PICKLES) or content[:2] in (
            b"\x80\x02",
            b"\x80\x04",
            b"\x80\x05",
        ):
            raise PackageError(
                f"{name}: must be a format that carries no code (safetensors, npy, npz, text)"
            )
        if name.endswith(".py") and name != SOURCE:
            raise PackageError(f"{name}: must be left out, all code stands in {SOURCE}")
    if len(files[SOURCE]) > MOST_SOURCE:
        raise PackageError(f"{SOURCE}: must have at most {MOST_SOURCE} bytes")
    try:
        files[SOURCE].decode("utf-8")
    except UnicodeDecodeError:
        raise PackageError(f"{SOURCE}: must be UTF-8") from None
