"""Arrays as bytes: safetensors on the wire and on disk, checked against what is expected.

Nothing here can run code: no pickle, no np.load. Half and quarter encodings happen after the noise,
so that they are post-processing and cost no privacy.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load

Arrays = dict[str, npt.NDArray[np.float32]]
"""Named float32 arrays: the weights of a model, or an update of them."""

Shapes = Mapping[str, tuple[int, ...]]

KINDS: Final = ("float32", "bfloat16", "int8")
_SCALE: Final = "/scale"
_DTYPES: Final = {"<f4": "F32", "<u2": "U16", "|i1": "I8"}


class WireError(ValueError):
    """Bytes that are not the arrays expected; never holds a value of them."""


def encode(arrays: Mapping[str, npt.NDArray[np.float32]], kind: str = "float32") -> bytes:
    """Float32 arrays as safetensors bytes, in 4, 2 or 1 bytes a number."""
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
    return b"".join(parts(packed))


def parts(
    arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """A safetensors file, its head and then each array's own memory: nothing is copied."""
    head: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    # The library's order: dtypes by size, so that every array is aligned, then names.
    names = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    end = 0
    for name in names:
        begin, end = end, end + arrays[name].nbytes
        dtype, shape = _DTYPES[arrays[name].dtype.str], list(arrays[name].shape)
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        yield np.asarray(arrays[name], order="C").reshape(-1).view(np.uint8).data


def most(shapes: Shapes) -> int:
    """More bytes than arrays of these shapes ever take, with their head."""
    return 4 * sum(math.prod(shape) for shape in shapes.values()) + 512 * len(shapes) + 65536


def decode(data: bytes, shapes: Shapes, kind: str = "float32") -> Arrays:
    """The arrays in `data`; WireError unless names, shapes, dtypes and values are as expected."""
    if len(data) > most(shapes):
        raise WireError(f"expected at most {most(shapes)} bytes, got {len(data)}")
    try:
        packed = load(data)
    except (SafetensorError, KeyError, ValueError, OverflowError):
        raise WireError("expected safetensors") from None
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


def decode_any(data: bytes) -> Arrays:
    """Float32 arrays in `data`, whatever their names and shapes; WireError."""
    try:
        arrays = load(data)
    except (SafetensorError, KeyError, ValueError, OverflowError):
        raise WireError("expected safetensors") from None
    for name, array in arrays.items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise WireError(f"{name}: expected finite float32 numbers")
    return dict(arrays)


def digest(data: bytes) -> str:
    """SHA-256 of encoded arrays: what a request's weights are known by."""
    return hashlib.sha256(data).hexdigest()


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
