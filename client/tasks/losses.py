"""The public half of learning that tasks share: seeded models, losses a row, metrics."""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional


def seeded(build: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    """Turn a model's builder into seed -> model; the global generator is left as it was."""

    def model(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # models are built on the CPU
            return build()

    return model


def linear(inputs: int, outputs: int) -> nn.Module:
    """Softmax (or plain) regression that starts at zero, so its first gradient is the data's."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def layered(inputs: int, hidden: tuple[int, ...], outputs: int) -> nn.Module:
    """`linear` after hidden layers with tanh, whose bounded activations suit clipped gradients."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.Tanh()]
        inputs = width
    last = linear(inputs, outputs)
    return nn.Sequential(*layers, last) if layers else last


def cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """-log p(y) of every row, from logits [B, C]: [B]."""
    return functional.cross_entropy(outputs, y, reduction="none")


def squared_error(outputs: Tensor, y: Tensor) -> Tensor:
    """(output - y)^2 of every row, from outputs [B, 1] or [B]: [B]."""
    return (outputs.reshape(len(y)) - y) ** 2


@lru_cache(maxsize=16)
def weighted(
    loss: Callable[[Tensor, Tensor], Tensor], weights: tuple[float, ...]
) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss per row [B] times the weight of the row's class: its gradient is clipped after that.

    `weights` [C] in 0..1 are public; y [B] are classes. Made once for each loss.
    """
    table_on = cache(torch.tensor(weights).to)  # copied to a device once: a copy waits for it

    def loss_by_class(outputs: Tensor, y: Tensor) -> Tensor:
        return loss(outputs, y) * table_on(outputs.device)[y]

    return loss_by_class


def classification_metrics(outputs: Tensor, y: Tensor) -> dict[str, float]:
    """Accuracy, precision, recall and F1 (of class 1 if two, macro if more) and mean loss.

    Balanced accuracy is the mean recall of the classes that occur.

    As scikit-learn has them, without what it costs to load it.
    """
    if not len(y):
        return {}
    count = outputs.shape[1]
    predictions = outputs.detach().argmax(1)
    pairs = torch.bincount(y * count + predictions, minlength=count * count)
    table = pairs.reshape(count, count).to(torch.float64)
    hits, predicted, true = table.diagonal(), table.sum(0), table.sum(1)
    classes = predicted + true > 0 if count > 2 else torch.arange(2) == 1
    return {
        "accuracy": float(hits.sum() / len(y)),
        "balanced_accuracy": _mean(hits / true, true > 0),
        "precision": _mean(hits / predicted, classes),
        "recall": _mean(hits / true, classes),
        "f1": _mean(2 * hits / (predicted + true), classes),
        "loss": float(cross_entropy(outputs.detach(), y).mean()),
    }


def _mean(shares: Tensor, classes: Tensor) -> float:
    """The mean over the classes kept; a share of nothing counts as zero."""
    return float(shares.nan_to_num(0.0)[classes].mean())


def regression_metrics(unit: float) -> Callable[[Tensor, Tensor], dict[str, float]]:
    """Metrics of a label mapped to -1..1 whose unit 1 is `unit` of the label: mse is unmapped."""

    def metrics(outputs: Tensor, y: Tensor) -> dict[str, float]:
        predictions = outputs.detach().reshape(len(y))
        if not len(y):
            return {}
        off = (predictions - y).to(torch.float64).square().sum()
        result = {"mse": float(off / len(y)) * unit * unit}
        if len(y) > 1:
            spread = (y - y.mean(dtype=torch.float64)).square().sum()
            result["r2"] = float(1 - off / spread) if spread > 0 else float(off == 0)
        return result | {"loss": float(squared_error(outputs.detach(), y).mean())}

    return metrics


def probabilities(outputs: Tensor) -> Tensor:
    """Logits [B, C] to probabilities [B, C]."""
    if outputs.dim() == 2 and outputs.shape[1] <= _FEW:
        return functional.softmax(outputs.t(), dim=0).t()
    return functional.softmax(outputs, dim=1)


_FEW: Final = 16
"""Classes up to which rows are worked on side by side: 2 classes take a fourth of the time."""
