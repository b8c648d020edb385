"""Why this prediction: what each column added to the predicted class's score, by Captum.

Integrated gradients (Sundararajan et al. 2017); where the task computes features of its own, whose
gradients jump, sampled Shapley values of picture cells (Castro et al. 2009). Both are additive:
together they make the score less the score of a baseline. The baseline is public: a blank picture,
or the middle of a table's bounds, never a mean of anybody's rows. Where a row holds ids, as words,
no gradient leads to them: there each is replaced by 0 in turn (Zeiler & Fergus 2014), which is not
additive. What such numbers cannot tell stands in docs/explanations.md.
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

from client.dpsgd.trees import tensors
from client.inference.decoded_columns import columns, leaves
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
    integration in steps, or replacing one id at a time, left over of the exact sum. `contributions`
    have the form of `x`, and both are None where a row is several arrays. `target` is the position
    of the output that they add up to, where a row has several.
    """

    row: int
    prediction: Any
    probability: float | None
    contributions: NDArray[np.float32] | None
    columns: dict[str, float]
    missed: float
    x: NDArray[np.float32] | None
    target: int | None = None

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


def explain(model: Model, x: Any, rows: Sequence[int]) -> list[Explanation]:
    """Explain the prediction of each row; `rows` are their numbers.

    x [rows, ...] is encoded (a tensor, or several by name), or scaled columns where the task
    computes its features from them. What is explained is one number a row: the score of the class,
    the value, the log-rate of a count, the first of several outputs, or the time that is survived.
    """
    if model.network is None:
        raise ModelError(
            f"{model.path}: explanations need gradients: expected a checkpoint or .safetensors file"
        )
    task = model.task
    if task.kind == "tokens":
        raise ModelError(f"{model.path}: a sequence of tokens has no one score to explain")
    parts = tensors(x)
    if len(parts[0]) > MOST:
        raise ModelError(f"explain: expected at most {MOST} rows, got {len(parts[0])}")
    if not len(parts[0]):
        return []
    network = _whole(model.network, task)
    with torch.inference_mode():
        outputs = network(x)
        found = columns(task, outputs)
    target = _target(task, outputs)
    scored = _Scored(network, task, x, target)
    baseline = -1.0 if pictured(task) else 0.0
    if not all(part.is_floating_point() for part in parts):
        ask = _replaced
    else:
        ask = _integrated if task.front is None else _sampled
    attributions, missed = ask(scored, parts, baseline)
    names = list(x) if isinstance(x, dict) else [""]
    single = attributions[0] if len(parts) == 1 else None
    labels = [_names(task, tuple(p.shape[1:]), name) for p, name in zip(parts, names, strict=True)]
    prediction = next(iter(found.values())).to_pylist()
    probability = found["probability"].to_pylist() if "probability" in found else None
    return [
        Explanation(
            row,
            prediction[i],
            None if probability is None else probability[i],
            None if single is None else single[i].numpy(),
            _by_column(labels, [one[i] for one in attributions]),
            float(missed[i]),
            None if single is None else parts[0][i].float().numpy(),
            None if target is None else int(target[i]),
        )
        for i, row in enumerate(rows)
    ]


def _target(task: Task, outputs: Any) -> Tensor | None:
    """Which output of each row is explained; None where all of them make one number."""
    first = next(iter(leaves(outputs).values())).reshape(len(tensors(outputs)[0]), -1)
    if task.kind in ("classification", "multi-label") and first.shape[1] > 1:
        return first.argmax(1)
    return None


