"""Randomness and clipping, on which every guarantee stands: from the system's entropy, unseedable.

Each draw takes a fresh 256-bit key from the operating system and expands it by AES-256 in counter
mode. No generator outlives its draw, so nothing can be seeded, forked, shared between threads or
read back. `docs/randomness.md` says what this does against floating-point attacks, and what not.
"""

import hashlib
import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from privacy import native

_PAIRS: Final = 1 << 15
_ZEROS: Final = bytes(12 * _PAIRS)
_IV: Final = bytes(16)
_GRID_BITS: Final = 12

_log = logging.getLogger(__name__)


class NoiseError(ValueError):
    """A draw or a norm that was asked for with impossible parameters."""


def normal(shape: int | Sequence[int], std: float) -> NDArray[np.float32]:
    """Independent N(0, std^2) draws, exact in distribution to float32 and out to 9 sigma."""
    if not 0 <= std < math.inf:
        raise NoiseError(f"std: expected 0 <= std < inf, got {std!r}")
    out = np.empty(shape, dtype=np.float32)
    if std == 0:
        out.fill(0)
        return out
    _fill(out.reshape(-1), std)
    return out


def poisson(n: int, rate: float) -> NDArray[np.int64]:
    """The rows drawn when each of `n` is drawn independently with probability `rate`, sorted.

    The first 16 bits of a row's uniform number decide, and 64 more where they tie: the
    probability is exact to 2^-80.
    """
    if n < 0:
        raise NoiseError(f"n: expected 0 <= n, got {n!r}")
    if not 0 <= rate <= 1:
        raise NoiseError(f"rate: expected 0 <= rate <= 1, got {rate!r}")
    if rate == 1:
        return np.arange(n, dtype=np.int64)
    scaled = rate * 2**16
    threshold = int(scaled)
    words = _bits(n, np.uint16)
    drawn = np.flatnonzero(words <= threshold)
    tied = words[drawn] == threshold
    kept = ~tied
    kept[tied] = _bits(int(tied.sum()), np.uint64) < np.uint64((scaled - threshold) * 2**64)
    chosen: NDArray[np.int64] = drawn[kept]
    return chosen


def uniform(shape: int | Sequence[int]) -> NDArray[np.float64]:
    """Independent uniform draws from [0, 1), multiples of 2^-53."""
    total = math.prod(shape) if isinstance(shape, Sequence) else shape
    bits: NDArray[np.uint64] = _bits(total, np.uint64) >> np.uint64(11)
    return np.asarray(bits * 2.0**-53, dtype=np.float64).reshape(shape)


def norm(arrays: Sequence[NDArray[Any]]) -> float:
    """The L2 norm of all arrays together, in float64; infinite where anything is not finite."""
    total = math.fsum(float(np.sum(np.square(a, dtype=np.float64))) for a in arrays)
    return math.sqrt(total) if math.isfinite(total) else math.inf


def clip(arrays: Sequence[NDArray[Any]], bound: float) -> tuple[list[NDArray[Any]], float]:
    """Scale the arrays together to an L2 norm of at most `bound`; also the norm before.

    Arrays of a norm that is not finite become zeros, so that the result always moves a sum by at
    most `bound`. Arrays within the bound are returned as they are.
    """
    if not 0 < bound < math.inf:
        raise NoiseError(f"bound: expected 0 < bound < inf, got {bound!r}")
    before = norm(arrays)
    if before <= bound:
        return list(arrays), before
    if before == math.inf:
        return [np.zeros_like(a) for a in arrays], before
    factor = bound / before
    while True:  # rounding may leave the norm a little above the bound
        clipped = [(a * factor).astype(a.dtype) for a in arrays]
        if norm(clipped) <= bound:
            return clipped, before
        factor *= 1 - 2.0**-23


def grid(std: float) -> float:
    """The step of the public grid for sums with noise of `std`: a power of two near std / 4096.

    A float32 up to 4096 std lies on it exactly; it depends on nothing but `std`.
    """
    return 2.0 ** (math.floor(math.log2(std)) - _GRID_BITS) if std > 0 else 0.0


def round_to_grid(arrays: Sequence[NDArray[Any]], step: float) -> list[NDArray[Any]]:
    """Every entry at the nearest multiple of `step`; step 0 leaves them as they are."""
    if step == 0:
        return list(arrays)
    return [(np.rint(a / step) * step).astype(a.dtype) for a in arrays]


