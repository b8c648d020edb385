"""A group's losses by the search of all points together: dp-accounting's numbers, bit for bit."""

import math
from typing import Any

import numpy as np
import pytest
from dp_accounting.pld.privacy_loss_distribution import from_mixture_gaussian_mechanism

from privacy.accounting.mixtures import mixture

pytestmark = pytest.mark.unit


def numbers(distribution: Any) -> list[Any]:
    sides = [one.to_dense_pmf() for one in (distribution._pmf_remove, distribution._pmf_add)]
    return [(one._lower_loss, one._infinity_mass, one._probs.tobytes()) for one in sides]


@pytest.mark.parametrize(
    ("sigma", "rate", "records", "interval"),
    [(1.0, 0.15, 2, 0.05), (0.7, 0.01, 3, 0.05), (6.0, 0.5, 5, 0.01), (2.0, 0.999, 4, 0.05)],
)
def test_a_mixture_has_the_numbers_of_dp_accounting(
    sigma: float, rate: float, records: int, interval: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("privacy.accounting.mixtures._AT_ONCE", 100)
    shifts = list(range(records + 1))
    weights = [math.comb(records, k) * rate**k * (1 - rate) ** (records - k) for k in shifts]
    library = from_mixture_gaussian_mechanism(
        sigma, shifts, weights, value_discretization_interval=interval
    )
    assert library._pmf_remove.size > 100
    assert numbers(mixture(sigma, shifts, weights, interval)) == numbers(library)
    assert np.isfinite(library.get_epsilon_for_delta(1e-5))
