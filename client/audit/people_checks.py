"""Conformance of the unit "subject": a person is drawn as one, and counts once however many rows.

Each person of the probes has up to five rows. The checks are those of records, with people.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from client.audit.check import Check, Worst
from client.audit.probes import CLIP, Probe, Sums, flat, kinds, linear_loss, made_up, release
from client.audit.settings import ROWS_EACH, Setting
from client.dpsgd.private_metrics import paid_metrics
from client.tasks.losses import seeded
from client.tasks.rows import Rows
from privacy.audit.p_values import beyond

METRICS: Final = ("accuracy", "classes", "loss", "rows")
"""Every kind of paid metric."""
_TINY: Final = 1e-5  # noise beside which the sums are seen plainly
_SLACK: Final = 1e-3  # of the clip: rounding in float32
_SCALES: Final = (1.0, 1e20, math.nan)
_COUNT: Final = 400
_RATE: Final = 0.25


def a_person_is_bounded(device: str) -> Check:
    """A person with five rows, however monstrous, moves the released sum by at most the clip."""
    worst = Worst()
    for probe in kinds(20):
        people = _with_people(probe.rows)
        setting = Setting(sigma=_TINY, nominal=50, device=device, unit="subject")
        base = flat(release(Probe(probe.name, probe.model, people), setting))
        for scale in _SCALES:
            rows = _and_one_more(people, scale)
            moved = flat(release(Probe(probe.name, probe.model, rows), setting)) - base
            length, chance = beyond(moved, CLIP * (1 + _SLACK), math.sqrt(2) * _TINY)
            worst = worst.and_(chance, f"{probe.name}, {ROWS_EACH} rows x {scale:g}", length)
    return worst.check("a person is bounded", f"moved {worst.size:.4f} of the clip at most")


def sums_of_people_are_exact(device: str) -> Check:
    """The released sum is that of people's mean gradients, clipped one by one."""
    worst = Worst()
    for probe in kinds(23):
        person = Probe(probe.name, probe.model, _with_people(probe.rows))
        released = release(person, Setting(sigma=_TINY, nominal=20, device=device, unit="subject"))
        exact, count = _sum_by_person(person)
        rest = flat({name: released[name] - exact[name] for name in exact})
        length, chance = beyond(rest, CLIP * _SLACK * count, _TINY)
        worst = worst.and_(chance, probe.name, length / count)
    return worst.check("sums of people are exact", f"off by {worst.size:.2g} of the clip")


def people_are_drawn_whole(device: str) -> Check:
    """Each person is in a step's sample with probability `rate`, with all rows or with none."""
    count = _COUNT
    at = torch.arange(count).repeat_interleave(ROWS_EACH)
    rows = Rows(torch.eye(count)[at], torch.full((len(at),), 10.0 * CLIP), subject=at * 7 - 3)
    probe = Probe("one person a weight", _one_weight_each, rows)
    setting = Setting(sigma=_TINY, rate=_RATE, nominal=count, device=device, unit="subject")
    drawn, parts = [], 0
    for _ in range(8):
        shares = flat(release(probe, setting)) / CLIP
        inside = shares > 0.5
        drawn.append(int(inside.sum()))
        parts += int((np.abs(shares - inside) > 1e-2).sum())
    p = float(stats.binomtest(sum(drawn), count * len(drawn), _RATE).pvalue)
    spread = count * _RATE * (1 - _RATE)
    z = (np.array(drawn) - count * _RATE) / math.sqrt(spread)
    p = min(p, float(stats.chi2.sf(z @ z, len(z))), float(stats.chi2.cdf(z @ z, len(z))))
    detail = f"mean {np.mean(drawn):.1f} of {count} people at rate {_RATE}"
    if parts:
        detail += f"; {parts} counted other than once or never"
    return Check("people are drawn whole", float(parts), 0.0 if parts else min(1.0, 3 * p), detail)


