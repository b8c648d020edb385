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

from client.dpsgd.openmp import team
from privacy.mechanism import native, noise
from privacy.mechanism.noise import NoiseError

MILLION = 1_000_000
FALSE_ALARM = 1e-6


PATHS = ("a native stream", "native", "numpy")


def use(path: str, patch: pytest.MonkeyPatch) -> None:
    """Draw by one of the three ways that there are."""
    kernel = noise._kernel()
    if path == "numpy":
        patch.setattr(noise, "_kernel", lambda: None)
    elif kernel is None:
        pytest.skip("no C compiler")
    elif path == "native":
        patch.setattr(kernel, "streams", False)
    elif not kernel.streams:
        pytest.skip("no vector AES")


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    use(request.param, monkeypatch)
    return str(request.param)


def test_a_million_draws_are_normal(path: str) -> None:
    z = noise.normal(MILLION, 3.0) / 3
    assert stats.kstest(z, "norm").pvalue > FALSE_ALARM
    edges = stats.norm.ppf(np.linspace(0, 1, 1001)[1:-1])
    counts = np.bincount(np.searchsorted(edges, z), minlength=1000)
    assert stats.chisquare(counts).pvalue > FALSE_ALARM
    beyond = int((np.abs(z) > 4).sum())
    assert stats.binomtest(beyond, MILLION, 2 * stats.norm.sf(4)).pvalue > FALSE_ALARM
    assert stats.kstest(z.reshape(2, -1).sum(0) / math.sqrt(2), "norm").pvalue > FALSE_ALARM
    assert stats.kstest((z**2).reshape(-1, 10).sum(1), "chi2", args=(10,)).pvalue > FALSE_ALARM


def drawn(bits: np.ndarray, count: int, std: float = 1.0) -> np.ndarray:
    """The numbers that given bits make, by the kernel if there is one."""
    out, kernel = np.empty(count, dtype=np.float32), noise._kernel()
    fill = noise._numpy_fill if kernel is None else kernel.fill
    fill(out, bits, std, 0.0, 1.0)
    return out


def test_the_tails_reach_beyond_eight_sigma(path: str) -> None:
    bits = np.zeros(native.size(8), dtype=np.uint8)
    bits[:32].view(np.uint64)[:] = (0, 1, 2**8, 2**18)
    z = drawn(bits, 8)
    expected = [math.sqrt(-2 * math.log(((b >> 1) + 0.5) / 2**63)) for b in (0, 1, 2**8, 2**18)]
    assert np.allclose(z[:4], expected, rtol=1e-6)
    assert z[0] > 9.4
    assert z[3] > 7.9
    assert not z[4:].any()


