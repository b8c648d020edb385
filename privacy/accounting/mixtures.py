"""Privacy losses of a group whose members are drawn one by one: a mixture of Gaussians.

dp-accounting inverts the loss by a search in Python, point by point; here all points are searched
together. The halvings are the same, so the numbers are the same to the last bit.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.pld.privacy_loss_mechanism import AdjacencyType, MixtureGaussianPrivacyLoss

_AT_ONCE: Final = 1 << 15
"""Points that are searched together: their terms take megabytes."""


def mixture(
    sigma: float, shifts: Sequence[float], weights: Sequence[float], interval: float
) -> Any:
    """The privacy loss distribution of noise `sigma` where the sum moves by one of `shifts`.

    `weights` are the shifts' probabilities, `interval` the grid of the losses. An upper bound
    (Choquette-Choo et al. 2024, https://arxiv.org/abs/2310.15526, corollary 4.7).
    """
    removed, added = (
        pld._create_pld_pmf_from_monotone_privacy_loss(
            _Loss(sigma, shifts, weights, adjacency_type=adjacency),
            value_discretization_interval=interval,
            use_connect_dots=True,
        )
        for adjacency in (AdjacencyType.REMOVE, AdjacencyType.ADD)
    )
    return pld.PrivacyLossDistribution(removed, added)


class _Loss(MixtureGaussianPrivacyLoss):  # type: ignore[misc]
    def _inverse_privacy_losses_with_range(
        self,
        privacy_losses: npt.NDArray[np.float64],
        bounds: tuple[float, float],
        precision: float = 1e-6,
    ) -> npt.NDArray[np.float64]:
        """The smallest multiple of `precision` at which the loss is at most each of these."""
        parts = range(0, len(privacy_losses), _AT_ONCE)
        found = [self._search(privacy_losses[a : a + _AT_ONCE], bounds, precision) for a in parts]
        return np.concatenate(found) if found else np.empty(0)

    def _search(
        self, losses: npt.NDArray[np.float64], bounds: tuple[float, float], precision: float
    ) -> npt.NDArray[np.float64]:
        low, high = np.full(len(losses), bounds[0]), np.full(len(losses), bounds[1])
        while (open_ := high - low > precision).any():
            middle = (low + high) / 2
            above = losses < self._losses_at(middle)
            low = np.where(open_ & above, middle, low)
            high = np.where(open_ & ~above, middle, high)
        return np.floor(high / precision) * precision

    def _losses_at(self, x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """`privacy_loss` of many points."""
        constants = self._precompute_privacy_loss_constants[:, None]
        lines = np.asarray(self.sensitivities)[:, None] * x / self._variance
        if self.adjacency_type == AdjacencyType.ADD:
            losses: npt.NDArray[np.float64] = -np.logaddexp.reduce(constants + lines)
        else:
            losses = np.logaddexp.reduce(constants - lines)
        return losses
