"""Arrays, images and sounds as raw columns: npz and npy, idx, folders of images or of wav files.

Which of them a task can read follows from its columns: numbers only for arrays, one column of
pixels or samples for the others. Nothing is unpickled; large arrays are read piece by piece.
"""

import ast
import gzip
import math
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from client.data.form import Form


class ArraysError(ValueError):
    """A file of arrays, images or sounds that the task cannot take; always one line."""


Piece = tuple[Any, float, Sequence[str] | None]
"""Raw columns, the part of the source read so far, and where known each row's file name."""

LARGEST: Final = 64 * 2**20
"""Bytes of the largest single row."""
_HEADER: Final = 65536
_IMAGES: Final = (".png", ".pgm", ".bmp", ".jpg", ".jpeg")


def arrays(task: Form, path: Path, rows: int) -> Iterator[Piece] | None:
    """The source as raw columns, `rows` at a time; None where it is no array, image or sound."""
    if path.is_dir():
        return _images(task, path, rows)
    with path.open("rb") as file:
        head = file.read(8)
    if zipfile.is_zipfile(path):
        return _npz(task, path, rows)
    if head[:6] == b"\x93NUMPY":
        return _npy(task, path, rows)
    if head[:3] == b"\x1f\x8b\x08":
        with gzip.open(path, "rb") as packed:
            head = packed.read(8)
    if head[:3] == b"\x00\x00\x08" and 1 <= head[3] <= 4:
        return _idx(task, path, rows)
    return None


def table(task: Form, x: NDArray[Any], y: NDArray[Any] | None) -> Any:
    """Raw values [rows, ...] as the task's columns, and labels [rows] where known."""
    flat = x.reshape(len(x), -1)
    if flat.dtype.kind not in "buif":
        raise ArraysError(f"x: expected numbers, got {flat.dtype}")
    if flat.shape[1] != len(task.inputs):
        raise ArraysError(
            f"x: expected {len(task.inputs)} values a row ({task.inputs[0]}, ..), "
            f"got {flat.shape[1]}"
        )
    columns: dict[str, Any] = {
        name: np.ascontiguousarray(flat[:, i]) for i, name in enumerate(task.inputs)
    }
    if y is not None:
        columns[task.label] = [str(label) for label in y.reshape(len(x)).tolist()]
    return pa.table(columns)


def _npz(task: Form, path: Path, rows: int) -> Iterator[Piece]:
    try:
        with zipfile.ZipFile(path) as archive, ExitStack() as opened:
            names = archive.namelist()
            if "x.npy" not in names:
                raise ArraysError("expected an npz file with an array x, found none")
            x = _Array(opened.enter_context(archive.open("x.npy")), "x")
            y = None
            if "y.npy" in names:
                y = _Array(opened.enter_context(archive.open("y.npy")), "y")
            yield from _paired(task, x, y, rows)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise ArraysError("expected a whole npz file, got a damaged one") from error


def _npy(task: Form, path: Path, rows: int) -> Iterator[Piece]:
    with path.open("rb") as file:
        yield from _paired(task, _Array(file, "x"), None, rows)


class _Array:
    """A stored array [rows, ...] read a few rows at a time."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self.file, self.name = file, name
        self.shape, fortran, self.dtype = _npy_header(file, name)
        if self.dtype.kind not in "buifUS" or fortran or not self.shape or 0 in self.shape[1:]:
            raise ArraysError(f"{name}: expected numbers in rows (C order), got {self.dtype}")
        if math.prod(self.shape[1:]) * self.dtype.itemsize > LARGEST:
            raise ArraysError(f"{name}: expected rows of at most {LARGEST} bytes")

    def take(self, rows: int) -> NDArray[Any]:
        """The next rows; ArraysError if the file ends before they do."""
        shape = (rows, *self.shape[1:])
        size = math.prod(shape) * self.dtype.itemsize
        content = self.file.read(size)
        if len(content) != size:
            raise ArraysError(f"{self.name}: expected {self.shape[0]} rows, got fewer")
        return np.frombuffer(content, dtype=self.dtype).reshape(shape)


def _npy_header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type (numpy's own reader trips over damaged headers in a dozen ways)."""
    head = file.read(8)
    length = int.from_bytes(file.read(2 if head[6:7] == b"\x01" else 4), "little")
    text = file.read(min(length, _HEADER)).decode("latin-1")
    try:
        header = ast.literal_eval(text.strip())
        shape, fortran = tuple(header["shape"]), bool(header["fortran_order"])
        if head[:6] != b"\x93NUMPY" or not isinstance(header["descr"], str):
            raise ValueError
        if any(type(size) is not int or not 0 <= size < 2**40 for size in shape):
            raise ValueError
        return shape, fortran, np.dtype(header["descr"])
    except (ValueError, TypeError, KeyError, SyntaxError, MemoryError, RecursionError) as error:
        raise ArraysError(f"{name}: expected an array of numbers, got another") from error


