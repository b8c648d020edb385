"""The source that a GPU runs, compiled as C: OpenSSL's ChaCha20 and numpy's noise, bit for bit."""

import ctypes
from collections.abc import Iterator
from decimal import Decimal, getcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from privacy.mechanism import device, device_check, exact, gaussian, noise
from tests.support.device_source import HostStream, State, compiled

pytestmark = pytest.mark.unit
KEY = bytes(range(32))
WORDS = st.integers(0, 2**64 - 1)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield compiled(tmp_path_factory.mktemp("device"))


def test_a_block_is_the_rfcs(library: Any) -> None:
    def block(key: bytes, turn: int, purpose: int, counter: int) -> bytes:
        words = np.zeros(8, np.uint64)
        state = State(key=(ctypes.c_uint32 * 8).from_buffer_copy(key), turn=turn)
        library.chacha20_block(
            ctypes.byref(state),
            *map(ctypes.c_uint32, (purpose, counter)),
            ctypes.c_void_p(words.ctypes.data),
        )
        return words.tobytes()

    for turn, purpose, counter in ((0, 0, 0), (1, 2, 1), (2**40 + 7, 769, 2**32 - 1)):
        expected = noise.chacha20(KEY, 64 * counter, 64, turn=turn, purpose=purpose)
        assert block(KEY, turn, purpose, counter) == expected.tobytes()
    # RFC 8439, section 2.3.2: nonce 000000090000004a00000000, counter 1
    told = block(KEY, 0x4A00000009000000, 0, 1).hex()
    assert told.startswith("10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e")


def test_the_source_gives_numpys_numbers_and_names_the_same_undecided_ones(library: Any) -> None:
    assert device_check.agrees(HostStream(library))


_FAULTS = (
    ("rotated(x[d] ^ x[a], 8)", "rotated(x[d] ^ x[a], 9)"),
    ("i < 10; i++", "i < 9; i++"),
    ("place % 8 && here == 8", "0"),
    ("sine * pairs + first + pair", "sine * pairs + first + 7 - pair"),
    ("extreme(radii[pair]) || ", ""),
    ("stream->before[slot] = s;", "stream->before[slot] = rest;"),
    ("c = c * v - 1.0 / 2;", "c = fma(c, v, -1.0 / 2);"),
    ("state->turn++;", ""),  # a replay would repeat the noise
    ("counter, (uint32_t)turn,", "counter, (uint32_t)turn / 2,"),
    ("word < threshold;", "word + 1 < threshold;"),
    ("below = more[row % 8] < rest", "below = more[row % 8] < rest / 2"),
    ("chacha20(stream->state, ROWS,", "chacha20(stream->state, NOISE,"),
    ("uint32_t e = 0;", "uint32_t e = 1;"),
    ("(power + 1) * (power + 2)", "(power + 1) * (power + 3)"),
    ("by_sine = sine != odd", "by_sine = sine == odd"),
    ("noise + (1 << 27)", "noise"),
)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, marks=() if place % 6 == 1 else pytest.mark.slow, id=fault[0][:20])
        for place, fault in enumerate(_FAULTS)
    ],
)
def test_a_kernel_with_a_fault_disagrees(tmp_path: Path, fault: tuple[str, str]) -> None:
    source = device.source()
    assert fault[0] in source
    broken = compiled(tmp_path, source.replace(*fault))
    assert not device_check.agrees(HostStream(broken))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3000),
    st.binary(min_size=32, max_size=32),
    st.sampled_from([np.float32, np.float64]),
)
def test_any_length_is_the_hosts(library: Any, n: int, key: bytes, kind: type) -> None:
    start = np.linspace(-3, 5, n).astype(kind)
    right, bits = start.copy(), noise.chacha20(key, 0, gaussian.bits_for(n), turn=1)
    step = noise.grid(0.7)
    gaussian.add_noise(right, bits, 0.7, step, 1.0, np.zeros(n, np.int64), np.zeros(n))
    stream = HostStream(library)
    stream.start(key)
    stream.add_noise(start, 0.7, step, 1.0)
    assert np.array_equal(start, right)


