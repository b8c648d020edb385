"""Conformance of whole replies: what leaves through the door is what this site's ledger paid for.

A made-up table is trained on as a coordinator would ask for it, through `client.app.answer`, and
compared with a ledger file that is opened again. Each record is a column of its own, and the clip
is far below every gradient, so that a release shows the steps in which a record was drawn.
"""

import json
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from flwr.app import ConfigRecord, RecordDict
from numpy.typing import NDArray

from client.app import answer
from client.audit.check import Check
from client.audit.people_checks import METRICS
from client.dpsgd.weights import shapes
from client.reply import REPLY, carried
from client.round_request import ARRAYS, REQUEST, STYPE
from client.site import Site
from client.tasks.registry import task_of
from client.tasks.rows import Rows
from privacy.accounting.events import Event
from privacy.arrays import Arrays, decode, encode
from privacy.audit.p_values import beyond, chi_square
from privacy.contract.plan import Plan
from privacy.contract.policy import Policy
from privacy.ledger.ledger import Ledger
from privacy.mechanism.sensitivity import noise_std, slack

_WIDTH: Final = 24  # records, and columns
_TINY: Final = 1e-4  # noise beside which the steps are seen plainly
_CLIP: Final = 0.01
_RATE: Final = 0.5
_SIGMA: Final = 1.7
_ANSWERS: Final = 60
_SCHEMA: Final = "\n".join(
    [
        'label = "y"',
        "[columns.y]",
        'type = "category"',
        'values = ["a", "b"]',
        *(f'[columns.c{i}]\ntype = "number"\nmin = -1\nmax = 1' for i in range(_WIDTH)),
    ]
)


@dataclass(frozen=True, slots=True)
class _Answered:
    """A reply: the change of every weight, and the other fields."""

    update: Arrays
    fields: dict[str, Any]


def replies_are_paid_for(device: str) -> Check:
    """The ledger that a reply leaves behind holds the noise and the steps that the reply shows."""
    with _site(device) as (site, ledger):
        p, details = 1.0, []
        for number, steps in enumerate((1, 4, 9), 1):
            plan = _plan(sigma=_TINY, steps=steps, rate=1.0)
            before = _paid(ledger())
            seen = _steps(_ask(site, plan, number), plan)
            paid = _paid(ledger()) - before
            _, chance = beyond(seen - paid, 1e-2 * paid, _TINY * 4 * math.sqrt(paid or 1))
            p = min(p, chance)
            details.append(f"{float(seen.mean()):.2f} steps seen, {paid} paid")
        plan = _plan(sigma=_SIGMA, steps=3, rate=1e-3)
        z = []
        for number in range(4, 34):
            answered = _ask(site, plan, number)
            sigma = ledger()[-1].sigma
            over = plan.denominator(site.name)
            std = (
                noise_std(sigma, _CLIP, 1, slack(over))
                * math.sqrt(plan.steps)
                * plan.learning_rate
                / over
            )
            z.append(answered.update["weight"].reshape(-1) / std)
        noises = np.concatenate(z)
        square = float(noises @ noises)
        ratio = math.sqrt(square / len(noises))
        p = min(p, chi_square(square, len(noises)))
        details.append(f"noise {ratio:.3f} of what was paid")
    return Check("replies are paid for", ratio, min(1.0, 4 * p), "; ".join(details))


