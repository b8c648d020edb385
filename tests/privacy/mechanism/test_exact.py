"""What rounding could move is drawn exactly: released cells are those of a Gaussian, to 2^-238."""

from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.mechanism import exact, gaussian, noise
from privacy.mechanism.gaussian import FINE_BITS

LEAST, MOST = bytes(128), b"\xff" * 128
LONGEST_STD = 2.0**11
"""A standard deviation is less than so many steps of its grid."""
BITS_OF_STD = FINE_BITS + 11
ordinary = st.integers(2**38, 2**64 - 2**38 - 1)
words = st.integers(0, 2**64 - 1)
edges = [2**38, 2**38 + 1, 2**64 - 2**38 - 1, 2**63, 2**63 - 1, 2**52 - 1]


def in_fine_steps(z: Decimal) -> Decimal:
    with localcontext(exact._CONTEXT):
        return z * 2**BITS_OF_STD


def doubles(radius: int, angle: int) -> list[float]:
    shaped = [np.array([[word]], dtype=np.uint64) for word in (radius, angle)]
    return [float(z) for z in gaussian._box_muller(*shaped, 2.0**BITS_OF_STD).reshape(-1)]


@given(ordinary | st.sampled_from(edges), words, st.sampled_from([LEAST, MOST]))
def test_doubles_and_all_further_bits_move_a_number_by_less_than_a_quarter_of_a_fine_step(
    radius: int, angle: int, more: bytes
) -> None:
    # so that rounded to fine steps it is off by at most one, of which `add_noise` allows for two
    exactly = exact._normal_pair(radius, angle, more)
    for near, right in zip(doubles(radius, angle), exactly, strict=True):
        assert abs(in_fine_steps(right) - Decimal(near)) < Decimal("0.25")


@settings(max_examples=20)
@given(ordinary, words)
def test_further_bits_of_the_radius_turn_nothing_and_those_of_the_angle_lengthen_nothing(
    radius: int, angle: int
) -> None:
    low, high = bytes(64), b"\xff" * 64
    with localcontext(exact._CONTEXT):
        (x, y), longer, turned = (
            exact._normal_pair(radius, angle, more) for more in (low + low, high + low, low + high)
        )
        digits = Decimal(10) ** -180
        assert abs(x * longer[1] - y * longer[0]) < digits
        assert abs(x * x + y * y - longer[0] ** 2 - longer[1] ** 2) > 10**9 * digits
        assert abs(x * x + y * y - turned[0] ** 2 - turned[1] ** 2) < digits
        assert abs(x * turned[1] - y * turned[0]) > 10**9 * digits


@pytest.mark.parametrize("radius", [0, 1, 2**38 - 1, 2**64 - 2**38, 2**64 - 1])
def test_extreme_radii_are_always_drawn_exactly(radius: int) -> None:
    bits = np.full(8, radius, dtype=np.uint64)
    bits[4:] = np.arange(4, dtype=np.uint64) << np.uint64(61)
    sums, undecided, before = np.full(8, 0.3), np.zeros(8, np.int64), np.zeros(8)
    found = gaussian.add_noise(sums, bits.view(np.uint8), 1.0, 2.0**-10, 1.0, undecided, before)
    assert undecided[:found].tolist() == list(range(8))
    asked: list[bytes] = []

    def more() -> bytes:
        asked.append(np.random.default_rng(len(asked)).bytes(128))
        return asked[-1]

    exact.settle(sums, bits.view(np.uint8), 1.0, 2.0**-10, 1.0, undecided, before, more)
    assert len(asked) == 4  # once a pair, whose two numbers share them
    for pair in range(4):
        z = exact._normal_pair(radius, int(bits[4 + pair]), asked[pair])
        for position, one in ((pair, z[0]), (4 + pair, z[1])):
            assert sums[position] == pytest.approx(0.3 + float(one), abs=2.0**-11 + 1e-9)


