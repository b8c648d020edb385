"""What the sampler's distance from a Gaussian adds to delta: docs/randomness.md, section 4.

The accountants take the noise for Gaussian. The released numbers' law is within a chi-square
distance of that, which composes over all numbers that are ever released.
"""

import math
from typing import Final

PAIR: Final = 1.6e-21
"""The chi-square distance of one pair of released numbers, but for those far out."""
FAR: Final = 1.53e-17
"""The probability that a pair lies further out than 8.8 standard deviations."""
ETA: Final = 0.001
"""What is added to epsilon beside it."""


def added_delta(numbers: float, epsilon: float, delta: float) -> float:
    """By how much delta grows where so many `numbers` were released in all: at most 1 - delta.

    The releases are (epsilon + ETA, delta + the result)-private where their ideals, with Gaussian
    noise, are (epsilon, delta)-private.

    >>> added_delta(1e9, 3.0, 1e-5) < 1.7e-8
    True
    """
    if not (numbers >= 0 and epsilon >= 0 and 0 < delta < 1):
        raise ValueError(
            f"expected numbers >= 0, epsilon >= 0 and 0 < delta < 1, got {numbers}, {epsilon} "
            f"and {delta}"
        )
    pairs = math.ceil(numbers / 2)
    if epsilon > 300 or pairs > 1 / PAIR:  # far beyond any use: nothing is claimed
        return 1 - delta
    square = math.expm1(pairs * math.log1p(PAIR))
    over = (1 + math.exp(epsilon / 2 + ETA)) ** 2  # (e^(eps/2) + e^(eps+eta))^2 / e^eps
    more = math.sqrt(square * delta) + square * over / (4 * ETA) + pairs * FAR
    return min(more, 1 - delta)
