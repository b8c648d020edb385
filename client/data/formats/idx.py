"""Files of images in LeCun's idx format, and files that a task's folder has to hold."""

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from client.tasks.rows import TaskError


def folder_file(path: Path | None, task: str, *names: str) -> Path:
    """The first of `names` that lies in the folder `path`."""
    if path is None:
        raise TaskError(f"data: expected the folder of {task}'s files ({names[0]}, ..), got none")
    if not path.exists():
        raise TaskError(f"{path}: expected the folder of {task}'s files, found none")
    for name in names:
        if (path / name).is_file():
            return path / name
    raise TaskError(f"{path / names[0]}: expected a file of {task}, found none")


def images(path: Path, magic: int, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An idx file of bytes, plain or .gz, whose header has to match `shape` (0: any number)."""
    try:
        packed = path.read_bytes()
        content = gzip.decompress(packed) if packed[:2] == b"\x1f\x8b" else packed
    except (OSError, EOFError, zlib.error) as error:
        raise TaskError(f"{path}: expected a whole .gz file, got a damaged one") from error
    head = 4 + 4 * len(shape)
    if len(content) < head or int.from_bytes(content[:4], "big") != magic:
        raise TaskError(f"{path}: expected an idx file with magic number {magic}, got another")
    dimensions = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, head, 4))
    if any(want not in (0, got) for want, got in zip(shape, dimensions, strict=True)):
        raise TaskError(f"{path}: expected the shape {shape} (0: any), got {dimensions}")
    size = int(np.prod(dimensions))
    if len(content) - head != size or not size:
        raise TaskError(
            f"{path}: expected {size} bytes after its header, got {len(content) - head}"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=head).reshape(dimensions)
