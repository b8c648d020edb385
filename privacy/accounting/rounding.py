"""Figures for people: what was spent is rounded up, what is left is rounded down.

>>> spent_text(3.00001), left_text(0.99999)
('3.0001', '0.9999')
"""

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, localcontext


def spent_text(epsilon: float | None, places: int = 4) -> str:
    """An epsilon that was spent, never shown smaller than it is; a dash for None."""
    return _text(epsilon, places, ROUND_CEILING)


def left_text(epsilon: float | None, places: int = 4) -> str:
    """An epsilon that is left, never shown larger than it is; a dash for None."""
    return _text(epsilon, places, ROUND_FLOOR)


def _text(value: float | None, places: int, rounding: str) -> str:
    if value is None:
        return "-"
    if not math.isfinite(value):
        return "infinite"
    with localcontext(prec=400, rounding=rounding):  # the largest float has 309 digits
        return str(Decimal(value).quantize(Decimal(1).scaleb(-places)))
