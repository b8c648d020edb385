"""Accounting is a fold over events: epsilon is computed from what was released, never stored.

The accountant is Google's privacy loss distributions (Koskela et al. 2020; discretised by
"connect the dots", Doroshenko et al. 2022, which never under-reports), with Rényi differential
privacy (Mironov 2017; Zhu and Wang 2019 for Poisson sampling) beside it as cross-check and as
fast upper bound. One neighbouring relation throughout: add or remove one unit.

>>> spent([], 1e-5)
0.0
>>> round(spent([Event("record", 1.0, 0.01, 1000)], 1e-5), 4)
1.8282
"""

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeGuard

import dp_accounting
import numpy as np
import numpy.typing as npt
import scipy.fft
from dp_accounting import rdp
from dp_accounting.pld import privacy_loss_distribution as pld
from scipy.optimize import brentq

from privacy.events import Event

ACCOUNTANTS: Final = ("pld", "rdp")
_FINEST: Final = 1e-4
_COARSER: Final = 8.0
_RELATIVE: Final = 2e-5
_BEYOND: Final = 1e6
_SMALL_DELTA: Final = 1e-5
_FINE_SEGMENTS: Final = 8
_DISTINCT_SEGMENTS: Final = 64
_SIGMA_GRID: Final = 0.01
_ORDERS: Final = tuple(rdp.rdp_privacy_accountant.DEFAULT_RDP_ORDERS)

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
        if self.epsilon != math.inf and (not _is_number(self.epsilon) or self.epsilon < 0):
            raise AccountingError(f"epsilon: expected 0 <= epsilon, got {self.epsilon!r}")
        check_delta(self.delta)


def check_delta(delta: object) -> float:
    """The delta itself where 0 < delta < 1, else AccountingError."""
    if not _is_number(delta) or not 0 < delta < 1:
        raise AccountingError(f"delta: expected 0 < delta < 1, got {delta!r}")
    return float(delta)


def spent(
    events: Iterable[Event], delta: float, *, accountant: str = "pld", records: int = 1
) -> float:
    """Epsilon at `delta` of all `events` together: 0 for nothing, infinite without noise.

    `records` = k protects a group of k records of one subject: each is sampled by itself, so
    that one release is a mixture of Gaussians whose shift is Binomial(k, rate) (Choquette-Choo
    et al. 2024), exact where k * epsilon is no bound at all. Only `pld` can say it.
    """
    check_delta(delta)
    if accountant not in ACCOUNTANTS:
        raise AccountingError(f"accountant: expected pld or rdp, got {accountant!r}")
    if isinstance(records, bool) or not isinstance(records, int) or records < 1:
        raise AccountingError(f"records: expected a whole number >= 1, got {records!r}")
    if accountant == "rdp" and records > 1:
        raise AccountingError("records: groups are accounted by pld only")
    segments = merge(events)
    if not segments:
        return 0.0
    if any(sigma == 0 for sigma, _, _ in segments):
        return math.inf
    if accountant == "rdp":
        return _rdp_epsilon(segments, delta)
    return _pld_epsilon(segments, delta, records)


def within(events: Iterable[Event], budget: Budget, *, records: int = 1) -> bool:
    """Whether `spent` stays inside `budget`; the cheap upper bound is asked before the exact."""
    history = list(events)
    if records == 1 and spent(history, budget.delta, accountant="rdp") <= budget.epsilon:
        return True
    return spent(history, budget.delta, records=records) <= budget.epsilon


def merge(events: Iterable[Event]) -> tuple[Segment, ...]:
    """Equal (sigma, rate) summed and sorted, so that neither order nor grouping can matter."""
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
            key = (float(event.sigma), float(event.rate))
            totals[key] = totals.get(key, 0) + releases
    if len(totals) > _DISTINCT_SEGMENTS:
        totals = _coarsen(totals)
    return tuple((sigma, rate, n) for (sigma, rate), n in sorted(totals.items()))