@settings(max_examples=60, deadline=None)
@given(
    WORDS | st.sampled_from([0, 1, 2**64 - 1, 2**63, 2**64 - 2**20]),
    WORDS | st.sampled_from([0, 2**64 - 1, 2**61, 2**62 - 1, 2**63 + 1023]),
    st.booleans(),
    st.binary(min_size=128, max_size=128) | st.sampled_from([bytes(128), b"\xff" * 128]),
    st.floats(1000, 2100),
)
def test_an_exact_number_is_that_of_the_decimals(
    library: Any, radius: int, angle: int, sine: bool, more: bytes, steps: float
) -> None:
    """The rounded number, and its 24 further bits: with a step so fine the decimals show them."""
    z = exact._normal_pair(radius, angle, more)[sine]
    words = np.frombuffer(more, np.uint64)
    library.exact_noise_of.restype = ctypes.c_int64
    for scale in (steps, steps * 2.0**17):
        computed = library.exact_noise_of(
            *map(ctypes.c_uint64, (radius, angle)),
            ctypes.c_int(sine),
            ctypes.c_void_p(words.ctypes.data),
            ctypes.c_double(scale),
        )
        getcontext().prec = 200
        expected = int((z * Decimal(scale) * 2**28).to_integral_value())
        assert computed == expected


def test_constants_of_the_exact_numbers_are_right() -> None:
    source = device.source()
    getcontext().prec = 230
    for name, value in (("LN_2", Decimal(2).ln()), ("HALF_PI", exact._pi() / 2)):
        text = source.split(f"{name} = {{{{")[1].split("}}")[0]
        words = [int(word, 16) for word in text.replace(",", " ").split()]
        found = sum(word << 32 * place for place, word in enumerate(words))
        assert abs(found - int(value * 2**672)) < 2**30, name  # `_pi` has 200 digits: 664 bits


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**17), st.integers(0, 2**80), st.binary(min_size=32, max_size=32))
def test_rows_are_those_of_the_hosts_rule(library: Any, n: int, rate: int, key: bytes) -> None:
    stream = HostStream(library)
    stream.start(key)
    for turn, share in ((1, rate / 2**80), (2, 0.5 + 2.0**-17), (3, 1.0), (4, 0.0)):
        drawn = np.flatnonzero(noise.drawn_on(stream, n, share))
        assert np.array_equal(drawn, device_check.poisson_as_device(key, turn, n, share))
        assert share != 1 or len(drawn) == n
        assert share != 0 or not len(drawn)
    assert not stream.failed()


@pytest.mark.statistical
def test_ties_make_a_rate_exact(library: Any) -> None:
    """At 2^-16 (1 - 2^-9) all rows drawn are ties of the word 0."""
    stream, rate, rows = HostStream(library), 2.0**-16 * (1 - 2.0**-3), 1 << 24
    noise.start_on(stream)
    drawn = int(noise.drawn_on(stream, rows, rate).sum())
    assert stats.binomtest(drawn, rows, rate).pvalue > 1e-6


def test_rows_that_cannot_be_drawn_are_refused(library: Any) -> None:
    stream = HostStream(library)
    for n, rate in ((-1, 0.5), (10, 1.5), (10, -0.1), (device.MOST + 1, 0.5)):
        with pytest.raises(noise.NoiseError, match="expected"):
            noise.drawn_on(stream, n, rate)


@pytest.mark.statistical
def test_what_a_device_releases_is_a_gaussian_on_the_grid(library: Any) -> None:
    stream, sums = HostStream(library), np.zeros((2, 60_000), np.float32)
    noise.start_on(stream)
    for each in sums:
        noise.privatise_on(stream, each, 2.0, over=4.0)
    steps = sums.astype(np.float64) / (noise.grid(2.0) / 4)
    assert np.array_equal(steps, np.rint(steps))
    assert stats.kstest(sums.ravel() * 4, "norm", args=(0, 2.0)).pvalue > 1e-6
    assert abs(stats.pearsonr(*sums).statistic) < 0.03
    assert not stream.failed()


