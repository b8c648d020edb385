"""A check of the audit: what was looked at, and how likely chance is as far from the claim."""

import math
from dataclasses import dataclass
from typing import Final

from privacy.audit.bounds import ALPHA

BROKEN: Final = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a trainer that does not keep its contract may raise."""


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, what was seen, and how likely chance would be as far from the claim."""

    name: str
    statistic: float
    p: float
    detail: str

    @property
    def passed(self) -> bool:
        """Whether chance explains it."""
        return self.p >= ALPHA


@dataclass(frozen=True, slots=True)
class Worst:
    """Of many comparisons the least likely, where it was, and the largest thing seen."""

    p: float = 1.0
    where: str = "nothing"
    tried: int = 0
    size: float = 0.0

    def and_(self, p: float, where: str, size: float = 0.0) -> "Worst":
        """One comparison more. What is no number is as unlikely and as large as can be."""
        if math.isnan(p) or math.isnan(size):
            p = 0.0
        largest = size if math.isnan(size) or size > self.size else self.size
        least, at = (p, where) if p < self.p else (self.p, self.where)
        return Worst(least, at, self.tried + 1, largest)

    def check(self, name: str, detail: str, statistic: float | None = None) -> Check:
        """The check of all comparisons (Bonferroni); by default of the largest thing seen."""
        p = min(1.0, self.p * max(1, self.tried))
        seen = self.size if statistic is None else statistic
        return Check(name, seen, p, f"{detail}; least likely: {self.where}")


def broken(name: str, error: Exception) -> Check:
    """A check that could not be carried out has failed: a sound trainer carries all of them out."""
    return Check(name, 0.0, 0.0, f"could not be carried out: {type(error).__name__}: {error}")
