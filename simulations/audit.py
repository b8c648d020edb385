"""An audit of a task and plan: canaries among a site's own rows, or canary clients among sites.

The record unit is attacked at its first site, through the production trainer. The client unit is
attacked at the coordinator's own rounds, by clients that send the clip in a random direction
(Andrew et al. 2023). Nothing is paid from any ledger but a throw-away one.
"""

import math
import secrets
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from client.audit.audit import one_thread, result, settings_of, tested, through_ledger
from client.audit.canary import Scored, bounds, summary
from client.audit.check import Check
from client.audit.conformance import conform
from client.tasks.registry import task_of
from privacy.accounting.epsilon import spent
from privacy.accounting.events import Event
from privacy.audit.bounds import normals_epsilon
from privacy.contract.plan import Plan, PlanError
from privacy.ledger.ledger import Ledger
from server.evaluation import initial_weights
from server.rounds.aggregation import Update, combine, start
from simulations.dataset import prepare

_MANY: Final = 20_000
_FEW: Final = 4_000  # where a record is large: every canary passes through the whole model
_SMALL: Final = 256  # numbers in a record
_CLIENTS: Final = 10_000
_NUMBERS: Final = 20_000_000  # of all directions together


def audit_plan(
    plan: Plan,
    *,
    data: Path | None = None,
    seed: int | None = None,
    seconds: float = 90.0,
    device: str = "cpu",
    on_check: Callable[[Check], None] = lambda check: None,
) -> dict[str, Any]:
    """Audit a plan as `audit.json` says it; as many of its rounds as `seconds` allow.

    `seed` fixes the canaries' coins, never the noise. PlanError where the plan claims no privacy.
    """
    if not plan.private:
        raise PlanError('unit must be "record", "subject" or "client" to audit, got "none"')
    began = time.monotonic()
    coins = np.random.default_rng(seed)
    seed_of_settings = secrets.randbelow(2**32) if seed is None else seed
    if plan.is_secure and not plan.per_example:
        raise PlanError(
            'unit must be "record" or "subject" to audit where aggregation = "secure", got "client"'
        )
    visited = plan if plan.per_example else None
    with one_thread():
        checks = []
        for check in conform(device, settings_of(seed_of_settings, visited)):
            checks.append(check)
            on_check(check)
        left = max(1.0, seconds - (time.monotonic() - began))
        if plan.noised_centrally:
            scored, event, more = _clients(plan, coins)
        else:
            scored, event, more = _records(plan, data, left, device, coins)
    delta = plan.required_delta
    epsilon = spent([event], delta)
    lower_bounds = bounds(scored, event, epsilon, delta)
    return result(
        what=f"plan {plan.task}",
        epsilon=epsilon,
        delta=delta,
        event=event,
        checks=(*checks, *tested(lower_bounds, on_check)),
        bounds=lower_bounds,
        seconds=time.monotonic() - began,
        canaries=summary(scored),
        plan=plan.digest,
        seed=seed_of_settings,
        **more,
    )


def _records(
    plan: Plan, data: Path | None, left: float, device: str, coins: np.random.Generator
) -> tuple[Scored, Event, dict[str, Any]]:
    """Canary records at the first site; one round is tried first, to see how many there is time."""
    plan, world = prepare(plan, data)
    site = sorted(world.parts)[0]
    learning, rows = task_of(plan), world.rows(site)
    count = _MANY if math.prod(learning.shape) <= _SMALL else _FEW

    def train(rounds: int) -> tuple[Scored, Event]:
        return through_ledger(
            learning,
            rows,
            plan,
            site=site,
            count=count,
            rounds=rounds,
            device=device,
            coins=coins,
        )

    began = time.monotonic()
    train(1)
    rounds = int(np.clip(left / (time.monotonic() - began), 1, plan.rounds))
    scored, event = train(rounds)
    return scored, event, {"site": site, "rounds": rounds, "of_rounds": plan.rounds}


def _clients(plan: Plan, coins: np.random.Generator) -> tuple[Scored, Event, dict[str, Any]]:
    """Canary clients: each sends the clip in a direction of its own in every round, or never.

    The directions are uniformly random and, within a run, orthogonal, so that one canary's score
    says nothing of another's. Runs are repeated until there are enough canaries.
    """
    weights = initial_weights(plan)
    dimension = sum(a.size for a in weights.values())
    together = max(1, min(dimension // 2, 500, _NUMBERS // dimension))
    scores, included = [], []
    for _ in range(math.ceil(_CLIENTS / together)):
        directions = np.linalg.qr(coins.standard_normal((dimension, together)))[0].T
        chosen = coins.random(together) < 0.5
        scores.append(_run(plan, directions, chosen))
        included.append(chosen)
    scored = Scored(np.concatenate(scores), np.concatenate(included), None)
    event = _paid(plan)
    inside, out = scored.scores[scored.included], scored.scores[~scored.included]
    estimate = normals_epsilon(
        float(inside.mean() - out.mean()),
        float(inside.std()),
        float(out.std()),
        plan.required_delta,
    )
    return scored, event, {"rounds": plan.rounds, "estimate": estimate}


def _run(plan: Plan, directions: NDArray[np.float64], chosen: NDArray[np.bool_]) -> Any:
    """Every round of the coordinator with the chosen canaries; each canary's score at the end."""
    state = first = start(initial_weights(plan), plan)
    sizes = [a.size for a in first.weights.values()]
    for _ in range(plan.rounds):
        updates = []
        for i in np.flatnonzero(chosen):
            sent = np.split(directions[i] * (state.clip or 0.0), np.cumsum(sizes)[:-1])
            arrays = {
                name: part.reshape(a.shape).astype(np.float32)
                for (name, a), part in zip(first.weights.items(), sent, strict=True)
            }
            updates.append(Update(f"canary-{i}", arrays, below=0.5))
        state = combine(state, updates, plan, sites=len(chosen))
    moved = np.concatenate(
        [(state.weights[n] - a).astype(np.float64).reshape(-1) for n, a in first.weights.items()]
    )
    return directions @ moved


def _paid(plan: Plan) -> Event:
    """What the coordinator pays for the rounds, from a throw-away ledger."""
    event = plan.event("")
    if event is None:
        raise PlanError("unit must not be none: the plan claims no privacy")
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.create(Path(folder) / "audit.jsonl", population="audit", durable=False)
        ledger.spend(
            replace(event, count=plan.rounds), None, run="audit", round=1, plan=plan.digest
        )
        (paid,) = ledger.merged()
    return paid
