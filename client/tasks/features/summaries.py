"""What a window of a sensor is like, in few numbers: a linear model then needs few noisy steps.

Of each column its level, spread, quantiles, roughness and the strength of slow and fast movements;
of each pair of columns how they move together. Each window by itself, by public rules alone.
"""

from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

_QUANTILES: Final = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
_BANDS: Final = 8
_EACH: Final = 4 + len(_QUANTILES) + _BANDS
_PAIRED: Final = 8
"""Of windows with more columns no pairs are compared."""


def summary_width(columns: int) -> int:
    """How many numbers a window of so many columns becomes."""
    return columns * _EACH + len(_pairs(columns))


def summary(window: NDArray[np.float32]) -> NDArray[np.float32]:
    """A window [columns, steps] in -1..1 as [summary_width(columns)], each about in -1..1."""
    values = window.astype(np.float64)
    steps = values.shape[1]
    centred = values - values.mean(1, keepdims=True)
    spread = values.std(1)
    moves = np.diff(values, axis=1) if steps > 1 else np.zeros((len(values), 1))
    sides = centred > 0
    crossed = (sides[:, 1:] != sides[:, :-1]).mean(1) if steps > 1 else np.zeros(len(values))
    parts = [
        values.mean(1)[:, None],
        _log(spread)[:, None],
        _log(np.abs(moves).mean(1))[:, None],
        2 * crossed[:, None] - 1,
        np.quantile(values, _QUANTILES, axis=1).T,
        _bands(centred),
    ]
    numbers = np.concatenate(parts, 1).ravel()
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-6)
    together = [float(unit[a] @ unit[b]) for a, b in _pairs(len(values))]
    return np.concatenate([numbers, together]).astype(np.float32)


def _bands(centred: NDArray[np.float64]) -> NDArray[np.float64]:
    """The strength of movements in bands from slow to fast, [columns, _BANDS]."""
    power = np.abs(np.fft.rfft(centred, axis=1))[:, 1:] / centred.shape[1]
    out = np.full((len(centred), _BANDS), -1.0)
    if not power.shape[1]:
        return out
    edges = np.geomspace(1, power.shape[1] + 1, _BANDS + 1)
    band = np.searchsorted(edges, np.arange(1, power.shape[1] + 1), side="right") - 1
    for number in range(_BANDS):
        inside = power[:, band == number]
        if inside.shape[1]:
            out[:, number] = _log(np.sqrt((inside**2).sum(1)))
    return out


def _log(size: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sizes from 0.001 to 1 as -1..1, by their logarithm."""
    held: NDArray[np.float64] = 2 * np.log10(np.clip(size, 1e-3, 1)) / 3 + 1
    return held


def _pairs(columns: int) -> list[tuple[int, int]]:
    return list(combinations(range(columns), 2)) if columns <= _PAIRED else []