def _paired(task: Form, x: _Array, y: _Array | None, rows: int) -> Iterator[Piece]:
    total = x.shape[0]
    if total < 1:
        raise ArraysError("expected rows, found none")
    if y is not None and (y.shape[0] != total or math.prod(y.shape[1:]) != 1):
        raise ArraysError(f"y: expected {total} labels, got the shape {y.shape}")
    for start in range(0, total, rows):
        count = min(rows, total - start)
        labels = None if y is None else y.take(count)
        yield table(task, x.take(count), labels), (start + count) / total, None


def _idx(task: Form, path: Path, rows: int) -> Iterator[Piece]:
    """LeCun's format: bytes [rows, ...]; a file of labels beside it is found by its usual name."""
    with ExitStack() as opened:
        x, shape = _idx_open(opened, path)
        beside = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
        y = _idx_open(opened, beside) if beside != path and beside.is_file() else None
        if y is not None and y[1] != shape[:1]:
            raise ArraysError(f"{beside.name}: expected {shape[0]} labels, got {y[1]}")
        if shape[0] < 1:
            raise ArraysError("expected rows, found none")
        for start in range(0, shape[0], rows):
            count = min(rows, shape[0] - start)
            labels = None if y is None else _exactly(y[0], count, ()).reshape(-1)
            values = _exactly(x, count, shape[1:])
            yield table(task, values, labels), (start + count) / shape[0], None


def _idx_open(opened: ExitStack, path: Path) -> tuple[IO[bytes], tuple[int, ...]]:
    file: Any = opened.enter_context(path.open("rb"))
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    if packed:
        file = opened.enter_context(gzip.GzipFile(fileobj=file))
    head = file.read(4)
    sizes = file.read(4 * head[3]) if len(head) == 4 and head[:3] == b"\x00\x00\x08" else b""
    if not sizes or len(sizes) != 4 * head[3]:
        raise ArraysError("expected a whole idx file of bytes, got a damaged one")
    shape = tuple(int.from_bytes(sizes[i : i + 4], "big") for i in range(0, len(sizes), 4))
    if math.prod(shape[1:]) > LARGEST:
        raise ArraysError(f"expected rows of at most {LARGEST} bytes")
    return file, shape


def _exactly(file: IO[bytes], rows: int, shape: tuple[int, ...]) -> NDArray[Any]:
    content = file.read(rows * math.prod(shape))
    if len(content) != rows * math.prod(shape):
        raise ArraysError("expected a whole idx file, got a truncated one")
    return np.frombuffer(content, np.uint8).reshape((rows, *shape))


def _images(task: Form, path: Path, rows: int) -> Iterator[Piece] | None:
    """A folder of grey images of the task's size; folders in it named for classes are labels."""
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _IMAGES)
    side = math.isqrt(len(task.inputs))
    if not files or side * side != len(task.inputs):
        return None

    def pieces() -> Iterator[Piece]:
        for start in range(0, len(files), rows):
            batch = files[start : start + rows]
            pixels = np.stack([_image(file, side) for file in batch])
            names = [file.parent.name for file in batch]
            known = all(name in task.classes for name in names)
            labels = np.array(names, dtype=object) if known else None
            places = [str(file.relative_to(path)) for file in batch]
            yield table(task, pixels, labels), (start + len(batch)) / len(files), places

    return pieces()


def _image(path: Path, side: int) -> NDArray[Any]:
    from PIL import Image, UnidentifiedImageError  # only here: few sites keep rows as pictures

    try:
        with Image.open(path) as image:
            if image.size != (side, side):
                raise ArraysError(f"{path.name}: expected {side}x{side} pixels, got {image.size}")
            return np.asarray(image.convert("L"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, ArraysError):
            raise
        raise ArraysError(f"{path.name}: expected a whole image, got a damaged one") from error