def metrics_of_people_are_bounded(device: str) -> Check:
    """A person with five rows, however monstrous, adds to paid metrics what one unit may add."""
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(1))
    people = Rows(x, (x[:, 0] > 0).long(), subject=torch.arange(60) // 3)
    task = replace(
        made_up("metrics", lambda _: nn.Identity(), people, lambda outputs, y: outputs[:, 0] ** 2),
        kind="classification",
        classes=("a", "b"),
    )
    plan = replace(
        Setting(sigma=_TINY, unit="subject").plan,
        metrics=METRICS,
        metrics_sigma=_TINY,
    )

    def released(rows: Rows) -> NDArray[np.float64]:
        sums = paid_metrics(task.model(0), rows, task, plan, device=torch.device(device))
        scale = {"loss": plan.metrics_clip}
        return np.array([sums[name] / scale.get(name, 1.0) for name in sorted(sums)])

    worst, base, bound = Worst(), released(people), math.sqrt(len(METRICS))
    for scale in _SCALES:
        moved = released(_and_one_more(people, scale)) - base
        length, chance = beyond(moved, bound * (1 + _SLACK), math.sqrt(2) * bound * _TINY)
        worst = worst.and_(chance, f"{ROWS_EACH} rows x {scale:g}", length / bound)
    return worst.check("metrics of people are bounded", f"moved {worst.size:.4f} of their bound")


def _one_weight_each(seed: int) -> nn.Module:
    make: Callable[[int], nn.Module] = seeded(lambda: nn.Linear(_COUNT, 1, bias=False))
    return make(seed)


def _with_people(rows: Rows) -> Rows:
    """The rows as those of people with one to five rows each; some stay well below the clip."""
    each = torch.arange(1, ROWS_EACH + 1).repeat(len(rows))
    subject = torch.arange(len(each)).repeat_interleave(each)[: len(rows)]
    order = torch.arange(len(rows)) * 7 % len(rows) if len(rows) % 7 else torch.arange(len(rows))
    subject = subject[order]
    return Rows(rows.x, rows.y * 0.1 ** (subject % 4), subject=subject * 11 - 7)


def _and_one_more(people: Rows, scale: float) -> Rows:
    """The same people, and one more whose five rows are alike and all pull the same way."""
    if people.subject is None:
        raise ValueError("people must have subjects, got none")
    x = people.x[:1].repeat(ROWS_EACH, *[1] * (people.x.dim() - 1))
    y = torch.full((ROWS_EACH,), -4.0) * scale
    if not people.y.is_floating_point():  # a class: the monster is in the inputs
        x, y = torch.ones_like(x) * scale, torch.zeros(ROWS_EACH, dtype=people.y.dtype)
    one = torch.full((ROWS_EACH,), int(people.subject.max()) + 1)
    return Rows(
        torch.cat([people.x, x]), torch.cat([people.y, y]), subject=torch.cat([people.subject, one])
    )


def _sum_by_person(probe: Probe) -> tuple[Sums, int]:
    """The sum of the people's clipped mean gradients, by autograd in float64, and how many."""
    model, rows = copy.deepcopy(probe.model(0)).double(), probe.rows
    named = dict(model.named_parameters())
    total: Sums = {name: np.zeros(tuple(p.shape)) for name, p in named.items()}
    if rows.subject is None:
        raise ValueError("rows must have subjects, got none")
    x = rows.x if rows.x.dtype == torch.int64 else rows.x.double()
    people = rows.subject.unique()
    for person in people:
        at = rows.subject == person
        loss = linear_loss(model(x[at]), rows.y[at]).mean()
        gradients = torch.autograd.grad(loss, list(named.values()))
        norm = float(torch.cat([g.reshape(-1) for g in gradients]).norm())
        for name, g in zip(named, gradients, strict=True):
            total[name] += g.numpy() * min(1.0, CLIP / max(norm, 1e-12))
    return total, len(people)


PEOPLE_CHECKS: Final = (
    a_person_is_bounded,
    sums_of_people_are_exact,
    people_are_drawn_whole,
    metrics_of_people_are_bounded,
)
"""Each takes the device and gives one check."""
