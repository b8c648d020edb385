"""The whole audit of an installation: conformance, then canaries, then an attack to picture it."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch

from client.canary import bounds, score
from client.conformance import Check, conform
from client.membership import Attack, attack
from client.probes import made_up
from client.tasks.learning import cross_entropy, layered, seeded
from client.tasks.task import Rows
from privacy.accounting import Budget, calibrate
from privacy.audit import ALPHA, Bound
from privacy.events import Event
from privacy.ledger import Ledger
from privacy.plan import Plan

FINE: Final = "no violation found"
VIOLATION: Final = "violation found"
DELTA: Final = 1e-5
_CANARIES: Final = 20_000
_ROUNDS: Final = 4
_STEPS: Final = 25
_RATE: Final = 0.25


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found; `claimed` is the epsilon that the canaries' training was paid for."""

    claimed: float
    delta: float
    checks: tuple[Check, ...]
    bounds: tuple[Bound, ...]
    private: Attack
    open: Attack
    seconds: float

    @property
    def violated(self) -> bool:
        """Whether a check, or a canary's claim, cannot be explained by chance."""
        return not all(check.passed for check in self.checks) or any(
            bound.p < ALPHA for bound in self.bounds
        )

    def to_dict(self) -> dict[str, Any]:
        """The audit as JSON: what a report reads."""
        return {
            "claimed": self.claimed,
            "delta": self.delta,
            "verdict": VIOLATION if self.violated else FINE,
            "bounds": [_finite(asdict(bound)) for bound in self.bounds],
            "checks": [
                _finite(asdict(check) | {"passed": bool(check.passed)}) for check in self.checks
            ],
            "membership": {
                "with privacy": asdict(self.private),
                "without privacy": asdict(self.open),
            },
            "seconds": round(self.seconds, 2),
        }


def audit(
    epsilon: float,
    *,
    seconds: float = 60.0,
    device: str = "cpu",
    heard: Callable[[str], None] = lambda what: None,
) -> Audit:
    """Audit this installation at a claimed `epsilon`; costs no budget: rows and ledger are made up.

    `seconds` is how long it may take: with less time there are fewer canaries, so weaker bounds.
    `heard(what)` is told what is being done.
    """
    began = time.perf_counter()
    checks = []
    for check in conform(device):
        heard(check.name)
        checks.append(check)
    heard("canaries")
    left = max(1.0, seconds - (time.perf_counter() - began))
    found, event = canaries(epsilon, min(_CANARIES, int(1000 * left)), device)
    heard("membership inference")
    private, exposed = attack(event, device=device), attack(None, device=device)
    taken = time.perf_counter() - began
    return Audit(epsilon, DELTA, tuple(checks), found, private, exposed, taken)


def canaries(epsilon: float, count: int, device: str) -> tuple[tuple[Bound, ...], Event]:
    """The lower bounds of one training with `count` canaries among made-up rows."""
    sigma = calibrate(Budget(epsilon, DELTA), rate=_RATE, steps=_ROUNDS * _STEPS)
    source = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 64, generator=source)
    y = torch.randint(10, (1000,), generator=source)
    x = centres[y] * 0.3 + torch.randn(1000, 64, generator=source) * 0.5
    rows = Rows(x, y)
    task = made_up("audit", seeded(lambda: layered(64, (32,), 10)), rows, cross_entropy)
    plan = Plan(
        task="audit",
        rounds=_ROUNDS,
        steps=_STEPS,
        rate=_RATE,
        rows=1000,
        lr=0.5,
        clip=1.0,
        sigma=sigma,
        delta=DELTA,
    )
    claimed = plan.event("audit")
    if claimed is None:
        raise ValueError("event: expected a private plan")
    with TemporaryDirectory(prefix="tacit-audit-") as folder:
        path = Path(folder) / "throw-away.jsonl"
        ledger = Ledger.create(path, population="made up for an audit", durable=False)

        def pay(event: Event, number: int) -> Event:
            return ledger.spend(event, None, run="audit", round=number, plan=plan.digest).event

        scored = score(task, rows, plan, site="audit", count=count, pay=pay, device=device)
        spent = ledger.events()
    together = replace(claimed, steps=sum(e.steps * e.count for e in spent))
    return bounds(scored, together, epsilon, DELTA), together


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinities: what is not finite is said by its name."""
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
