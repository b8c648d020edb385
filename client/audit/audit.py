"""The audit of an installation: conformance, canaries, and an attack for the reader's intuition.

Everything is made up and paid from a throw-away ledger, so an audit costs no one's budget. Its
verdict is "no violation found", never "private".
"""

import math
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch

from client.audit.canary import Scored, bounds, score, summary
from client.audit.check import BROKEN, Check, broken
from client.audit.conformance import conform
from client.audit.membership_inference import attack
from client.audit.probes import made_up
from client.audit.secure.canaries import score_sums
from client.audit.settings import Drawn, draw, of_plan
from client.tasks.losses import cross_entropy, layered, seeded
from client.tasks.rows import Rows
from client.tasks.task import Task
from privacy.accounting.epsilon import calibrate
from privacy.accounting.events import Event
from privacy.accounting.segments import Budget
from privacy.audit.bounds import ALPHA, Bound
from privacy.contract.plan import Plan
from privacy.ledger.ledger import Ledger

CLEAN: Final = "no violation found"
FOUND: Final = "violation found"

DELTA: Final = 1e-5
_ROUNDS, _STEPS, _RATE, _ROWS = 4, 25, 0.25, 1000
_LEAST, _MOST, _PER_SECOND = 20_000, 200_000, 700  # canaries
_SETTINGS, _SETTINGS_OF_PLAN = 16, 4


def audit_installation(
    epsilon: float,
    *,
    seconds: float = 90.0,
    seed: int | None = None,
    plan: Plan | None = None,
    device: str = "cpu",
    on_check: Callable[[Check], None] = lambda check: None,
) -> dict[str, Any]:
    """Audit the trainer of this process at a claimed `epsilon`, in about `seconds` at most.

    The number of canaries follows from the time that is left once conformance has been checked.
    `seed` draws the settings that are visited (never any noise), another one each time if it is
    None; the settings of `plan` are visited too, and where its unit is the person, so are the
    canaries people, of five rows each. The result is what `audit.json` holds.
    """
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon must be above 0 and finite, got {epsilon!r}")
    seed = secrets.randbelow(2**32) if seed is None else seed
    drawn = settings_of(seed, plan)
    with one_thread():
        unit = drawn[-1].setting.unit
        outcome = _audit(epsilon, seconds, device, drawn, unit, on_check)
    return outcome | {"seed": seed} | ({"plan": plan.digest} if plan is not None else {})


def settings_of(seed: int, plan: Plan | None = None) -> tuple[Drawn, ...]:
    """The settings that a seed draws, and those of a plan at every kind of size."""
    source = np.random.default_rng(seed)
    drawn = draw(source, _SETTINGS)
    if plan is None:
        return drawn
    setting = of_plan(plan, "audit")
    return (*drawn, *(replace(one, setting=setting) for one in draw(source, _SETTINGS_OF_PLAN)))


