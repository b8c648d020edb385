"""Metrics on private rows, paid for: clipped sums with Gaussian noise, one release a round."""

import math

import numpy as np
import torch
from torch import nn

from client.tasks.rows import Rows
from client.tasks.task import Task
from privacy.contract.plan import Plan
from privacy.mechanism import noise

_CHUNK = 4096


def paid_metrics(
    model: nn.Module, rows: Rows, task: Task, plan: Plan, *, device: torch.device
) -> dict[str, float]:
    """Noisy sums over all rows of what `plan.metrics` names: loss, accuracy, rows, classes.

    One record adds a vector of L2 norm at most 1: each of the k named kinds at most 1/sqrt(k) (loss
    clipped to `metrics_clip`, a hit, a 1, the one-hot class), so that one Gaussian release at
    `metrics_sigma` pays for all of them together.
    """
    share = 1 / math.sqrt(len(plan.metrics))
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
        raise ValueError("metrics_sigma: expected noise for paid metrics")
    drawn = noise.normal((len(names),), sigma)
    scale = {"loss": plan.metrics_clip}
    return {
        name: float((sums[name] * share + drawn[i]) / share * scale.get(name, 1.0))
        for i, name in enumerate(names)
    }


def _sums(
    model: nn.Module, rows: Rows, task: Task, plan: Plan, device: torch.device
) -> dict[str, float]:
    """The un-noised sums of some rows, each record's part in 0..1."""
    y = rows.y.to(device)
    outputs = model(rows.x.to(device))
    sums: dict[str, float] = {}
    if "loss" in plan.metrics:
        losses = torch.nan_to_num(task.loss(outputs, y), nan=plan.metrics_clip)
        sums["loss"] = float((losses.clamp(0, plan.metrics_clip) / plan.metrics_clip).sum())
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
