"""Batches are Poisson samples: who is drawn, how many, and that no draw knows of another."""

import math

import numpy as np
import pytest
from scipy import stats

from privacy.mechanism import noise
from privacy.mechanism.noise import NoiseError

MILLION = 1_000_000
FALSE_ALARM = 1e-6


@pytest.mark.parametrize("rate", [0.003, 0.25, 0.5, 1 - 2.0**-20])
def test_batches_are_binomial_and_every_row_is_as_likely(rate: float) -> None:
    n, draws = 40, 20_000
    counts, sizes = np.zeros(n, dtype=int), np.zeros(n + 1, dtype=int)
    for _ in range(draws):
        drawn = noise.poisson(n, rate)
        counts[drawn] += 1
        sizes[len(drawn)] += 1
    for count in counts:
        assert stats.binomtest(int(count), draws, rate).pvalue > FALSE_ALARM
    expected = stats.binom.pmf(np.arange(n + 1), n, rate) * draws
    likely = expected >= 10
    if likely.sum() > 1:
        seen = np.append(sizes[likely], sizes[~likely].sum() + 1e-9)
        wanted = np.append(expected[likely], expected[~likely].sum() + 1e-9)
        assert stats.chisquare(seen, wanted, sum_check=False).pvalue > FALSE_ALARM


def test_a_large_draw_has_the_right_size_and_distinct_sorted_rows() -> None:
    drawn = noise.poisson(MILLION, 0.1)
    assert abs(len(drawn) - 100_000) < 6 * 300
    assert np.all(np.diff(drawn) > 0)
    assert drawn[0] >= 0
    assert drawn[-1] < MILLION
    assert drawn.dtype == np.int64


@pytest.mark.parametrize(("n", "rate", "steps"), [(7, 0.4, 3000), (700_000, 1e-5, 5), (0, 0.5, 3)])
def test_the_batches_of_many_steps_are_draws_of_their_own(n: int, rate: float, steps: int) -> None:
    drawn = list(noise.batches(n, rate, steps))
    assert len(drawn) == steps
    assert all(b.dtype == np.int64 and np.all(np.diff(b) > 0) for b in drawn)
    assert all(b.min(initial=0) >= 0 and b.max(initial=-1) < n for b in drawn)
    if n == 7:
        counts = np.bincount([len(b) for b in drawn], minlength=8)
        assert stats.chisquare(counts, stats.binom.pmf(np.arange(8), 7, 0.4) * steps).pvalue > 1e-6
        member = np.array([3 in b for b in drawn])
        both = int((member[::2] & member[1::2]).sum())  # of pairs that share no step
        assert stats.binomtest(both, steps // 2, 0.16).pvalue > FALSE_ALARM


def test_however_many_rows_are_drawn_there_is_room() -> None:
    kernel = noise._kernel()
    if kernel is None:
        pytest.skip("no C compiler")
    words = np.zeros(5000, dtype=np.uint16)
    assert kernel.draw(words, 7).tolist() == list(range(5000))
    assert kernel.draw(words, 0).tolist() == [~i for i in range(5000)]


def test_draws_at_the_ends() -> None:
    assert noise.poisson(5, 1.0).tolist() == [0, 1, 2, 3, 4]
    assert noise.poisson(1000, 0.0).tolist() == []
    assert noise.poisson(0, 0.5).tolist() == []
    assert noise.poisson(100_000, 1e-12).tolist() == []


def test_ties_are_resolved_by_more_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    # With every first word equal to the threshold's, only the further bits decide.
    first = int(0.3 * 2**16)
    monkeypatch.setattr(noise, "_below", lambda n, threshold: ~np.arange(n))
    drawn = noise.poisson(100_000, 0.3)
    assert stats.binomtest(len(drawn), 100_000, 0.3 * 2**16 - first).pvalue > FALSE_ALARM


def test_uniform_numbers_are_uniform() -> None:
    u = noise.uniform((1000, 100))
    assert u.shape == (1000, 100)
    assert stats.kstest(u.ravel(), "uniform").pvalue > FALSE_ALARM
    assert u.min() >= 0
    assert u.max() < 1


@pytest.mark.parametrize(("n", "rate"), [(-1, 0.5), (3, -0.1), (3, 1.1), (3, math.nan)])
def test_impossible_draws_are_refused(n: int, rate: float) -> None:
    with pytest.raises(NoiseError):
        noise.poisson(n, rate)
