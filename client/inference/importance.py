"""What a model rests on over many rows, and whether that stays from round to round.

A column's importance is the mean size of its contributions (client/inference/attribution.py) to the
rows' predictions. Each round of DP-SGD adds noise to every weight, so that a contribution made of
noise differs from round to round, and one that rests on the data stays.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from client.inference.attribution import Explanation, explain
from client.models.loading import Model, ModelError

SHOWN: Final = 20
"""Columns that a command shows; the page and JSON have all."""
MUCH: Final = 0.5
"""A column whose contributions move by this part of their size is said to change."""


@dataclass(frozen=True, slots=True)
class ColumnImportance:
    """A column: the mean size of its contributions, and its share of all columns'.

    `change` is the standard deviation of a contribution over the rounds, relative to the size of
    its mean; None with one round, or where the mean is 0.
    """

    column: str
    importance: float
    share: float
    change: float | None

    @property
    def changes(self) -> bool:
        """Whether the rounds disagree: then the column's importance is mostly noise."""
        return self.change is not None and self.change > MUCH


@dataclass(frozen=True, slots=True)
class Importance:
    """The importance of all columns in the last of some rounds, the largest first.

    `rows` is how many rows were explained, `alike` the share of them for which all rounds predict
    the same: contributions to other predictions cannot be compared, and are left out of `change`.
    """

    rows: int
    rounds: tuple[int, ...]
    alike: float
    columns: tuple[ColumnImportance, ...]

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return {
            "rows": self.rows,
            "rounds": list(self.rounds),
            "alike": self.alike,
            "columns": [
                {
                    "column": one.column,
                    "importance": one.importance,
                    "share": one.share,
                    "change": one.change,
                    "changes": one.changes,
                }
                for one in self.columns
            ],
        }


def importance(models: Sequence[Model], x: Any, rows: int) -> Importance:
    """The importance of each column for `rows` encoded rows x, over models of rising rounds.

    ModelError where the models are of several runs, or cannot be explained.
    """
    if len({one.card.run for one in models}) != 1:
        raise ModelError("importance: must be of models of one run")
    if not rows:
        raise ModelError("importance: must have rows to explain, got none")
    found = [explain(one, x, range(rows)) for one in models]
    names = list(found[-1][0].columns)
    every = np.stack([_contributions(one, names) for one in found])
    sizes = np.abs(every[-1]).mean(0)
    alike = np.array([len({one[i].target for one in found}) == 1 for i in range(rows)])
    changes = _changes(every[:, alike])
    total = float(sizes.sum()) or 1.0
    columns = [
        ColumnImportance(name, float(size), float(size) / total, change)
        for name, size, change in zip(names, sizes, changes, strict=True)
    ]
    columns.sort(key=lambda one: (-one.importance, one.column))
    rounds = tuple(one.card.round for one in models)
    return Importance(rows, rounds, float(alike.mean()), tuple(columns))


def _contributions(explanations: Sequence[Explanation], names: Sequence[str]) -> NDArray[Any]:
    return np.array([[one.columns[name] for name in names] for one in explanations])


def _changes(every: NDArray[Any]) -> list[float | None]:
    """By column, how far contributions [rounds, rows, columns] are from their mean."""
    if len(every) < 2 or not every.shape[1]:
        return [None] * every.shape[2]
    spread = np.sqrt((every.var(0, ddof=1)).mean(0))
    size = np.sqrt((every.mean(0) ** 2).mean(0))
    return [
        float(s / m) if m > 0 and math.isfinite(s / m) else None
        for s, m in zip(spread, size, strict=True)
    ]


def earlier(files: Sequence[tuple[int, Path]], last: int, count: int) -> list[Path]:
    """Of a run's (round, file), some `count` of the second half up to `last`, evenly, in order.

    In the first half a model is still on its way, and changes for other reasons than noise.
    """
    later = sorted(one for one in files if last / 2 <= one[0] <= last)
    if not later:
        return []
    steps = max(1, min(count, len(later)) - 1)
    places = {
        len(later) - 1 - round(i * (len(later) - 1) / steps) for i in range(min(count, len(later)))
    }
    return [later[i][1] for i in sorted(places)]
