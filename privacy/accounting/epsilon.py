"""Accounting is a fold over events: epsilon is computed from what was released, never stored.

The accountant is Google's privacy loss distributions (Koskela et al. 2020; discretised by
"connect the dots", Doroshenko et al. 2022, which never under-reports; releases without sampling
are one Gaussian, exactly: Balle and Wang 2018), with Rényi differential privacy (Mironov 2017; Zhu
and Wang 2019 for Poisson sampling) beside it as cross-check and as fast upper bound. One
neighbouring relation throughout: add or remove one unit. Their mathematics is in
`privacy/accounting/accountants.py`, loaded when the first question is asked: scipy takes 70 MB and
a second.

>>> spent([], 1e-5)
0.0
>>> round(spent([Event("record", 1.0, 0.01, 1000)], 1e-5), 4)
1.8282
"""

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from privacy.accounting.events import Event
from privacy.accounting.segments import AccountingError, Budget, check_delta, is_number, merge

ACCOUNTANTS: Final = ("pld", "rdp")


def spent(
    events: Iterable[Event], delta: float, *, accountant: str = "pld", records: int | None = 1
) -> float:
    """Epsilon at `delta` of all `events` together: 0 for nothing, infinite without noise.

    `records` = k protects a group of k records of one person: each is sampled by itself, so
    that one release is a mixture of Gaussians whose shift is Binomial(k, rate) (Ganesh 2024;
    proved in docs/ledger.md), exact where k * epsilon is no bound at all. None composes each
    event for the number of records that one person had when it was released.

    "pld" is the smaller of two upper bounds, the discretised losses' and Rényi's; "rdp" is the
    latter alone. Never NaN.
    """
    check_delta(delta)
    if accountant not in ACCOUNTANTS:
        raise AccountingError(f"accountant must be pld or rdp, got {accountant!r:.80}")
    if records is not None and (isinstance(records, bool) or not isinstance(records, int)):
        raise AccountingError(f"records must be an integer >= 1, got {records!r:.80}")
    if records is not None and records < 1:
        raise AccountingError(f"records must be an integer >= 1, got {records!r:.80}")
    segments = merge(events, records)
    if not segments:
        return 0.0
    if any(segment.sigma == 0 for segment in segments):
        return math.inf
    from privacy.accounting.accountants import pld_epsilon, rdp_epsilon

    if accountant == "rdp":
        return rdp_epsilon(segments, delta)
    return pld_epsilon(segments, delta)


def within(events: Iterable[Event], budget: Budget, *, records: int | None = 1) -> bool:
    """Whether `spent` stays inside `budget`; the cheap upper bound is asked before the exact."""
    history = list(events)
    if spent(history, budget.delta, accountant="rdp", records=records) <= budget.epsilon:
        return True
    return spent(history, budget.delta, records=records) <= budget.epsilon


def json_number(value: float | None) -> float | str | None:
    """An epsilon as JSON can hold it: a number, "infinite", or null where there is none."""
    if value is None or math.isnan(value):
        return None
    return "infinite" if math.isinf(value) else value


@lru_cache(maxsize=256)
def calibrate(budget: Budget, *, rate: float, steps: int, beside: tuple[Event, ...] = ()) -> float:
    """The least sigma whose `steps` releases stay inside `budget`, to 0.1 % of its epsilon.

    `beside` are events that the same budget has to pay for as well.
    """
    if budget.epsilon == 0:
        raise AccountingError("epsilon must be > 0 to calibrate, got 0")
    if not is_number(rate) or not 0 < rate <= 1:
        raise AccountingError(f"rate must be > 0 and <= 1, got {rate!r:.80}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise AccountingError(f"steps must be an integer >= 1, got {steps!r:.80}")
    from privacy.accounting.accountants import least_sigma

    return least_sigma(budget.epsilon, budget.delta, rate, steps, merge(beside, None))
