"""A check of the audit: what was looked at, and how likely chance is as far from the claim."""

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


def broken(name: str, error: Exception) -> Check:
    """A check that could not be carried out has failed: a sound trainer carries all of them out."""
    return Check(name, 0.0, 0.0, f"could not be carried out: {type(error).__name__}: {error}")
