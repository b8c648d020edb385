"""Do sites differ in a column, beyond the noise, and beyond chance among sites that are alike?

A test of one distribution for all sites: the noise has a known covariance, and rows are taken for
drawn independently. Cells are put together into a few of about equal size first.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from privacy.statistics.columns import Floats
from privacy.statistics.estimates import ENOUGH, Counts

LEVEL: Final = 0.01
"""Sites that are alike are said to differ so often, a column."""
_GROUPS: Final = 8


@dataclass(frozen=True, slots=True)
class Difference:
    """The verdict on one column: `p` is small where sites differ; `sites` are those compared."""

    column: str
    p: float
    sites: tuple[str, ...]

    @property
    def differ(self) -> bool:
        return self.p < LEVEL


def difference(
    column: str, by_site: Mapping[str, Counts], order: list[int] | None = None
) -> Difference | None:
    """The test on a column's cells, in the `order` of their values where they have one.

    None where fewer than two sites have rows beyond the noise.
    """
    known = {s: c for s, c in by_site.items() if c.total > ENOUGH * _std_of_total(c)}
    if len(known) < 2:
        return None
    pooled = np.sum([c.counts for c in known.values()], 0)
    groups = _grouped(np.maximum(pooled, 0.0), order)
    if len(groups) < 2:
        return None
    q = groups @ np.maximum(pooled, 0.0)
    q = np.maximum(q / q.sum(), 1e-9)
    shares, precisions = [], []
    for one in known.values():
        mean = groups @ one.counts / one.total
        jacobian = (groups - mean[:, None]) / one.total
        chance = (np.diag(q) - np.outer(q, q)) / one.total
        covariance = jacobian @ one.covariance @ jacobian.T + chance
        shares.append(mean[:-1])
        precisions.append(np.linalg.inv(covariance[:-1, :-1]))
    weighted = [precision @ share for precision, share in zip(precisions, shares, strict=True)]
    centre = np.linalg.solve(np.sum(precisions, 0), np.sum(weighted, 0))
    statistic = sum(
        float((share - centre) @ precision @ (share - centre))
        for share, precision in zip(shares, precisions, strict=True)
    )
    from scipy.stats import chi2

    freedom = (len(known) - 1) * (len(q) - 1)
    return Difference(column, float(chi2.sf(statistic, freedom)), tuple(sorted(known)))


def _std_of_total(one: Counts) -> float:
    return float(np.sqrt(one.covariance.sum()))


def _grouped(pooled: Floats, order: list[int] | None) -> Floats:
    """Which cells are put together [groups, k]: neighbours, or small categories with the next."""
    places = order if order is not None else list(np.argsort(-pooled))
    rest = [i for i in range(len(pooled)) if i not in set(places)]
    goal = pooled.sum() / _GROUPS
    parts: list[list[int]] = [[]]
    held = 0.0
    for place in [*places, *rest]:
        parts[-1].append(place)
        held += pooled[place]
        if held >= goal:
            parts.append([])
            held = 0.0
    if held < goal / 2 and len(parts) > 1:  # what is left over is too little to be a group
        last = parts.pop()
        parts[-1] += last
    matrix = np.zeros((len(parts), len(pooled)))
    for row, part in enumerate(parts):
        matrix[row, part] = 1.0
    return matrix
