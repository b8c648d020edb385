"""Metrics on private rows, paid for: clipped sums with Gaussian noise, one release a round.

Every record's part, or every person's where the person is the unit, is a whole number of public
steps of 2^-20, so that the sums are exact integers.
"""

import math
from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from client.dpsgd.people import Group, People
from client.dpsgd.trees import mapped
from client.tasks.rows import Rows
from client.tasks.task import Task
from privacy.contract.plan import Plan
from privacy.mechanism import noise
from privacy.mechanism.sensitivity import noise_std

_CHUNK: Final = 4096
_STEPS: Final = 2.0**20


def paid_metrics(
    model: nn.Module, rows: Rows, task: Task, plan: Plan, *, device: torch.device
) -> dict[str, float]:
    """Noisy sums over all units of what `plan.metrics` names: loss, accuracy, rows, classes.

    One record adds at most 1 to each of the k named kinds (loss over `metrics_clip`, a hit, a 1,
    the one-hot class), a vector of L2 norm at most sqrt(k), so that one Gaussian release at
    `metrics_sigma` pays for all of them together. A person adds the mean of what their rows would
    add, at most `plan.rows_per_subject` of them, which is no longer; `rows` so counts people.
    Counts are multiples of the noise's public grid, losses of `metrics_clip` times it.
    """
    sums: dict[str, float] = {}
    model.eval()
    with torch.no_grad():
        for part, group in _chunks(rows, plan):
            for name, value in _sums(model, part, group, task, plan, device).items():
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


def _chunks(rows: Rows, plan: Plan) -> Iterator[tuple[Rows, Group | None]]:
    """The rows some thousands at a time, whole people together; at least one part, maybe empty."""
    if plan.unit != "subject":
        for first in range(0, max(len(rows), 1), _CHUNK):
            yield rows.take(np.arange(first, min(first + _CHUNK, len(rows)))), None
        return
    people = People.of(rows.subject, plan.rows_per_subject, len(rows))
    for drawn in torch.arange(len(people)).split(max(1, _CHUNK // max(1, people.rows.shape[1]))):
        at, group = people.take(drawn)
        yield rows.take(at.numpy()), group


def _sums(
    model: nn.Module, rows: Rows, group: Group | None, task: Task, plan: Plan, device: torch.device
) -> dict[str, float]:
    """The un-noised sums of some rows or people, the part of each in 0..1; exact in float64."""
    y = rows.y.to(device)
    outputs = model(mapped(lambda t: t.to(device), rows.x))
    parts: dict[str, Tensor] = {}
    if "loss" in plan.metrics:
        losses = torch.nan_to_num(task.loss(outputs, y), nan=plan.metrics_clip)
        parts["loss"] = losses.double().clamp(0, plan.metrics_clip) / plan.metrics_clip
    if "rows" in plan.metrics:
        parts["rows"] = torch.ones(len(rows), dtype=torch.float64)
    if task.kind == "classification":
        if "accuracy" in plan.metrics:
            parts["accuracy"] = (outputs.argmax(1) == y).double()
        if "classes" in plan.metrics:
            for number, name in enumerate(task.classes):
                parts[f"class {name}"] = (y == number).double()
    return {name: _exact_sum(part.cpu(), group) for name, part in parts.items()}


def _exact_sum(parts: Tensor, group: Group | None) -> float:
    """The sum of the rows' parts in 0..1, or of people's means, each rounded down to a step."""
    if group is not None:
        parts = (parts[group.at] * group.real).sum(1) / group.real.sum(1)
    return float((parts * _STEPS).floor().sum() / _STEPS)