@cache
def _warn_once() -> None:
    _log.warning("insecure: noise and sampling are reproducible, so nothing here is private")


@contextmanager
def insecure(seed: str | int) -> Iterator[None]:
    """Draw reproducibly from `seed` in this context: NOT PRIVATE, whatever the noise looks like.

    For `--insecure-reproducible` simulations only. It holds for the current thread or task and its
    own calls; anywhere else the draws stay unpredictable.
    """
    _warn_once()
    token = _insecure.set(_Seeded(seed))
    try:
        yield
    finally:
        _insecure.reset(token)


def is_insecure() -> bool:
    """Whether draws made here and now are reproducible."""
    return _insecure.get() is not None


class _Seeded:
    """Keys counted off from a seed."""

    def __init__(self, seed: str | int) -> None:
        self._seed = repr(seed)
        self._count = 0

    def key(self) -> bytes:
        self._count += 1
        return hashlib.sha256(f"insecure {self._count} {self._seed}".encode()).digest()


_insecure: ContextVar[_Seeded | None] = ContextVar("insecure", default=None)


def _stream() -> CipherContext:
    """A keystream under a key that nothing else will ever have."""
    seeded = _insecure.get()
    key = os.urandom(32) if seeded is None else seeded.key()
    return Cipher(algorithms.AES256(key), modes.CTR(_IV)).encryptor()


def _bits(count: int, dtype: type[Any]) -> NDArray[Any]:
    out = np.empty(count, dtype=dtype)
    view, stream = _bytes(out), _stream()
    for at in range(0, len(view), len(_ZEROS)):
        part = view[at : at + len(_ZEROS)]
        stream.update_into(memoryview(_ZEROS)[: len(part)], part)
    return out


def _bytes(array: NDArray[Any]) -> memoryview:
    return array.view(np.uint8).data


def _fill(out: NDArray[np.float32], std: float) -> None:
    """Fill a flat array by the transform of Box and Muller (1958): 12 bytes for two numbers."""
    transform, stream = _transform(), _stream()
    bits = np.empty(12 * min(_PAIRS, (len(out) + 1) // 2), dtype=np.uint8)
    for at in range(0, len(out), 2 * _PAIRS):
        part = out[at : at + 2 * _PAIRS]
        pairs = len(part) // 2
        spare = len(part) % 2
        end = pairs + spare
        stream.update_into(memoryview(_ZEROS)[: 12 * end], bits[: 12 * end].data)
        radii, angles = bits[: 8 * end].view(np.uint64), bits[8 * end : 12 * end].view(np.uint32)
        transform(radii[:pairs], angles[:pairs], part[:pairs], part[pairs : 2 * pairs], std)
        if spare:
            last = np.empty(2, dtype=np.float32)
            transform(radii[pairs:], angles[pairs:], last[:1], last[1:], std)
            part[-1] = last[0]


@cache
def _transform() -> native.Transform:
    return native.load(_box_muller) or _box_muller


def _box_muller(
    radii: NDArray[np.uint64],
    angles: NDArray[np.uint32],
    cosines: NDArray[np.float32],
    sines: NDArray[np.float32],
    std: float,
) -> None:
    # 64 bits of u keep the tail: the largest radius is sqrt(-2 ln 2^-65) = 9.5.
    radius = np.log((radii + 0.5) * 2.0**-64)
    radius *= -2
    np.sqrt(radius, out=radius)
    length = (radius * std).astype(np.float32)
    # Two bits of quadrant; thirty, signed, of the offset from its axis, at most a quarter of pi:
    # small enough for sine and cosine in float32 (in float64 numpy takes ten times as long).
    offset = (angles << np.uint32(2)).view(np.int32).astype(np.float32)
    offset *= np.float32(math.pi / 2**33)
    cosine, sine = np.cos(offset), np.sin(offset)
    cosine *= length
    sine *= length
    quadrant = angles >> np.uint32(30)
    x, y = _X[quadrant], _Y[quadrant]
    np.subtract(cosine * x, sine * y, out=cosines)
    np.add(cosine * y, sine * x, out=sines)


_X: Final = np.array([1, 0, -1, 0], dtype=np.float32)
_Y: Final = np.array([0, 1, 0, -1], dtype=np.float32)
