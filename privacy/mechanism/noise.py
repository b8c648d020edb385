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

from privacy.mechanism import native

_CHUNKS: Final = 64  # of bits at a time: fewer cost calls, more leave the cache
_SLAB: Final = 2 * _CHUNKS * native.PAIRS
_ZEROS: Final = bytes(native.size(_SLAB))
_IV: Final = bytes(16)
_KEY: Final = 32
_GRID_BITS: Final = 12
_AHEAD: Final = 1 << 20  # rows, of so many steps as that makes

_log = logging.getLogger(__name__)


class NoiseError(ValueError):
    """A draw or a norm that was asked for with impossible parameters."""


def normal(shape: int | Sequence[int], std: float) -> NDArray[np.float32]:
    """Independent N(0, std^2) draws, exact in distribution to float32 and out to 9 sigma."""
    _check(std)
    out = np.empty(shape, dtype=np.float32)
    if std == 0:
        out.fill(0)
        return out
    _fill(out.reshape(-1), std, 0.0, 1.0)
    return out


def privatise(
    sums: NDArray[np.float32],
    std: float,
    *,
    over: float = 1.0,
    team: native.Team = native.ALONE,
) -> None:
    """Add independent N(0, std^2) to every entry, in place, round to the grid, divide by `over`.

    `sums` are contiguous float32. A `team` of threads may share the work.
    """
    _check(std)
    if not 0 < over < math.inf:
        raise NoiseError(f"over: expected 0 < over < inf, got {over!r}")
    if sums.dtype != np.float32 or not sums.flags.c_contiguous or not sums.flags.writeable:
        raise NoiseError(f"sums: expected contiguous float32, got {sums.dtype}")
    flat = sums.reshape(-1)
    if std == 0:
        flat /= np.float32(over)
        return
    _fill(flat, std, grid(std), over, team)


def _check(std: float) -> None:
    if not 0 <= std < math.inf:
        raise NoiseError(f"std: expected 0 <= std < inf, got {std!r}")


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
    drawn = _below(n, threshold)
    tied = drawn < 0
    if not tied.any():
        return drawn
    kept = ~tied
    kept[tied] = _bits(int(tied.sum()), np.uint64) < np.uint64((scaled - threshold) * 2**64)
    chosen: NDArray[np.int64] = np.where(tied, ~drawn, drawn)[kept]
    return chosen


