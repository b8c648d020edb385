"""The Gaussian sampler and the public grid, in numpy: the reference for the compiled kernel.

Every operation here stands in `noise.c` too, in the same order and in IEEE double precision, so
that both give the same bits. `docs/randomness.md` bounds their errors; the few numbers that an
error could move to another multiple of the grid are named, and drawn to hundreds of digits
(`exact.py`). Only `privatise` of `privacy.mechanism.noise` may call this: a sample that is not
added to a sum, on the grid, protects nothing.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

Sums = NDArray[np.float32] | NDArray[np.float64]
Doubles = NDArray[np.float64]

PAIRS: Final = 512
"""Pairs of numbers in a chunk of bits; a shorter last one has a multiple of four."""
FINE_BITS: Final = 28
"""The grid's step holds 2^28 fine steps, to which sum and noise are rounded before they are added.
"""
LARGEST: Final = 2.0**52
"""Sums of more grid steps are clamped to so many, which moves no two sums further apart."""

_NEAR: Final = 0.5 - 2.0 ** (1 - FINE_BITS)
"""How far from half a step on a number within two fine steps of being another multiple lies."""
_EXTREME: Final = np.uint64(1 << 38)
"""A radius so close to 0 or 1 (of 2^64) is too long, or too coarse, for doubles."""

_MAGIC: Final = np.uint64(0x4330000000000000)
"""The bits of 2^52: or-ed with a whole number below 2^52 it is their sum as a double."""
_MANTISSA: Final = np.uint64(0x000FFFFFFFFFFFFF)
_ROOT_HALF: Final = np.uint64(0x3FE6A09E667F3BCD)
_TO_ROOT_HALF: Final = np.uint64(0x00095F619980C433)
_SIGN: Final = np.uint64(1 << 63)
_LAST: Final = np.uint64(1023)
"""The bits of an angle's word that the angle leaves to its radius."""
_LN_2: Final = float.fromhex("0x1.62e42fefa39efp-1")
_HALF_PI: Final = float.fromhex("0x1.921fb54442d18p0")
_ARTANH: Final = tuple(1 / n for n in range(21, 2, -2))
_COSINE: Final = (
    *(1 / 20922789888000, -1 / 87178291200, 1 / 479001600, -1 / 3628800, 1 / 40320),
    *(-1 / 720, 1 / 24, -1 / 2, 1.0),
)
_SINE: Final = (
    *(1 / 355687428096000, -1 / 1307674368000, 1 / 6227020800, -1 / 39916800, 1 / 362880),
    *(-1 / 5040, 1 / 120, -1 / 6),
)


