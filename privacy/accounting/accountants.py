"""Both accountants, on dp_accounting: the mathematics behind `privacy.accounting.epsilon`.

Segments are what `merge` makes of events: sorted, none empty, every sigma above zero.
"""

import logging
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import dp_accounting
import numpy as np
import numpy.typing as npt
import scipy.fft
from dp_accounting import rdp
from scipy.optimize import brentq
from scipy.special import log_ndtr

from privacy.accounting.mixtures import mixture
from privacy.accounting.segments import AccountingError, Segment
from privacy.accounting.vectorised import epsilon_at, gaussian

_FINEST: Final = 1e-4
_COARSER: Final = 8.0
_RELATIVE: Final = 2e-5
_BEYOND: Final = 1e6
_SMALL_DELTA: Final = 1e-5
_LEAST_DELTA: Final = 1e-11
_FINE_SEGMENTS: Final = 8
_MOST_MIXED: Final = 64
"""Of groups of more records Rényi's bound stands alone, which is much looser.

dp-accounting's own search took minutes for their mixtures; ours would not (mixtures.py). The bound
stays, as does the grid of mixtures: what a ledger says of the past does not change with speed.
"""
_ORDERS: Final = tuple(rdp.rdp_privacy_accountant.DEFAULT_RDP_ORDERS)


def least_sigma(
    epsilon: float, delta: float, rate: float, steps: int, others: tuple[Segment, ...]
) -> float:
    """What `privacy.accounting.epsilon.calibrate` says, beside the segments `others`."""

    def excess(log_sigma: float, coarser: float = _COARSER) -> float:
        segments = tuple(sorted((*others, Segment(math.exp(log_sigma), rate, 1, steps))))
        return pld_epsilon(segments, delta, coarser) / epsilon - 1

    low, high = 0.0, 0.0
    while excess(high) > 0:
        low, high = high, high + 1.0
        if high > math.log(1e9):
            raise AccountingError(f"epsilon: no sigma reaches {epsilon} in {steps} steps")
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


@lru_cache(maxsize=1 << 15)  # more than the rounds of a long run, which a report asks in turn
def rdp_epsilon(segments: tuple[Segment, ...], delta: float) -> float:
    """Epsilon by Rényi differential privacy; infinite where no order bounds it.

    A group of k records shifts a release by Binomial(k, rate). It counts as a shift of k with the
    probability that any of them is sampled: more in every convex divergence, by Kahane's
    inequality (1985; proved in docs/ledger.md). The orders are of Mironov, Talwar and Zhang (2019).
    """
    total = np.zeros(len(_ORDERS))
    for sigma, rate, records, releases in segments:
        any_of_them = -math.expm1(records * math.log1p(-rate)) if rate < 1 else 1.0
        total = total + _rdp_once(sigma / records, min(1.0, any_of_them)) * releases
    bounded = ~np.isnan(total)
    if not bounded.any():
        return math.inf
    orders = np.asarray(_ORDERS)[bounded]
    epsilon, _ = rdp.rdp_privacy_accountant.compute_epsilon(orders, total[bounded], delta)
    return math.inf if math.isnan(epsilon) else max(0.0, float(epsilon))


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


@lru_cache(maxsize=1 << 15)
def pld_epsilon(segments: tuple[Segment, ...], delta: float, coarser: float = 1.0) -> float:
    """The smaller of two upper bounds of epsilon: by discretised losses, and by Rényi's.

    The losses lie on a grid that only ever doubles as events are added. The grids are nested, and
    connecting fewer dots dominates connecting more, so that epsilon cannot fall when a longer
    history takes a coarser grid. The error is about releases * interval^2. Below a delta of 1e-11
    the rounding of the transforms is no longer small beside it, and Rényi's bound stands alone.
    """
    segments = _one_gaussian(segments)
    if len(segments) == 1 and segments[0].rate == 1:
        return _gaussian_epsilon(segments[0].sigma / segments[0].records, delta)
    by_orders = rdp_epsilon(segments, delta)
    mixed = any(segment.records > _MOST_MIXED for segment in segments if segment.rate < 1)
    if delta < _LEAST_DELTA or by_orders > _BEYOND or mixed:
        return by_orders
    return min(by_orders, _by_losses(segments, delta, coarser))


