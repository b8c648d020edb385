"""What noise a reply must show if it was made as the plan says: a test that honest sites pass.

In the last of a round's steps a site moves its weights by -a (S + Z), where S is the clipped sum,
Z ~ N(0, s^2 I) and a the learning rate over the public denominator. Everything before it, and S,
is independent of Z. So given the rest the update is x - a Z with x fixed, and by Anderson's
inequality (1955) every symmetric convex set around 0 holds x - a Z with at most the probability
with which it holds a Z: no data and no model can make an honest update quieter than its noise.
Three such sets are tried: a ball, a ball of differences of neighbours (which a vector without noise
of its own, such as a constant, does not leave), and, number by number, an interval.

An update is at most as long as the clipped sums of all steps, added up, and their noise: with plain
steps, exactly the sum of the first and a Gaussian. A site that is louder has not clipped.
"""

import ctypes
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from privacy.mechanism import native

FALSE_ALARM: Final = 1e-6
"""The probability that any honest reply of a round is called too quiet or too loud, at most."""
_FEWEST: Final = 64
"""Arrays with fewer numbers are judged only as parts of the whole."""
_BLOCK: Final = 1 << 15
"""Numbers looked at together; even, so that every pair lies in one block."""
_INTERVAL: Final = 0.5
_WITHIN: Final = math.erf(_INTERVAL / math.sqrt(2))
"""How probable it is that noise lies within so many of its standard deviations."""
_SOURCE: Final = Path(__file__).with_suffix(".c")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HonestUpdate:
    """The law of one update: `last` and `noise` are standard deviations, per number.

    `last` is of the last step's noise, which nothing later can undo; `noise` of all steps' noise.
    `signal` bounds the L2 norm of everything else. None: no bound is known.
    """

    last: float
    noise: float | None
    signal: float | None


def too_quiet(
    arrays: Sequence[NDArray[Any]], law: HonestUpdate, *, error: float, chance: float
) -> bool:
    """Whether an update has less noise than its law says; for honest ones with `chance` at most.

    `error` bounds what rounding (also on the way) has changed in each number. The whole is judged,
    and each array of at least 64 numbers.
    """
    return are_too_quiet(figures_of(arrays, law, error=error), law, error=error, chance=chance)


def figures_of(
    arrays: Sequence[NDArray[Any]], law: HonestUpdate, *, error: float
) -> "list[Figures]":
    """What of each array is looked at under this law."""
    return [Figures.of(a, (_INTERVAL - error / law.last) * law.last) for a in arrays]


def are_too_quiet(
    figures: "Sequence[Figures]", law: HonestUpdate, *, error: float, chance: float
) -> bool:
    """`too_quiet` of the arrays that have these figures."""
    parts = [sum(figures, Figures()), *(f for f in figures if f.size >= _FEWEST)]
    x = math.log(3 * len(parts) / chance)
    return any(
        lengthened < least
        for part in parts
        for lengthened, least in _scores(part, law.last, error / law.last, x)
    )


