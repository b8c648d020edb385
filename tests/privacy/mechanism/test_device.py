"""The source that a GPU runs, compiled as C: OpenSSL's ChaCha20 and numpy's noise, bit for bit."""

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from privacy.mechanism import device, exact, gaussian, noise
from tests.support.device_source import HostSums, Key, compiled

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield compiled(tmp_path_factory.mktemp("device"), device.source())


def test_a_block_is_the_rfcs(library: Any) -> None:
    key = bytes(range(32))
    for counter in (0, 1, 77, 2**32 - 1):
        words = np.zeros(8, np.uint64)
        given_key = Key.from_buffer_copy(key)
        library.chacha20_block(
            ctypes.byref(given_key), ctypes.c_uint32(counter), ctypes.c_void_p(words.ctypes.data)
        )
        expected = noise.chacha20(key, 64 * counter, 64)
        assert words.tobytes() == expected.tobytes(), counter
    # RFC 8439, section A.1, test vector 1: key, counter and nonce of zeros
    assert noise.chacha20(bytes(32), 0, 4).tobytes().hex() == "76b8e0ad"


def test_the_source_gives_numpys_numbers_and_names_the_same_undecided_ones(library: Any) -> None:
    assert noise.agrees(lambda sums: HostSums(sums, library))


@pytest.mark.parametrize(
    "fault",
    [
        ("rotated(x[d] ^ x[a], 8)", "rotated(x[d] ^ x[a], 9)"),
        ("i < 10; i++", "i < 9; i++"),
        ("place % 8 && here == 8", "0"),
        ("sine * pairs + first + pair", "sine * pairs + first + 7 - pair"),
        ("extreme(radii[pair]) || ", ""),
        ("opened.before[slot] = s;", "opened.before[slot] = rest;"),
        ("c = c * v - 1.0 / 2;", "c = fma(c, v, -1.0 / 2);"),
    ],
)
def test_a_kernel_with_a_fault_disagrees(tmp_path: Path, fault: tuple[str, str]) -> None:
    source = device.source()
    assert fault[0] in source
    broken = compiled(tmp_path, source.replace(*fault))
    assert not noise.agrees(lambda sums: HostSums(sums, broken))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3000),
    st.binary(min_size=32, max_size=32),
    st.sampled_from([np.float32, np.float64]),
)
def test_any_length_is_the_hosts(library: Any, n: int, key: bytes, kind: type) -> None:
    start = np.linspace(-3, 5, n).astype(kind)
    right, bits = start.copy(), noise.chacha20(key, 0, gaussian.bits_for(n))
    step = noise.grid(0.7)
    gaussian.add_noise(right, bits, 0.7, step, 1.0, np.zeros(n, np.int64), np.zeros(n))
    HostSums(start, library).add_noise(key, 0.7, step, 1.0)
    assert np.array_equal(start, right)


@pytest.mark.statistical
def test_what_a_device_releases_is_a_gaussian_on_the_grid(library: Any) -> None:
    sums = HostSums(np.zeros(60_000, np.float32), library)
    noise.privatise_on(sums, 2.0, over=4.0)
    steps = sums.sums.astype(np.float64) / (noise.grid(2.0) / 4)
    assert np.array_equal(steps, np.rint(steps))
    assert stats.kstest(sums.sums * 4, "norm", args=(0, 2.0)).pvalue > 1e-6
    again = HostSums(np.zeros(60_000, np.float32), library)
    noise.privatise_on(again, 2.0, over=4.0)
    assert not np.array_equal(sums.sums, again.sums)


def test_undecided_numbers_get_what_the_host_gives_them(library: Any) -> None:
    """Sums are chosen so that many are undecided; each is settled from the same bits."""
    key, n, step = bytes(range(32)), 3000, 2.0**-9
    bits = noise.chacha20(key, 0, gaussian.bits_for(n))
    fine = np.zeros(n)
    room = np.zeros(n, np.int64), np.zeros(n)
    gaussian.add_noise(fine, bits, 2.0, step * 2.0**-gaussian.FINE_BITS, 1.0, *room)
    start = step / 2 - fine  # to the middle of two steps
    more = lambda: bytes(range(128))  # noqa: E731
    right = start.copy()
    count = gaussian.add_noise(right, bits, 2.0, step, 3.0, *room)
    assert count > n / 2
    exact.settle(right, bits, 2.0, step, 3.0, room[0][:200], room[1][:200], more)
    sums = HostSums(start.copy(), library)
    positions, before = sums.add_noise(key, 2.0, step, 3.0)
    some = np.isin(positions, room[0][:200])
    sums.sums[positions[some]] = np.nan  # must be written again
    stream = lambda first, size: noise.chacha20(key, first, size)  # noqa: E731
    device.settle(sums, positions[some], before[some], (2.0, step, 3.0), stream, more)
    assert np.array_equal(sums.sums, right)


def test_without_noise_sums_are_divided_alone_and_bad_parameters_are_refused(library: Any) -> None:
    sums = HostSums(np.arange(5, dtype=np.float32), library)
    noise.privatise_on(sums, 0.0, over=2.0)
    assert sums.sums.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]
    for std, over in ((-1.0, 1.0), (float("nan"), 1.0), (1.0, 0.0), (1.0, float("inf"))):
        with pytest.raises(noise.NoiseError, match="expected 0 <"):
            noise.privatise_on(sums, std, over=over)


def test_a_key_repeats_only_where_a_run_is_marked_insecure(library: Any) -> None:
    def drawn() -> list[float]:
        sums = HostSums(np.zeros(100), library)
        with noise.insecure("seed"):
            noise.privatise_on(sums, 1.0)
        return list(sums.sums)

    assert drawn() == drawn()
