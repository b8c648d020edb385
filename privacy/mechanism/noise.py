"""Randomness and clipping, on which every guarantee stands: from the system's entropy, unseedable.

`privatise` is the one function that adds noise (`privatise_on` where the sums lie on a GPU). Each
call takes a fresh 256-bit key from the operating system and expands it by AES-256 in counter mode
(a GPU each round's by ChaCha20). No generator outlives its call, a GPU's its round, so nothing can
be seeded, forked, shared between threads or read back. `docs/randomness.md` proves what the noise
does on a computer, and says what is assumed.
"""

import hashlib
import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from privacy.mechanism import device, exact, gaussian, native
from privacy.mechanism.gaussian import Sums

_SLAB: Final = 2 * gaussian.PAIRS * 32
"""Numbers whose bits are made at a time: fewer cost calls, more leave the cache."""
_ZEROS: Final = bytes(gaussian.bits_for(_SLAB))
_IV: Final = bytes(16)
_KEY: Final = 32
_GRID_BITS: Final = 10
_BLOCK: Final = 1 << 15
"""Numbers whose squares are added up together."""
_AHEAD: Final = 1 << 20  # rows, of so many steps as that makes
_LEAST_STD, _MOST_STD = 1e-250, 1e250

_log = logging.getLogger(__name__)


class NoiseError(ValueError):
    """A draw or a norm that was asked for with impossible parameters."""


def privatise(
    sums: Sums, std: float, *, over: float = 1.0, more: NDArray[np.float32] | None = None
) -> None:
    """Add independent N(0, std^2) to every entry, in place, round to the grid, divide by `over`.

    `sums` are contiguous, float32 or float64, of any shape; with `more`, of the same shape, both
    are float32 and their sum in double precision is meant. Each becomes k * grid(std) / over with
    a whole number k, whose law is that of the rounded Gaussian (docs/randomness.md). `std` comes
    from `privacy.mechanism.sensitivity.noise_std`; without noise (0) sums are divided alone.
    NoiseError where the parameters are impossible.
    """
    _check(std, over)
    known = sums.dtype in (np.float32, np.float64)
    if not known or not sums.flags.c_contiguous or not sums.flags.writeable:
        raise NoiseError(f"sums: expected contiguous float32 or float64, got {sums.dtype}")
    flat, beside = sums.reshape(-1), None if more is None else _beside(sums, more)
    if std == 0:
        if beside is not None:
            flat[:] = (flat.astype(np.float64) + beside) / over
            return
        flat /= flat.dtype.type(over)
        return
    kernel, most, step = _kernel(), min(_SLAB, len(flat)), grid(std)
    stream, bits = _stream(_key()), np.empty(gaussian.bits_for(most), np.uint8)
    room = undecided, before = np.empty(most, np.int64), np.empty(most, np.float64)
    adding = gaussian.adding if kernel is None else kernel.adding
    add = adding(flat, bits, *room, beside)
    for at in range(0, len(flat), _SLAB):
        size = min(_SLAB, len(flat) - at)
        used = bits[: gaussian.bits_for(size)]
        _expand(stream, used)
        if count := add(at, size, std, step, over):
            exact.settle(
                flat[at : at + size],
                used,
                std,
                step,
                over,
                undecided[:count],
                before[:count],
                partial(_more, stream),
            )


def start_on(stream: device.DeviceStream) -> None:
    """Give a device's stream the fresh key that each round needs, for what follows."""
    stream.start(_key())


def privatise_on(
    stream: device.DeviceStream,
    sums: Any,
    std: float,
    *,
    over: float = 1.0,
    more: Any | None = None,
) -> None:
    """`privatise` for sums that lie on a device, by the next turn of its stream.

    It does not wait for the device. What is made of the sums may leave once the stream's `failed()`
    has said that nothing has.
    """
    _check(std, over)
    if (count := stream.size(sums)) > device.MOST:
        raise NoiseError(f"sums: expected at most {device.MOST} numbers, got {count}")
    if std == 0:
        stream.divide(sums, over, more)
        return
    step = grid(std)
    stream.add_noise(sums, std, step, over, more)
    stream.settle(sums, std, step, over)


def drawn_on(stream: device.DeviceStream, n: int, rate: float) -> Any:
    """`poisson` by the next turn of a device's stream: for each row a byte there, 1 where drawn."""
    _check_rate(n, rate)
    if n > device.MOST:
        raise NoiseError(f"n: expected at most {device.MOST} rows, got {n}")
    return stream.draw(n, *threshold_of(rate))