def _by_losses(segments: tuple[Segment, ...], delta: float, coarser: float) -> float:
    size = rdp_epsilon(segments, min(delta, _SMALL_DELTA))  # of the losses, whatever delta is asked
    if size > _BEYOND:
        return math.inf
    records = max(segment.records for segment in segments)
    finest = coarser * (4 * _FINEST if len(segments) > _FINE_SEGMENTS else _FINEST)
    finest = max(finest, _COARSER * _FINEST) if records > 1 else finest
    interval = finest
    while interval > finest / 64 and interval > finest * size:
        interval /= 2
    while interval < _RELATIVE * size:
        interval *= 2
    while True:
        with scipy.fft.set_backend(_Forgetful):
            composed = _composed(segments, interval)
        epsilon = max(0.0, epsilon_at(composed, delta))
        if math.isnan(epsilon):
            return math.inf
        if interval <= finest or interval / 4 < _RELATIVE * epsilon:
            return epsilon
        interval /= 4


def _gaussian_epsilon(sigma: float, delta: float) -> float:
    """Epsilon of one Gaussian release of every record, exact (Balle and Wang 2018, theorem 8)."""

    def excess(epsilon: float) -> float:
        half, moved = 1 / (2 * sigma), epsilon * sigma
        more, less = log_ndtr(half - moved), epsilon + log_ndtr(-half - moved)
        log_delta = more + np.log1p(-np.exp(less - more)) if less < more else -math.inf
        return float(log_delta) - math.log(delta)

    if excess(0.0) <= 0:
        return 0.0
    low, high = 0.0, 1 / (2 * sigma**2) + math.sqrt(-2 * math.log(delta)) / sigma  # by Rényi's
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high


class _Forgetful:
    """numpy's FFT in scipy's place: the same bits, but scipy keeps 16 plans of some 10 MB each."""

    __ua_domain__ = "numpy.scipy.fft"

    @staticmethod
    def __ua_function__(method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if method is scipy.fft.fft and not np.iscomplexobj(args[0]):
            return _mirrored(*args, **kwargs)
        function = getattr(np.fft, method.__name__, None)
        return NotImplemented if function is None else function(*args, **kwargs)


def _mirrored(x: npt.ArrayLike, n: int) -> npt.NDArray[np.complex128]:
    half = np.fft.rfft(x, n)
    return np.concatenate([half, half[1 : (n + 1) // 2][::-1].conj()])


def _one_gaussian(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """Releases without sampling are together one Gaussian: the 1 / sigma^2 add up, exactly."""
    whole = [segment for segment in segments if segment.rate == 1]
    if sum(segment.releases for segment in whole) < 2:
        return segments
    together = math.fsum(n * (records / sigma) ** 2 for sigma, _, records, n in whole) ** -0.5
    return tuple(sorted([*(s for s in segments if s.rate < 1), Segment(together, 1.0, 1, 1)]))


@lru_cache(maxsize=2)
def _composed(segments: tuple[Segment, ...], interval: float) -> Any:
    """All segments in turn. Distributions take megabytes: the last are kept, for another delta.

    A history that only grows never asks for the same again: of one segment no more is kept.
    """
    *past, last = segments
    if not past:
        return _repeated.__wrapped__(last, interval)
    tail = _repeated(last, interval)
    return _before(tuple(past), interval).compose(tail)


@lru_cache(maxsize=8)
def _before(segments: tuple[Segment, ...], interval: float) -> Any:
    return _composed.__wrapped__(segments, interval)


@lru_cache(maxsize=16)
def _repeated(segment: Segment, interval: float) -> Any:
    sigma, rate, records, releases = segment
    # Without sampling the releases are merged into one: of another sigma each time.
    once = _once if rate < 1 else _once.__wrapped__
    return once(sigma, rate, interval, records).self_compose(releases)


@lru_cache(maxsize=64)
def _once(sigma: float, rate: float, interval: float, records: int) -> Any:
    if records == 1 or rate == 1:
        return gaussian(sigma / records, rate, interval)
    shifts = list(range(records + 1))
    weights = [math.comb(records, k) * rate**k * (1 - rate) ** (records - k) for k in shifts]
    return mixture(sigma, shifts, weights, interval)
