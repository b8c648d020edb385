"""Several records of one person: the bounds that docs/ledger.md proves, held against quadrature."""

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from privacy.accounting.accountants import _ORDERS, _once, _rdp_once, rdp_epsilon
from privacy.accounting.segments import Segment

Vector = npt.NDArray[np.float64]

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(120)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def ratio(shifts: Vector, weights: Vector, z: Vector, sigma: float) -> Vector:
    """The likelihood ratio of a mixture of N(shift, sigma^2 I) to N(0, sigma^2 I), at sigma z."""
    return np.exp(log_ratio(shifts, weights, z, sigma))


def log_ratio(shifts: Vector, weights: Vector, z: Vector, sigma: float) -> Vector:
    exponents = z @ shifts.T / sigma - (shifts**2).sum(axis=1) / (2 * sigma**2)
    return np.asarray(logsumexp(exponents, axis=1, b=weights))


def binomial(records: int, rate: float) -> Vector:
    return np.array(
        [math.comb(records, k) * rate**k * (1 - rate) ** (records - k) for k in range(records + 1)]
    )


def of_subsets(vectors: Vector, rate: float) -> tuple[Vector, Vector]:
    """The sum of the vectors of every subset, and the probability that it is drawn."""
    drawn = np.array(list(itertools.product((0.0, 1.0), repeat=len(vectors))))
    sizes = drawn.sum(axis=1)
    return drawn @ vectors, rate**sizes * (1 - rate) ** (len(vectors) - sizes)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 2 * math.pi)), min_size=1, max_size=4),
    st.floats(0.01, 0.99),
    st.floats(1.0, 5.0),
)
def test_no_directions_of_a_persons_records_tell_more_than_all_the_same(
    polar: list[tuple[float, float]], rate: float, sigma: float
) -> None:
    """Kahane's inequality for plane vectors of norm at most 1, in every divergence that counts."""
    vectors = np.array([[r * math.cos(a), r * math.sin(a)] for r, a in polar])
    plane = np.stack(np.meshgrid(NODES, NODES), axis=-1).reshape(-1, 2)
    shifts, weights = of_subsets(vectors, rate)
    actual = ratio(shifts, weights, plane, sigma)
    sizes = np.arange(len(polar) + 1.0)[:, None]
    worst = ratio(sizes, binomial(len(polar), rate), NODES[:, None], sigma)
    by_plane = np.outer(WEIGHTS, WEIGHTS).ravel()
    for order in (1.5, 2.0, 3.0, -0.5, -2.0):
        assert by_plane @ actual**order <= (WEIGHTS @ worst**order) * (1 + 1e-6)
    for epsilon in (0.0, 0.1, 0.5, 1.0):  # quadrature of a kink: the grid of the plane is coarse
        removed, added = np.maximum(actual - math.exp(epsilon), 0), 1 - math.exp(epsilon) * actual
        most = WEIGHTS @ np.maximum(worst - math.exp(epsilon), 0)
        assert by_plane @ removed <= most + 4e-3
        most = WEIGHTS @ np.maximum(1 - math.exp(epsilon) * worst, 0)
        assert by_plane @ np.maximum(added, 0) <= most + 4e-3


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.floats(1e-3, 0.9), st.floats(1.0, 10.0))
def test_renyis_bound_of_a_group_is_at_least_the_mixtures_at_every_order(
    records: int, rate: float, sigma: float
) -> None:
    any_of_them = 1 - (1 - rate) ** records
    bound = dict(zip(_ORDERS, _rdp_once(sigma / records, any_of_them), strict=True))
    shifts = np.arange(records + 1.0)[:, None]
    z = np.linspace(-50, 50, 4001)
    density = -(z**2) / 2 - math.log(2 * math.pi) / 2 + math.log(z[1] - z[0])
    likelihood = log_ratio(shifts, binomial(records, rate), z[:, None], sigma)
    for order in (1.5, 2.0, 3.0, 6.0):
        for power in (order, 1 - order):
            exact = logsumexp(density + power * likelihood) / (order - 1)
            assert bound[order] >= exact * (1 - 1e-6) - 1e-9


@pytest.mark.parametrize("rate", [1.0, 0.1])
def test_renyis_bound_of_a_group_is_that_of_one_record_moved_so_much_further(rate: float) -> None:
    any_of_them = 1 - (1 - rate) ** 3
    group, record = Segment(6.0, rate, 3, 5), Segment(2.0, any_of_them, 1, 5)
    bound = rdp_epsilon((group,), 1e-5)
    assert bound == pytest.approx(rdp_epsilon((record,), 1e-5), rel=1e-9)
    assert bound > 1.5 * rdp_epsilon((Segment(6.0, rate, 1, 5),), 1e-5)


def test_one_record_is_no_group() -> None:
    assert _rdp_once(2.0, 0.1)[10] == pytest.approx(_rdp_once(2.0, 1 - 0.9**1)[10], rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("records", [2, 3])
def test_the_losses_of_a_group_are_the_mixtures(records: int) -> None:
    """The delta of one release at an epsilon, by dp_accounting's grid and by quadrature."""
    sigma, rate = 1.5, 0.2
    z = np.linspace(-14, 14 + records / sigma, 100_001)
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    likelihood = ratio(
        np.arange(records + 1.0)[:, None], binomial(records, rate), z[:, None], sigma
    )
    losses = _once(sigma, rate, 1e-3, records)
    for epsilon in (0.0, 0.3, 1.0, 2.0):
        removed = density @ np.maximum(likelihood - math.exp(epsilon), 0)
        added = density @ np.maximum(1 - math.exp(epsilon) * likelihood, 0)
        found = losses.get_delta_for_epsilon(epsilon)
        assert max(removed, added) - 1e-9 <= found <= max(removed, added) + 1e-3