class _Scored(nn.Module):
    """The network with one number a row, and the arrays of a row as arguments of their own."""

    def __init__(self, network: nn.Module, task: Task, x: Any, target: Tensor | None) -> None:
        super().__init__()
        self.network, self.task, self.target = network, task, target
        self.names = tuple(x) if isinstance(x, dict) else None

    def forward(self, *given: Tensor) -> Tensor:
        count = len(tensors(given)[0])
        arrays = given if self.target is None else given[:-1]
        x = arrays[0] if self.names is None else dict(zip(self.names, arrays, strict=True))
        outputs = self.network(x)
        if self.task.kind == "survival":
            time: Tensor = self.task.decode(outputs).sum(1)
            return time
        flat = next(iter(leaves(outputs).values())).reshape(count, -1)
        if self.target is not None:
            return flat.gather(1, given[-1].reshape(-1, 1))[:, 0]
        return flat.sum(1) if self.task.kind == "ordinal" else flat[:, 0]

    @property
    def further(self) -> tuple[Tensor, ...]:
        """What is given beside the arrays, row by row."""
        return () if self.target is None else (self.target,)


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


def _names(task: Task, shape: tuple[int, ...], name: str) -> Sequence[str]:
    """The column behind each number of a row."""
    if task.front is not None:
        return task.inputs
    if task.features:
        return task.features
    places = ["_".join(str(i) for i in index) for index in np.ndindex(*shape)]
    return [f"{name}_{place}".rstrip("_") for place in places] if name else places


def _integrated(
    network: _Scored, parts: Sequence[Tensor], baseline: float
) -> tuple[list[Tensor], Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from captum.attr import IntegratedGradients  # costs seconds: loaded where it is asked for
    method = IntegratedGradients(network)
    attributions, missed = method.attribute(
        tuple(parts),
        baselines=tuple(torch.full_like(part, baseline) for part in parts),
        additional_forward_args=network.further or None,
        n_steps=STEPS,
        internal_batch_size=max(len(parts[0]), 1024),
        return_convergence_delta=True,
    )
    return [one.detach().float() for one in attributions], missed.detach().float()


def _sampled(
    network: _Scored, parts: Sequence[Tensor], baseline: float
) -> tuple[list[Tensor], Tensor]:
    """Shapley values of cells, a cell's shared out evenly over its pixels; nothing is missed."""
    from captum.attr import ShapleyValueSampling

    x = parts[0]
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
                additional_forward_args=tuple(one[i : i + 1] for one in network.further) or None,
                feature_mask=cells[None],
                n_samples=PERMUTATIONS,
                perturbations_per_eval=64,
            )
            attributions.append(values / sizes)
    return [torch.cat(attributions).float()], torch.zeros(len(x))


def _replaced(
    network: _Scored, parts: Sequence[Tensor], baseline: float
) -> tuple[list[Tensor], Tensor]:
    """What the score loses when one number of a row is replaced by 0, each for itself."""
    count = len(parts[0])
    with torch.inference_mode():
        whole = network(*parts, *network.further)
        found = []
        for at, part in enumerate(parts):
            flat = part.reshape(count, -1)
            losses = torch.zeros(flat.shape)
            for place in range(flat.shape[1]):
                changed = flat.clone()
                changed[:, place] = 0
                others = [*parts[:at], changed.reshape(part.shape), *parts[at + 1 :]]
                losses[:, place] = whole - network(*others, *network.further)
            found.append(losses.reshape(part.shape))
        blank = network(*(torch.zeros_like(part) for part in parts), *network.further)
    total = torch.stack([one.reshape(count, -1).sum(1) for one in found]).sum(0)
    return found, total - (whole - blank)


def _cells(columns: int) -> Tensor:
    """The cell of each column: squares of a picture, CELLS by CELLS of them; else its own."""
    side = math.isqrt(columns)
    if side * side != columns or side <= CELLS:
        return torch.arange(columns)
    place = torch.arange(side) * CELLS // side
    return (place[:, None] * CELLS + place[None]).reshape(-1)


def _by_column(names: Sequence[Sequence[str]], attributions: Sequence[Tensor]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for some, values in zip(names, attributions, strict=True):
        for name, value in zip(some, values.reshape(-1).tolist(), strict=True):
            sums[name] = sums.get(name, 0.0) + value
    return sums
