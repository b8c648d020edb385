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

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

FALSE_ALARM: Final = 1e-6
"""The probability that any honest reply of a round is called too quiet or too loud, at most."""
_FEWEST: Final = 64
"""Arrays with fewer numbers are judged only as parts of the whole."""
_INTERVAL: Final = 0.5
_WITHIN: Final = math.erf(_INTERVAL / math.sqrt(2))
"""How probable it is that noise lies within so many of its standard deviations."""


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
    flat = [np.asarray(a, np.float64).reshape(-1) for a in arrays]
    parts = [np.concatenate(flat), *(a for a in flat if a.size >= _FEWEST)]
    x = math.log(3 * len(parts) / chance)
    return any(
        lengthened < least
        for part in parts
        for lengthened, least in _scores(part / law.last, error / law.last, x)
    )


def too_loud(norm: float, numbers: int, law: HonestUpdate, *, error: float, chance: float) -> bool:
    """Whether an update of this L2 norm is longer than clipped sums and their noise can make it."""
    if law.noise is None or law.signal is None:
        return False
    x = math.log(1 / chance)
    # Laurent and Massart (2000, Lemma 1): chi-square of d is above d + 2 sqrt(d x) + 2 x
    # with probability exp(-x) at most.
    loudest = law.noise * math.sqrt(numbers + 2 * math.sqrt(numbers * x) + 2 * x)
    return norm > law.signal + loudest + error * math.sqrt(numbers)


def _scores(part: NDArray[np.float64], error: float, x: float) -> Iterator[tuple[float, float]]:
    """Of each test the statistic and the least that is honest, each but with chance exp(-x)."""
    d = part.size
    yield float(np.linalg.norm(part)) + error * math.sqrt(d), _shortest(d, x)
    pairs = part[: d - d % 2].reshape(-1, 2)
    apart = (pairs[:, 0] - pairs[:, 1]) / math.sqrt(2)
    yield float(np.linalg.norm(apart)) + error * math.sqrt(d), _shortest(d // 2, x)
    # Bernstein's inequality: of d numbers at most so many lie within the interval.
    most = d * _WITHIN + math.sqrt(2 * d * _WITHIN * (1 - _WITHIN) * x) + x / 3
    outside = np.count_nonzero(np.abs(part) > _INTERVAL - error)
    yield float(outside), d - most


def _shortest(d: int, x: float) -> float:
    """A chi-square of d is below d - 2 sqrt(d x) with probability exp(-x) at most (ibid.)."""
    return math.sqrt(max(0.0, d - 2 * math.sqrt(d * x)))


def sum_of_draws(expected: float, chance: float) -> float:
    """More units than Poisson sampling draws, which `expected` so many; but with `chance`."""
    x = math.log(1 / chance)
    return expected + math.sqrt(2 * expected * x) + x / 3
