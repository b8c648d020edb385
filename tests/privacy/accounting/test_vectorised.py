"""Many points at once: dp-accounting's numbers, bit for bit."""

import math
from typing import Any

import numpy as np
import pytest
from dp_accounting.pld.pld_pmf import DensePLDPmf
from dp_accounting.pld.privacy_loss_distribution import (
    PrivacyLossDistribution,
    from_gaussian_mechanism,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from privacy.accounting.vectorised import epsilon_at, gaussian

pytestmark = pytest.mark.unit


def numbers(distribution: Any) -> list[Any]:
    sides = [one.to_dense_pmf() for one in (distribution._pmf_remove, distribution._pmf_add)]
    return [(one._lower_loss, one._infinity_mass, one._probs.tobytes()) for one in sides]


@given(
    st.floats(0.3, 20),
    st.floats(1e-6, 1) | st.sampled_from([0.5, 1 - 2.0**-20]),
    st.sampled_from([0.5, 0.1, 0.013]),
)
@example(1.0, 1.0, 0.01)
@example(0.7, 0.5, 0.0123)
@example(1.0, 32 / 600, 1e-3)
@settings(max_examples=60)
def test_a_gaussian_has_the_numbers_of_dp_accounting(
    sigma: float, rate: float, interval: float
) -> None:
    library = from_gaussian_mechanism(
        sigma, sampling_prob=rate, value_discretization_interval=interval
    )
    assert numbers(gaussian(sigma, rate, interval)) == numbers(library)


def test_a_point_of_the_grid_at_the_least_loss_is_as_in_dp_accounting() -> None:
    rate = 0.5
    interval = -math.log(1 - rate) / 64  # so that a point lies on log(1 - rate)
    library = from_gaussian_mechanism(
        1.0, sampling_prob=rate, value_discretization_interval=interval
    )
    assert numbers(gaussian(1.0, rate, interval)) == numbers(library)


@pytest.mark.parametrize(
    ("sigma", "rate", "steps"), [(1.0, 0.1, 30), (0.6, 0.5, 5), (3.0, 1.0, 20), (0.3, 0.02, 200)]
)
def test_an_epsilon_has_the_bits_of_dp_accounting(
    sigma: float, rate: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("privacy.accounting.vectorised._AT_ONCE", 300)
    composed = gaussian(sigma, rate, 4e-3).self_compose(steps)
    assert composed._pmf_remove.size > 900
    for delta in (1e-12, 1e-9, 1e-5, 1e-3, 0.02, 0.1, 0.3, 0.5, 0.9, 0.999):
        assert epsilon_at(composed, delta) == composed.get_epsilon_for_delta(delta)


@given(
    st.lists(st.floats(1e-6, 1) | st.just(0.0), min_size=2, max_size=40),
    st.integers(-40, 1000),
    st.floats(1e-9, 0.99),
    st.sampled_from([0.0, 1e-8, 0.2]),
)
@example([1.0, 1.0], 710, 0.25, 0.0)
@example([1.0, 1.0], 710, 0.5, 0.2)
@settings(max_examples=200)
def test_any_losses_meet_where_they_do_in_dp_accounting(
    weights: list[float], lowest: int, delta: float, infinite: float
) -> None:
    probs = np.array(weights) * (1 - infinite) / max(sum(weights), 1.0)
    side = DensePLDPmf(1.0, lowest, probs, infinite, True)
    distribution = PrivacyLossDistribution(side)
    with np.errstate(over="ignore"):  # dp-accounting divides by what is left of e^-710
        expected = distribution.get_epsilon_for_delta(delta)
    assert epsilon_at(distribution, delta) == expected
