"""One file a round, complete or absent: temporary file, fsync, rename, fsync of the folder."""

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from privacy.arrays import Arrays, WireError, parts, views
from privacy.files import write_atomic


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read; what was there before still stands."""


def path_of(folder: Path, number: int) -> Path:
    """The checkpoint of one round."""
    return folder / f"{number:06d}.safetensors"


class Sign(Protocol):
    """Signs a complete checkpoint's file, whose SHA-256 may be known."""

    def __call__(self, path: Path, sha256: str | None = None) -> None: ...


def write(
    folder: Path, number: int, arrays: Arrays, metadata: Mapping[str, str], *, durable: bool = True
) -> tuple[Path, str]:
    """Write the checkpoint of a round with its metadata; FileError where it cannot be.

    Returns where it is, and its SHA-256.
    """
    path, sha256 = path_of(folder, number), hashlib.sha256()

    def hashed() -> Iterator[bytes | memoryview]:
        for part in parts(arrays, metadata):
            sha256.update(part)
            yield part

    write_atomic(path, hashed(), durable=durable)
    return path, sha256.hexdigest()


def read(path: Path) -> tuple[Arrays, dict[str, str]]:
    """The arrays and the metadata; CheckpointError for anything that is not a whole checkpoint."""
    try:
        packed, metadata = views(np.fromfile(path, np.uint8))
    except (OSError, WireError):
        raise CheckpointError(f"{path}: expected a whole checkpoint") from None
    return {name: np.asarray(a, dtype=np.float32) for name, a in packed.items()}, metadata


def numbers(folder: Path) -> list[int]:
    """The rounds whose checkpoints are there, in order."""
    names = (p.name.split(".")[0] for p in folder.glob("*.safetensors"))
    return sorted(int(name) for name in names if name.isdigit())


def latest(folder: Path) -> Path | None:
    """The checkpoint of the last round, or None before the first."""
    last = numbers(folder)[-1:]
    return path_of(folder, last[0]) if last else None


def read_metadata(path: Path) -> dict[str, str]:
    """Only the header of a checkpoint, without its arrays."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
            (size,) = struct.unpack("<Q", head)
            if size > 100_000_000:
                raise ValueError
            return _metadata(head + file.read(size))
    except (OSError, ValueError, KeyError, RecursionError, struct.error):
        raise CheckpointError(f"{path}: expected a whole checkpoint") from None


def _metadata(data: bytes) -> dict[str, str]:
    (size,) = struct.unpack("<Q", data[:8])
    header: Any = json.loads(data[8 : 8 + size])
    metadata = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        raise ValueError("a header that is no object")
    return {str(k): str(v) for k, v in metadata.items()}
