"""What a guarantee means for an attacker who knows everything else and wants to know one thing.

The question is whether one record was used; beforehand both answers are equally likely. All bounds
come from the accountant's (epsilon, delta) pairs, each of which limits every test.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from privacy.accounting.epsilon import spent
from privacy.accounting.events import Event

PRIOR: Final = 0.5
_DELTAS: Final = (1e-9, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 3e-3, 0.01, 0.02, 0.04, 0.07, 0.1)
_DELTAS_ABOVE: Final = (0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def best_success(epsilon: float, delta: float) -> float:
    """The most often that any attacker can be right, from prior 1/2, under (epsilon, delta).

    Of every test, fpr + e^epsilon fnr >= 1 - delta and the same with both exchanged (Wasserman and
    Zhou 2010; Kairouz, Oh and Viswanath 2015, Theorem 2.1); adding the two, fpr + fnr >=
    2 (1 - delta) / (1 + e^epsilon), and the attacker is right with 1 - (fpr + fnr) / 2.

    >>> round(best_success(1.0, 0.0), 3)
    0.731
    """
    if epsilon > 700:
        return 1.0
    return 1 - (1 - delta) / (1 + math.exp(epsilon))


def profile(events: Sequence[Event]) -> tuple[tuple[float, float], ...]:
    """Pairs (epsilon, delta) that the events satisfy, from small deltas to the total variation."""
    pairs = [(spent(events, d), d) for d in (*_DELTAS, *_DELTAS_ABOVE)]
    return (*((e, d) for e, d in pairs if e > 0), (0.0, total_variation(events)))


def total_variation(events: Sequence[Event]) -> float:
    """The delta at epsilon = 0, to three places and never below: the exact reach of any attacker.

    Right with probability at most (1 + total variation) / 2.
    """
    low, high = 0.0, 1.0
    if not events:
        return 0.0
    while high - low > 5e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if spent(events, middle) == 0 else (middle, high)
    return high


def curve(pairs: Sequence[tuple[float, float]], points: int = 41) -> list[tuple[float, float]]:
    """The trade-off: for a rate of false alarms, the least rate of misses that `pairs` allow.

    Each pair bounds it by max(0, 1 - delta - e^epsilon a, e^-epsilon (1 - delta - a)) (Dong, Roth
    and Su 2022, Proposition 2.5), so that the largest of these holds. Finer where it bends, at the
    left.
    """
    rates = [(i / (points - 1)) ** 2 for i in range(points)]
    return [(a, max(_supported(a, e, d) for e, d in pairs)) for a in rates]


def detection(points: Sequence[tuple[float, float]], false_alarms: float) -> float:
    """The most records found out at a rate of false alarms, read off `curve`."""
    for (a0, b0), (a1, b1) in pairwise(points):
        if a0 <= false_alarms <= a1:
            share = (false_alarms - a0) / (a1 - a0)
            return 1 - (b0 + share * (b1 - b0))
    return 1.0


def _supported(a: float, epsilon: float, delta: float) -> float:
    if epsilon > 700:
        return 0.0
    factor = math.exp(epsilon)
    return max(0.0, 1 - delta - factor * a, (1 - delta - a) / factor)
