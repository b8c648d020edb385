"""Why this prediction: integrated gradients of the predicted class's score, by Captum.

An attribution is additive: over all features it sums to the score less the score of the baseline
(Sundararajan et al. 2017, Proposition 1). The baseline is the middle of the task's public bounds,
never a mean of anybody's rows. What such numbers cannot tell stands in docs/explanations.md.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.inference import decode
from client.models import Model, ModelError

STEPS: Final = 64
MOST: Final = 1000
"""Rows that are explained at once, at most."""


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """One row: what was predicted, and what every feature contributed to that score.

    `columns` adds the contributions of the features that one column became; `missed` is what
    integration in steps left over of the exact sum.
    """

    row: int
    prediction: str | float
    probability: float | None
    contributions: NDArray[np.float32]
    columns: dict[str, float]
    missed: float
    x: NDArray[np.float32]

    def to_dict(self) -> dict[str, Any]:
        """The explanation as JSON values: columns, largest contribution first."""
        order = sorted(self.columns.items(), key=lambda item: -abs(item[1]))
        return {
            "row": self.row,
            "prediction": self.prediction,
            "probability": self.probability,
            "contributions": {name: round(value, 6) for name, value in order},
            "missed": round(self.missed, 6),
        }


def explain(model: Model, x: Tensor, rows: Sequence[int]) -> list[Explanation]:
    """Explain the prediction of each encoded row of x [rows, ...]; `rows` are their numbers."""
    if model.network is None:
        raise ModelError(
            f"{model.path}: explanations need gradients: expected a checkpoint or .safetensors file"
        )
    if not x.is_floating_point():
        raise ModelError(f"{model.path}: expected a task with numbers as inputs to explain")
    if len(x) > MOST:
        raise ModelError(f"explain: expected at most {MOST} rows, got {len(x)}")
    if not len(x):
        return []
    with torch.inference_mode():
        scores = model.network(x)
    prediction, probability = decode(model.task, scores.numpy())
    target = scores.argmax(1) if scores.shape[1] > 1 else None
    found, missed = _integrated(model.network, x, target)
    names = model.task.features or _pixels(tuple(x.shape[1:]))
    return [
        Explanation(
            row,
            prediction[i],
            None if probability is None else round(float(probability[i]), 6),
            found[i].numpy(),
            _by_column(names, found[i]),
            float(missed[i]),
            x[i].numpy(),
        )
        for i, row in enumerate(rows)
    ]


def _integrated(network: nn.Module, x: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from captum.attr import IntegratedGradients  # costs seconds: loaded where it is asked for
    method = IntegratedGradients(network)
    found, missed = method.attribute(
        x,
        baselines=torch.zeros_like(x),
        target=target,
        n_steps=STEPS,
        internal_batch_size=max(len(x), 1024),
        return_convergence_delta=True,
    )
    return found.detach().float(), missed.detach().float()


def _by_column(names: Sequence[str], found: Tensor) -> dict[str, float]:
    sums: dict[str, float] = {}
    for name, value in zip(names, found.reshape(-1).tolist(), strict=True):
        sums[name] = sums.get(name, 0.0) + value
    return sums


def _pixels(shape: tuple[int, ...]) -> list[str]:
    return ["_".join(str(i) for i in index) for index in np.ndindex(*shape)]
