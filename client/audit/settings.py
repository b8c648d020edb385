"""How a probe is trained: every setting of a plan that the trainer treats in a way of its own.

A fault that shows under one setting only (Adam, bfloat16, micro-batches, a million weights) is
found only by an audit that visits that setting. `draw` visits all of them, at random.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np

from privacy.accounting.events import Event
from privacy.contract.plan import Plan
from privacy.mechanism.sensitivity import noise_std, slack

_NOMINAL: Final = 1_000
ROUNDS: Final = 10_000
"""Rounds of every probe's plan: learning-rate schedules run over all of them."""

_LEVELS: Final[dict[str, tuple[Any, ...]]] = {
    "optimizer": ("sgd", "momentum", "adam", "sgd", "momentum"),
    "schedule": ("constant", "cosine"),
    "l2": (0.0, 0.0, 0.02),
    "mu": (0.0, 0.0, 0.1),
    "micro_batch": (None, 1, 7, 32),
    "precision": ("float32", "float32", "bfloat16"),
    "threads": (1, 2),
    "round": (1, 2, 17, ROUNDS // 2),
    "steps": (1, 2, 3, 8),
    "size": (2**9, 2**13, 2**17, 2**20),
    "rows": (12, 40, 1_000, 100_000),
}


_WORDS: Final = {
    "optimizer": "{}",
    "schedule": "{}",
    "l2": "weight decay",
    "mu": "proximal term",
    "micro_batch": "micro-batches of {}",
    "precision": "{}",
    "threads": "{} threads",
    "round": "round {}",
    "steps": "{} steps",
    "clip": "clip {:.3g}",
    "rate": "rate {:.3g}",
}

ROWS_EACH: Final = 5
"""Rows of a person who is made up, where the person is the unit."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How a probe is trained; `nominal` is the public number of units, `threads` those of torch."""

    sigma: float
    rate: float = 1.0
    steps: int = 1
    nominal: int = 20
    clip: float = 1.0
    lr: float = 1.0
    optimizer: Literal["sgd", "momentum", "adam"] = "sgd"
    momentum: float = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    l2: float = 0.0
    mu: float = 0.0
    micro_batch: int | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    site: str = "audit"
    round: int = 1
    threads: int = 1
    device: str = "cpu"
    unit: Literal["record", "subject"] = "record"

    @property
    def event(self) -> Event:
        """What is claimed to have been released."""
        return Event(self.unit, self.sigma, self.rate, self.steps)

    @property
    def plan(self) -> Plan:
        """The plan that says all this."""
        return Plan(
            task="audit",
            sites=1,
            rounds=ROUNDS,
            rate=self.rate,
            unit=self.unit,
            rows=self.nominal if self.unit == "record" else None,
            subjects=self.nominal if self.unit == "subject" else None,
            lr=self.lr,
            clip=self.clip,
            sigma=self.sigma,
            delta=1e-5,
            steps=self.steps,
            optimizer=self.optimizer,
            schedule=self.schedule,
            l2=self.l2,
            aggregation="fedprox" if self.mu else "fedavg",
            mu=self.mu,
            micro_batch=self.micro_batch,
            precision=self.precision,
            momentum=self.momentum or 0.9,  # read by the optimizer momentum alone
        )

    @property
    def std(self) -> float:
        """The claimed standard deviation of the noise in a step's mean gradient."""
        return self.sum_std / (self.rate * self.nominal)

    @property
    def sum_std(self) -> float:
        """That of the noise in a step's sum: it pays for what rounding adds to a record's part."""
        return noise_std(self.sigma, self.clip, 1, slack(self.rate * self.nominal))

    def visible(self) -> "Setting":
        """The same with a learning rate at which the noise of one step moves a weight by 1/2.

        Weight decay and the proximal term follow, so that their part of a step stays as drawn. Adam
        takes steps of its learning rate, whatever the noise.
        """
        rate = 0.5 / self.std
        lr = 0.5 if self.optimizer == "adam" else rate
        return replace(self, lr=lr, l2=self.l2 / rate, mu=self.mu / rate)

    @property
    def words(self) -> str:
        """The settings that differ from the plainest, for a person."""
        plain = Setting(self.sigma)
        changed = [n for n in _WORDS if getattr(self, n) != getattr(plain, n)]
        return ", ".join(_WORDS[n].format(getattr(self, n)) for n in changed) or "plain steps"


@dataclass(frozen=True, slots=True)
class Drawn:
    """A setting and the sizes it is tried at: numbers in a model, rows of a site."""

    setting: Setting
    size: int
    rows: int


def draw(source: np.random.Generator, count: int) -> tuple[Drawn, ...]:
    """`count` settings, every level of every property about equally often, combined at random."""
    columns = {
        name: [levels[i] for i in source.permutation(np.arange(count) % len(levels))]
        for name, levels in _LEVELS.items()
    }
    return tuple(
        _drawn(source, **{name: column[i] for name, column in columns.items()})
        for i in range(count)
    )


def _drawn(source: np.random.Generator, *, size: int, rows: int, **fixed: Any) -> Drawn:
    def log_uniform(low: float, high: float) -> float:
        return math.exp(source.uniform(math.log(low), math.log(high)))

    momentum = float(source.uniform(0.1, 0.95)) if fixed["optimizer"] == "momentum" else 0.0
    setting = Setting(
        sigma=log_uniform(0.3, 20),
        clip=log_uniform(1e-2, 1e2),
        nominal=int(log_uniform(5, 1e4)),
        momentum=momentum,
        site=f"site-{source.integers(1000)}",
        **fixed,
    )
    return Drawn(setting, size, rows)


def of_plan(plan: Plan, site: str) -> Setting:
    """The settings of a plan at a site, for probes; what depends on the task stays out.

    Where people are the unit, so they are in the probes: each has one row.
    A plan whose row count is settled when it runs is tried at a made-up one.
    """
    event = plan.event(site)
    if event is None or event.unit == "client" or plan.clip is None:
        raise ValueError(f"unit must be one whose sites add the noise, got {plan.unit}")
    return Setting(
        sigma=event.sigma,
        rate=event.rate,
        steps=event.steps,
        nominal=plan.units_of(site) if isinstance(plan.nominal_units, int) else _NOMINAL,
        clip=plan.clip,
        optimizer=plan.optimizer,
        momentum=plan.momentum if plan.optimizer == "momentum" else 0.0,
        schedule=plan.schedule,
        l2=plan.l2,
        mu=plan.mu if plan.aggregation == "fedprox" else 0.0,
        micro_batch=plan.micro_batch,
        precision=plan.precision,
        site=site,
        unit="subject" if event.unit == "subject" else "record",
    )
