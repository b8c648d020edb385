"""Metrics on private rows, paid for: clipped sums with Gaussian noise, one release a round.

Every record's part is a whole number of public units, so that the sums are exact integers: counts
in ones, losses in 2^-20 of `metrics_clip`.
"""

import math
from typing import Final

import numpy as np
import torch
from torch import nn

from client.dpsgd.trees import mapped
from client.tasks.rows import Rows
from client.tasks.task import Task
from privacy.contract.plan import Plan
from privacy.mechanism import noise
from privacy.mechanism.sensitivity import noise_std

_CHUNK: Final = 4096
_LOSS_STEPS: Final = 2.0**20


def paid_metrics(
    model: nn.Module, rows: Rows, task: Task, plan: Plan, *, device: torch.device
) -> dict[str, float]:
    """Noisy sums over all rows of what `plan.metrics` names: loss, accuracy, rows, classes.

    One record adds at most 1 to each of the k named kinds (loss over `metrics_clip`, a hit, a 1,
    the one-hot class), a vector of L2 norm at most sqrt(k), so that one Gaussian release at
    `metrics_sigma` pays for all of them together. Counts are multiples of the noise's public grid,
    losses of `metrics_clip` times it.
    """
    sums: dict[str, float] = {}
    model.eval()
    with torch.no_grad():
        for first in range(0, max(len(rows), 1), _CHUNK):
            part = rows.take(np.arange(first, min(first + _CHUNK, len(rows))))
            for name, value in _sums(model, part, task, plan, device).items():
                sums[name] = sums.get(name, 0.0) + value
    names = sorted(sums)
    sigma = plan.metrics_sigma
    if sigma is None:
        raise ValueError("metrics_sigma: must be a number where metrics are paid, got nothing")
    noisy = np.array([sums[name] for name in names], dtype=np.float64)
    bound = math.sqrt(len(plan.metrics))
    noise.privatise(noisy, noise_std(sigma, bound, len(names)))
    scale = {"loss": plan.metrics_clip}
    return {
        name: float(value) * scale.get(name, 1.0) for name, value in zip(names, noisy, strict=True)
    }


def _sums(
    model: nn.Module, rows: Rows, task: Task, plan: Plan, device: torch.device
) -> dict[str, float]:
    """The un-noised sums of some rows, each record's part in 0..1; exact in float64."""
    y = rows.y.to(device)
    outputs = model(mapped(lambda t: t.to(device), rows.x))
    sums: dict[str, float] = {}
    if "loss" in plan.metrics:
        losses = torch.nan_to_num(task.loss(outputs, y), nan=plan.metrics_clip)
        parts = losses.double().clamp(0, plan.metrics_clip) / plan.metrics_clip
        sums["loss"] = float((parts * _LOSS_STEPS).round().sum() / _LOSS_STEPS)
    if "rows" in plan.metrics:
        sums["rows"] = float(len(rows))
    if task.kind == "classification":
        if "accuracy" in plan.metrics:
            sums["accuracy"] = float((outputs.argmax(1) == y).sum())
        if "classes" in plan.metrics:
            counts = torch.bincount(y, minlength=len(task.classes))
            for name, count in zip(task.classes, counts.tolist(), strict=True):
                sums[f"class {name}"] = float(count)
    return sums