def test_every_path_equals_exact_arithmetic(path: str) -> None:
    count, pairs = 40_000, 512
    chunks = count // (2 * pairs) + 1
    bits = np.random.default_rng(1).integers(0, 256, 12 * pairs * chunks, dtype=np.uint8)
    z = drawn(bits, 2 * pairs * chunks).reshape(chunks, 2, pairs)
    each = bits.reshape(chunks, 12 * pairs)
    radii = np.ascontiguousarray(each[:, : 8 * pairs]).view(np.uint64) >> np.uint64(1)
    angles = np.ascontiguousarray(each[:, 8 * pairs :]).view(np.uint32)
    turn = (angles >> np.uint32(30)) / 4 + (angles << np.uint32(2)).view(np.int32) / 2.0**34
    radius = np.sqrt(-2 * np.log((radii + 0.5) / 2.0**63))
    assert np.allclose(z[:, 0], radius * np.cos(2 * np.pi * turn), rtol=1e-6, atol=1e-7)
    assert np.allclose(z[:, 1], radius * np.sin(2 * np.pi * turn), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("count", [1, 7, 1024, 1025, 40_001, 400_000])
def test_the_same_keys_give_the_same_numbers_on_every_path(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for path in PATHS:
        with monkeypatch.context() as patch, noise.insecure(5):
            if path == PATHS[0] and not getattr(noise._kernel(), "streams", False):
                continue
            if path == "native" and noise._kernel() is None:
                continue
            use(path, patch)
            sums = np.arange(count, dtype=np.float32)
            noise.privatise(sums, 3.0, over=7.0)
            found[path] = sums, noise.poisson(5000, 0.1)
    first, rows = found["numpy"]
    for other, same in found.values():
        assert np.array_equal(rows, same)
        assert np.allclose(other, first, rtol=1e-6, atol=1.01 * noise.grid(3.0) / 7)
        assert (other != first).sum() <= 2 + count / 1000  # half-way between two grid points


@pytest.mark.parametrize("std", [1e-25, 1e25])
def test_tiny_and_huge_noise_is_noise(path: str, std: float) -> None:
    z = noise.normal(10_000, std) / np.float32(std)
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
    [np.zeros(3), np.zeros((4, 4), np.float32)[:, ::2], np.zeros((4, 4), np.float32).T[:2]],
)
def test_sums_that_cannot_be_noised_in_place_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(NoiseError, match="contiguous float32"):
        noise.privatise(bad, 1.0)
    with pytest.raises(NoiseError, match="over"):
        noise.privatise(np.zeros(3, np.float32), 1.0, over=0.0)


def loaded() -> native.Kernel | None:
    return native.load(noise._numpy_fill, lambda key, size: noise._bits(size, np.uint8, key))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("sqrtf(fabsf(square))", "0.5f * sqrtf(fabsf(square))"),
        ("(step / over)", "(step * over)"),
        ("words[i] == most ?", "words[i] > most ?"),
        ("EVEN(6, 4)", "EVEN(6, 5)"),
        ("s->block += blocks", "s->block += 1"),
        ("s->block = block;", "s->block = 0;"),
    ],
)
def test_a_kernel_that_disagrees_is_not_used(
    right: str, wrong: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if loaded() is None or not loaded().streams:
        pytest.skip("no C compiler, or no vector AES")
    source = native._SOURCE.read_text()
    assert right in source
    planted = tmp_path / "noise.c"
    planted.write_text(source.replace(right, wrong))
    monkeypatch.setattr(native, "_SOURCE", planted)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert loaded() is None


def test_the_native_stream_is_the_aes_of_openssl() -> None:
    kernel = noise._kernel()
    if kernel is None or not kernel.streams:
        pytest.skip("no vector AES")
    for count in (1, 1024, 5000, 100_001):
        key = os.urandom(32)
        made, given = np.zeros((2, count), dtype=np.float32)
        kernel.fill(made, key, 1.0, 0.0, 1.0)
        kernel.fill(given, noise._bits(native.size(count), np.uint8, key), 1.0, 0.0, 1.0)
        assert np.array_equal(made, given)


@pytest.mark.parametrize("count", [16_385, 200_010])
def test_any_number_of_threads_gives_the_same_numbers(count: int) -> None:
    kernel, found = noise._kernel(), []
    if kernel is None:
        pytest.skip("no C compiler")
    key, had = os.urandom(32), torch.get_num_threads()
    bits = noise._bits(native.size(count), np.uint8, key)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for given in (bits, key) if kernel.streams else (bits,):
                sums = np.arange(count, dtype=np.float32)
                kernel.fill(sums, given, 3.0, noise.grid(3.0), 7.0, team())
                found.append(sums)
    finally:
        torch.set_num_threads(had)
    assert all(np.array_equal(found[0], other) for other in found)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_does_not_wait_for_its_parents_threads() -> None:
    had = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        noise.privatise(np.zeros(200_000, dtype=np.float32), 1.0, team=team())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # other threads are idle here
            child = os.fork()
        if child == 0:
            noise.privatise(np.zeros(200_000, dtype=np.float32), 1.0, team=team())
            os._exit(0 if team() == native.ALONE else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        torch.set_num_threads(had)


def test_the_kernel_is_kept_where_only_its_owner_writes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if loaded() is None:
        pytest.skip("no C compiler")
    (folder,) = tmp_path.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (library,) = folder.iterdir()
    made = library.stat().st_mtime_ns
    assert loaded() is not None
    assert library.stat().st_mtime_ns == made
    folder.chmod(0o777)
    assert loaded() is None


def test_without_a_compiler_there_is_no_kernel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    assert loaded() is None
    monkeypatch.setenv("CC", "false")
    assert loaded() is None


@pytest.mark.parametrize("shape", [(), 0, 1, (3,), (0, 4), (5, 7), (32_769,), (2, 32_769)])
def test_shapes(shape: int | tuple[int, ...], path: str) -> None:
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
    rounded = np.zeros(1000, dtype=np.float32)
    noise.privatise(rounded, std)
    assert np.all(rounded / step == np.rint(rounded / step))
    assert np.spacing(np.float32(8 * std)) < step


def test_no_grid_without_noise() -> None:
    assert noise.grid(0.0) == 0.0
    value = np.array([0.3], dtype=np.float32)
    noise.privatise(value, 0.0)
    assert value[0] == np.float32(0.3)
