"""Rows of the areas' own files, as prediction and evaluation take them piece by piece."""

import gzip
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from client.tasks.rows import TaskError

LARGEST: Final = 2**31
"""Bytes of a file that is read whole, unpacked."""


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """What is said of some rows beside them: arrays (`number`, `y`), texts (`id`) and faults."""

    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)
    faults: list[dict[str, Any]] = field(default_factory=list)


def text_of(path: Path, what: str) -> str:
    """A text file, plain or .gz; bytes that are none become U+FFFD, where they stand alone.

    TaskError where it cannot be read.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise TaskError(f"{path}: expected at most {LARGEST} bytes")
        return content.decode(errors="replace")
    except (OSError, EOFError, zlib.error):
        raise TaskError(f"{path}: expected {what} that can be read, got none") from None


def file_of(path: Path | None, what: str, *names: str) -> Path:
    """The path itself where it is a file, else the first of `names` in the folder; TaskError."""
    if path is None:
        raise TaskError(f"data: expected the path of {what}, got none")
    if path.is_file():
        return path
    for name in names:
        if (path / name).is_file():
            return path / name
    raise TaskError(f"{path}: expected {what} ({' or '.join(names)}), found none")
