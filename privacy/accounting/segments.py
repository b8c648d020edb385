"""What epsilon is computed from: budgets, and histories merged into segments."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeGuard

from privacy.accounting.events import Event

_DISTINCT_SEGMENTS: Final = 64
_SIGMA_GRID: Final = 0.01

Totals = dict[tuple[float, float, int], int]
"""Releases of each (sigma, rate, records)."""


class Segment(NamedTuple):
    """Equal mechanisms merged: `releases` of them, for a person with `records` of the units.

    `sigma` is the noise as a multiple of what one unit can move.
    """

    sigma: float
    rate: float
    records: int
    releases: int


class AccountingError(ValueError):
    """A history or a question that has no epsilon."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that may be spent: (epsilon, delta)-differential privacy of one unit."""

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if self.epsilon != math.inf and (not is_number(self.epsilon) or self.epsilon < 0):
            raise AccountingError(f"epsilon must be >= 0, got {self.epsilon!r:.80}")
        check_delta(self.delta)


def check_delta(delta: object) -> float:
    """The delta itself where 0 < delta < 1, else AccountingError."""
    if not is_number(delta) or not 0 < delta < 1:
        raise AccountingError(f"delta must be > 0 and < 1, got {delta!r:.80}")
    return float(delta)


def merge(events: Iterable[Event], records: int | None = 1) -> tuple[Segment, ...]:
    """Equal mechanisms summed and sorted, so that neither order nor grouping can matter.

    `records` units of one person are protected together; None takes each event's own number. A unit
    "subject" is one person already.
    """
    totals: Totals = {}
    unit: str | None = None
    for event in events:
        if not isinstance(event, Event):
            raise AccountingError(f"events must be Events, got {type(event).__name__}")
        if unit not in (None, event.unit):
            raise AccountingError(f"events must be of one unit, got {unit} and {event.unit}")
        unit = event.unit
        releases = event.steps * event.count
        if releases and event.rate > 0:
            group = event.records if records is None or event.unit == "subject" else records
            key = (float(event.noise), float(event.rate), group)
            totals[key] = totals.get(key, 0) + releases
    if len(totals) > _DISTINCT_SEGMENTS:
        totals = _coarsen(totals)
    return tuple(Segment(*key, n) for key, n in sorted(totals.items()))


def _coarsen(totals: Totals) -> Totals:
    """A long life's many noise levels on a grid of 1 %: sigma down, rate up, never too cheap."""
    merged: Totals = {}
    for (sigma, rate, group), n in totals.items():
        low = _grid(sigma, math.floor) if sigma else 0.0
        key = (low, min(1.0, _grid(rate, math.ceil)), group)
        merged[key] = merged.get(key, 0) + n
    return merged


def _grid(value: float, rounding: Callable[[float], int]) -> float:
    step = math.log1p(_SIGMA_GRID)
    nearest = round(math.log(value) / step)
    if math.isclose(math.exp(nearest * step), value, rel_tol=1e-12):
        return value
    return math.exp(rounding(math.log(value) / step) * step)


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a finite real number, as a float can hold it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
