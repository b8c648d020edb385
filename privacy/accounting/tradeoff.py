"""The trade-off curve that an event claims: what the best attacker could at most achieve.

f(a) is the least false negative rate of any test that tells "the unit was in" from "it was out"
with false positive rate a (Dong, Roth and Su 2022, Definition 2.1). This file knows numpy and scipy
only and shares nothing with the accountant, so that each can be checked against the other.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

Vector: TypeAlias = npt.NDArray[np.float64]

_CELLS = 2**17
_TAIL = 10.0  # standard deviations kept on each side: the mass beyond is below 1e-22

LEAST_SIGMA: Final = 0.05
"""Below it one release may have a loss beyond 400, and no audit is needed to see that it leaks."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A trade-off curve by the privacy loss of its worst pair, on an even grid.

    `losses` are the values of log dP/dQ (P: the unit is in, Q: it is out), `inside` and `outside`
    their probabilities under P and Q.
    """

    losses: Vector
    inside: Vector
    outside: Vector

    def fnr(self, fpr: float) -> float:
        """The least false negative rate that any test of this false positive rate can have.

        By Neyman and Pearson the best tests are thresholds on the loss; between two of them a test
        may toss a coin, hence straight lines.
        """
        return float(np.interp(fpr, *self.points()))

    def points(self) -> tuple[Vector, Vector]:
        """False positive rates, ascending, and the false negative rates of the threshold tests."""
        above = np.concatenate([[0.0], np.cumsum(self.outside[::-1])])
        below = np.concatenate([[0.0], np.cumsum(self.inside)])[::-1]
        return np.minimum(above, 1.0), np.minimum(below, 1.0)

    def delta(self, epsilon: float) -> float:
        """The smallest delta with (epsilon, delta)-DP, for the unit added as for it removed."""
        up, down = self.losses > epsilon, self.losses < -epsilon
        removed = self.inside[up] @ -np.expm1(epsilon - self.losses[up])
        added = self.outside[down] @ -np.expm1(epsilon + self.losses[down])
        return max(float(removed), float(added), 0.0)

    def epsilon(self, delta: float) -> float:
        """The smallest epsilon >= 0 with (epsilon, delta)-DP."""
        if not 0 < delta < 1:
            raise ValueError(f"delta: expected 0 < delta < 1, got {delta!r}")
        low, high = 0.0, float(self.losses[-1])
        if self.delta(0.0) <= delta:
            return 0.0
        while high - low > 1e-6:
            middle = (low + high) / 2
            low, high = (low, middle) if self.delta(middle) <= delta else (middle, high)
        return high


@lru_cache(maxsize=64)
def curve(sigma: float, rate: float, steps: int) -> Curve:
    """The curve of `steps` Gaussian releases, noise sigma x sensitivity, on Poisson(rate) samples.

    The worst pair of one release is (1 - rate) N(0, sigma^2) + rate N(1, sigma^2) against
    N(0, sigma^2) (Zhu, Dong and Wang 2022, Theorem 11). Its loss is cut into cells, the mass of
    each cell split over the cell's two ends so that both probabilities are kept ("connect the
    dots", Doroshenko et al. 2022): the split pair can be merged into the true one, so the curve
    lies at or below the true one and never accuses wrongly. Releases compose by adding losses: a
    convolution, done by FFT.
    """
    if not sigma >= LEAST_SIGMA or not 0 < rate <= 1 or steps < 1:
        raise ValueError(
            f"expected sigma >= {LEAST_SIGMA}, 0 < rate <= 1 and steps >= 1, "
            f"got {sigma!r}, {rate!r} and {steps!r}"
        )
    least = _loss(-_TAIL * sigma, sigma, rate)
    most = _loss(1 + _TAIL * sigma, sigma, rate)
    low, high = _range(sigma, rate, steps, least, most)
    width = (high - low) / _CELLS
    first, last = math.floor(least / width), math.ceil(most / width)
    edges = np.asarray(np.arange(first, last + 1) * width, dtype=np.float64)
    inside, outside = _cells(edges, sigma, rate)
    upper = (inside - outside * np.exp(edges[:-1])) / -math.expm1(-width)
    upper = np.clip(upper, 0.0, inside)
    mass = np.zeros(len(edges))
    mass[:-1] += inside - upper
    mass[1:] += upper
    start = math.floor(low / width)
    losses = np.asarray((start + np.arange(_CELLS)) * width, dtype=np.float64)
    return Curve(
        losses,
        _compose(mass, first, start, steps),
        _compose(mass * np.exp(-edges), first, start, steps),
    )


def _loss(x: float, sigma: float, rate: float) -> float:
    shifted = (2 * x - 1) / (2 * sigma**2)
    return float(np.logaddexp(np.log1p(-rate) if rate < 1 else -np.inf, np.log(rate) + shifted))


def _range(sigma: float, rate: float, steps: int, least: float, most: float) -> tuple[float, float]:
    """The interval that holds the composed loss under both hypotheses, up to a vanishing mass."""
    edges: Vector = np.linspace(least, most, 4001, dtype=np.float64)
    middles = (edges[1:] + edges[:-1]) / 2
    low, high = 0.0, 0.0
    for mass in _cells(edges, sigma, rate):
        mean = float(mass @ middles)
        spread = math.sqrt(float(mass @ (middles - mean) ** 2) * steps)
        low = min(low, steps * mean - _TAIL * spread + least - mean)
        high = max(high, steps * mean + _TAIL * spread + most - mean)
    return low, high


def _cells(edges: Vector, sigma: float, rate: float) -> tuple[Vector, Vector]:
    """Probabilities of the loss cells with the unit in and out."""
    with np.errstate(divide="ignore"):
        x = sigma**2 * np.log(np.maximum(np.exp(edges) - (1 - rate), 0.0) / rate) + 0.5
    outside = _between(x / sigma)
    return (1 - rate) * outside + rate * _between((x - 1) / sigma), outside


def _between(z: Vector) -> Vector:
    """Normal probabilities between neighbouring quantiles, from whichever tail is the smaller."""
    left, right = ndtr(z), ndtr(-z)
    return np.asarray(np.where(z[1:] < 0, left[1:] - left[:-1], right[:-1] - right[1:]))


def _compose(mass: Vector, first: int, start: int, steps: int) -> Vector:
    """The `steps`-fold convolution on cells first * steps + k, read from the cell `start` on."""
    folded = np.zeros(_CELLS)
    np.add.at(folded, np.arange(len(mass)) % _CELLS, mass)
    total = np.fft.irfft(np.fft.rfft(folded) ** steps, _CELLS)
    return np.asarray(np.maximum(np.roll(total, steps * first - start), 0.0))
