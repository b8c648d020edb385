"""What was released, as a frozen value. An event never holds an epsilon: that is computed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

UNITS: Final = ("record", "subject", "client")
"""The units whose presence an event protects; they never mix in one account."""
SAMPLINGS: Final = ("poisson",)
"""How a release's units are drawn: each by itself, with probability `rate`."""

LEAST_SIGMA: Final = 1e-6
MOST_SIGMA: Final = 1e9
LEAST_RATE: Final = 1e-12
MOST_RELEASES: Final = 10**12
MOST_RECORDS: Final = 10**9
MOST_SENSITIVITY: Final = 1e3
MOST_SHARES: Final = 1000
"""Beyond these bounds no accountant is exact; a value beyond them is refused, never counted."""

_KEYS_OF_0_1: Final = ("unit", "sigma", "rate", "steps", "count")
_KEYS: Final = (*_KEYS_OF_0_1, "sampling", "records", "sensitivity")


class EventError(ValueError):
    """A value that is no event, or a history that mixes units."""


@dataclass(frozen=True, slots=True)
class Event:
    """`count` repetitions of `steps` Gaussian releases over Poisson samples of the units.

    One release adds N(0, (sigma * C)^2 I) to a sum of vectors, one from each unit of a sample that
    holds every unit independently with probability `rate`. One unit moves the sum by an L2 norm of
    at most `sensitivity` * C: 1, or more where the arithmetic's own error is charged. Neighbouring
    data sets differ by one unit added or removed. `records` is the most units that one person had
    among the rows when it was released. sigma = 0 is a release without noise: its epsilon is
    infinite.

    Under secure aggregation the noise is that of a sum to which `shares` honest parties add equal
    shares: it holds against whoever sees the sum alone. `alone` is what is left where all others
    work together.
    """

    unit: str
    sigma: float
    rate: float
    steps: int
    count: int = 1
    records: int = 1
    sensitivity: float = 1.0
    sampling: str = "poisson"
    shares: int = 1

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise EventError(f"unit must be one of {', '.join(UNITS)}, got {self.unit!r:.80}")
        if self.sampling not in SAMPLINGS:
            raise EventError(
                f"sampling must be one of {', '.join(SAMPLINGS)}, got {self.sampling!r:.80}"
            )
        _check_real("sigma", self.sigma, LEAST_SIGMA, MOST_SIGMA, zero=True)
        _check_real("rate", self.rate, LEAST_RATE, 1.0, zero=True)
        _check_real("sensitivity", self.sensitivity, 1.0, MOST_SENSITIVITY)
        _check_whole("steps", self.steps, 0, MOST_RELEASES)
        _check_whole("count", self.count, 0, MOST_RELEASES)
        _check_whole("records", self.records, 1, MOST_RECORDS)
        _check_whole("shares", self.shares, 1, MOST_SHARES)
        if self.unit == "subject" and self.records != 1:
            raise EventError(f"records must be 1 where a unit is a person, got {self.records}")
        if self.steps * self.count > MOST_RELEASES:
            raise EventError(f"steps * count must be <= {MOST_RELEASES}, got more")

    def for_records(self, records: int) -> "Event":
        """The event where a person has so many records; the unit "subject" holds all of them."""
        return self if self.unit == "subject" else replace(self, records=records)

    def alone(self) -> "Event":
        """The event where all other parties collude: against them only the own share protects.

        One of equal shares has 1 / shares of the variance.
        """
        if self.shares == 1:
            return self
        return replace(self, sigma=self.sigma / math.sqrt(self.shares), shares=1)

    @property
    def noise(self) -> float:
        """The noise as a multiple of what one unit can move: what epsilon is computed from."""
        return self.sigma / self.sensitivity

    def to_dict(self) -> dict[str, Any]:
        """The event as the keys of a ledger line of version 2; `shares` where there are several."""
        values = {key: getattr(self, key) for key in _KEYS}
        return values | {"shares": self.shares} if self.shares > 1 else values

    def to_dict_of_0_1(self) -> dict[str, Any]:
        """The event as the five keys of a ledger line of version 1."""
        return {key: getattr(self, key) for key in _KEYS_OF_0_1}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Event":
        """Read an event; an unknown or missing key is refused, since it might mean a cost.

        The five keys of version 1 say nothing of `records`: it is read as 1. `shares` stands only
        where it is above 1, so that an event has one spelling.
        """
        known = (set(_KEYS), set(_KEYS_OF_0_1), {*_KEYS, "shares"})
        if not isinstance(value, Mapping) or set(value) not in known:
            got = sorted(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
            raise EventError(f"event must have the keys {', '.join(_KEYS)}, got {got!s:.200}")
        event = cls(**value)
        if "shares" in value and event.shares == 1:
            raise EventError("shares must be left out where it is 1, got 1")
        return event


def _check_real(name: str, value: object, low: float, high: float, *, zero: bool = False) -> None:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        fits = real and (low <= float(value) <= high or (zero and value == 0))  # type: ignore[arg-type]
    except OverflowError:  # an integer beyond all floats
        fits = False
    if not fits or not math.isfinite(value):  # type: ignore[arg-type]
        exception = " (or 0)" if zero else ""
        raise EventError(f"{name} must be >= {low:g} and <= {high:g}{exception}, got {value!r:.80}")


def _check_whole(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise EventError(f"{name} must be an integer >= {low} and <= {high}, got {value!r:.80}")