def chacha20(
    key: bytes, first: int, count: int, *, turn: int = 0, purpose: int = device.NOISE
) -> NDArray[np.uint8]:
    """Bytes `first` (a multiple of 64) to `first + count` of a key's stream (RFC 8439).

    The nonce is the turn (8 bytes) and the purpose (4), little-endian.
    """
    nonce = turn.to_bytes(8, "little") + purpose.to_bytes(4, "little")
    counter = (first // 64).to_bytes(4, "little")
    stream = Cipher(algorithms.ChaCha20(key, counter + nonce), mode=None).encryptor()
    return np.frombuffer(stream.update(bytes(count)), np.uint8)


def _beside(sums: Sums, more: NDArray[np.float32]) -> NDArray[np.float32]:
    """The flat second summand of float32 sums."""
    both = sums.dtype == more.dtype == np.float32
    if not both or more.shape != sums.shape or not more.flags.c_contiguous:
        raise NoiseError(f"more: expected float32 as the sums, contiguous, got {more.dtype}")
    return more.reshape(-1)


def _check(std: float, over: float) -> None:
    if not (std == 0 or _LEAST_STD <= std <= _MOST_STD):
        raise NoiseError(f"std: expected 0 <= std < inf, got {std!r}")
    if not 0 < over < math.inf:
        raise NoiseError(f"over: expected 0 < over < inf, got {over!r}")


def poisson(n: int, rate: float) -> NDArray[np.int64]:
    """The rows drawn when each of `n` is drawn independently with probability `rate`, sorted.

    The first 16 bits of a row's uniform number decide, and 64 more where they tie: the
    probability is exact to 2^-80.
    """
    _check_rate(n, rate)
    if rate == 1:
        return np.arange(n, dtype=np.int64)
    threshold, rest = threshold_of(rate)
    drawn = _below(n, threshold)
    tied = drawn < 0
    if not tied.any():
        return drawn
    mask = ~tied
    mask[tied] = _bits(int(tied.sum()), np.uint64) < np.uint64(rest)
    chosen: NDArray[np.int64] = np.where(tied, ~drawn, drawn)[mask]
    return chosen


def _check_rate(n: int, rate: float) -> None:
    if n < 0:
        raise NoiseError(f"n: expected 0 <= n, got {n!r}")
    if not 0 <= rate <= 1:
        raise NoiseError(f"rate: expected 0 <= rate <= 1, got {rate!r}")


def threshold_of(rate: float) -> tuple[int, int]:
    """A rate in units of 2^-16, and what is left of it in units of 2^-80."""
    scaled = rate * 2**16
    return int(scaled), int((scaled - int(scaled)) * 2**64)


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
    words, kernel = _bits(n, np.uint16), _kernel()
    if kernel is not None and n:
        return kernel.draw(words, threshold)
    drawn = np.flatnonzero(words <= threshold)
    return np.where(words[drawn] == threshold, ~drawn, drawn)


def uniform(shape: int | Sequence[int]) -> NDArray[np.float64]:
    """Independent uniform draws from [0, 1), multiples of 2^-53."""
    total = math.prod(shape) if isinstance(shape, Sequence) else shape
    bits: NDArray[np.uint64] = _bits(total, np.uint64) >> np.uint64(11)
    return np.asarray(bits * 2.0**-53, dtype=np.float64).reshape(shape)


def norm(arrays: Sequence[NDArray[Any]]) -> float:
    """The L2 norm of all arrays together, in float64; infinite where anything is not finite."""
    total = 0.0
    for array in arrays:
        flat = np.asarray(array).reshape(-1)
        for at in range(0, flat.size, _BLOCK):  # blocks stay in the cache
            block = flat[at : at + _BLOCK].astype(np.float64, copy=False)
            total += float(np.dot(block, block))
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
    """The step of the public grid for sums with noise of `std`: a power of two near std / 1024.

    A float32 up to 8192 std lies on it exactly; it depends on nothing but `std`.
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


def _more(stream: CipherContext) -> bytes:
    """What an undecided pair takes beside its first 16 bytes."""
    out = np.empty(exact.MORE_BITS // 4, np.uint8)
    _expand(stream, out)
    return out.tobytes()


def _bits(count: int, dtype: type[Any]) -> NDArray[Any]:
    out = np.empty(count, dtype=dtype)
    if out.nbytes <= _KEY:  # a fresh key is as random as its stream
        return np.frombuffer(_key()[: out.nbytes], dtype=dtype)
    _expand(_stream(_key()), out.view(np.uint8))
    return out


def _expand(stream: CipherContext, out: NDArray[np.uint8]) -> None:
    for at in range(0, len(out), len(_ZEROS)):
        part = out[at : at + len(_ZEROS)].data
        stream.update_into(memoryview(_ZEROS)[: len(part)], part)


@cache
def _kernel() -> native.Kernel | None:
    return native.load()
