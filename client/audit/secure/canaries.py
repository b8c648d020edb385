"""Canaries in secure aggregation: what does the sum betray, and what one site's masked reply?

The site trains with canaries among its records; as many other honest parties as the plan counts on
add their shares of the noise, and the rest of the parties adds nothing, as colluding ones may.
"""

import os
from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from client.audit.canary import Scored, planted, with_canaries
from client.dpsgd.training import clipped_sum
from client.dpsgd.weights import trained_of
from client.tasks.rows import Rows
from client.tasks.task import Task
from privacy.accounting.events import Event
from privacy.contract.plan import Plan
from privacy.secagg.masks import KEY_BYTES, Words, add_mask
from privacy.secagg.plan_ring import largest_batch, ring_of
from privacy.secagg.ring import Ring, by_name, in_order

_WEIGHT: Final = "canary.weight"


def score_sums(
    task: Task,
    rows: Rows,
    plan: Plan,
    *,
    count: int,
    rounds: int,
    pay: Callable[[Event, int], Event],
    device: str = "cpu",
    coins: np.random.Generator | None = None,
) -> tuple[Scored, Scored]:
    """Each canary's score in the sums of so many rounds, and in one site's masked replies.

    `pay` takes each round's event before it is computed and returns what the ledger holds.
    """
    claimed = plan.event("")
    if claimed is None or plan.clip is None or not plan.per_example:
        raise ValueError(f"unit must be record or subject, got {plan.unit}")
    included = (coins or np.random.default_rng()).random(count) < 0.5
    learning = with_canaries(task, count, plan.clip)
    model, among = learning.model(plan.seed), planted(rows, included, people=plan.unit == "subject")
    shapes = {name: tuple(p.shape) for name, p in trained_of(model).items()}
    size = sum(p.numel() for p in trained_of(model).values())
    ring, seen, hidden = ring_of(plan, size), np.zeros(count), np.zeros(count)
    expected = largest_batch(plan)
    for number in range(1, rounds + 1):
        event = pay(claimed, number)
        sums = clipped_sum(
            *(model, among, learning, plan), event=event, expected=expected, device=device
        )
        total = ring.share(in_order(sums))
        masked = total.copy()
        add_mask(masked, os.urandom(KEY_BYTES))  # as any mask that the others lack
        hidden -= _canaries(ring, masked, shapes, plan.clip)
        for _ in range(plan.shares - 1):
            total += ring.share(np.zeros(size))
        seen -= _canaries(ring, total, shapes, plan.clip)
        _step(model, by_name(ring.value(total), shapes), plan)
    mean = claimed.rate * rounds
    return Scored(seen, included, mean), Scored(hidden, included, mean)


def _canaries(
    ring: Ring, words: Words, shapes: dict[str, tuple[int, ...]], clip: float
) -> NDArray[np.float64]:
    values: NDArray[np.float64] = by_name(ring.value(words), shapes)[_WEIGHT][1:, 0] * (1 / clip)
    return values


def _step(model: torch.nn.Module, sums: dict[str, NDArray[np.float64]], plan: Plan) -> None:
    """The coordinator's step, at its learning rate."""
    rate = plan.learning_rate / largest_batch(plan)
    with torch.no_grad():
        for name, p in trained_of(model).items():
            p.sub_(torch.from_numpy(rate * sums[name]).to(p))
