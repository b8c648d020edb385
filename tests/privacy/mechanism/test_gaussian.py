"""The sampler is a rounded Gaussian to the precision that docs/randomness.md proves."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.mechanism import gaussian, noise

WIDE = np.longdouble
words = st.integers(0, 2**64 - 1)
precise = pytest.mark.skipif(
    np.finfo(WIDE).eps > 2.0**-60, reason="no arithmetic finer than double here"
)


def extreme_and_random_words(seed: int) -> np.ndarray:
    every = np.uint64(2**64 - 1)
    edges = [every >> np.arange(64, dtype=np.uint64), every << np.arange(64, dtype=np.uint64)]
    drawn = np.random.default_rng(seed).integers(0, 2**64, 100_000, dtype=np.uint64)
    return np.concatenate([*edges, ~edges[0], ~edges[1], drawn])


@precise
def test_the_radius_is_right_to_the_fiftieth_bit() -> None:
    bits = extreme_and_random_words(1)
    last = np.random.default_rng(1).integers(0, 1024, len(bits), dtype=np.uint64)
    found = gaussian._minus_two_ln(bits, last)
    # u as the doubles hold it: rounded once, from 74 bits and a half
    high, low = (bits >> np.uint64(32)).astype(float), (bits & np.uint64(2**32 - 1)).astype(float)
    x = high * 2.0**32 + (low + (last + 0.5) / 1024)
    u = x.astype(WIDE) / WIDE(2) ** 64
    near_one = np.log1p(np.where(u > 0.5, u - 1, 0))
    right = -2 * np.where(u > 0.5, near_one, np.log(u))
    some = right > 0
    assert np.all(found[~some] == 0)
    assert np.abs(found[some] / right[some] - 1).max() < 2.0**-50


@precise
def test_cosine_and_sine_are_right_to_the_fiftieth_bit() -> None:
    bits = extreme_and_random_words(2)
    found = np.empty((1, 2, len(bits)))
    gaussian._turn(bits[None], found)
    quadrant = (bits >> np.uint64(62)).astype(int)
    offset = (bits << np.uint64(2) >> np.uint64(12)).astype(float) * 2.0**-52 - 0.5 + 2.0**-53
    angle = offset.astype(WIDE) * np.arctan(WIDE(1)) * 2
    x, y = np.cos(angle), np.sin(angle)
    right = [
        np.choose(quadrant, [x, -y, -x, y]),
        np.choose(quadrant, [y, x, -y, -x]),
    ]
    for one, other in zip(found[0], right, strict=True):
        assert np.abs(one / other - 1).max() < 2.0**-50


def test_the_largest_number_is_beyond_ten_standard_deviations() -> None:
    least = np.zeros((1, 4), dtype=np.uint64)
    largest = float(np.sqrt(gaussian._minus_two_ln(least, least)).max())
    assert largest == pytest.approx(math.sqrt(2 * 75 * math.log(2)))
    assert 10.19 < largest < 10.2
    assert largest * 2.0**39 < 2.0**43  # in fine steps, of which std has at most 2^39


def test_the_last_bits_of_a_radius_come_from_its_angle() -> None:
    # u = (1024 * 0 + last + 1/2) / 2^74, an angle of 2^-54 turns: all of it in the cosine.
    angles = np.array([0, 1, 512, 1023], dtype=np.uint64) | np.uint64(1 << 61)
    z = gaussian._box_muller(np.zeros((1, 4), dtype=np.uint64), angles[None], 1.0)[0]
    right = [math.sqrt(2 * (74 * math.log(2) - math.log(last + 0.5))) for last in (0, 1, 512, 1023)]
    assert np.hypot(z[0], z[1]) == pytest.approx(right, rel=1e-14)


@given(st.lists(st.tuples(words, words), min_size=4, max_size=4), st.floats(-1e6, 1e6))
def test_sum_and_noise_are_added_as_whole_numbers(
    pairs: list[tuple[int, int]], start: float
) -> None:
    # By hand, in integers of any size: round(S / fine) + round(Z / fine), rounded to the grid.
    bits = np.array([*(r for r, _ in pairs), *(a for _, a in pairs)], dtype=np.uint64)
    std, step = 1.5, noise.grid(1.5)
    fine = step * 2.0**-gaussian.FINE_BITS
    z = gaussian._box_muller(bits[None, :4], bits[None, 4:], std / fine).reshape(-1)
    sums = np.full(8, start)
    room = np.empty(8, np.int64), np.empty(8)
    gaussian.add_noise(sums, bits.view(np.uint8), std, step, 1.0, *room)
    for value, one in zip(sums.tolist(), z.tolist(), strict=True):
        total = round(start / fine) + round(one)
        assert value / step == (total + 2 ** (gaussian.FINE_BITS - 1)) >> gaussian.FINE_BITS


@pytest.mark.parametrize("start", [1e300, -1e300, math.inf, -math.inf, math.nan])
def test_a_sum_without_bounds_is_clamped_before_the_noise(start: float) -> None:
    sums = np.full(8, start)
    noise.privatise(sums, 1.0)
    assert np.isfinite(sums).all()
    most = gaussian.LARGEST * noise.grid(1.0)
    assert np.abs(np.abs(sums) - most).max() < 20
