"""What dp-accounting computes in Python, one point of its grid after the other, for many at once.

The operations are the same in the same order, so the numbers are the same to the last bit.
"""

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from dp_accounting.pld import pld_pmf
from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.pld.privacy_loss_mechanism import AdjacencyType, GaussianPrivacyLoss

Vector = npt.NDArray[np.float64]
_AT_ONCE: Final = 1 << 13
_LEAST: Final = -700.0
"""Losses below it have no exponential; the search hardly ever comes so far."""
_UNSURE: Final = 1e-9
"""Logarithms of numpy's and of Python's may differ by less: beside it Python's decide."""


def gaussian(sigma: float, rate: float, interval: float) -> Any:
    """The privacy loss distribution of noise `sigma` where one unit moves the sum by at most 1.

    The unit is sampled with probability `rate`; `interval` is the grid of the losses. An upper
    bound ("connect the dots", Doroshenko et al. 2022).
    """
    removed, *added = (
        pld._create_pld_pmf_from_monotone_privacy_loss(
            _Loss(sigma, sampling_prob=rate, adjacency_type=adjacency),
            value_discretization_interval=interval,
            use_connect_dots=True,
        )
        for adjacency in (AdjacencyType.REMOVE, AdjacencyType.ADD)[: 1 if rate == 1 else 2]
    )
    return pld.PrivacyLossDistribution(removed, *added)


class _Loss(GaussianPrivacyLoss):  # type: ignore[misc]
    def get_delta_for_epsilon(self, epsilon: Vector) -> Vector:
        """The least delta at each epsilon [n]: P(x <= c) - e^epsilon Q(x <= c), c where they are
        in the ratio e^epsilon."""
        rate, deltas = self.sampling_prob, np.zeros(len(epsilon))
        reached = np.ones(len(epsilon), bool)  # losses that some outcome has
        if rate < 1 and self.adjacency_type == AdjacencyType.ADD:
            reached = epsilon < -math.log1p(-rate)
        elif rate < 1:
            reached = epsilon > math.log1p(-rate)
            deltas[~reached] = -np.expm1(epsilon[~reached])
        losses = epsilon[reached]
        cuts = self._inverses(losses)
        inside, outside = self.mu_upper_cdf(cuts), np.exp(losses + self.mu_lower_log_cdf(cuts))
        deltas[reached] = inside - outside
        return np.clip(deltas, 0, 1)

    def _inverses(self, losses: Vector) -> Vector:
        """`inverse_privacy_loss` of many points."""
        rate, added = self.sampling_prob, self.adjacency_type == AdjacencyType.ADD
        sign = -1.0 if added else 1.0
        whole, alone = losses, np.zeros(len(losses), bool)
        if rate < 1:
            first = sign * losses + np.log(1 / rate)
            second = np.log(-(1 - 1 / rate))
            # Beside the least loss there is, and at zero, the library goes other ways.
            alone = (losses == 0) | np.isclose(losses, sign * math.log(1 - rate), 1e-6, 0.0)
            alone |= second >= first
            inner = np.where(alone, -1.0, second - first)
            whole = sign * (first + np.log1p(-np.exp(inner)))
        cuts = -0.5 * self.sensitivity - whole * self.standard_deviation**2 / self.sensitivity
        if added:
            cuts = self.sensitivity + cuts
        cuts[alone] = [self.inverse_privacy_loss(loss) for loss in losses[alone]]
        return np.asarray(cuts, np.float64)


def epsilon_at(distribution: Any, delta: float) -> float:
    """The least epsilon at which a privacy loss distribution has at most `delta`."""
    sides = [distribution._pmf_remove]
    if not distribution._symmetric:
        sides.append(distribution._pmf_add)
    return max(_epsilon_of_side(side, delta) for side in sides)


def _epsilon_of_side(side: Any, delta: float) -> float:
    """From the largest loss downwards: P's mass above, Q's mass above, until they meet."""
    if not isinstance(side, pld_pmf.DensePLDPmf):
        return float(side.get_epsilon_for_delta(delta))
    if side._infinity_mass > delta:
        return math.inf
    step, probs = side._discretization, np.flip(side._probs)
    loss, inside, outside = (side._lower_loss + len(probs) - 1) * step, side._infinity_mass, 0.0
    for at in range(0, len(probs), _AT_ONCE):
        some = probs[at : at + _AT_ONCE]
        losses = _running(loss, np.full(len(some), -step))
        if losses[-1] < _LEAST:
            return float(side.get_epsilon_for_delta(delta))
        ratios = np.array([math.exp(-one) for one in losses[:-1].tolist()])
        above, below = _running(inside, some), _running(outside, ratios * some)
        ends = (above[1:] >= delta) & (below[1:] == 0)
        for i in np.flatnonzero(_may_meet(above[:-1], below[:-1], losses[:-1], delta) | ends):
            inside, outside, loss = float(above[i]), float(below[i]), float(losses[i])
            if _meets(inside, outside, loss, delta):
                return _log_of_ratio(inside, outside, delta)
            if ends[i]:
                return max(0.0, loss)
        inside, outside, loss = float(above[-1]), float(below[-1]), float(losses[-1])
    return _log_of_ratio(inside, outside, delta)


def _running(start: float, values: Vector) -> Vector:
    """`start`, and what it is after each value is added, one after the other."""
    return np.add.accumulate(np.concatenate([[start], values]))


def _may_meet(above: Vector, below: Vector, losses: Vector, delta: float) -> npt.NDArray[np.bool_]:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        reached = np.log((above - delta) / below)
    return (above > delta) & (below > 0) & ~(reached < losses - _UNSURE)


def _meets(above: float, below: float, loss: float, delta: float) -> bool:
    return bool(above > delta and below > 0 and math.log((above - delta) / below) >= loss)


def _log_of_ratio(above: float, below: float, delta: float) -> float:
    return 0.0 if above <= below + delta else math.log((above - delta) / below)