@dataclass(frozen=True, slots=True)
class Figures:
    """What is looked at of some numbers: how many they are, and how many pairs of neighbours.

    `square` is the sum of their squares, `apart` that of their pairs' differences, `outside` how
    many lie outside the interval.
    """

    size: int = 0
    pairs: int = 0
    square: float = 0.0
    apart: float = 0.0
    outside: int = 0

    @classmethod
    def of(cls, array: NDArray[Any], interval: float) -> "Figures":
        """In one pass: by compiled code, if there is a compiler, else by numpy."""
        flat = np.ascontiguousarray(array).reshape(-1)
        library = _library() if flat.dtype == np.float32 else None
        sums = _by_numpy(flat, interval) if library is None else _by_c(library, flat, interval)
        return cls(flat.size, flat.size // 2, *sums)

    def __add__(self, other: "Figures") -> "Figures":
        return Figures(
            self.size + other.size,
            self.pairs + other.pairs,
            self.square + other.square,
            self.apart + other.apart,
            self.outside + other.outside,
        )


def _by_numpy(flat: NDArray[Any], interval: float) -> tuple[float, float, int]:
    """Square, apart and outside, a block that fits the cache at a time."""
    square = apart = 0.0
    outside = 0
    for at in range(0, flat.size, _BLOCK):
        block = flat[at : at + _BLOCK].astype(np.float64)
        even = block[: block.size - block.size % 2].reshape(-1, 2)
        difference = even[:, 0] - even[:, 1]
        square += float(np.dot(block, block))
        apart += float(np.dot(difference, difference))
        outside += int(np.count_nonzero(np.abs(block, out=block) > interval))
    return square, apart, outside


def _by_c(
    library: ctypes.CDLL, flat: NDArray[np.float32], interval: float
) -> tuple[float, float, int]:
    """The same by honest_noise.c."""
    square, apart, outside = ctypes.c_double(), ctypes.c_double(), ctypes.c_long()
    results = (ctypes.byref(x) for x in (square, apart, outside))
    library.figures(flat.ctypes.data, flat.size, interval, *results)
    return square.value, apart.value, outside.value


@cache
def _library() -> ctypes.CDLL | None:
    """The compiled code, where it agrees with numpy."""
    library = native.compiled(_SOURCE)
    if library is None:
        return None
    pointer, long, double = ctypes.c_void_p, ctypes.c_long, ctypes.c_double
    library.figures.argtypes, library.figures.restype = (
        [pointer, long, double, *[pointer] * 3],
        None,
    )
    for count in (_BLOCK + 9_999, 5, 0):
        flat = np.sin(np.arange(count)).astype(np.float32)
        flat[::7] = np.float32(0.7)
        for interval in (float(np.float32(0.7)), 0.7, 0.0, -1.0, 1e300):
            found, right = _by_c(library, flat, interval), _by_numpy(flat, interval)
            if found[2] != right[2] or not np.allclose(found, right, rtol=1e-12, atol=0):
                _log.warning("honest_noise: the native code disagrees with numpy and is not used")
                return None
    return library


def norm_of(figures: Sequence[Figures]) -> float:
    """The L2 norm of the arrays that have these figures."""
    return math.sqrt(sum(one.square for one in figures))


def too_loud(norm: float, numbers: int, law: HonestUpdate, *, error: float, chance: float) -> bool:
    """Whether an update of this L2 norm is longer than clipped sums and their noise can make it."""
    if law.noise is None or law.signal is None:
        return False
    x = math.log(1 / chance)
    # Laurent and Massart (2000, Lemma 1): chi-square of d is above d + 2 sqrt(d x) + 2 x
    # with probability exp(-x) at most.
    loudest = law.noise * math.sqrt(numbers + 2 * math.sqrt(numbers * x) + 2 * x)
    return norm > law.signal + loudest + error * math.sqrt(numbers)


def _scores(part: Figures, last: float, error: float, x: float) -> Iterator[tuple[float, float]]:
    """Of each test the statistic and the least that is honest, each but with chance exp(-x)."""
    d = part.size
    yield math.sqrt(part.square) / last + error * math.sqrt(d), _shortest(d, x)
    apart = math.sqrt(part.apart / 2) / last
    yield apart + error * math.sqrt(2 * part.pairs), _shortest(part.pairs, x)
    # Bernstein's inequality: of d numbers at most so many lie within the interval.
    most = d * _WITHIN + math.sqrt(2 * d * _WITHIN * (1 - _WITHIN) * x) + x / 3
    yield float(part.outside), d - most


def _shortest(d: int, x: float) -> float:
    """A chi-square of d is below d - 2 sqrt(d x) with probability exp(-x) at most (ibid.)."""
    return math.sqrt(max(0.0, d - 2 * math.sqrt(d * x)))


def sum_of_draws(expected: float, chance: float) -> float:
    """More units than Poisson sampling draws, which `expected` so many; but with `chance`."""
    x = math.log(1 / chance)
    return expected + math.sqrt(2 * expected * x) + x / 3
