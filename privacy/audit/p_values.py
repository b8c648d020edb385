"""How likely chance alone is as far from a claim: p-values that the conformance checks share."""

import math
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats

_PRODUCTS: Final = 1000

Vector: TypeAlias = npt.NDArray[np.float64]


def chi_square(square: float, n: int) -> float:
    """Two-sided p of the sum of squares of n standard normal draws; 0 if it is not finite."""
    if not math.isfinite(square):
        return 0.0
    return float(min(1.0, 2 * min(stats.chi2.cdf(square, n), stats.chi2.sf(square, n))))


def correlation(a: Vector, b: Vector) -> tuple[float, float]:
    """Pearson's r over the common length and its exact p for normal draws; constants share all."""
    n = min(len(a), len(b))
    a, b = a[:n] - a[:n].mean(), b[:n] - b[:n].mean()
    length = math.sqrt(float(a @ a) * float(b @ b))
    if not length > 0:
        return 1.0, 0.0
    r = float(a @ b) / length
    return r, float(stats.beta.sf(min(1.0, r * r), 0.5, (n - 2) / 2))


def echo(z: Vector) -> float:
    """p of the strongest autocorrelation at any lag, by FFT; Bonferroni over the lags.

    The sum over a lag's products is taken as normal: lags that leave fewer than a thousand of them
    are left out, but for short vectors, of which the first half is looked at.
    """
    n = len(z)
    most = max(n // 2, n - _PRODUCTS)
    spectrum = np.abs(np.fft.rfft(z, 2 * n)) ** 2
    lags = np.fft.irfft(spectrum)[1:most]
    strongest = np.max(np.abs(lags) / np.sqrt(n - np.arange(1, most)))
    return float(min(1.0, 2 * stats.norm.sf(strongest) * len(lags)))


def beyond(value: Vector, allowed: float, std: float) -> tuple[float, float]:
    """The length of a vector, and how likely noise of `std` alone takes it so far beyond."""
    length = float(np.linalg.norm(value))
    if not math.isfinite(length):
        return length, 0.0
    excess = max(0.0, length - allowed) / std
    return length, float(stats.chi2.sf(excess**2, value.size))
