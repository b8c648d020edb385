"""Sums in the ring: exact, never wrapped, with the law of one Gaussian of the sum's variance."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from privacy.audit.p_values import chi_square
from privacy.mechanism import noise
from privacy.secagg.ring import Ring, RingError, ring_for


def ring(parties: int = 10, *, largest: float = 200.0, sigma: float = 2.0) -> Ring:
    return ring_for(
        sigma=sigma,
        clip=0.5,
        shares=parties - 2,
        parties=parties,
        numbers=1000,
        slack=1e-3,
        largest=largest,
    )


def test_a_share_of_the_noise_is_one_of_n_minus_d() -> None:
    """sigma = 2, clip = 0.5, 8 shares: the sum of 8 has the deviation 1, a thousandth more."""
    assert ring().std * math.sqrt(8) == pytest.approx(1.001, rel=1e-7)
    assert ring().step == 2.0 ** (math.floor(math.log2(ring().std)) - 10)


def test_the_sum_has_the_noise_of_its_shares() -> None:
    one = ring()
    total = one.zeros(4000)
    for _ in range(8):
        total += one.share(np.zeros(4000))
    z = one.value(total) / 1.001
    assert chi_square(float(z @ z), 4000) > 1e-6
    assert stats.kstest(z, "norm").pvalue > 1e-6


@settings(max_examples=30, deadline=None)
@given(
    st.integers(3, 1000),
    st.floats(0.1, 1e4),
    st.floats(1, 1e12),
    st.sampled_from((-1.0, 1.0)),
)
def test_no_sum_leaves_the_ring(parties: int, sigma: float, largest: float, sign: float) -> None:
    """Every site's sum at its bound, with the largest noise: |n (M + 2^15)| < 2^(b-1)."""
    try:
        one = ring(parties, largest=largest, sigma=sigma)
    except RingError:
        assert largest * 0.5 / one_step(parties, sigma) > 2**52 - 2**15
        return
    assert parties * (one.most + 2**15) < 2 ** (one.bits - 1)
    assert largest * 0.5 / one.step <= one.most
    words = one.share(np.full(3, sign * 1e300))
    value = one.value(words) / one.step
    assert (np.abs(value) <= one.most + 2**15).all()
    assert (np.sign(value) == sign).all()


def one_step(parties: int, sigma: float) -> float:
    return noise.grid(sigma * 0.5 * 1.001 / math.sqrt(parties - 2))


def test_32_bits_serve_where_they_hold_the_largest_sum() -> None:
    assert ring(10, largest=1000).bits == 32
    assert ring(100, largest=100_000, sigma=0.1).bits == 64
    assert ring(100, largest=100_000, sigma=0.1).share(np.ones(5)).dtype == np.dtype("<u8")


def test_the_noise_is_bounded_as_the_ring_takes_it_to_be() -> None:
    """A radius is at most sqrt(-2 ln 2^-75) = 10.2; times less than 2^11 steps below 2^15."""
    assert math.sqrt(2 * 75 * math.log(2)) * 2**11 < 2**15


def exact_law(centres: list[float], s: float, low: int, high: int) -> np.ndarray:
    """The law of a sum of rounded Gaussians with these centres, by convolution."""
    k = np.arange(low, high + 1)
    total = np.zeros(1)
    total[0] = 1.0
    for centre in centres:
        law = stats.norm.cdf((k + 0.5 - centre) / s) - stats.norm.cdf((k - 0.5 - centre) / s)
        total = np.convolve(total, law)
    return total


@pytest.mark.parametrize("centres", [[0.0, 0.0], [0.3, -0.45], [0.5, 0.5], [0.2, 0.9, -3.3]])
def test_a_sum_of_rounded_gaussians_is_one_wherever_they_are_centred(centres: list[float]) -> None:
    """chi-square <= 24 / 2880^2 (n - 1)^2 / n^4 s^-8, whatever the sites' own sums are."""
    n, s = len(centres), 2.0
    low, high = -60, 60
    found = exact_law(centres, s, low, high)
    k = np.arange(n * low, n * high + 1)
    std = math.sqrt(n * s**2 + (n - 1) / 12)
    centre = sum(centres)
    ideal = stats.norm.cdf((k + 0.5 - centre) / std) - stats.norm.cdf((k - 0.5 - centre) / std)
    inside = np.abs(k - centre) < 7 * std
    square = float(((found - ideal)[inside] ** 2 / ideal[inside]).sum())
    assert square <= 24 / 2880**2 * (n - 1) ** 2 / n**4 * s**-8 * 1.2


def test_what_comes_over_the_wire_has_exactly_the_words_asked() -> None:
    one = ring()
    words = one.share(np.arange(5.0))
    assert (one.read(words.tobytes(), 5) == words).all()
    for bad in (b"", words.tobytes()[:-1], words.tobytes() + b"0"):
        with pytest.raises(RingError, match="expected 20 bytes"):
            one.read(bad, 5)
