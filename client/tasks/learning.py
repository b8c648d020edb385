"""The public half of learning that tasks share: seeded models, losses a row, metrics."""

from collections.abc import Callable
from typing import Any

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


def classification_metrics(outputs: Tensor, y: Tensor) -> dict[str, float]:
    """Accuracy, precision, recall and F1 (of class 1 if two, macro if more) and mean loss."""
    from torchmetrics.functional import classification as scores  # it loads a plotting library

    if not len(y):
        return {}
    count = outputs.shape[1]
    found = outputs.detach().argmax(1)
    how: dict[str, Any] = (
        {"task": "binary"}
        if count == 2
        else {"task": "multiclass", "num_classes": count, "average": "macro"}
    )
    return {
        "accuracy": float(scores.multiclass_accuracy(found, y, count, average="micro")),
        "precision": float(scores.precision(found, y, **how)),
        "recall": float(scores.recall(found, y, **how)),
        "f1": float(scores.f1_score(found, y, **how)),
        "loss": float(cross_entropy(outputs.detach(), y).mean()),
    }


def regression_metrics(unit: float) -> Callable[[Tensor, Tensor], dict[str, float]]:
    """Metrics of a label mapped to -1..1 whose unit 1 is `unit` of the label: mse is unmapped."""

    def metrics(outputs: Tensor, y: Tensor) -> dict[str, float]:
        from torchmetrics.functional import regression as errors

        found = outputs.detach().reshape(len(y))
        if not len(y):
            return {}
        result = {"mse": float(errors.mean_squared_error(found, y)) * unit * unit}
        if len(y) > 1:
            result["r2"] = float(errors.r2_score(found, y))
        return result | {"loss": float(squared_error(outputs.detach(), y).mean())}

    return metrics


def probabilities(outputs: Tensor) -> Tensor:
    """Logits [B, C] to probabilities [B, C]."""
    return functional.softmax(outputs, dim=1)
