"""Arrays as bytes: safetensors on the wire and on disk, checked against what is expected.

Nothing here can run code: no pickle, no np.load. Half and quarter encodings happen after the noise,
so that they are post-processing and cost no privacy.

A large model is copied as rarely as can be: arrays that are read are views of the bytes they came
in, and arrays that `laid_out` has made lie in one buffer as they are sent.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from privacy.files import DocumentError, Limits, parse_json

Arrays = dict[str, npt.NDArray[np.float32]]
"""Named float32 arrays: the weights of a model, or an update of them."""

Shapes = Mapping[str, tuple[int, ...]]

Buffer = bytes | npt.NDArray[np.uint8]
"""Encoded arrays: bytes, or where they are many the memory they were made in."""

KINDS: Final = ("float32", "bfloat16", "int8")
_SCALE: Final = "/scale"
_DTYPES: Final = {"<f4": "F32", "<u2": "U16", "|i1": "I8"}
_TYPES: Final = {name: np.dtype(code) for code, name in _DTYPES.items()}
_SMALL: Final = 1 << 22
"""Bytes from which numpy asks the system for large pages: there a buffer costs a quarter of what
`bytes` of the same length do."""
_HEAD_MOST: Final = 100_000_000
_HEAD: Final = Limits(size=_HEAD_MOST, depth=4, digits=20, length=1 << 26, count=1 << 24)
_ALIGNED: Final = 8
_DIMENSIONS: Final = 32


class WireError(ValueError):
    """Bytes that are not the arrays expected; never holds a value of them."""


class LaidOut(dict[str, npt.NDArray[np.float32]]):
    """Float32 arrays that lie in one buffer as safetensors: encoding them copies nothing.

    They must not change once they are encoded.
    """

    __slots__ = ("_at", "_buffer")

    def __init__(self, buffer: npt.NDArray[np.uint8], arrays: Arrays) -> None:
        super().__init__(arrays)
        self._buffer = buffer
        self._at = {name: array.ctypes.data for name, array in arrays.items()}

    def encoded(self) -> npt.NDArray[np.uint8] | None:
        """The buffer, if every array still is the one in it."""
        here = {name: array.ctypes.data for name, array in self.items()}
        return self._buffer if here == self._at else None


def laid_out(shapes: Shapes) -> LaidOut:
    """Arrays of these shapes to be filled, in one buffer."""
    blank = {n: np.broadcast_to(np.zeros((), np.float32), shape) for n, shape in shapes.items()}
    head, size = _head(blank, None)
    buffer = np.empty(len(head) + size, np.uint8)
    buffer[: len(head)] = np.frombuffer(head, np.uint8)
    arrays, at = {}, len(head)
    for name in _ordered(blank):
        end = at + blank[name].nbytes
        arrays[name] = buffer[at:end].view(np.float32).reshape(blank[name].shape)
        at = end
    return LaidOut(buffer, {name: arrays[name] for name in shapes})


def encode(arrays: Mapping[str, npt.NDArray[np.float32]], kind: str = "float32") -> Buffer:
    """Float32 arrays as safetensors, in 4, 2 or 1 bytes a number."""
    if kind == "float32" and isinstance(arrays, LaidOut):
        there = arrays.encoded()
        if there is not None:
            return there if len(there) >= _SMALL else memory(there).tobytes()
    packed: dict[str, npt.NDArray[np.generic]] = {}
    for name, array in arrays.items():
        values = np.asarray(array, dtype=np.float32, order="C")
        if kind == "float32":
            packed[name] = values
        elif kind == "bfloat16":
            packed[name] = _to_bfloat16(values)
        elif kind == "int8":
            packed[name], packed[name + _SCALE] = _to_int8(values)
        else:
            raise WireError(f"wire: expected one of {', '.join(KINDS)}, got {kind!r}")
    return joined(parts(packed))


def memory(content: Buffer) -> memoryview:
    """The bytes of a buffer, where they are."""
    return memoryview(content) if isinstance(content, bytes) else content.data


def joined(pieces: Iterable[bytes | memoryview]) -> Buffer:
    """Pieces of bytes in one: `bytes` where they are short."""
    pieces = list(pieces)
    size = sum(len(piece) for piece in pieces)
    if size < _SMALL:
        return b"".join(pieces)
    whole, at = np.empty(size, np.uint8), 0
    for piece in pieces:
        whole[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
        at += len(piece)
    return whole


def parts(
    arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """A safetensors file, its head and then each array's own memory: nothing is copied."""
    yield _head(arrays, metadata)[0]
    for name in _ordered(arrays):
        yield np.asarray(arrays[name], order="C").reshape(-1).view(np.uint8).data


def _ordered(arrays: Mapping[str, npt.NDArray[Any]]) -> list[str]:
    """The library's order: dtypes by size, so that every array is aligned, then names."""
    return sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))


def _head(
    arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str] | None
) -> tuple[bytes, int]:
    """What a safetensors file begins with, and how many bytes of arrays follow."""
    head: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name in _ordered(arrays):
        begin, end = end, end + arrays[name].nbytes
        dtype, shape = _DTYPES[arrays[name].dtype.str], list(arrays[name].shape)
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return len(text).to_bytes(8, "little") + text, end