def paid_metrics_are_noised(device: str) -> Check:
    """Metrics on private rows bear the noise that their own event says, on its public grid."""
    with _site(device) as (site, ledger):
        plan = _plan(sigma=5.0, steps=1, rate=_RATE, metrics=METRICS, metrics_sigma=_SIGMA)
        factor = math.sqrt(len(METRICS))
        z: dict[str, list[float]] = {name: [] for name in _exact(plan)}
        for number in range(1, _ANSWERS + 1):
            released = json.loads(_ask(site, plan, number).fields["metrics"])
            std = ledger()[-1].sigma * factor
            for name, (exact, scale) in _exact(plan).items():
                z[name].append((released[name] / scale - exact) / std)
        paid = sum(1 for event in ledger() if event.sigma == _SIGMA and event.rate == 1.0)
    square = {name: float(np.square(numbers).sum()) for name, numbers in z.items()}
    worst, chance = min(
        ((name, chi_square(total, _ANSWERS)) for name, total in square.items()),
        key=lambda one: one[1],
    )
    numbers = np.concatenate(list(z.values()))
    repeated = len(np.unique(np.round(numbers, 9))) < 0.5 * len(numbers)  # some share a grid point
    p = 0.0 if repeated or not paid else min(1.0, len(z) * chance)
    ratio = math.sqrt(square[worst] / _ANSWERS)
    detail = (
        f"{ratio:.3f} of the paid noise in {_ANSWERS} numbers of {worst}, the worst of {len(z)}"
    )
    return Check("paid metrics are noised", ratio, p, detail)


def _exact(plan: Plan) -> dict[str, tuple[float, float]]:
    """What each metric is without noise, of weights that are all 0, and its unit."""
    half = _WIDTH / 2
    return {
        "rows": (_WIDTH, 1.0),
        "accuracy": (half, 1.0),  # every output is equal: the first class is predicted
        "class a": (half, 1.0),
        "class b": (half, 1.0),
        "loss": (_WIDTH * math.log(2) / plan.metrics_clip, plan.metrics_clip),
    }


def _plan(*, sigma: float, steps: int, rate: float, **more: Any) -> Plan:
    return Plan(
        task="table",
        schema=_SCHEMA,
        sites=1,
        rounds=100,
        rate=rate,
        rows=_WIDTH,
        lr=1.0,
        clip=_CLIP,
        sigma=sigma,
        delta=1e-5,
        steps=steps,
        **more,
    )


@contextmanager
def _site(device: str) -> Iterator[tuple[Site, Callable[[], tuple[Event, ...]]]]:
    """A site with made-up rows, and what its ledger's file holds, entry by entry."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "audit.jsonl"
        ledger = Ledger.create(path, population="audit", durable=False)
        policy = Policy(
            epsilon=math.inf,
            delta=1e-5,
            min_sigma=0.0,
            approve="within-limits",
            outputs=("update", *METRICS),
        )
        x = torch.eye(_WIDTH)
        y = torch.arange(_WIDTH) % 2
        site = Site(
            "audit",
            policy,
            ledger,
            lambda task: Rows(x, y),
            check_head=lambda head: False,
            device=torch.device(device),
        )
        yield site, lambda: tuple(one.event for one in Ledger.open(path).entries())


def _paid(events: tuple[Event, ...]) -> int:
    return sum(event.steps * event.count for event in events)


def _ask(site: Site, plan: Plan, number: int) -> _Answered:
    learning = task_of(plan)
    expected = shapes(learning, plan.seed)
    blob = encode({name: np.zeros(shape, np.float32) for name, shape in expected.items()})
    request = ConfigRecord(
        {"run": "audit", "round": number, "site": site.name, "plan": plan.to_json()}
    )
    reply = answer(
        site,
        RecordDict({ARRAYS: carried("weights", blob, STYPE), REQUEST: request}),
    )
    fields = dict(reply.config_records[REPLY])
    if fields["status"] != "trained":
        raise RuntimeError(f"the site answered {fields['status']!s}: {fields['reason']!s}")
    data = reply.array_records[ARRAYS]["update"].data
    return _Answered(decode(data, expected, plan.wire), fields)


def _steps(answered: _Answered, plan: Plan) -> NDArray[np.float64]:
    """In how many steps each record was drawn: a draw moves its own weights by half the clip."""
    moved = answered.update["weight"].astype(np.float64)
    sign = np.where(np.arange(_WIDTH) % 2 == 0, 1.0, -1.0)
    unit = 0.5 * _CLIP * plan.learning_rate / plan.denominator("audit")
    steps: NDArray[np.float64] = (moved[0] - moved[1]) / 2 * sign / unit
    return steps


REPLY_CHECKS: Final[tuple[Callable[[str], Check], ...]] = (
    replies_are_paid_for,
    paid_metrics_are_noised,
)
"""Each takes the device."""
