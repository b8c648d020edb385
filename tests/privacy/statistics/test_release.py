"""The noisy sums: exact before the noise, with the noise that the ledger pays for."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.contract.keys.tables import StatisticsPlan
from privacy.statistics.columns import CategoryColumn, NumberColumn
from privacy.statistics.design import Design, design
from privacy.statistics.release import exact_sums, noisy_sums, standard_deviation

COLUMNS = (NumberColumn("age", 0, 100), CategoryColumn("ward", ("a", "b")))


def of() -> Design:
    columns = {"age": ("quantiles", "moments"), "ward": ("frequencies",)}
    plan = StatisticsPlan(of="table", columns=columns, bins=16)  # type: ignore[arg-type]
    return design(plan, COLUMNS)


def rows(count: int, seed: int = 0) -> np.ndarray:
    source = np.random.default_rng(seed)
    values = np.stack([source.uniform(-10, 110, count), source.integers(0, 3, count)], 1)
    values[source.random(values.shape) < 0.1] = math.nan
    return values


def test_sums_are_those_of_the_vectors_in_any_order() -> None:
    values = rows(3000)
    sums = exact_sums(of(), values)
    assert (sums == of().vectors(values).sum(0)).all()
    assert (sums == exact_sums(of(), values[::-1])).all()
    assert sums[0] == 3000
    assert (exact_sums(of(), values[:0]) == 0).all()


def test_people_count_once_and_their_rows_are_capped() -> None:
    values = np.array([[10.0, 0], [90.0, 1], [90.0, 1], [50.0, 0]])
    subject = np.array([7, 7, 7, 9])
    one = of().vectors(values)
    thirds = np.trunc(one[:3].mean(0) * 2**20) / 2**20
    assert (exact_sums(of(), values, subject=subject) == thirds + one[3]).all()
    first_two = one[:2].mean(0) + one[3]
    assert exact_sums(of(), values, subject=subject, most=2) == pytest.approx(first_two, abs=1e-6)
    assert exact_sums(of(), values, subject=subject)[0] == pytest.approx(2, abs=1e-6)


@given(st.integers(0, 2**31), st.integers(1, 9))
@settings(max_examples=30)
def test_a_person_moves_the_sums_by_the_bound_at_most(seed: int, many: int) -> None:
    values, subject = rows(40, seed), np.arange(40) // 3
    with_one = exact_sums(
        of(),
        np.concatenate([values, rows(many, seed + 1)]),
        subject=np.append(subject, np.full(many, 99)),
    )
    moved = np.linalg.norm(with_one - exact_sums(of(), values, subject=subject))
    assert moved <= of().bound


def test_people_in_many_parts_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    values, subject = rows(200), np.random.default_rng(1).integers(0, 60, 200)
    whole = exact_sums(of(), values, subject=subject, most=3)
    monkeypatch.setattr("privacy.statistics.release._NUMBERS_AT_ONCE", 7 * of().size)
    assert (exact_sums(of(), values, subject=subject, most=3) == whole).all()
    assert (exact_sums(of(), values) == of().vectors(values).sum(0)).all()


def test_the_noise_is_the_one_that_is_paid_for() -> None:
    values, sigma = rows(500), 4.0
    exact, std = exact_sums(of(), values), standard_deviation(of(), sigma)
    assert std == pytest.approx(sigma * of().bound)
    z = [(noisy_sums(of(), values, sigma) * of().bound - exact) / std for _ in range(100)]
    size = np.size(z)
    assert np.mean(np.square(z)) == pytest.approx(1, abs=6 * math.sqrt(2 / size))
    assert np.mean(z) == pytest.approx(0, abs=6 / math.sqrt(size))
