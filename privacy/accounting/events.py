"""What was released, as a frozen value. An event never holds an epsilon: that is computed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

UNITS: Final = ("record", "subject", "client")
"""The units whose presence an event protects; they never mix in one account."""


RELEASES_MAX: Final = 2**53 - 1
"""The most releases of one event: whole numbers up to here are exact as floats."""


class EventError(ValueError):
    """A value that is no event, or a history that mixes units."""


@dataclass(frozen=True, slots=True)
class Event:
    """`count` repetitions of `steps` Gaussian releases over Poisson samples of the units.

    One release adds N(0, (sigma * C)^2 I) to a sum of vectors of L2 norm at most C, one from each
    unit of a sample that holds every unit independently with probability `rate`. Neighbouring data
    sets differ by one unit added or removed. sigma = 0 is a release without noise: its epsilon is
    infinite.
    """

    unit: str
    sigma: float
    rate: float
    steps: int
    count: int = 1

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise EventError(f"unit: expected one of {', '.join(UNITS)}, got {self.unit!r:.80}")
        for name in ("sigma", "rate"):
            if not _is_real(getattr(self, name)):
                raise EventError(
                    f"{name}: expected a finite number, got {getattr(self, name)!r:.80}"
                )
        if self.sigma < 0:
            raise EventError(f"sigma: expected 0 <= sigma, got {self.sigma!r}")
        if not 0 <= self.rate <= 1:
            raise EventError(f"rate: expected 0 <= rate <= 1, got {self.rate!r}")
        for name in ("steps", "count"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise EventError(f"{name}: expected a whole number >= 0, got {value!r:.80}")
        if self.steps > RELEASES_MAX or self.count > RELEASES_MAX // max(self.steps, 1):
            raise EventError("steps * count: must be below 2**53")

    def to_dict(self) -> dict[str, Any]:
        """The event as the five keys of a ledger line."""
        return {
            "unit": self.unit,
            "sigma": self.sigma,
            "rate": self.rate,
            "steps": self.steps,
            "count": self.count,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Event":
        """Read an event; an unknown or missing key is refused, since it might mean a cost."""
        keys = {"unit", "sigma", "rate", "steps", "count"}
        if not isinstance(value, Mapping) or set(value) != keys:
            got = sorted(value) if isinstance(value, Mapping) else type(value).__name__
            raise EventError(f"event: expected the keys {sorted(keys)}, got {got}")
        return cls(**value)


def _is_real(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False
