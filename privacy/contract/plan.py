"""The plan is a run's whole contract: from this one value come the training, its event, its budget.

It is one flat TOML file, parsed once at the rim into a frozen value. Nothing that touches privacy
has a default; an unknown key is an error. `[simulation]` holds what cannot touch privacy, and stays
outside the digest that sites approve.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import tomli_w

from privacy.accounting.epsilon import calibrate, spent
from privacy.accounting.events import Event
from privacy.accounting.segments import Budget


class PlanError(ValueError):
    """A plan that cannot be run: one line with the key, the value and what was expected."""


@dataclass(frozen=True, slots=True)
class Simulation:
    """How a simulation is run: nothing here can change what is released or what it costs."""

    engine: str = "serial"
    workers: int = 2
    compile: bool = False
    dropout: float = 0.0
    slow: float = 0.0


@dataclass(frozen=True, slots=True)
class SitePlan:
    """What differs at one site: its public row count, its own epsilon, its budget in this run."""

    rows: int | None = None
    epsilon: float | None = None
    limit: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The keys that have a value."""
        every = {"rows": self.rows, "epsilon": self.epsilon, "limit": self.limit}
        return {key: value for key, value in every.items() if value is not None}


@dataclass(frozen=True)
class Plan:
    """Every key of a plan's TOML, resolved. The meanings stand in docs/plan.md.

    One round at a site: `steps` releases, each the sum over a Poisson(`rate`) sample of per-record
    gradients clipped to L2 norm `clip`, plus N(0, (sigma * clip)^2), divided by the public number
    `rate` * `rows`. unit "client": one release a round, the sum of the sites' clipped updates.
    """

    task: str
    rounds: int
    rate: float
    rows: int | str
    lr: float
    sites: int | None = None
    clip: float | None = None
    unit: str = "record"
    sigma: float | None = None
    epsilon: float | None = None
    delta: float | None = None
    limit: float | None = None
    schema: str | None = None
    split: str = "iid"
    steps: int = 1
    optimizer: str = "sgd"
    momentum: float = 0.9
    schedule: str = "constant"
    l2: float = 0.0
    aggregation: str = "fedavg"
    mu: float = 0.0
    server_lr: float = 1.0
    server_momentum: float = 0.0
    average: bool = False
    weights: str = "equal"
    clip_quantile: float | None = None
    clip_lr: float = 0.2
    clip_sigma: float | None = None
    metrics: tuple[str, ...] = ()
    metrics_sigma: float | None = None
    metrics_clip: float = 5.0
    micro_batch: int | None = None
    precision: str = "float32"
    wire: str = "float32"
    min_sites: int = 1
    cohort: int | None = None
    seed: int = 0
    purpose: str = ""
    site: Mapping[str, SitePlan] = field(default_factory=dict)
    simulation: Simulation = Simulation()

    @property
    def private(self) -> bool:
        """Whether the plan claims any privacy at all."""
        return self.unit != "none"

    def site_overrides(self, site: str) -> SitePlan:
        """What the plan says of one site alone; nothing for a site that it does not name."""
        return self.site.get(site, SitePlan())

    def rows_of(self, site: str) -> int:
        """The public nominal row count of a site; PlanError while it is "actual"."""
        rows = self.site_overrides(site).rows or self.rows
        if not isinstance(rows, int):
            raise PlanError(f'rows: expected a number for {site} before training, got "{rows}"')
        return rows

    def denominator(self, site: str) -> float:
        """What the noisy sum of a step is divided by: rate * rows, never a true count."""
        return self.rate * self.rows_of(site)

    def sigma_of(self, site: str) -> float | None:
        """The noise multiplier of a site's training: given, or calibrated for the whole run."""
        return self._sigma(self.site_overrides(site))

    def nominal_sigma(self) -> float | None:
        """The noise multiplier of a site without overrides; of the coordinator's own noise."""
        return self._sigma(SitePlan())

    def _sigma(self, overrides: SitePlan) -> float | None:
        if not self.private:
            return None
        epsilon = overrides.epsilon if overrides.epsilon is not None else self.epsilon
        if epsilon is None:
            return self.sigma
        budget = Budget(epsilon, self.required_delta)
        if self.unit == "client":
            together = calibrate(budget, rate=1.0, steps=self.rounds)
            if self.clip_sigma is None:
                return together
            # Gaussians at rate 1 compose exactly: 1/s^2 adds up (Andrew et al. 2021, Thm. 1).
            left = together**-2 - self.clip_sigma**-2
            if left <= 0:
                raise PlanError(
                    f"clip_sigma: expected more than {together:.4g} to stay inside epsilon = "
                    f"{epsilon}, got {self.clip_sigma}"
                )
            return math.sqrt(1 / left)
        beside = tuple(replace(e, count=self.rounds) for e in self._metric_events())
        if beside and spent(beside, self.required_delta) >= epsilon:
            raise PlanError(
                f"metrics_sigma: the paid metrics alone cost more than epsilon = {epsilon}, "
                f"got {self.metrics_sigma}"
            )
        return calibrate(budget, rate=self.rate, steps=self.steps * self.rounds, beside=beside)

    @property
    def required_delta(self) -> float:
        """The plan's delta; PlanError for a plan without privacy, which has none."""
        if self.delta is None:
            raise PlanError('delta: expected a value unless unit = "none", got nothing')
        return self.delta

    def event(self, site: str) -> Event | None:
        """What one round's training at one site releases; None without privacy."""
        return self._event(self.site_overrides(site))

    def _event(self, overrides: SitePlan) -> Event | None:
        sigma = self._sigma(overrides)
        if sigma is None:
            return None
        if self.unit == "client":
            return Event("client", sigma, 1.0, 1)
        return Event("record", sigma, self.rate, self.steps)

    def events_of_round(self, site: str) -> tuple[Event, ...]:
        """Everything that one round at one site pays for: the update, then the paid extras."""
        return self._events(self.site_overrides(site))

    def nominal_events(self) -> tuple[Event, ...]:
        """What one round costs a site without overrides, or the coordinator (unit "client")."""
        return self._events(SitePlan())

    def _events(self, overrides: SitePlan) -> tuple[Event, ...]:
        event = self._event(overrides)
        if event is None:
            return ()
        if self.unit == "client":
            adaptive = self.clip_sigma is not None
            return (
                (event, Event("client", self.clip_sigma or 0.0, 1.0, 1)) if adaptive else (event,)
            )
        return (event, *self._metric_events())

    def _metric_events(self) -> tuple[Event, ...]:
        if not self.metrics or self.metrics_sigma is None:
            return ()
        return (Event("record", self.metrics_sigma, 1.0, 1),)

    def limit_of(self, site: str) -> Budget | None:
        """The budget at which a site declines in this run, where the plan sets one."""
        return self._limit(self.site_overrides(site))

    def nominal_limit(self) -> Budget | None:
        """The budget in this run of a site without overrides, or of the coordinator."""
        return self._limit(SitePlan())

    def _limit(self, overrides: SitePlan) -> Budget | None:
        epsilon = overrides.limit if overrides.limit is not None else self.limit
        if epsilon is None or not self.private:
            return None
        return Budget(epsilon, self.required_delta)

    def epsilon_after(self, site: str, rounds: int) -> float | None:
        """Epsilon of a site after so many rounds of this plan; None without privacy."""
        return self._epsilon(self.events_of_round(site), rounds)

    def nominal_epsilon_after(self, rounds: int) -> float | None:
        """Epsilon after so many rounds of a site without overrides; None without privacy."""
        return self._epsilon(self.nominal_events(), rounds)

    def _epsilon(self, events: tuple[Event, ...], rounds: int) -> float | None:
        if not self.private:
            return None
        return spent([replace(e, count=rounds) for e in events], self.required_delta)

    def to_dict(self) -> dict[str, Any]:
        """All keys that have a value, in the order of the class."""
        values: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if value is None or item.name in ("site", "simulation"):
                continue
            if not self.private and item.name in PRIVACY_KEYS:
                continue
            values[item.name] = list(value) if isinstance(value, tuple) else value
        values["site"] = {name: own.to_dict() for name, own in sorted(self.site.items())}
        values["simulation"] = asdict(self.simulation)
        return values

    def to_json(self) -> str:
        """The canonical text that travels to the sites and is hashed: all but `[simulation]`."""
        values = self.to_dict()
        del values["simulation"]
        return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of `to_json()`: what a site approves."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_toml(self) -> str:
        """The plan as a file that can be run again; the calibrated sigmas stand in comments."""
        lines = [tomli_w.dumps(self.to_dict(), multiline_strings=True)]
        if self.private and self.epsilon is not None and isinstance(self.rows, int):
            lines.append(
                f"# sigma, calibrated for {self.rounds} rounds: {self.nominal_sigma()!r}\n"
            )
        for name, own in sorted(self.site.items()):
            if self.private and own.epsilon is not None:
                lines.append(f"# sigma of {name}, calibrated: {self.sigma_of(name)!r}\n")
        return "".join(lines)


PRIVACY_KEYS = frozenset({"clip", "sigma", "epsilon", "delta", "limit"})
