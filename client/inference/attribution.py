"""Why this prediction: what each column added to the predicted class's score, by Captum.

Integrated gradients (Sundararajan et al. 2017); where the task computes features of its own, whose
gradients jump, sampled Shapley values of picture cells (Castro et al. 2009). Both are additive:
together they make the score less the score of a baseline. The baseline is public: a blank picture,
or the middle of a table's bounds, never a mean of anybody's rows. What such numbers cannot tell
stands in docs/explanations.md.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.inference.predictor import decode
from client.models.loading import Model, ModelError
from client.tasks.task import Task

STEPS: Final = 64
PERMUTATIONS: Final = 20
CELLS: Final = 7
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
    """Explain the prediction of each row; `rows` are their numbers.

    x [rows, ...] is encoded, or scaled columns where the task computes its features from them.
    """
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
    network = _whole(model.network, model.task)
    with torch.inference_mode():
        scores = network(x)
    prediction, probability = decode(model.task, scores.numpy())
    target = scores.argmax(1) if scores.shape[1] > 1 else None
    baseline = -1.0 if pictured(model.task) else 0.0
    ask = _integrated if model.task.front is None else _sampled
    attributions, missed = ask(network, x, target, baseline)
    names = _names(model.task, tuple(x.shape[1:]))
    return [
        Explanation(
            row,
            prediction[i],
            None if probability is None else round(float(probability[i]), 6),
            attributions[i].numpy(),
            _by_column(names, attributions[i]),
            float(missed[i]),
            x[i].numpy(),
        )
        for i, row in enumerate(rows)
    ]


def pictured(task: Task) -> bool:
    """Whether the task's columns are the pixels of a square picture."""
    count = len(task.inputs)
    square = math.isqrt(count) ** 2 == count
    return square and all(name.startswith("pixel") for name in task.inputs)


def _whole(network: nn.Module, task: Task) -> nn.Module:
    """The network behind the task's own public first step, where it has one."""
    return network if task.front is None else _Fronted(task.front, network)


class _Fronted(nn.Module):
    def __init__(self, front: Callable[[Tensor], Tensor], network: nn.Module) -> None:
        super().__init__()
        self.front, self.network = front, network

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.network(self.front(x))
        return outputs


def _names(task: Task, shape: tuple[int, ...]) -> Sequence[str]:
    """The column behind each number of a row."""
    if task.front is not None:
        return task.inputs
    return task.features or ["_".join(str(i) for i in index) for index in np.ndindex(*shape)]


def _integrated(
    network: nn.Module, x: Tensor, target: Tensor | None, baseline: float
) -> tuple[Tensor, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from captum.attr import IntegratedGradients  # costs seconds: loaded where it is asked for
    method = IntegratedGradients(network)
    attributions, missed = method.attribute(
        x,
        baselines=torch.full_like(x, baseline),
        target=target,
        n_steps=STEPS,
        internal_batch_size=max(len(x), 1024),
        return_convergence_delta=True,
    )
    return attributions.detach().float(), missed.detach().float()


def _sampled(
    network: nn.Module, x: Tensor, target: Tensor | None, baseline: float
) -> tuple[Tensor, Tensor]:
    """Shapley values of cells, a cell's shared out evenly over its pixels; nothing is missed."""
    from captum.attr import ShapleyValueSampling

    cells = _cells(x.shape[1])
    sizes = torch.bincount(cells)[cells].float()
    method = ShapleyValueSampling(network)
    attributions = []
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for i in range(len(x)):
            values = method.attribute(
                x[i : i + 1],
                baselines=baseline,
                target=None if target is None else target[i : i + 1],
                feature_mask=cells[None],
                n_samples=PERMUTATIONS,
                perturbations_per_eval=64,
            )
            attributions.append(values / sizes)
    return torch.cat(attributions).float(), torch.zeros(len(x))


def _cells(columns: int) -> Tensor:
    """The cell of each column: squares of a picture, CELLS by CELLS of them; else its own."""
    side = math.isqrt(columns)
    if side * side != columns or side <= CELLS:
        return torch.arange(columns)
    place = torch.arange(side) * CELLS // side
    return (place[:, None] * CELLS + place[None]).reshape(-1)


def _by_column(names: Sequence[str], attributions: Tensor) -> dict[str, float]:
    sums: dict[str, float] = {}
    for name, value in zip(names, attributions.reshape(-1).tolist(), strict=True):
        sums[name] = sums.get(name, 0.0) + value
    return sums