@contextmanager
def one_thread() -> Iterator[None]:
    """Small operations on several threads mostly wait for each other, and copies want none."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _audit(
    epsilon: float,
    seconds: float,
    device: str,
    drawn: Sequence[Drawn],
    unit: Literal["record", "subject"],
    on_check: Callable[[Check], None],
) -> dict[str, Any]:
    began = time.monotonic()
    checks = []
    for check in conform(device, drawn):
        checks.append(check)
        on_check(check)
    sigma = calibrate(Budget(epsilon, DELTA), rate=_RATE, steps=_ROUNDS * _STEPS)
    plan = Plan(
        sites=1,
        task="audit",
        rounds=_ROUNDS,
        steps=_STEPS,
        rate=_RATE,
        unit=unit,
        rows=_ROWS if unit == "record" else None,
        subjects=_ROWS if unit == "subject" else None,
        lr=0.5,
        clip=1.0,
        sigma=sigma,
        delta=DELTA,
        optimizer="sgd",
    )
    left = seconds - (time.monotonic() - began)
    count = int(np.clip(left * _PER_SECOND, _LEAST, _MOST))
    task, rows = _made_up()
    event = Event(unit, sigma, _RATE, _STEPS, _ROUNDS)
    lower_bounds: tuple[Bound, ...] = ()
    more: dict[str, Any] = {}
    try:
        scored, event = through_ledger(task, rows, plan, site="audit", count=count, device=device)
        lower_bounds = bounds(scored, event, epsilon, DELTA)
        more["canaries"] = summary(scored)
        plain = attack(None, device=device)
        whole = Event("record", sigma, _RATE, _STEPS * _ROUNDS)
        private = attack(whole, device=device)
        more["membership"] = {"without_privacy": asdict(plain), "private": asdict(private)}
    except BROKEN as error:
        checks.append(broken("canaries", error))
        on_check(checks[-1])
    return result(
        what="installation",
        epsilon=epsilon,
        delta=DELTA,
        event=event,
        checks=(*checks, *tested(lower_bounds, on_check)),
        bounds=lower_bounds,
        seconds=time.monotonic() - began,
        **more,
    )


def through_ledger(
    task: Task,
    rows: Rows,
    plan: Plan,
    *,
    site: str,
    count: int,
    rounds: int | None = None,
    device: str = "cpu",
    coins: np.random.Generator | None = None,
) -> tuple[Scored, Event]:
    """Score canaries of a plan whose rounds are paid, before each, from a throw-away ledger.

    Returns the scores and, as one event, everything that the ledger holds in the end.
    """
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.create(Path(folder) / "audit.jsonl", population="audit", durable=False)

        def pay(event: Event, number: int) -> Event:
            return ledger.spend(event, None, run="audit", round=number, plan=plan.digest).event

        if plan.is_secure:
            done = plan.rounds if rounds is None else rounds
            scored, _ = score_sums(
                *(task, rows, plan), count=count, rounds=done, pay=pay, device=device, coins=coins
            )
            (paid,) = ledger.merged()
            return scored, paid
        scored = score(
            task,
            rows,
            plan,
            site=site,
            count=count,
            rounds=rounds,
            pay=pay,
            device=device,
            coins=coins,
        )
        (paid,) = ledger.merged()
    return scored, paid


def tested(
    lower_bounds: Sequence[Bound], on_check: Callable[[Check], None] = lambda check: None
) -> tuple[Check, ...]:
    """The canaries' bounds as checks: how likely the claim makes these scores."""
    checks = tuple(
        Check(f"canaries: {bound.name}", bound.epsilon, bound.p, "lower bound on epsilon")
        for bound in lower_bounds
    )
    for check in checks:
        on_check(check)
    return checks


def result(
    *,
    what: str,
    epsilon: float,
    delta: float,
    event: Event,
    checks: Sequence[Check],
    bounds: Sequence[Bound],
    seconds: float,
    **more: Any,
) -> dict[str, Any]:
    """An audit as JSON; a violation is any check that chance does not explain."""
    return {
        "v": 1,
        "what": what,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "claimed": epsilon,
        "delta": delta,
        "event": event.to_dict(),
        "bounds": [asdict(bound) for bound in bounds],
        "checks": [_as_json(check) for check in checks],
        "alpha": ALPHA,
        **more,
        "verdict": CLEAN if all(check.passed for check in checks) else FOUND,
        "seconds": round(seconds, 1),
        "versions": {name: version(name) for name in ("torch", "opacus", "numpy", "scipy")},
    }


def _as_json(check: Check) -> dict[str, Any]:
    statistic = check.statistic if math.isfinite(check.statistic) else None
    return asdict(check) | {"statistic": statistic, "passed": check.passed}


def _made_up() -> tuple[Task, Rows]:
    """Ten clouds in 64 dimensions: ordinary records among which the canaries hide."""
    source = torch.Generator().manual_seed(0)
    centres = torch.randn((10, 64), generator=source)
    y = torch.randint(10, (_ROWS,), generator=source)
    x = 0.3 * centres[y] + 0.5 * torch.randn((_ROWS, 64), generator=source)
    rows = Rows(x, y, subject=torch.arange(_ROWS))
    model = seeded(lambda: layered(64, (32,), 10))
    return made_up("audit", model, rows, cross_entropy), rows
