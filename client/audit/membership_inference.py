"""Membership inference for the reader's intuition: who was in, told from the released model alone.

Records with random labels leave nothing to learn but the records themselves, so a model trained
without privacy knows them by heart: the attacker asks for each record's loss and calls the lowest
members (Yeom et al. 2018). It proves nothing: the bounds of the canaries are far sharper.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch

from client.audit.probes import made_up
from client.dpsgd import training
from client.tasks.losses import cross_entropy, layered, seeded
from client.tasks.rows import Rows
from privacy.accounting.events import Event
from privacy.audit.bounds import auc, tpr_at
from privacy.contract.plan import Plan

FPR: Final = 1e-3
_MEMBERS: Final = 1000
_OTHERS: Final = 4000
_WIDTH: Final = 96
_CLASSES: Final = 100


@dataclass(frozen=True, slots=True)
class Attack:
    """How well the attack tells members from others: AUC 0.5 and TPR = FPR are guessing."""

    auc: float
    tpr: float
    fpr: float


def attack(event: Event | None, *, device: str = "cpu") -> Attack:
    """Train on made-up members, with `event` or without privacy, and attack the model."""
    source = torch.Generator().manual_seed(3)
    x = torch.randn((_MEMBERS + _OTHERS, _WIDTH), generator=source)
    y = torch.randint(_CLASSES, (_MEMBERS + _OTHERS,), generator=source)
    members = Rows(x[:_MEMBERS], y[:_MEMBERS])
    task = made_up(
        "membership", seeded(lambda: layered(_WIDTH, (64,), _CLASSES)), members, cross_entropy
    )
    plan = Plan(
        sites=1,
        task="membership",
        rounds=1,
        steps=100,
        rate=0.25,
        rows=_MEMBERS,
        lr=1.0,
        optimizer="momentum",
        unit="none",
    )
    if event is not None:
        plan = replace(
            plan, unit="record", clip=1.0, sigma=event.sigma, rate=event.rate, delta=1e-5
        )
    model = task.model(0)
    training.train(model, members, task, plan, site="audit", event=event, round=1, device=device)
    model.eval()
    with torch.no_grad():
        losses = cross_entropy(model(x.to(device)), y.to(device)).cpu().numpy().astype(np.float64)
    inside, outside = -losses[:_MEMBERS], -losses[_MEMBERS:]
    return Attack(auc(inside, outside), tpr_at(inside, outside, FPR), FPR)