def bits_for(count: int) -> int:
    """How many random bytes `count` numbers take: 16 for each pair."""
    whole, rest = divmod(count, 2 * PAIRS)
    return 16 * (PAIRS * whole + (rest + 7) // 8 * 4)


def add_noise(
    sums: Sums,
    bits: NDArray[np.uint8],
    std: float,
    step: float,
    over: float,
    undecided: NDArray[np.int64],
    before: Doubles,
    more: NDArray[np.float32] | None = None,
) -> int:
    """Add N(0, std^2) to flat sums, in place, round to multiples of `step`, divide by `over`.

    `more` is added first, to float32 sums in double precision. `step` is a power of two; `bits`
    are `bits_for(len(sums))` random bytes. Returns how many numbers may have been rounded to a
    wrong multiple; their positions are put into `undecided` and what their sums were, in steps,
    into `before`, which have room for all.
    """
    whole = len(sums) // (2 * PAIRS)
    scale, inverse, width, count = std / step * 2.0**FINE_BITS, 1 / step, step / over, 0
    for at, end, chunks in ((0, 2 * PAIRS * whole, whole), (2 * PAIRS * whole, len(sums), 1)):
        if at == end:
            continue
        words = bits[8 * at : 8 * at + bits_for(end - at)].view(np.uint64).reshape(chunks, 2, -1)
        z = _box_muller(words[:, 0], words[:, 1], scale).reshape(-1)[: end - at]
        whole_sums = sums[at:end].astype(np.float64)
        if more is not None:
            whole_sums += more[at:end]
        start = np.fmax(np.fmin(whole_sums * inverse, LARGEST), -LARGEST)
        steps, rest = np.rint(start), _beside(start, z)
        floor = np.floor(rest)
        sums[at:end] = (steps + floor) * width
        extreme = np.repeat(words[:, 0] + _EXTREME < _EXTREME * np.uint64(2), 2, axis=0)
        doubtful = (np.abs(rest - floor - 0.5) >= _NEAR) | extreme.reshape(-1)[: end - at]
        (found,) = np.nonzero(doubtful)
        undecided[count : count + len(found)] = found + at
        before[count : count + len(found)] = start[found]
        count += len(found)
    return count


def adding(
    sums: Sums,
    bits: NDArray[np.uint8],
    undecided: NDArray[np.int64],
    before: Doubles,
    more: NDArray[np.float32] | None = None,
) -> Callable[[int, int, float, float, float], int]:
    """(at, count, std, step, over) -> `add_noise` of so many sums from `at` on."""

    def add(at: int, count: int, std: float, step: float, over: float) -> int:
        part = slice(at, at + count)
        beside, used = None if more is None else more[part], bits[: bits_for(count)]
        return add_noise(sums[part], used, std, step, over, undecided, before, beside)

    return add


def pair_of(position: int, count: int, bits: NDArray[np.uint8]) -> tuple[int, bool, int, int]:
    """The pair of the number at `position` of `count`: its place, and the words of its bits.

    The place is that of the pair's cosine; whether the number is the sine; radius and angle, whole
    numbers of 64 bits.
    """
    at = position // (2 * PAIRS) * 2 * PAIRS
    words = bits[8 * at : 8 * at + bits_for(min(2 * PAIRS, count - at))].view(np.uint64)
    pairs = len(words) // 2
    sine, pair = divmod(position - at, pairs)
    return at + pair, bool(sine), int(words[pair]), int(words[pairs + pair])


def _beside(start: Doubles, z: Doubles) -> Doubles:
    """Sums' rests beside whole steps, with noise in fine steps: in steps, and half a step more."""
    rest = np.rint((start - np.rint(start)) * 2.0**FINE_BITS)
    beside: Doubles = (rest + np.rint(z)) * 2.0**-FINE_BITS + 0.5
    return beside


def _box_muller(radii: NDArray[np.uint64], angles: NDArray[np.uint64], scale: float) -> Doubles:
    """Two normal numbers [:, 2, :] from every radius and angle [:, :] (Box and Muller 1958)."""
    radius = _minus_two_ln(radii, angles & _LAST)
    np.sqrt(radius, out=radius)
    radius *= scale
    z = np.empty((len(radii), 2, radii.shape[1]))
    _turn(angles, z)
    z *= radius[:, None, :]
    return z


def _minus_two_ln(bits: NDArray[np.uint64], last: NDArray[np.uint64]) -> Doubles:
    """-2 ln u of u = (1024 bits + last + 1/2) / 2^74, to 2^-50 of itself."""
    x = _as_double(bits >> np.uint64(32))
    x *= 2.0**32
    x += _as_double(bits & np.uint64(0xFFFFFFFF)) + (_as_double(last) + 0.5) * 2.0**-10
    # x = 2^e m with m in [sqrt 1/2, sqrt 2): where u is near 1, e = 64 and m - 1 is exact.
    shifted = x.view(np.uint64) + _TO_ROOT_HALF
    e = (shifted >> np.uint64(52) | _MAGIC).view(np.float64)
    e -= 2.0**52 + 1023 + 64
    shifted &= _MANTISSA
    shifted += _ROOT_HALF
    m = shifted.view(np.float64)
    # ln m = 2 artanh s = 2 (s + s^3 / 3 + s^5 / 5 + ...), |s| < 0.1716
    s = m - 1
    m += 1
    s /= m
    z = s * s
    p = _polynomial(_ARTANH, z)
    s *= 2
    z *= s
    z *= p
    s += z
    e *= _LN_2
    e += s
    e *= -2
    return np.abs(e, out=e)


def _turn(angles: NDArray[np.uint64], out: Doubles) -> None:
    """Cosine and sine [:, 2, :] of 2 pi (angle / 2^64), to 2^-51 of themselves."""
    # Two bits of quadrant; 52 of the offset from its axis, in (-pi / 4, pi / 4).
    mantissa = angles << np.uint64(2) >> np.uint64(12)
    mantissa |= np.uint64(0x3FF0000000000000)
    t = mantissa.view(np.float64)
    t -= 1.5
    t += 2.0**-53
    t *= _HALF_PI
    v = t * t
    cosine, sine = _polynomial(_COSINE, v), _polynomial(_SINE, v)
    v *= t
    sine *= v
    sine += t
    # A quadrant further is (-y, x) for (x, y): swapped where the low bit is odd, signed by both.
    x, y = cosine.view(np.uint64), sine.view(np.uint64)
    changed = x ^ y
    changed &= np.negative(angles >> np.uint64(62) & np.uint64(1))
    x ^= changed
    x ^= (angles ^ angles << np.uint64(1)) & _SIGN
    y ^= changed
    y ^= angles & _SIGN
    out[:, 0], out[:, 1] = cosine, sine


def _polynomial(coefficients: tuple[float, ...], v: Doubles) -> Doubles:
    """By Horner's rule, the highest coefficient first."""
    p = np.full_like(v, coefficients[0])
    for coefficient in coefficients[1:]:
        p *= v
        p += coefficient
    return p


def _as_double(whole: NDArray[np.uint64]) -> Doubles:
    """Whole numbers below 2^52 as doubles."""
    double: Doubles = (whole | _MAGIC).view(np.float64)
    double -= 2.0**52
    return double
