"""Noise and draws are right in distribution and unpredictable; clipping bounds anything."""

import math
import multiprocessing
import os
import stat
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from privacy import native, noise
from privacy.noise import NoiseError

MILLION = 1_000_000
FALSE_ALARM = 1e-6


@pytest.fixture(params=["native", "numpy"])
def transform(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "numpy":
        monkeypatch.setattr(noise, "_transform", lambda: noise._box_muller)
    elif noise._transform() is noise._box_muller:
        pytest.skip("no C compiler")
    return str(request.param)


def test_a_million_draws_are_normal(transform: str) -> None:
    z = noise.normal(MILLION, 3.0) / 3
    assert stats.kstest(z, "norm").pvalue > FALSE_ALARM
    edges = stats.norm.ppf(np.linspace(0, 1, 1001)[1:-1])
    counts = np.bincount(np.searchsorted(edges, z), minlength=1000)
    assert stats.chisquare(counts).pvalue > FALSE_ALARM
    beyond = int((np.abs(z) > 4).sum())
    assert stats.binomtest(beyond, MILLION, 2 * stats.norm.sf(4)).pvalue > FALSE_ALARM
    assert stats.kstest(z.reshape(2, -1).sum(0) / math.sqrt(2), "norm").pvalue > FALSE_ALARM
    assert stats.kstest((z**2).reshape(-1, 10).sum(1), "chi2", args=(10,)).pvalue > FALSE_ALARM


def test_the_tails_reach_beyond_eight_sigma(transform: str) -> None:
    radii = np.array([0, 1, 2**8, 2**18], dtype=np.uint64)
    angles = np.zeros(4, dtype=np.uint32)
    x, y = np.empty((2, 4), dtype=np.float32)
    noise._transform()(radii, angles, x, y, 1.0)
    expected = [math.sqrt(-2 * math.log((float(b) + 0.5) / 2**64)) for b in radii]
    assert np.allclose(x, expected, rtol=1e-6)
    assert x[0] > 9.4
    assert x[3] > 7.9
    assert not y.any()


def test_the_native_transform_equals_the_slow_one_and_exact_arithmetic() -> None:
    rng = np.random.default_rng(1)
    radii = rng.integers(0, 2**64, 20_000, dtype=np.uint64)
    angles = rng.integers(0, 2**32, 20_000, dtype=np.uint32)
    turn = (angles >> np.uint32(30)) / 4 + (angles << np.uint32(2)).view(np.int32) / 2.0**34
    radius = np.sqrt(-2 * np.log((radii + 0.5) / 2.0**64))
    exact = radius * np.cos(2 * np.pi * turn), radius * np.sin(2 * np.pi * turn)
    for used in {noise._transform(), noise._box_muller}:
        x, y = np.empty((2, 20_000), dtype=np.float32)
        used(radii, angles, x, y, 1.0)
        assert np.allclose(x, exact[0], rtol=1e-6, atol=1e-7)
        assert np.allclose(y, exact[1], rtol=1e-6, atol=1e-7)


def test_a_kernel_that_disagrees_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = native._SOURCE.read_text().replace("sqrtf(square", "0.5f * sqrtf(square")
    wrong = tmp_path / "transform.c"
    wrong.write_text(source)
    monkeypatch.setattr(native, "_SOURCE", wrong)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert native.load(noise._box_muller) is None


def test_the_kernel_is_kept_where_only_its_owner_writes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if native.load(noise._box_muller) is None:
        pytest.skip("no C compiler")
    (folder,) = tmp_path.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (library,) = folder.iterdir()
    made = library.stat().st_mtime_ns
    assert native.load(noise._box_muller) is not None
    assert library.stat().st_mtime_ns == made
    folder.chmod(0o777)
    assert native.load(noise._box_muller) is None


def test_without_a_compiler_there_is_no_kernel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    assert native.load(noise._box_muller) is None
    monkeypatch.setenv("CC", "false")
    assert native.load(noise._box_muller) is None


@pytest.mark.parametrize("shape", [(), 0, 1, (3,), (0, 4), (5, 7), (32_769,), (2, 32_769)])
def test_shapes(shape: int | tuple[int, ...], transform: str) -> None:
    z = noise.normal(shape, 2.0)
    assert z.shape == (shape if isinstance(shape, tuple) else (shape,))
    assert z.dtype == np.float32
    assert np.all(z != 0)
    assert len(np.unique(z)) >= 0.99 * z.size
    assert not noise.normal(shape, 0.0).any()


def test_seeds_forks_and_threads_never_share_noise() -> None:
    seen = []
    for _ in range(2):
        np.random.seed(0)
        torch.manual_seed(0)
        seen.append(noise.normal(8, 1.0))
    with ThreadPoolExecutor(4) as pool:
        seen += list(pool.map(lambda _: noise.normal(8, 1.0), range(16)))
    with multiprocessing.get_context("spawn").Pool(2) as processes:
        seen += processes.starmap(noise.normal, [(8, 1.0)] * 4)
    values = np.concatenate(seen)
    assert len(np.unique(values)) == len(values)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_draws_its_own() -> None:
    noise.normal(8, 1.0)
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads are idle here
        child = os.fork()
    if child == 0:
        os.write(write, noise.normal(8, 1.0).tobytes())
        os._exit(0)
    ours = noise.normal(8, 1.0)
    theirs = np.frombuffer(os.read(read, 32), dtype=np.float32)
    os.waitpid(child, 0)
    os.close(read)
    os.close(write)
    assert not np.any(ours == theirs)


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


def test_draws_at_the_ends() -> None:
    assert noise.poisson(5, 1.0).tolist() == [0, 1, 2, 3, 4]
    assert noise.poisson(1000, 0.0).tolist() == []
    assert noise.poisson(0, 0.5).tolist() == []
    assert noise.poisson(100_000, 1e-12).tolist() == []


def test_ties_are_resolved_by_more_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    # With every first word equal to the threshold's, only the further bits decide.
    real = noise._bits
    first = int(0.3 * 2**16)

    def bits(count: int, dtype: type) -> np.ndarray:
        return np.full(count, first, np.uint16) if dtype is np.uint16 else real(count, dtype)

    monkeypatch.setattr(noise, "_bits", bits)
    drawn = noise.poisson(100_000, 0.3)
    assert stats.binomtest(len(drawn), 100_000, 0.3 * 2**16 - first).pvalue > FALSE_ALARM


def test_uniform_numbers_are_uniform() -> None:
    u = noise.uniform((1000, 100))
    assert u.shape == (1000, 100)
    assert stats.kstest(u.ravel(), "uniform").pvalue > FALSE_ALARM
    assert u.min() >= 0
    assert u.max() < 1


def test_the_insecure_mode_repeats_itself_says_so_and_ends() -> None:
    def draws() -> tuple[bytes, bytes]:
        return noise.normal(9, 1.0).tobytes(), noise.poisson(99, 0.5).tobytes()

    with noise.insecure("a"):
        first, second = draws(), draws()
        assert noise.is_insecure()
        with ThreadPoolExecutor(1) as pool:  # another thread stays secure
            assert not pool.submit(noise.is_insecure).result()
    with noise.insecure("a"):
        assert draws() == first
    with noise.insecure("b"):
        assert draws() != first
    assert first != second
    assert not noise.is_insecure()
    assert draws() != first


@pytest.mark.parametrize("std", [-1.0, math.inf, math.nan])
def test_impossible_noise_is_refused(std: float) -> None:
    with pytest.raises(NoiseError):
        noise.normal(3, std)


@pytest.mark.parametrize(("n", "rate"), [(-1, 0.5), (3, -0.1), (3, 1.1), (3, math.nan)])
def test_impossible_draws_are_refused(n: int, rate: float) -> None:
    with pytest.raises(NoiseError):
        noise.poisson(n, rate)


anything = arrays.arrays(
    np.float32, arrays.array_shapes(max_dims=2, max_side=4), elements=st.floats(width=32)
)
bounds = st.floats(1e-3, 1e3)


@given(st.lists(anything, min_size=1, max_size=3), bounds)
def test_clipping_bounds_the_norm_never_grows_it_and_is_idempotent(
    values: list[np.ndarray], bound: float
) -> None:
    clipped, before = noise.clip(values, bound)
    assert noise.norm(clipped) <= min(bound, before)
    again, _ = noise.clip(clipped, bound)
    assert all(np.array_equal(a, b) for a, b in zip(clipped, again, strict=True))
    assert [c.shape for c in clipped] == [v.shape for v in values]
    if before <= bound:
        assert all(np.array_equal(a, b) for a, b in zip(clipped, values, strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_arrays_that_are_not_finite_become_zeros(bad: float) -> None:
    clipped, before = noise.clip([np.ones(3), np.array([1.0, bad])], 1.0)
    assert before == math.inf
    assert not any(c.any() for c in clipped)


def test_huge_arrays_are_scaled_without_overflow() -> None:
    clipped, before = noise.clip([np.full(4, 1e38, dtype=np.float32)], 2.0)
    assert before == pytest.approx(2e38)
    assert clipped[0] == pytest.approx(np.ones(4), rel=1e-5)


@given(st.floats(1e-6, 1e6))
def test_the_grid_is_public_and_coarser_than_the_spacing_of_floats(std: float) -> None:
    step = noise.grid(std)
    assert std / 8192 < step <= std / 4096
    (rounded,) = noise.round_to_grid([noise.normal(1000, std)], step)
    assert np.all(rounded / step == np.rint(rounded / step))
    assert np.spacing(np.float32(8 * std)) < step


def test_no_grid_without_noise() -> None:
    assert noise.grid(0.0) == 0.0
    value = np.array([0.3])
    assert noise.round_to_grid([value], 0.0)[0] is value