@given(ordinary, words, st.integers(-6, 6), st.booleans())
def test_a_number_is_named_within_two_fine_steps_of_another_cell_and_settled_by_its_further_bits(
    radius: int, angle: int, off: int, sine: bool
) -> None:
    bits = np.full(8, 2**62, dtype=np.uint64)  # other pairs far from any edge are of no interest
    bits[1], bits[5] = radius, angle
    step = 2.0**-11  # std 1: the most fine steps that it can have
    z = round(doubles(radius, angle)[sine])
    position = 5 if sine else 1
    # S + Z lies `off` fine steps from the middle between two steps
    start = (-z + (1 << FINE_BITS - 1) + off) / 2**FINE_BITS
    sums, room = np.zeros(8), (np.zeros(8, np.int64), np.zeros(8))
    sums[position] = start * step
    found = gaussian.add_noise(sums, bits.view(np.uint8), 1.0, step, 1.0, *room)
    named = position in room[0][:found].tolist()
    assert named == (-2 <= off <= 2)
    noisy, settled = sums[position] / step, []
    for more in (LEAST, MOST):
        right = exact._normal_pair(radius, angle, more)[sine]
        with localcontext(exact._CONTEXT):
            rounded = int((right * 2**BITS_OF_STD).to_integral_value())
        cell = (round(start * 2**FINE_BITS) + rounded + (1 << FINE_BITS - 1)) >> FINE_BITS
        again = sums.copy()
        exact.settle(
            again, bits.view(np.uint8), 1.0, step, 1.0,
            np.array([position]), np.array([start]), lambda more=more: more,
        )  # fmt: skip
        assert again[position] / step == cell
        settled.append(cell)
    if not named:  # whatever further bits say, the cell is the one that was rounded to
        assert settled == [noisy, noisy]


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("count", [3, 1027])
def test_both_paths_settle_the_same_numbers(
    count: int, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    expand, results = noise._expand, []

    def with_extremes(stream: object, out: np.ndarray) -> None:
        expand(stream, out)
        if len(out) != 128:
            out.view(np.uint64)[:3] = (5, 2**64 - 9, 2**37)

    monkeypatch.setattr(noise, "_expand", with_extremes)
    settle, settled = exact.settle, list[list[int]]()

    def watched(*given: object) -> None:
        settled.append(given[5].tolist())
        settle(*given)

    monkeypatch.setattr(exact, "settle", watched)
    for kernel in (noise._kernel(), None):
        monkeypatch.setattr(noise, "_kernel", lambda kernel=kernel: kernel)
        with noise.insecure(7):
            sums = np.linspace(-9, 9, count).astype(kind)
            noise.privatise(sums, 3.0, over=7.0)
        results.append((sums, settled.copy()))
        settled.clear()
    assert np.array_equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
    assert {0, 1, 2} <= set(results[0][1][0])


def test_the_decimals_are_right_to_190_digits() -> None:
    tiny = Decimal(10) ** -190
    rng = np.random.default_rng(0)
    with localcontext(exact._CONTEXT):
        assert str(exact._pi()).startswith("3.14159265358979323846264338327950288419716939937510")
        assert abs(exact._series(exact._pi() / 6, 1) - Decimal("0.5")) < tiny
        for _ in range(5):
            radius, angle = (int.from_bytes(rng.bytes(8), "little") for _ in range(2))
            x, y = exact._normal_pair(radius, angle, rng.bytes(128))
            t = Decimal(float(rng.random())) * exact._pi() / 4
            cosine, sine = exact._series(t, 0), exact._series(t, 1)
            assert abs(exact._series(2 * t, 0) - (cosine * cosine - sine * sine)) < tiny
            assert abs(exact._series(2 * t, 1) - 2 * cosine * sine) < tiny
            u = (-(x * x + y * y) / 2).exp()  # the radius once more
            assert int(u * 2**64) == radius


def test_the_figures_of_the_documentation() -> None:
    undecided = 5 * 2.0**-FINE_BITS + 2.0**-25
    assert undecided < 5e-8
    # Fine steps that doubles and missing bits move a number by: functions; u's rounding; its bits
    length, least = 2.0**BITS_OF_STD, 2.0**-12.5  # of radii above 0 by 2^-26
    assert 2.0**-49 * 6.1 * length + 2.0**-54 / least * length + 2.0**-49 * length < 0.25
    # N numbers at 2^-239 each, at the largest epsilon and N of the page: below 1e-30
    assert (1 + np.exp(40)) * 2.0**80 * 2.0**-238 < 1e-30


def test_the_paths_agree_on_what_is_undecided_at_ordinary_words() -> None:
    kernel = noise._kernel()
    if kernel is None:
        pytest.skip("no C compiler")
    rng, n, step = np.random.default_rng(3), 1024, 2.0**-10
    bits = rng.integers(0, 256, gaussian.bits_for(n), dtype=np.uint8)
    words_of = bits.view(np.uint64)
    z = gaussian._box_muller(words_of[None, :512], words_of[None, 512:], 2.0 ** (FINE_BITS + 10))
    off = np.arange(n) % 9 - 4
    start = (-np.rint(z.reshape(-1)) + (1 << FINE_BITS - 1) + off) / 2**FINE_BITS
    results = []
    for add in (kernel.add_noise, gaussian.add_noise):
        sums, room = start * step, (np.zeros(n, np.int64), np.zeros(n))
        found = add(sums, bits, 1.0, step, 1.0, *room)
        results.append((sums, room[0][:found], room[1][:found]))
    assert all(map(np.array_equal, *results))
    assert 300 < len(results[0][1]) < 600
