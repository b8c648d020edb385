"""`tacit-client audit --task HASH`: the trainer attacked through a package's own model.

It runs in a closed process, on made-up rows: before any approval.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from scipy import stats

from client.audit.audit import DELTA, one_thread, result, tested
from client.audit.canary import bounds, score, summary
from client.audit.check import BROKEN, Check, broken
from client.dpsgd.training import model_refusal, train
from client.dpsgd.trees import joined, mapped
from client.tasks.packages.examine import made_up_rows
from client.tasks.packages.package_task import package_task
from client.tasks.packages.product import product_changed
from client.tasks.rows import Rows
from client.tasks.task import Task
from privacy.accounting.epsilon import calibrate
from privacy.accounting.events import Event
from privacy.accounting.segments import Budget
from privacy.contract.plan import Plan
from privacy.mechanism.sensitivity import noise_std, slack
from privacy.task_package.archive import Package

_ROWS: Final = 40
_SLACK: Final = 1e-3
_TINY: Final = 1e-5
_ROUNDS, _STEPS, _RATE = 2, 5, 0.5
_CANARIES: Final = 4000


def audited(package: Package, request: Mapping[str, Any]) -> dict[str, Any]:
    """The audit as JSON; `request` holds epsilon and the package's options."""
    began, epsilon = time.monotonic(), float(request["epsilon"])
    learning = package_task(package, request["options"])
    event = Event("record", 1.0, 1.0, 1)
    with one_thread():
        refusal = model_refusal(learning, 0)
        examined = Check("the model keeps examples apart", 0.0, 0.0 if refusal else 1.0, refusal)
        checks, lower_bounds, more = [examined], (), dict[str, Any]()
        if not refusal:
            rows = made_up_rows(learning, _ROWS)
            for check in (_bounded, _noise_alone):
                try:
                    checks.append(check(learning, rows))
                except BROKEN as error:
                    checks.append(broken(check.__name__.strip("_").replace("_", " "), error))
            if not learning.x_shapes and learning.model(0)(rows.x).dim() == 2:
                lower_bounds, event, more = _canaries(learning, rows, epsilon)
        changed = learning.changed() or product_changed()
        checks.append(Check("the package changes nothing", 0.0, 0.0 if changed else 1.0, changed))
    return result(
        what=f"task package {package.code}",
        epsilon=epsilon,
        delta=DELTA,
        event=event,
        checks=(*checks, *tested(lower_bounds)),
        bounds=lower_bounds,
        seconds=time.monotonic() - began,
        seed=0,
        **more,
    )


def _plan(**changes: Any) -> Plan:
    plan = Plan(
        task="audit",
        sites=1,
        rounds=_ROUNDS,
        steps=1,
        rate=1.0,
        rows=_ROWS,
        lr=1.0,
        clip=1.0,
        sigma=1.0,
        delta=DELTA,
    )
    return replace(plan, **changes)


def _released(learning: Task, rows: Rows, sigma: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What one full step releases, as a sum: all trained parameters in one vector."""
    event = Event("record", sigma, 1.0, 1)
    done = train(
        learning.model(0), rows, learning, _plan(sigma=sigma), site="audit", event=event, round=1
    )
    named = [n for n, p in learning.model(0).named_parameters() if p.requires_grad]
    flat = np.concatenate([done.update[n].reshape(-1).astype(np.float64) for n in named])
    return flat * _ROWS


def _bounded(learning: Task, rows: Rows) -> Check:
    """One record more or less moves the released sum by at most the clip, whatever it holds."""
    worst = 0.0
    before = _released(learning, rows, _TINY)
    for scale in (1.0, 10.0, 1e3, 1e6, float("inf"), float("nan")):
        for at in range(3):

            def scaled(t: torch.Tensor, at: int = at, scale: float = scale) -> torch.Tensor:
                one = t[at : at + 1]
                return one * scale if one.is_floating_point() else one

            x = joined([rows.x, mapped(scaled, rows.x)])
            more = Rows(x, torch.cat([rows.y, rows.y[at : at + 1]]))
            moved = float(np.linalg.norm(_released(learning, more, _TINY) - before))
            worst = max(worst, moved if np.isfinite(moved) else 1e9)
    noise = _TINY * 2 * np.sqrt(len(before)) * 2
    p = 1.0 if worst <= 1 + _SLACK + noise else 0.0
    return Check("a record is bounded", worst, p, f"moves the sum by {worst:.4f} of the clip")


def _noise_alone(learning: Task, rows: Rows) -> Check:
    """Of no rows nothing but noise is released, at the claimed scale."""
    none = rows.take([])
    draws = np.concatenate([_released(learning, none, 1.3) for _ in range(16)])
    std = noise_std(1.3, 1.0, 1, slack(_ROWS))
    statistic = float((draws / std) @ (draws / std))
    p = 2 * min(stats.chi2.sf(statistic, len(draws)), stats.chi2.cdf(statistic, len(draws)))
    scale = float(draws.std() / std)
    return Check("noise of an empty sample", scale, float(min(p, 1.0)), f"{len(draws)} draws")


def _canaries(
    learning: Task, rows: Rows, epsilon: float
) -> tuple[tuple[Any, ...], Event, dict[str, Any]]:
    sigma = calibrate(Budget(epsilon, DELTA), rate=_RATE, steps=_ROUNDS * _STEPS)
    plan = _plan(sigma=sigma, rate=_RATE, steps=_STEPS, lr=0.5)
    event = plan.event("audit")
    if event is None:
        raise ValueError("the plan of the audit must be private")
    coins = np.random.default_rng()
    scored = score(learning, rows, plan, site="audit", count=_CANARIES, pay=_made_up, coins=coins)
    event = replace(event, count=_ROUNDS)
    return bounds(scored, event, epsilon, DELTA), event, {"canaries": summary(scored)}


def _made_up(event: Event, number: int) -> Event:
    """Made-up rows cost nobody's budget; a closed process could write no ledger anyway."""
    return event
