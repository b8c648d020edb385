"""Noise and draws are right in distribution and unpredictable; clipping bounds anything."""

import math
import os
import stat
import subprocess
import sys
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

from privacy.mechanism import native, noise
from privacy.mechanism.noise import NoiseError

MILLION = 1_000_000
FALSE_ALARM = 1e-6
PATHS = ("native", "numpy")


def use(path: str, patch: pytest.MonkeyPatch) -> None:
    """Draw by one of the two ways that there are."""
    if path == "numpy":
        patch.setattr(noise, "_kernel", lambda: None)
    elif noise._kernel() is None:
        pytest.skip("no C compiler")


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    use(request.param, monkeypatch)
    return str(request.param)


APART = """
import sys
import numpy as np
from privacy.mechanism import noise
for _ in range(2):
    values = np.zeros(8)
    noise.privatise(values, 1.0)
    sys.stdout.buffer.write(values.tobytes())
"""


def normal(shape: int | tuple[int, ...], std: float, kind: type = np.float32) -> np.ndarray:
    """What `privatise` makes of zeros: noise alone, on the grid."""
    noisy = np.zeros(shape, dtype=kind)
    noise.privatise(noisy, std)
    return noisy


def test_a_million_draws_are_normal(path: str) -> None:
    z = normal(MILLION, 3.0, np.float64) / 3
    z += (np.random.default_rng(0).random(MILLION) - 0.5) * noise.grid(3.0) / 3
    assert stats.kstest(z, "norm").pvalue > FALSE_ALARM
    edges = stats.norm.ppf(np.linspace(0, 1, 1001)[1:-1])
    counts = np.bincount(np.searchsorted(edges, z), minlength=1000)
    assert stats.chisquare(counts).pvalue > FALSE_ALARM
    beyond = int((np.abs(z) > 4).sum())
    assert stats.binomtest(beyond, MILLION, 2 * stats.norm.sf(4)).pvalue > FALSE_ALARM
    assert stats.kstest(z.reshape(2, -1).sum(0) / math.sqrt(2), "norm").pvalue > FALSE_ALARM
    assert stats.kstest((z**2).reshape(-1, 10).sum(1), "chi2", args=(10,)).pvalue > FALSE_ALARM


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("count", [1, 7, 1024, 1025, 40_001, 100_000])
def test_the_same_keys_give_the_same_bits_on_both_paths(
    count: int, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for path in PATHS:
        with monkeypatch.context() as patch, noise.insecure(5):
            use(path, patch)
            sums = np.arange(count, dtype=kind)
            noise.privatise(sums, 3.0, over=7.0)
            results.append((sums, noise.poisson(5000, 0.1)))
    for one, other in zip(*results, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("count", [7, 40_001])
@pytest.mark.parametrize("std", [3.0, 0.0])
def test_two_float32_sums_are_noised_as_their_sum_in_float64(
    count: int, std: float, path: str
) -> None:
    one, other = (np.random.default_rng(i).normal(0, 50, count).astype("f4") for i in range(2))
    whole = one.astype(np.float64) + other
    kept = other.copy()
    with noise.insecure(5):
        noise.privatise(whole, std, over=7.0)
    with noise.insecure(5):
        noise.privatise(one, std, over=7.0, more=other)
    assert np.array_equal(one, whole.astype(np.float32))
    assert np.array_equal(other, kept)


@pytest.mark.parametrize(
    "more", [np.zeros(3), np.zeros(4, np.float32), np.zeros(6, np.float32)[::2]]
)
def test_a_second_sum_of_another_kind_is_refused(more: np.ndarray) -> None:
    with pytest.raises(NoiseError, match="more"):
        noise.privatise(np.zeros(3, np.float32), 1.0, more=more)
    with pytest.raises(NoiseError, match="more"):
        noise.privatise(np.zeros(3), 1.0, more=np.zeros(3, np.float32))


@pytest.mark.parametrize("std", [1e-25, 1e25])
def test_tiny_and_huge_noise_is_noise(path: str, std: float) -> None:
    z = normal(10_000, std, np.float64) / std
    assert stats.kstest(z, "norm").pvalue > FALSE_ALARM
    sums = np.zeros(10_000, dtype=np.float32)
    noise.privatise(sums, std)
    assert stats.kstest(sums / np.float32(std), "norm").pvalue > FALSE_ALARM


def test_a_noisy_sum_is_the_sum_the_noise_and_the_grid(path: str) -> None:
    sums = np.full(100_000, 5.0, dtype=np.float32)
    noise.privatise(sums, 2.0)
    parts = sums / noise.grid(2.0)
    assert np.array_equal(parts, np.rint(parts))
    assert stats.kstest((sums - 5) / 2, "norm").pvalue > FALSE_ALARM
    again = np.full(100_000, 5.0, dtype=np.float32)
    noise.privatise(again, 2.0, over=4.0)
    assert stats.kstest((again * 4 - 5) / 2, "norm").pvalue > FALSE_ALARM
    assert np.array_equal(again * 4 / noise.grid(2.0), np.rint(again * 4 / noise.grid(2.0)))
    assert len(np.intersect1d(again * 4 - 5, sums - 5)) < 30_000  # another draw
    plain = np.arange(9, dtype=np.float32)
    noise.privatise(plain, 0.0, over=2.0)
    assert np.array_equal(plain, np.arange(9) / 2)


@pytest.mark.parametrize(
    "bad",
    [np.zeros(3, int), np.zeros((4, 4), np.float32)[:, ::2], np.zeros((4, 4), np.float32).T[:2]],
)
def test_sums_that_cannot_be_noised_in_place_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(NoiseError, match="contiguous float32"):
        noise.privatise(bad, 1.0)
    with pytest.raises(NoiseError, match="over"):
        noise.privatise(np.zeros(3, np.float32), 1.0, over=0.0)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("sqrt(fabs(", "0.5 * sqrt(fabs("),
        ("= step / over", "= step * over"),
        ("words[i] == most ?", "words[i] > most ?"),
        ("p * z + 1.0 / 13", "p * z + 1.0 / 12"),
        ("c * v + 1.0 / 40320", "c * v + 1.0 / 40321"),
        ("0x1p-53", "0x1p-52"),
        ("sum < 0x1p52 ? sum : 0x1p52", "sum"),
        ("(0.5 - 0x1p-27)", "(0.5 - 0x1p-28)"),
        ("extreme(w->radii[i]) ||", ""),
        ("TIMES_PLUS(p, z, 1.0f / 3)", "TIMES_PLUS(p, z, 1.0f / 3.01f)"),
        ("TIMES_PLUS(radius, -PER_RADIUS, most)", "0.5f"),
        ("SLIM 0x1p21f", "SLIM 0x1p41f"),
        ("s - whole + (t - other)", "s - whole"),
        *(
            pytest.param(*fault, marks=pytest.mark.slow)
            for fault in (
                ("TIMES_PLUS(o, v, -1.0f / 6)", "TIMES_PLUS(o, v, -1.0f / 6.001f)"),
                ("d = e == 0 ? t : d;", ""),
                ("a << 2 ^", "a << 2 | 4095 ^"),
                ("square > SHORTEST && square < LONGEST", "1"),
                ("!(fabs(s) < WIDE)", "0"),
                (" + 0.0f) * width);\n    }\n}\n\n/* Of two", ") * width);\n    }\n}\n\n/* Of two"),
                ("w->sine[i] ? w->sines[i] : w->cosines[i]", "w->cosines[i]"),
            )
        ),
    ],
)
def test_a_kernel_that_disagrees_is_not_used(
    right: str, wrong: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if native.load() is None:
        pytest.skip("no C compiler")
    source = native._SOURCE.read_text()
    assert right in source
    planted = tmp_path / "noise.c"
    planted.write_text(source.replace(right, wrong))
    monkeypatch.setattr(native, "_SOURCE", planted)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert native.load() is None


def test_the_kernel_is_kept_where_only_its_owner_writes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if native.load() is None:
        pytest.skip("no C compiler")
    (folder,) = tmp_path.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (library,) = folder.iterdir()
    made = library.stat().st_mtime_ns
    assert native.load() is not None
    assert library.stat().st_mtime_ns == made
    folder.chmod(0o777)
    assert native.load() is None


def test_without_a_compiler_there_is_no_kernel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    assert native.load() is None
    monkeypatch.setenv("CC", "false")
    assert native.load() is None


@pytest.mark.parametrize("shape", [(), 0, 1, (3,), (0, 4), (5, 7), (32_769,), (2, 32_769)])
def test_shapes(shape: int | tuple[int, ...], path: str) -> None:
    z = normal(shape, 2.0)
    assert z.shape == (shape if isinstance(shape, tuple) else (shape,))
    assert z.dtype == np.float32
    assert len(np.unique(z)) >= min(z.size, 1) + 0.3 * min(z.size - 1, 10_000)
    assert not normal(shape, 0.0).any()


def test_seeds_forks_and_threads_never_share_noise() -> None:
    seen = []
    for _ in range(2):
        np.random.seed(0)
        torch.manual_seed(0)
        seen.append(normal(8, 1.0, np.float64))
    with ThreadPoolExecutor(4) as pool:
        seen += list(pool.map(lambda _: normal(8, 1.0, np.float64), range(16)))
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", APART], capture_output=True, check=True)
        seen += list(np.frombuffer(done.stdout, dtype=np.float64).reshape(2, 8))
    values = np.concatenate(seen)
    assert len(np.unique(values)) > 0.9 * len(values)  # some fall on the same of some 5,000 points
    assert len({one.tobytes() for one in seen}) == len(seen)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_draws_its_own() -> None:
    normal(8, 1.0, np.float64)
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads are idle here
        child = os.fork()
    if child == 0:
        os.write(write, normal(8, 1.0).tobytes())
        os._exit(0)
    ours = normal(8, 1.0)
    theirs = np.frombuffer(os.read(read, 32), dtype=np.float32)
    os.waitpid(child, 0)
    os.close(read)
    os.close(write)
    assert np.sum(ours == theirs) < 2


def test_the_insecure_mode_repeats_itself_says_so_and_ends() -> None:
    def draws() -> tuple[bytes, bytes]:
        return normal(9, 1.0).tobytes(), noise.poisson(99, 0.5).tobytes()

    with noise.insecure("a"):
        first, second = draws(), draws()
        with ThreadPoolExecutor(1) as pool:  # another thread stays secure
            assert pool.submit(draws).result() != pool.submit(draws).result()
    with noise.insecure("a"):
        assert draws() == first
    with noise.insecure("b"):
        assert draws() != first
    assert first != second
    assert draws() != first


@pytest.mark.parametrize("std", [-1.0, math.inf, math.nan])
def test_impossible_noise_is_refused(std: float) -> None:
    with pytest.raises(NoiseError):
        normal(3, std)


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
    assert std / 2048 < step <= std / 1024
    rounded = np.zeros(1000, dtype=np.float32)
    noise.privatise(rounded, std)
    assert np.all(rounded / step == np.rint(rounded / step))
    assert np.spacing(np.float32(8 * std)) < step


def test_no_grid_without_noise() -> None:
    assert noise.grid(0.0) == 0.0
    value = np.array([0.3], dtype=np.float32)
    noise.privatise(value, 0.0)
    assert value[0] == np.float32(0.3)