def views(data: Buffer) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """The arrays in a safetensors file and its metadata: read-only views of the very bytes.

    WireError for anything else than arrays of our three dtypes, one behind the other.
    """
    whole = np.frombuffer(data, np.uint8)
    size = int.from_bytes(whole[:8].tobytes(), "little")
    if len(whole) < 8 or not size <= min(len(whole) - 8, _HEAD_MOST):
        raise WireError("expected safetensors")
    try:
        head = parse_json(whole[8 : 8 + size].tobytes(), _HEAD)
    except DocumentError:
        raise WireError("expected safetensors") from None
    if not isinstance(head, dict):
        raise WireError("expected safetensors")
    metadata = head.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(type(text) is str for text in metadata.values()):
        raise WireError("expected safetensors with texts as metadata")
    body, arrays = whole[8 + size :], dict[str, npt.NDArray[Any]]()
    body.flags.writeable = False
    spans = []
    for name, about in head.items():
        dtype, shape, (begin, end) = _entry(about)
        if end > len(body) or end - begin != math.prod(shape) * dtype.itemsize:
            raise WireError("expected safetensors")
        try:
            array = body[begin:end].view(dtype).reshape(shape)
        except (ValueError, OverflowError):  # as of no numbers in a direction of 2^70
            raise WireError("expected safetensors") from None
        arrays[name] = array if array.flags.aligned else array.copy()
        spans.append((begin, end))
    reached = 0
    for begin, end in sorted(spans):
        if begin != reached:
            raise WireError("expected safetensors, one array behind the other")
        reached = end
    if reached != len(body):
        raise WireError("expected safetensors, nothing behind the arrays")
    return arrays, metadata


def _entry(about: object) -> tuple[np.dtype[Any], tuple[int, ...], tuple[int, int]]:
    """An array's type, shape and place in a head; WireError where these are not there."""
    if not isinstance(about, dict) or set(about) != {"dtype", "shape", "data_offsets"}:
        raise WireError("expected safetensors")
    code, shape, span = about["dtype"], about["shape"], about["data_offsets"]
    dtype = _TYPES.get(code) if isinstance(code, str) else None
    whole = isinstance(shape, list) and isinstance(span, list) and len(span) == 2
    if dtype is None or not whole or not all(type(n) is int and n >= 0 for n in [*shape, *span]):
        raise WireError("expected safetensors of float32, uint16 or int8")
    if len(shape) > _DIMENSIONS or span[0] > span[1]:
        raise WireError("expected safetensors")
    return dtype, tuple(shape), (span[0], span[1])


def most(shapes: Shapes) -> int:
    """More bytes than arrays of these shapes ever take, with their head."""
    return 4 * sum(math.prod(shape) for shape in shapes.values()) + 512 * len(shapes) + 65536


def decode(data: Buffer, shapes: Shapes, kind: str = "float32") -> Arrays:
    """The arrays in `data`; WireError unless names, shapes, dtypes and values are as expected.

    Arrays of float32 are read-only views of `data`.
    """
    if len(data) > most(shapes):
        raise WireError(f"expected at most {most(shapes)} bytes, got {len(data)}")
    packed, _ = views(data)
    scales = {n + _SCALE for n in shapes} if kind == "int8" else set()
    if set(packed) != set(shapes) | scales:
        raise WireError(f"expected {len(shapes)} arrays by the model's names")
    dtype = {"float32": np.float32, "bfloat16": np.uint16, "int8": np.int8}[kind]
    arrays: Arrays = {}
    for name, shape in shapes.items():
        values = packed[name]
        if values.shape != tuple(shape) or values.dtype != dtype:
            raise WireError(f"{name}: expected {kind} of shape {tuple(shape)}")
        if kind == "bfloat16":
            values = _from_bfloat16(values)
        elif kind == "int8":
            scale = packed[name + _SCALE]
            if scale.shape != (1,) or scale.dtype != np.float32:
                raise WireError(f"{name}: expected one float32 scale")
            with np.errstate(over="ignore"):  # what overflows is refused below
                values = values.astype(np.float32) * scale[0]
        if not np.isfinite(values).all():
            raise WireError(f"{name}: expected finite numbers")
        arrays[name] = values
    return arrays


def decode_any(data: Buffer) -> Arrays:
    """Float32 arrays in `data`, views of it, whatever their names and shapes; WireError."""
    arrays, _ = views(data)
    for name, array in arrays.items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise WireError(f"{name}: expected finite float32 numbers")
    return arrays


def digest(data: Buffer) -> str:
    """SHA-256 of encoded arrays: what a request's weights are known by."""
    return hashlib.sha256(memory(data)).hexdigest()


def _to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    bits = values.view(np.uint32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)  # to nearest, ties to even
    return np.asarray(rounded >> 16, dtype=np.uint16)


def _from_bfloat16(values: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    return np.asarray(values.astype(np.uint32) << 16, dtype=np.uint32).view(np.float32)


def _to_int8(
    values: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Stochastic rounding to 255 levels, unbiased (QSGD, Alistarh et al. 2017)."""
    scale = np.float32(np.abs(values).max(initial=0.0) / 127) or np.float32(1)
    draws = np.random.default_rng().random(values.shape, dtype=np.float32)
    levels = np.floor(values / scale + draws).clip(-127, 127)
    return np.asarray(levels, dtype=np.int8), np.array([scale], dtype=np.float32)
