"""What epsilon is computed from: budgets, and histories merged into segments."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from privacy.accounting.events import Event

_DISTINCT_SEGMENTS: Final = 64
_SIGMA_GRID: Final = 0.01
SIGMA_MIN: Final = 1e-6
SIGMA_MAX: Final = 1e9
RATE_MIN: Final = 1e-9
"""The range in which the accountants' arithmetic is finite; beyond it a history is rounded."""

Segment = tuple[float, float, int]
"""(sigma, rate, releases): equal mechanisms merged."""


class AccountingError(ValueError):
    """A history or a question that has no epsilon."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that may be spent: (epsilon, delta)-differential privacy of one unit."""

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if self.epsilon != math.inf and (not is_number(self.epsilon) or self.epsilon < 0):
            raise AccountingError(f"epsilon: expected 0 <= epsilon, got {self.epsilon!r}")
        check_delta(self.delta)


def check_delta(delta: object) -> float:
    """The delta itself where 0 < delta < 1, else AccountingError."""
    if not is_number(delta) or not 0 < delta < 1:
        raise AccountingError(f"delta: expected 0 < delta < 1, got {delta!r}")
    return float(delta)


def merge(events: Iterable[Event]) -> tuple[Segment, ...]:
    """Equal (sigma, rate) summed and sorted, so that neither order nor grouping can matter.

    A sigma above `SIGMA_MAX` counts as that, one below `SIGMA_MIN` as no noise, and a rate below
    `RATE_MIN` as that: epsilon is never smaller than the true one, and always finite arithmetic.
    """
    totals: dict[tuple[float, float], int] = {}
    unit: str | None = None
    for event in events:
        if not isinstance(event, Event):
            raise AccountingError(f"events: expected an Event, got {type(event).__name__}")
        if unit not in (None, event.unit):
            raise AccountingError(f"events: units never mix, got {unit} and {event.unit}")
        unit = event.unit
        releases = event.steps * event.count
        if releases and event.rate > 0:
            sigma = min(float(event.sigma), SIGMA_MAX) if event.sigma >= SIGMA_MIN else 0.0
            key = (sigma, max(float(event.rate), RATE_MIN))
            totals[key] = totals.get(key, 0) + releases
    if len(totals) > _DISTINCT_SEGMENTS:
        totals = _coarsen(totals)
    return tuple((sigma, rate, n) for (sigma, rate), n in sorted(totals.items()))


def _coarsen(totals: dict[tuple[float, float], int]) -> dict[tuple[float, float], int]:
    """A long life's many noise levels on a grid of 1 %: sigma down, rate up, never too cheap."""
    merged: dict[tuple[float, float], int] = {}
    for (sigma, rate), n in totals.items():
        low = _grid(sigma, math.floor) if sigma else 0.0
        key = (low, min(1.0, _grid(rate, math.ceil)))
        merged[key] = merged.get(key, 0) + n
    return merged


def _grid(value: float, rounding: Any) -> float:
    step = math.log1p(_SIGMA_GRID)
    nearest = round(math.log(value) / step)
    if math.isclose(math.exp(nearest * step), value, rel_tol=1e-12):
        return value
    return math.exp(rounding(math.log(value) / step) * step)


def is_number(value: object) -> TypeGuard[float]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False
