"""Honest noise is never called too quiet or too loud, whatever data add; missing noise is found."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from privacy.mechanism import honest_noise, native
from privacy.mechanism.honest_noise import (
    HonestUpdate,
    _shortest,
    sum_of_draws,
    too_loud,
    too_quiet,
)

LAW = HonestUpdate(last=0.3, noise=0.3, signal=5.0)
CHANCE = 1e-8


def noise(*shape: int, seed: int = 0, std: float = 0.3) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, std, shape).astype(np.float32)


def quiet(*arrays: np.ndarray, law: HonestUpdate = LAW, chance: float = CHANCE) -> bool:
    return too_quiet(arrays, law, error=0.0, chance=chance)


@given(
    st.integers(1, 2000),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 1e-3, 0.1, 1.0, 1e3]),
    st.sampled_from(["one", "every", "ramp", "random"]),
)
def test_no_data_make_honest_noise_too_quiet(d: int, seed: int, size: float, shape: str) -> None:
    shift = {
        "one": np.eye(1, d, d // 2)[0],
        "every": np.ones(d),
        "ramp": np.linspace(-1, 1, d),
        "random": np.random.default_rng(seed + 1).normal(size=d),
    }[shape]
    assert not quiet((noise(d, seed=seed) + size * shift).reshape(1, -1), noise(7, seed=seed))


def test_half_the_noise_is_too_quiet_and_so_is_a_vector_without_noise() -> None:
    assert not quiet(noise(650))
    assert quiet(noise(650, std=0.15))
    assert quiet(np.zeros(650, np.float32))
    assert quiet(np.full(650, 40.0, np.float32))  # loud, and yet without noise
    assert quiet(np.repeat([3.0, -2.0, 1.0, 0.5, 9.0], 130).astype(np.float32))


def test_noise_that_is_missing_in_one_array_or_in_some_numbers_is_too_quiet() -> None:
    assert quiet(noise(5000), np.linspace(0, 1e-3, 100, dtype=np.float32))
    some = noise(5000)
    some[np.random.default_rng(1).random(5000) < 0.2] = 0
    some[:10] = 100  # a long vector all the same
    assert quiet(some)


def test_a_large_signal_in_few_numbers_does_not_hide_that_noise_is_missing() -> None:
    update = noise(1000, std=0.1)
    update[::97] += 30
    assert quiet(update)


def test_rounding_on_the_way_is_allowed_for() -> None:
    coarse = np.round(noise(3000) / 0.5) * 0.5
    assert quiet(coarse.astype(np.float32))  # most became zero
    assert not too_quiet([coarse.astype(np.float32)], LAW, error=0.25, chance=CHANCE)


def test_a_few_numbers_are_never_judged_by_themselves() -> None:
    assert not quiet(np.zeros(63, np.float32), noise(2000))
    assert quiet(np.zeros(64, np.float32), noise(2000))


def test_clipped_sums_and_their_noise_are_not_too_loud_and_ten_times_that_is() -> None:
    update = noise(650)
    update += 5.0 / math.sqrt(650)
    norm = float(np.linalg.norm(update))
    assert not too_loud(norm, 650, LAW, error=0.0, chance=CHANCE)
    assert too_loud(10 * norm, 650, LAW, error=0.0, chance=CHANCE)
    edge = 5.0 + 0.3 * math.sqrt(stats.chi2.isf(CHANCE, 650))
    assert not too_loud(edge, 650, LAW, error=0.0, chance=CHANCE)
    assert too_loud(edge + 0.3, 650, LAW, error=0.0, chance=CHANCE)


def test_without_a_bound_nothing_is_too_loud() -> None:
    assert not too_loud(1e30, 650, HonestUpdate(0.3, None, None), error=0.0, chance=CHANCE)


@given(st.integers(1, 10**6), st.floats(0.1, 40))
def test_the_bounds_are_tails_of_the_exact_laws(d: int, x: float) -> None:
    assert stats.chi2.cdf(_shortest(d, x) ** 2, d) <= math.exp(-x) * (1 + 1e-9)
    loudest = d + 2 * math.sqrt(d * x) + 2 * x
    assert stats.chi2.sf(loudest, d) <= math.exp(-x) * (1 + 1e-9)
    assert stats.poisson.sf(sum_of_draws(d, math.exp(-x)), d) <= math.exp(-x) * (1 + 1e-9)


@pytest.mark.statistical
def test_the_chance_of_a_false_alarm_is_what_was_asked_for_at_most() -> None:
    alarms = sum(quiet(noise(200, seed=s), chance=0.05) for s in range(1000))
    assert stats.binom.sf(alarms - 1, 1000, 0.05) > 1e-6


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for a source of one's own, compiled there."""
    if native.compiled(honest_noise._SOURCE) is None:
        pytest.skip("no C compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(honest_noise, "_SOURCE", tmp_path / "honest_noise.c")
    return tmp_path / "honest_noise.c"


SOURCE = honest_noise._SOURCE.read_text()


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("j + 1 < end; j += 2", "j + 1 < end; j += 1"),
        ("0, 2, 4, 6", "0, 2, 4, 7"),
        ("most > interval", "most < interval"),
        ("squares[1] += two * two;", ""),
    ],
)
def test_compiled_figures_that_disagree_are_not_used(fresh: Path, right: str, wrong: str) -> None:
    assert right in SOURCE
    fresh.write_text(SOURCE.replace(right, wrong))
    assert honest_noise._library.__wrapped__() is None


@given(
    st.integers(0, 70_000),
    st.floats(-1, 4),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 5.0, math.inf]),
)
def test_compiled_figures_are_numpys(d: int, interval: float, seed: int, shift: float) -> None:
    library = honest_noise._library()
    if library is None:
        pytest.skip("no C compiler")
    flat = noise(d, seed=seed, std=1.0)
    flat[: d // 2] += np.float32(shift)
    with np.errstate(all="ignore"):
        right = honest_noise._by_numpy(flat, interval)
    found = honest_noise._by_c(library, flat, interval)
    assert found[2] == right[2]
    assert np.allclose(found, right, rtol=1e-12, atol=0, equal_nan=True)
