"""The few numbers that rounding in doubles could have moved, drawn to hundreds of digits.

A number's bits name an interval of the Gaussian. Where the whole interval, and what doubles err by,
lies within one cell of the grid, the cell is known; `gaussian.add_noise` names all other numbers.
Here their bits get 512 more for the radius and for the angle, and the same formula is computed in
decimals. So the cells that are released have a Gaussian's probabilities to within 2^-238 a pair of
numbers (docs/randomness.md, section 4).
"""

from collections.abc import Callable
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from privacy.mechanism import gaussian
from privacy.mechanism.gaussian import FINE_BITS, Sums

MORE_BITS: Final = 512
"""What the radius and the angle of a pair get beside their 74 and 54 bits."""
_DIGITS: Final = 200
_CONTEXT: Final = Context(prec=_DIGITS, rounding=ROUND_HALF_EVEN)


def settle(
    sums: Sums,
    bits: NDArray[np.uint8],
    std: float,
    step: float,
    over: float,
    undecided: NDArray[np.int64],
    before: NDArray[np.float64],
    more: Callable[[], bytes],
) -> None:
    """Put the right multiples of `step` / `over` in the places that are `undecided`.

    The arguments are those of `gaussian.add_noise`; `more()` gives 128 random bytes, asked for once
    a pair.
    """
    drawn: dict[int, tuple[Decimal, Decimal]] = {}
    for position, sum_before in zip(undecided.tolist(), before.tolist(), strict=True):
        pair, sine, radius, angle = gaussian.pair_of(position, len(sums), bits)
        if pair not in drawn:
            drawn[pair] = _normal_pair(radius, angle, more())
        sums[position] = _steps(sum_before, drawn[pair][sine], std / step) * (step / over)


def _steps(sum_before: float, z: Decimal, std_steps: float) -> int:
    """The multiple of the step that a sum, in steps, and a standard normal number make."""
    with localcontext(_CONTEXT):
        noise = int((z * Decimal(std_steps) * 2**FINE_BITS).to_integral_value())
    whole = round(sum_before)
    rest: int = round((sum_before - whole) * 2.0**FINE_BITS)
    steps: int = whole + (rest + noise + (1 << FINE_BITS - 1) >> FINE_BITS)
    return steps


def _normal_pair(radius: int, angle: int, more: bytes) -> tuple[Decimal, Decimal]:
    """Box and Muller's two numbers of a pair's words, each with `MORE_BITS` more."""
    half = MORE_BITS // 8
    extra = [int.from_bytes(part, "little") for part in (more[:half], more[half:])]
    last, quadrant = angle & 1023, angle >> 62
    with localcontext(_CONTEXT):
        u = _middle((radius << 10 | last) << MORE_BITS | extra[0], 74 + MORE_BITS)
        offset = _middle((angle >> 10 & (1 << 52) - 1) << MORE_BITS | extra[1], 52 + MORE_BITS)
        r = (-2 * u.ln()).sqrt()
        t = (offset - Decimal("0.5")) * _pi() / 2
        x, y = r * _series(t, 0), r * _series(t, 1)
        return ((x, y), (-y, x), (-x, -y), (y, -x))[quadrant]


def _middle(whole: int, bits: int) -> Decimal:
    """(whole + 1/2) / 2^bits, in the context's digits."""
    return (Decimal(2 * whole + 1)) / Decimal(2 ** (bits + 1))


def _series(t: Decimal, power: int) -> Decimal:
    """Taylor's series of the cosine (power 0) or the sine (1) of |t| < 1."""
    term = total = t if power else Decimal(1)
    while abs(term) > Decimal(10) ** -_DIGITS:
        term = -term * t * t / ((power + 1) * (power + 2))
        total, power = total + term, power + 2
    return total


@cache
def _pi() -> Decimal:
    """By Machin's formula, pi / 4 = 4 artan 1/5 - artan 1/239, in whole numbers."""
    one: int = 10 ** (_DIGITS + 20)

    def artan_of_inverse(n: int) -> int:
        power = total = one // n
        divisor = 1
        while power:
            power, divisor = -power // (n * n), divisor + 2
            total += power // divisor
        return total

    with localcontext(_CONTEXT):
        return Decimal(4 * (4 * artan_of_inverse(5) - artan_of_inverse(239))) / Decimal(one)
