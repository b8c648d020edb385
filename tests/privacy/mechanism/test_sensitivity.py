"""What rounding may add to a sum's sensitivity is bounded, and paid for by the noise."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.mechanism import sensitivity
from privacy.mechanism.sensitivity import (
    MOST,
    NORMS,
    SensitivityError,
    noise_std,
    rows_per_block,
    slack,
)

U = 2.0**-24


@given(st.floats(1e-3, 1e9))
def test_the_slack_is_small_and_grows_with_the_public_batch_size(expected: float) -> None:
    assert NORMS < slack(expected) <= NORMS + MOST < 0.0041
    assert slack(expected) <= slack(expected * 1.1)


@given(st.integers(1, 10**7), st.floats(1e-3, 1e6))
def test_blocks_keep_two_neighbours_within_the_slack(rows: int, expected: float) -> None:
    allowed = slack(expected)
    block = rows_per_block(rows, allowed)
    if block:
        assert block >= min(8, rows)
        # a sum of `block` terms has at most block (block + 3) / 2 units of error, of each neighbour
        assert rows * (block + 3) * U < allowed - NORMS
    else:
        assert rows * (min(8, rows) + 4) * U > (allowed - NORMS) / 1.01


@pytest.mark.parametrize(("expected", "rows"), [(1, 5), (5, 15), (64, 100), (200, 240)])
def test_an_ordinary_batch_is_one_block(expected: float, rows: int) -> None:
    assert rows_per_block(rows, slack(expected)) >= rows
    assert slack(64.0) < 0.0011
    assert slack(5.0) < 2e-4


def test_a_float32_sum_in_any_order_stays_within_its_bound() -> None:
    # u * (sum over the additions of the size of their result) is at most u n (n + 1) / 2.
    rng = np.random.default_rng(0)
    for n in (8, 64, 360):
        for terms in (np.full(n, np.float32(0.999)), rng.random(n, dtype=np.float32)):
            total = np.float32(0)
            for term in terms:
                total += term
            assert abs(float(total) - math.fsum(terms.tolist())) <= U * n * (n + 1) / 2


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.integers(1, 10**9), st.floats(0, 0.01))
def test_the_noise_is_sigma_times_all_that_a_record_can_move(
    sigma: float, bound: float, numbers: int, allowed: float
) -> None:
    std = noise_std(sigma, bound, numbers, allowed)
    fine = std * sensitivity._FINE  # a fine step is no longer than this
    moved = bound * (1 + allowed) + fine * math.sqrt(numbers)
    assert std >= sigma * moved * (1 - 1e-15)
    assert std == pytest.approx(sigma * moved, rel=1e-9)


def test_noise_that_drowns_in_its_own_rounding_is_refused() -> None:
    assert noise_std(0.0, 1.0, 10) == 0.0
    assert noise_std(1e5, 1.0, 10**6) == pytest.approx(1e5, rel=0.001)
    with pytest.raises(SensitivityError, match="sigma: must be below"):
        noise_std(1e7, 1.0, 10**9)
