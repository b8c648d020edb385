"""How far one record can move a sum that a computer has rounded, and the noise that pays for it.

The theorems speak of the exact sum of contributions of L2 norm at most `bound`. What is released is
made from a computed sum, which differs from the exact one. `docs/randomness.md` proves the bounds
below; the noise grows by them, so that its standard deviation is sigma times the sensitivity of
what was really computed.
"""

import math
from typing import Final

from privacy.mechanism.gaussian import FINE_BITS

NORMS: Final = 2.0**-13
"""Relative: rounded norms and factors (2^-14), sums in double precision (2^-15) and the rest."""
MOST: Final = 2.0**-8
"""Relative: the most that sums in float32 may add to the sensitivity."""
_LEAST: Final = 2.0**-14
_SINGLE: Final = 2.0**-24 * (1 + 2.0**-7)
"""The unit roundoff of float32, and room for its higher powers."""
_FEWEST: Final = 8
_FINE: Final = 2.0 ** -(FINE_BITS + 10)
"""A fine step is at most this part of the noise's standard deviation."""
_OWN: Final = 2.0**-40
"""Relative: room for the rounding of `noise_std` itself."""


class SensitivityError(ValueError):
    """Noise so strong, of so many numbers, that its own rounding cannot be paid for."""


def slack(expected: float) -> float:
    """By which part rounding may raise the sensitivity of a step's sum, from its public batch size.

    A batch of the `expected` size, or six standard deviations more, is summed in float32 in one go
    where that costs at most `MOST`. Larger ones are summed in blocks: the bound holds for all.
    """
    rows = expected + 6 * math.sqrt(expected) + 8
    return NORMS + min(MOST, max(_LEAST, rows * (rows + 3) * _SINGLE))


def rows_per_block(rows: int, slack: float) -> int:
    """How many of a batch's `rows` contributions may be added up in float32.

    Blocks of so many, added up in double precision, leave two neighbouring sums within `slack` of
    the exact ones (relative to the bound of a contribution). 0: float32 will not do.
    """
    most = int((slack - NORMS) / _SINGLE / max(rows, 1)) - 3
    return most if most >= min(_FEWEST, rows) else 0


def noise_std(sigma: float, bound: float, numbers: int, slack: float = 0.0) -> float:
    """The standard deviation of noise that is `sigma` times the sensitivity of a computed sum.

    The sum has so many `numbers` and takes contributions of L2 norm at most `bound`; `slack` is
    what rounding adds to its sensitivity, relative to `bound`. Rounding to fine steps adds
    sqrt(numbers) of them. SensitivityError where that is more than half of all.
    """
    fine = sigma * math.sqrt(numbers) * _FINE
    if not fine <= 0.5:
        raise SensitivityError(f"sigma: must be below {0.5 / _FINE / math.sqrt(numbers):.3g}")
    return sigma * bound * (1 + slack + _OWN) / (1 - fine)
