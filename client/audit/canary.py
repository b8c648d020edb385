"""Canaries, planted and scored through the production trainer: what does a release betray?

A canary is a record whose gradient is the clip along a weight of its own, the worst that a record
can be. Half of them, by fair coins, are put among ordinary records; what training did to a canary's
weight is its score. Whatever is wrong with noise, clip, sampling or steps shows in the scores.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.audit.settings import ROWS_EACH
from client.dpsgd import training
from client.tasks.rows import Rows
from client.tasks.task import Task
from privacy.accounting.events import Event
from privacy.audit.bounds import Bound, Errors, auc, curve_bound, errors, one_run_bound
from privacy.contract.plan import Plan

SHARES: Final = (0.0, 0.5, 1.0)
"""Thresholds between the mean scores of canaries that were out (0) and in (1); fixed beforehand."""

_BASE: Final = 128  # of a canary's number in its three columns: whole in any type of input
_COLUMNS: Final = 3
MOST_CANARIES: Final = _BASE**_COLUMNS - 1
_GAIN: Final = 20.0  # clips: a canary's gradient before it is clipped


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """A canary's score and whether it was in; `mean` is the claimed mean score of those in.

    `mean` is None where the optimizer is not a plain sum of the steps.
    """

    scores: NDArray[np.float64]
    included: NDArray[np.bool_]
    mean: float | None


class WithCanaries(nn.Module):
    """A task's model beside one weight for each canary; outputs, own weight, "is a canary"."""

    def __init__(self, base: nn.Module, shape: tuple[int, ...], count: int) -> None:
        super().__init__()
        self.base = base
        self.shape = shape
        self.canary = nn.Embedding(count + 1, 1)
        nn.init.zeros_(self.canary.weight)

    def forward(self, x: Tensor) -> Tensor:
        digits = x[:, -_COLUMNS:].long()
        number = digits[:, 0] + _BASE * digits[:, 1] + _BASE**2 * digits[:, 2]
        number = number % self.canary.num_embeddings  # the trainer tries a model on any numbers
        outputs = self.base(x[:, :-_COLUMNS].reshape(-1, *self.shape)).flatten(1)
        is_canary = (number > 0).to(outputs.dtype)[:, None]
        weight = self.canary(number[:, None]).flatten(1)
        return torch.cat([outputs, weight, is_canary], 1)


def with_canaries(task: Task, count: int, clip: float) -> Task:
    """The task, its model widened by the canaries' weights, its loss pulling on them."""

    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        return torch.where(
            outputs[:, -1] > 0, -_GAIN * clip * outputs[:, -2], task.loss(outputs[:, :-2], y)
        )

    def model(seed: int) -> nn.Module:
        return WithCanaries(task.model(seed), task.shape, count)

    return replace(task, model=model, loss=loss, shape=(math.prod(task.shape) + _COLUMNS,))


def planted(rows: Rows, included: NDArray[np.bool_], *, people: bool = False) -> Rows:
    """The rows, and after them the canaries that are in; a canary's own features are zero.

    With `people` each canary is a person of five rows, who all pull on the same weight.
    """
    each = ROWS_EACH if people else 1
    numbers = (torch.from_numpy(np.flatnonzero(included)) + 1).repeat_interleave(each)
    digits = torch.stack([numbers // _BASE**i % _BASE for i in range(_COLUMNS)], 1)
    x = rows.x.reshape(len(rows), -1)
    real = torch.cat([x, x.new_zeros((len(x), _COLUMNS))], 1)
    canaries = torch.cat([x.new_zeros((len(numbers), x.shape[1])), digits.to(x.dtype)], 1)
    y = rows.y[:1].expand(len(numbers), *rows.y.shape[1:])
    subject = None
    if people and rows.subject is not None:
        _, real_people = rows.subject.unique(return_inverse=True)
        subject = torch.cat([real_people, len(real_people) + numbers])
    return Rows(torch.cat([real, canaries]), torch.cat([rows.y, y]), subject=subject)


def score(
    task: Task,
    rows: Rows,
    plan: Plan,
    *,
    site: str,
    count: int,
    rounds: int | None = None,
    pay: Callable[[Event, int], Event],
    device: str = "cpu",
    coins: np.random.Generator | None = None,
) -> Scored:
    """Train so many rounds of the plan at one site with `count` canaries; score each by its weight.

    In the unit "subject" each canary is a person of five rows.

    `pay` takes each round's event before it is trained and returns what the ledger holds. The
    coordinator is taken as one that hands back the model with this site's updates added: nothing
    that it does with released updates can change what they betray.
    """
    if not 0 < count <= MOST_CANARIES:
        raise ValueError(f"canaries: expected 1 to {MOST_CANARIES}, got {count}")
    clip = plan.clip or 0.0
    claimed = plan.event(site)
    if claimed is None or claimed.unit not in ("record", "subject"):
        raise ValueError(f"unit must be record or subject, got {plan.unit}")
    included = (coins or np.random.default_rng()).random(count) < 0.5
    learning = with_canaries(task, count, clip)
    model, among = learning.model(plan.seed), planted(rows, included, people=plan.unit == "subject")
    total = np.zeros(count)
    done = plan.rounds if rounds is None else rounds
    for number in range(1, done + 1):
        event = pay(claimed, number)
        trained = training.train(
            model, among, learning, plan, site=site, event=event, round=number, device=device
        )
        total += trained.update["canary.weight"][1:, 0].astype(np.float64)
    unit = plan.learning_rate * clip / plan.denominator(site)
    plain = plan.optimizer == "sgd" and plan.schedule == "constant" and not (plan.l2 or plan.mu)
    mean = claimed.rate * claimed.steps * claimed.count * done if plain else None
    return Scored(total / unit, included, mean)


def bounds(scored: Scored, claimed: Event, epsilon: float, delta: float) -> tuple[Bound, Bound]:
    """The one-run and the f-DP lower bound; `claimed` is everything that was trained, in one."""
    scores, included = scored.scores, scored.included
    error_counts, tested = _errors(scored), scored.mean is None
    one_run = one_run_bound(scores, included, epsilon=epsilon, delta=delta)
    steps = claimed.steps * claimed.count
    by_curve = curve_bound(
        error_counts, sigma=claimed.sigma, rate=claimed.rate, steps=steps, delta=delta
    )
    return one_run, replace(by_curve, name=by_curve.name + (", half of the canaries" * tested))


def _errors(scored: Scored) -> tuple[Errors, ...]:
    """Errors at thresholds fixed beforehand: by the claim, or else by the other half's scores."""
    if scored.mean is not None:
        thresholds: Sequence[float] = [share * scored.mean for share in SHARES]
        return errors(scored.scores, scored.included, thresholds)
    half = len(scored.scores) // 2
    first, included = scored.scores[:half], scored.included[:half]
    out, inside = float(first[~included].mean()), float(first[included].mean())
    thresholds = [out + share * (inside - out) for share in SHARES]
    return errors(scored.scores[half:], scored.included[half:], thresholds)


def summary(scored: Scored) -> dict[str, Any]:
    """The canaries in numbers, for the reader: how many, and how well each threshold told them."""
    return {
        "count": len(scored.scores),
        "included": int(scored.included.sum()),
        "auc": auc(scored.scores[scored.included], scored.scores[~scored.included]),
        "thresholds": [
            {
                "threshold": e.threshold,
                "false_positive_rate": e.false_in / e.out,
                "false_negative_rate": e.false_out / e.inside,
            }
            for e in _errors(scored)
        ],
    }
