"""The sampler's part of delta: the table of docs/randomness.md, and the formula by hand."""

import math

import pytest

from privacy.contract.plan import Plan
from privacy.mechanism.distance import ETA, FAR, PAIR, added_delta
from privacy.report.text import mechanism


@pytest.mark.parametrize(
    ("numbers", "epsilon", "more"),
    [(1e7, 1, 4e-10), (1e7, 3, 5e-10), (1e7, 8, 7e-9), (1e9, 1, 1.2e-8), (1e9, 3, 1.7e-8),
     (1e9, 8, 6.3e-7)],
)  # fmt: skip
def test_the_table_of_the_documentation_is_what_is_computed(
    numbers: float, epsilon: float, more: float
) -> None:
    assert 0.5 * more < added_delta(numbers, epsilon, 1e-5) < more


def test_the_formula_is_that_of_the_proof() -> None:
    s2, e = 5e8 * PAIR, math.exp(2.0)
    x = (math.exp(1.0) + math.exp(2.0 + ETA)) ** 2
    by_hand = math.sqrt(s2 * 1e-6) + s2 * x / (4 * ETA * e) + 5e8 * FAR
    assert added_delta(1e9, 2.0, 1e-6) == pytest.approx(by_hand, rel=1e-9)


def test_more_numbers_never_cost_less_and_nothing_costs_nothing() -> None:
    costs = [added_delta(10.0**n, 2.0, 1e-5) for n in range(20)]
    assert costs == sorted(costs)
    assert added_delta(0, 2.0, 1e-5) == 0.0
    assert added_delta(1e30, 2.0, 1e-5) == added_delta(1, 1e4, 1e-5) == 1 - 1e-5


@pytest.mark.parametrize("wrong", [(-1, 1, 0.1), (1, -1, 0.1), (1, 1, 0), (1, 1, math.nan)])
def test_what_is_no_claim_is_refused(wrong: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="expected numbers"):
        added_delta(*wrong)


def test_a_report_states_it_beside_its_delta_rounded_up() -> None:
    plan = Plan(
        task="digits", rounds=3, sites=2, rate=1.0, rows=100, lr=1.0, clip=1.0, sigma=9.0,
        delta=1e-5,
    )  # fmt: skip
    (said,) = [one["value"] for one in mechanism(plan, 3.0) if "Sampler" in one["what"]]
    stated = float(said.removeprefix("adds at most ").split()[0])
    assert added_delta(1e9, 3.0, 1e-5) <= stated <= 1.1 * added_delta(1e9, 3.0, 1e-5)
    assert not [one for one in mechanism(plan, "infinite") if "Sampler" in one["what"]]