def batches(n: int, rate: float, steps: int) -> Iterator[NDArray[np.int64]]:
    """A draw of `poisson` for each step; several are made at once, which is the same law."""
    ahead = max(1, _AHEAD // max(n, 1))
    for first in range(0, steps, ahead):
        count = min(ahead, steps - first)
        drawn = poisson(n * count, rate)
        ends = np.searchsorted(drawn, n * np.arange(1, count))
        yield from np.split(drawn % max(n, 1), ends)


def _below(n: int, threshold: int) -> NDArray[np.int64]:
    """Which of n random 16-bit words are below the threshold, and ~i of those equal to it."""
    kernel = _kernel()
    if kernel is not None and n:
        bits = _key() if kernel.streams else _bits(2 * n, np.uint8)
        return kernel.draw(n, bits, threshold)
    words = _bits(n, np.uint16)
    drawn = np.flatnonzero(words <= threshold)
    return np.where(words[drawn] == threshold, ~drawn, drawn)


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


def _key() -> bytes:
    """A key that nothing else will ever have."""
    seeded = _insecure.get()
    return os.urandom(_KEY) if seeded is None else seeded.key()


def _stream(key: bytes) -> CipherContext:
    return Cipher(algorithms.AES256(key), modes.CTR(_IV)).encryptor()


def _bits(count: int, dtype: type[Any], key: bytes | None = None) -> NDArray[Any]:
    out = np.empty(count, dtype=dtype)
    if key is None and out.nbytes <= _KEY:  # a fresh key is as random as its stream
        return np.frombuffer(_key()[: out.nbytes], dtype=dtype)
    _expand(_stream(key or _key()), out.view(np.uint8))
    return out


def _expand(stream: CipherContext, out: NDArray[np.uint8]) -> None:
    for at in range(0, len(out), len(_ZEROS)):
        part = out[at : at + len(_ZEROS)].data
        stream.update_into(memoryview(_ZEROS)[: len(part)], part)


def _fill(
    sums: NDArray[np.float32],
    std: float,
    step: float,
    over: float,
    team: native.Team = native.ALONE,
) -> None:
    """Add draws to a flat array, round to multiples of `step`, divide; step 0 puts draws alone."""
    kernel, key = _kernel(), _key()
    if kernel is not None and kernel.streams:
        kernel.fill(sums, key, std, step, over, team)
        return
    fill = _numpy_fill if kernel is None else kernel.fill
    stream, bits = _stream(key), np.empty(native.size(min(_SLAB, len(sums))), dtype=np.uint8)
    for at in range(0, len(sums), _SLAB):
        part = sums[at : at + _SLAB]
        own = bits[: native.size(len(part))]
        _expand(stream, own)
        fill(part, own, std, step, over)


@cache
def _kernel() -> native.Kernel | None:
    return native.load(_numpy_fill, lambda key, size: _bits(size, np.uint8, key))


def _numpy_fill(
    sums: NDArray[np.float32], bits: NDArray[np.uint8], std: float, step: float, over: float
) -> None:
    """The kernel's `fill` (privacy/mechanism/noise.c), of the same bits in the same order."""
    whole = len(sums) // (2 * native.PAIRS)
    done, used = 2 * native.PAIRS * whole, 12 * native.PAIRS * whole
    if whole:
        _chunks(sums[:done].reshape(whole, 2, -1), bits[:used].reshape(whole, -1), std, step, over)
    if done < len(sums):
        last = np.zeros((len(sums) - done + 7) // 8 * 8, dtype=np.float32)
        last[: len(sums) - done] = sums[done:]
        _chunks(last.reshape(1, 2, -1), bits[used:].reshape(1, -1), std, step, over)
        sums[done:] = last[: len(sums) - done]


def _chunks(
    sums: NDArray[np.float32], bits: NDArray[np.uint8], std: float, step: float, over: float
) -> None:
    """Fill sums [chunks, 2, pairs] from bits [chunks, 12 * pairs]."""
    pairs = sums.shape[2]
    radii = bits[:, : 8 * pairs].view(np.uint64)
    angles = bits[:, 8 * pairs : 12 * pairs].view(np.uint32)
    z = _box_muller(radii, angles, std).transpose(1, 0, 2)
    if step == 0:
        sums[:] = z
        return
    np.add(sums, z, out=sums)
    sums *= np.float32(1 / step)
    np.rint(sums, out=sums)
    sums *= np.float32(step / over)


def _box_muller(
    radii: NDArray[np.uint64], angles: NDArray[np.uint32], std: float
) -> NDArray[np.float32]:
    """Two normal numbers [2, ...] from every 12 bytes (Box and Muller 1958)."""
    # 63 bits of u keep the tail: the largest radius is sqrt(-2 ln 2^-64) = 9.4. (Of 64 unsigned
    # bits a processor makes floats five times as slowly.)
    radius = np.multiply((radii >> np.uint64(1)).view(np.int64), 2.0**-63)
    radius += 2.0**-64
    np.log(radius, out=radius)
    length = radius.astype(np.float32)
    length *= -2
    np.sqrt(length, out=length)
    length *= np.float32(std)
    # Two bits of quadrant; thirty, signed, of the offset from its axis, at most a quarter of pi:
    # small enough for sine and cosine in float32 (in float64 numpy takes ten times as long).
    offset = np.multiply((angles << np.uint32(2)).view(np.int32), math.pi / 2**33, dtype=np.float32)
    z = np.empty((2, *radii.shape), dtype=np.float32)
    np.cos(offset, out=z[0])
    np.sin(offset, out=z[1])
    z *= length
    # A quadrant further is (-y, x) for (x, y): swapped where the low bit is odd, signed by both.
    low = angles << np.uint32(1)
    x, y = z.view(np.uint32)
    changed = x ^ y
    changed &= (low.view(np.int32) >> np.int32(31)).view(np.uint32)
    low ^= angles
    low &= _SIGN
    angles = angles & _SIGN
    changed ^= low
    x ^= changed
    changed ^= low
    y ^= changed
    y ^= angles
    return z


_SIGN: Final = np.uint32(1 << 31)