@lru_cache(maxsize=256)
def calibrate(budget: Budget, *, rate: float, steps: int, beside: tuple[Event, ...] = ()) -> float:
    """The least sigma whose `steps` releases stay inside `budget`, to 0.1 % of its epsilon.

    `beside` are events that the same budget has to pay for as well.
    """
    if budget.epsilon == 0:
        raise AccountingError("epsilon: expected 0 < epsilon to calibrate, got 0")
    if not _is_number(rate) or not 0 < rate <= 1:
        raise AccountingError(f"rate: expected 0 < rate <= 1, got {rate!r}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise AccountingError(f"steps: expected a whole number >= 1, got {steps!r}")

    others = merge(beside)

    def excess(log_sigma: float, coarser: float = _COARSER) -> float:
        segments = tuple(sorted((*others, (math.exp(log_sigma), rate, steps))))
        return _pld_epsilon(segments, budget.delta, 1, coarser) / budget.epsilon - 1

    low, high = 0.0, 0.0
    while excess(high) > 0:
        low, high = high, high + 1.0
        if high > math.log(1e9):
            raise AccountingError(f"epsilon: no sigma reaches {budget.epsilon} in {steps} steps")
    while low == high or excess(low) < 0:
        low -= 0.5
        if low < math.log(1e-2):
            return math.exp(high)
    sigma = _inside(excess, low, high)
    if excess(sigma, 1.0) < -1e-3:  # coarse dots cost something here: many or very quiet steps
        sigma = _inside(lambda s: excess(s, 1.0), low, sigma)
    return math.exp(sigma)


def _inside(excess: Callable[[float], float], low: float, high: float) -> float:
    """The root of a falling `excess`, approached from the side where it is not positive."""
    root: float = brentq(excess, low, high, xtol=1e-5, rtol=1e-6, maxiter=100)
    while excess(root) > 0:
        root += 1e-5
    return root


@lru_cache(maxsize=4096)
def _rdp_epsilon(segments: tuple[Segment, ...], delta: float) -> float:
    total = np.zeros(len(_ORDERS))
    for sigma, rate, releases in segments:
        total = total + _rdp_once(sigma, rate) * releases
    epsilon, _ = rdp.rdp_privacy_accountant.compute_epsilon(_ORDERS, total, delta)
    return max(0.0, float(epsilon))


@lru_cache(maxsize=4096)
def _rdp_once(sigma: float, rate: float) -> npt.NDArray[np.float64]:
    accountant = rdp.RdpAccountant(_ORDERS)
    gaussian = dp_accounting.GaussianDpEvent(sigma)
    event = dp_accounting.PoissonSampledDpEvent(rate, gaussian) if rate < 1 else gaussian
    logger = logging.getLogger("absl")
    logger.addFilter(_quiet)  # an order whose series does not converge is left out: looser, sound
    try:
        accountant.compose(event)
    finally:
        logger.removeFilter(_quiet)
    # The library gives no public view of the accumulated orders; composing once leaves them here.
    once: npt.NDArray[np.float64] = np.asarray(accountant._rdp, dtype=np.float64)
    return once


def _quiet(record: logging.LogRecord) -> bool:
    return "failed to converge" not in record.getMessage()


@lru_cache(maxsize=4096)
def _pld_epsilon(
    segments: tuple[Segment, ...], delta: float, records: int, coarser: float = 1.0
) -> float:
    """Discretised losses on a grid that only ever doubles as events are added.

    The grids are nested, and connecting fewer dots dominates connecting more, so that epsilon
    cannot fall when a longer history takes a coarser grid. The error is about
    releases * interval^2.
    """
    segments = _one_gaussian(segments)
    group = tuple((s / records, q, n) for s, q, n in segments)
    size = _rdp_epsilon(group, min(delta, _SMALL_DELTA))  # of the losses, whatever delta is asked
    if size > _BEYOND:
        return _rdp_epsilon(group, delta)
    finest = coarser * (4 * _FINEST if len(segments) > _FINE_SEGMENTS else _FINEST)
    finest = max(finest, _COARSER * _FINEST) if records > 1 else finest  # mixtures are slow
    interval = finest
    while interval > finest / 64 and interval > finest * size:
        interval /= 2
    while interval < _RELATIVE * size:
        interval *= 2
    while True:
        with scipy.fft.set_backend(_Forgetful):
            composed = _composed(segments, interval, records)
        epsilon = max(0.0, float(composed.get_epsilon_for_delta(delta)))
        if interval <= finest or interval / 4 < _RELATIVE * epsilon:
            return epsilon
        interval /= 4


class _Forgetful:
    """numpy's FFT in scipy's place: the same bits, but scipy keeps 16 plans of some 10 MB each."""

    __ua_domain__ = "numpy.scipy.fft"

    @staticmethod
    def __ua_function__(method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if method is scipy.fft.fft and not np.iscomplexobj(args[0]):
            return _mirrored(*args, **kwargs)
        own = getattr(np.fft, method.__name__, None)
        return NotImplemented if own is None else own(*args, **kwargs)


def _mirrored(x: npt.ArrayLike, n: int) -> npt.NDArray[np.complex128]:
    half = np.fft.rfft(x, n)
    return np.concatenate([half, half[1 : (n + 1) // 2][::-1].conj()])


def _one_gaussian(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """Releases without sampling are together one Gaussian: the 1 / sigma^2 add up, exactly."""
    whole = [(sigma, n) for sigma, rate, n in segments if rate == 1]
    if sum(n for _, n in whole) < 2:
        return segments
    together = math.fsum(n / sigma**2 for sigma, n in whole) ** -0.5
    return tuple(sorted([*(s for s in segments if s[1] < 1), (together, 1.0, 1)]))


def _composed(segments: tuple[Segment, ...], interval: float, records: int) -> Any:
    """All segments in turn. Distributions take megabytes, so few are kept for the next question.

    A history that only grows never asks for the same again: of one segment none is kept.
    """
    *past, last = segments
    if not past:
        return _repeated.__wrapped__(last, interval, records)
    tail = _repeated(last, interval, records)
    return _before(tuple(past), interval, records).compose(tail)


@lru_cache(maxsize=8)
def _before(segments: tuple[Segment, ...], interval: float, records: int) -> Any:
    return _composed(segments, interval, records)


@lru_cache(maxsize=16)
def _repeated(segment: Segment, interval: float, records: int) -> Any:
    sigma, rate, releases = segment
    return _once(sigma, rate, interval, records).self_compose(releases)


@lru_cache(maxsize=64)
def _once(sigma: float, rate: float, interval: float, records: int) -> Any:
    if records == 1 or rate == 1:
        return pld.from_gaussian_mechanism(
            sigma / records, sampling_prob=rate, value_discretization_interval=interval
        )
    shifts = list(range(records + 1))
    weights = [math.comb(records, k) * rate**k * (1 - rate) ** (records - k) for k in shifts]
    return pld.from_mixture_gaussian_mechanism(
        sigma, shifts, weights, value_discretization_interval=interval
    )


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


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
