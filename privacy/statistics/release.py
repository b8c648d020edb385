"""The release: exact sums of every record's (or person's) vector, and noise once, on the grid.

The sums are of whole multiples of 2^-20, so that they are exact in any order; `privatise` alone
adds the noise. What leaves is divided by the bound: there, one record moves it by at most 1.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from privacy.mechanism import noise
from privacy.mechanism.sensitivity import noise_std
from privacy.statistics.columns import Floats
from privacy.statistics.design import STEPS, Design

SUMS: Final = "sums"
"""The name of the one array that is released."""
MODEL: Final = "model"
"""Where predictions are counted, the weights that make them have names below this one."""
_NUMBERS_AT_ONCE = 1 << 22


def noisy_sums(
    of: Design,
    values: Floats,
    sigma: float,
    *,
    subject: NDArray[np.int64] | None = None,
    most: int | None = None,
) -> NDArray[np.float32]:
    """The sums of all rows' vectors [size] plus N(0, (sigma bound)^2), over the bound.

    `values` are [n, columns]. With `subject` [n] a person is one contribution: the mean of the
    vectors of the person's rows, of the first `most` of them, rounded towards 0.
    """
    totals = exact_sums(of, values, subject=subject, most=most)
    noise.privatise(totals, standard_deviation(of, sigma), over=of.bound)
    return totals.astype(np.float32)


def standard_deviation(of: Design, sigma: float) -> float:
    """The noise of each number, in records."""
    return noise_std(sigma, of.bound, of.size)


def exact_sums(
    of: Design,
    values: Floats,
    *,
    subject: NDArray[np.int64] | None = None,
    most: int | None = None,
) -> Floats:
    """The sums before the noise [size], in records: for the data's owner alone."""
    totals = np.zeros(of.size)
    step = max(1, _NUMBERS_AT_ONCE // of.size)
    if subject is None:
        for start in range(0, len(values), step):
            totals += of.vectors(values[start : start + step]).sum(0)
        return totals
    values, person, counts = _people(values, subject, most)
    start = 0
    while start < len(values):  # no person is in two parts
        last = person[min(start + step, len(values)) - 1]
        stop = int(np.searchsorted(person, last, side="right"))
        sums = np.zeros((last - person[start] + 1, of.size))
        np.add.at(sums, person[start:stop] - person[start], of.vectors(values[start:stop]))
        means = sums / counts[person[start] : last + 1, None]
        totals += (np.trunc(means * STEPS) / STEPS).sum(0)
        start = stop
    return totals


def _people(
    values: Floats, subject: NDArray[np.int64], most: int | None
) -> tuple[Floats, NDArray[np.int64], Floats]:
    """The rows in the order of their people, each row's person, and how many rows each has.

    With `most`, the first so many rows of each person.
    """
    _, person = np.unique(subject, return_inverse=True)
    order = np.argsort(person, kind="stable")
    person = person[order]
    if most is not None:
        first = np.searchsorted(person, person, side="left")
        held = np.arange(len(person)) - first < most
        order, person = order[held], person[held]
    return values[order], person, np.bincount(person).astype(np.float64)