def test_undecided_numbers_get_what_the_host_gives_them(library: Any) -> None:
    """Sums are chosen so that many are undecided; each is settled from the same bits."""
    n, step = 3000, 2.0**-9
    bits = noise.chacha20(KEY, 0, gaussian.bits_for(n), turn=1)
    fine, room = np.zeros(n), (np.zeros(n, np.int64), np.zeros(n))
    gaussian.add_noise(fine, bits, 2.0, step * 2.0**-gaussian.FINE_BITS, 1.0, *room)
    for kind in (np.float64, np.float32):
        start = (step / 2 - fine).astype(kind)  # to the middle of two steps
        right = start.copy()
        count = gaussian.add_noise(right, bits, 2.0, step, 3.0, *room)
        assert count > n / 2 or kind is np.float32
        some = slice(0, count, max(1, count // 60))
        device_check.settle_as_device(
            right, KEY, 1, 2.0, step, 3.0, room[0][:count][some], room[1][:count][some]
        )
        stream = HostStream(library)
        stream.start(KEY)
        noise.privatise_on(stream, start, 2.0, over=3.0)
        settled = room[0][:count][some]
        assert np.array_equal(start[settled], right[settled])
        decided = np.setdiff1d(np.arange(n), room[0][:count])
        assert np.array_equal(start[decided], right[decided])


def _settled_below_and_above(library: Any) -> tuple[Any, Any]:
    """43 numbers of 2,999, from sums for which the last fine step of the noise decides.

    What the device makes of them, and the decimals.
    """
    n, step, std = 2999, 2.0**-22, 1.0
    positions = np.arange(0, n, 70)
    fine = np.zeros(n)
    device_check.settle_as_device(
        fine, KEY, 1, std, step * 2.0**-28, 1.0, positions, np.zeros(len(positions))
    )
    noise_in_fine_steps = (fine[positions] / (step * 2.0**-28)).astype(np.int64)
    both: tuple[list[Any], list[Any]] = ([], [])
    for less in (0, 1):  # the middle of two steps, and one fine step below
        before = ((1 << 27) - noise_in_fine_steps % (1 << 28) - less) * 2.0**-28
        stream, sums, right = HostStream(library), np.zeros(n), np.zeros(n)
        stream.start(KEY)
        stream.begin()
        stream.keep(positions, before)
        stream.settle(sums, std, step, 1.0)
        device_check.settle_as_device(right, KEY, 1, std, step, 1.0, positions, before)
        both[0].append(sums[positions])
        both[1].append(right[positions])
    return both


def test_settled_numbers_take_the_further_bits_of_their_own_pair(
    library: Any, tmp_path: Path
) -> None:
    computed, expected = _settled_below_and_above(library)
    assert np.array_equal(computed, expected)
    assert (computed[0] == computed[1] + 2.0**-22).all()
    fault = ("(uint32_t)(2 * unique + 1), more + 8", "(uint32_t)(2 * unique), more + 8")
    assert fault[0] in device.source()
    broken = compiled(tmp_path, device.source().replace(*fault))
    computed, expected = _settled_below_and_above(broken)
    assert not np.array_equal(computed, expected)


def test_more_undecided_numbers_than_have_room_are_told(library: Any) -> None:
    stream = HostStream(library, room=2)
    assert not device_check.agrees(stream)
    noise.start_on(stream)
    n, step = 3000, 2.0**-9
    stream.start(KEY)
    bits = noise.chacha20(KEY, 0, gaussian.bits_for(n), turn=1)
    fine, room = np.zeros(n), (np.zeros(n, np.int64), np.zeros(n))
    gaussian.add_noise(fine, bits, 2.0, step * 2.0**-gaussian.FINE_BITS, 1.0, *room)
    noise.privatise_on(stream, step / 2 - fine, 2.0)
    assert stream.state.count > 1000
    assert stream.failed()
    noise.privatise_on(stream, np.zeros(10), 2.0)
    assert stream.failed()  # until the next start


def test_noise_for_which_no_turn_was_begun_is_nan_and_is_told(library: Any) -> None:
    """What a graph without the kernel that begins a turn would do."""
    stream, sums = HostStream(library), np.zeros(2000, np.float32)
    noise.start_on(stream)
    stream.add_alone(sums, 2.0, 2.0**-9, 1.0)
    assert np.isnan(sums).all()
    assert stream.failed()
    noise.start_on(stream)
    noise.privatise_on(stream, sums, 2.0)
    assert not stream.failed()
    again = np.zeros(2000, np.float32)
    stream.add_alone(again, 2.0, 2.0**-9, 1.0)
    assert np.isnan(again).all()
    assert stream.failed()


def test_each_turn_has_bits_of_its_own_and_each_start_a_key(library: Any) -> None:
    stream, drawn = HostStream(library), []
    for _ in range(2):
        noise.start_on(stream)
        for _ in range(3):
            sums = np.zeros(1000)
            noise.privatise_on(stream, sums, 1.0)
            drawn.append(sums)
    assert len({sums.tobytes() for sums in drawn}) == 6
    assert np.abs(np.corrcoef(drawn) - np.eye(6)).max() < 0.2


def test_without_noise_sums_are_divided_alone_and_bad_parameters_are_refused(library: Any) -> None:
    stream, sums = HostStream(library), np.arange(5, dtype=np.float32)
    noise.privatise_on(stream, sums, 0.0, over=2.0)
    assert sums.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]
    for std, over in ((-1.0, 1.0), (float("nan"), 1.0), (1.0, 0.0), (1.0, float("inf"))):
        with pytest.raises(noise.NoiseError, match="expected 0 <"):
            noise.privatise_on(stream, sums, std, over=over)


def test_a_key_repeats_only_where_a_run_is_marked_insecure(library: Any) -> None:
    def drawn() -> list[float]:
        stream, sums = HostStream(library), np.zeros(100)
        with noise.insecure("seed"):
            noise.start_on(stream)
            noise.privatise_on(stream, sums, 1.0)
        return list(sums)

    assert drawn() == drawn()
