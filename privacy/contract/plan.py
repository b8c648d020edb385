"""The plan is a run's whole contract: from this one value come the training, its event, its budget.

It cannot be built wrong: its keys (privacy/contract/keys/) and the rules between them
(privacy/contract/rules/) are checked whenever one is made. Nothing that touches privacy has a
default. `[operation]` and `[simulation]` cannot touch privacy, and stay outside the digest that
sites approve.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Final

import tomli_w

from privacy.accounting.epsilon import calibrate, spent
from privacy.accounting.events import Event
from privacy.accounting.segments import Budget
from privacy.contract.cadence import metric_events, metric_rounds
from privacy.contract.keys.contract import Contract
from privacy.contract.keys.tables import (
    NO_OVERRIDES,
    AugmentPlan,
    ModelPlan,
    Operation,
    SecurePlan,
    Simulation,
    SitePlan,
    StatisticsPlan,
    TunePlan,
)
from privacy.contract.keys.types import PlanError
from privacy.contract.learning_rate import Share, automatic, cosine, step_noise
from privacy.contract.pilots import (
    candidates,
    pilot_length,
    pilot_of,
    pilot_rounds,
    released,
    stage_of,
)
from privacy.contract.rules.table import broken
from privacy.contract.schema import check, written
from privacy.files import canonical_json
from privacy.secagg.parties import Roster, Terms

__all__ = [
    "AugmentPlan",
    "ModelPlan",
    "Operation",
    "Plan",
    "PlanError",
    "SecurePlan",
    "Simulation",
    "SitePlan",
    "StatisticsPlan",
    "TunePlan",
]


_SINCE: Final = frozenset(
    {
        *("task_options", "combine", "trim", "class_weights"),
        *("server_optimizer", "server_tau", "server_schedule", "warmup", "l1", "metrics_every"),
    }
)
"""Keys that older plans do not have: left out at their defaults, so that digests stay."""


@dataclass(frozen=True)
class Plan(Contract):
    """A plan that can be run: every key in its bounds, and every rule kept (else PlanError).

    One round at a site: `steps` releases, each the sum over a Poisson(`rate`) sample of per-record
    gradients clipped to L2 norm `clip`, plus N(0, (sigma * clip)^2), divided by the public number
    `rate` * `rows`. unit "subject": people in the place of records, `subjects` of them, each with
    the mean gradient of at most `rows_per_subject` rows. unit "client": one release a round, the
    sum of the sites' clipped updates. A plan with `statistics` has one round of one release at rate
    1, of the sum of each record's (or person's) answers, which have L2 norm at most 1 together.

    aggregation "secure": the sum over all sites is released alone, and each adds a share of the
    noise of variance (sigma * clip)^2 / `terms.shares`.
    """

    def __post_init__(self) -> None:
        check(self, PlanError)
        if (text := broken(self)) is not None:
            raise PlanError(text)

    def site_overrides(self, site: str) -> SitePlan:
        """What the plan says of one site alone; nothing for a site that it does not name."""
        return self.site.get(site, NO_OVERRIDES)

    def units_of(self, site: str) -> int:
        """The public number of rows (or people) at a site; PlanError while it is "actual"."""
        count = getattr(self.site_overrides(site), self.units_key) or self.nominal_units
        if not isinstance(count, int):
            raise PlanError(
                f'{self.units_key} must be an integer for {site} before training, got "{count}"'
            )
        return count

    def with_units(self, count: int) -> "Plan":
        """The plan for so many rows (or people) at a site without overrides."""
        number: dict[str, Any] = {self.units_key: count}
        return replace(self, **number)

    @property
    def terms(self) -> Terms:
        """The parties of secure aggregation, and how many may be missing; PlanError without it."""
        if self.secure is None or self.sites is None:
            raise PlanError('secure must be set where aggregation = "secure", got nothing')
        try:
            return Terms(self.sites, self.secure.dropouts, self.secure.colluding)
        except ValueError as error:
            raise PlanError(f"secure.{error}") from None

    @property
    def least_sites(self) -> int:
        """How many sites make a round: the coordinator's `min_sites`, or what the noise needs."""
        least = self.operation.min_sites
        return max(least, self.terms.least) if self.is_secure else least

    @property
    def roster(self) -> Roster:
        """The verifying keys of the parties that the plan names; empty in a simulation."""
        return {name: one.key for name, one in sorted(self.site.items()) if one.key is not None}

    @property
    def shares(self) -> int:
        """How many honest parties' noise a released sum has at least: 1 where each adds all."""
        return self.terms.shares if self.is_secure else 1

    def denominator(self, site: str) -> float:
        """What the noisy sum of a step is divided by: rate * units, never a true count."""
        return self.rate * self.units_of(site)

    def lr_at(self, step: int, steps: int) -> float:
        """The sites' learning rate in the run's global `step` (from 0) of `steps`."""
        if self.schedule == "cosine":
            return self.learning_rate * cosine(step / steps)
        return self.learning_rate

    @cached_property
    def learning_rate(self) -> float:
        """The plan's `lr`, or what the rule for "auto" says (privacy/contract/learning_rate.py).

        PlanError while the number of sites or of their units is not known.
        """
        if self.lr != "auto":
            return self.lr
        sites = self.sites or len(self.site)
        if not sites:
            raise PlanError("sites must be the number of sites where lr is auto, got nothing")
        shares = [Share(self.sigma_of(n) or 0.0, self.units_of(n)) for n in sorted(self.site)]
        if (others := sites - len(shares)) > 0:
            shares.append(Share(self.nominal_sigma() or 0.0, self.units_of(""), others))
        noise = step_noise(self, shares, self.shares)
        return automatic(self, noise, self.rounds - self.pilot_rounds)

    @property
    def pilot_rounds(self) -> int:
        """How many of the rounds are pilots' of a search, before those of the run itself."""
        return pilot_rounds(self)

    @property
    def pilot_length(self) -> int:
        """Rounds of one pilot: the plan's, or a fifth of the run's own; 0 without a search."""
        return pilot_length(self)

    def pilot_of(self, number: int) -> int | None:
        """Which candidate's pilot a round is, from 0; None after the last, or without a search."""
        return pilot_of(self, number)

    @property
    def candidates(self) -> int:
        """How many settings a search tries; 0 without one."""
        return 0 if self.tune is None else len(candidates(self.tune))

    def stage(self, number: int, choice: int | None = None) -> "tuple[Plan, int]":
        """The plan without a search that a round (from 1) follows, and which of its rounds it is.

        `choice` is the candidate that the pilots have chosen: it is needed after the last of them.
        """
        if self.tune is None:
            return self, number
        pilot = self.pilot_of(number)
        if pilot is not None:
            return self._stage(pilot, True), (number - 1) % self.pilot_length + 1
        if choice is None or not 0 <= choice < self.candidates:
            raise PlanError(f"choice must be >= 0 and < {self.candidates}, got {choice}")
        return self._stage(choice, False), number - self.pilot_rounds

    def _stage(self, candidate: int, pilot: bool) -> "Plan":
        if (known := self._stages.get((candidate, pilot))) is None:
            run, own = self._sigma(NO_OVERRIDES) or 0.0, self._sigma(NO_OVERRIDES, pilot) or 0.0
            lr = self.learning_rate
            known = stage_of(self, candidate, pilot=pilot, middle=lr, sigma=own, run_sigma=run)
            self._stages[candidate, pilot] = known
        return known

    @cached_property
    def _stages(self) -> "dict[tuple[int, bool], Plan]":
        return {}

    def sigma_of(self, site: str) -> float | None:
        """The noise multiplier of a site's training: given, or calibrated for the whole run."""
        return self._sigma(self.site_overrides(site))

    def nominal_sigma(self) -> float | None:
        """The noise multiplier of a site without overrides; of the coordinator's own noise."""
        return self._sigma(NO_OVERRIDES)

    def _sigma(self, overrides: SitePlan, pilot: bool = False) -> float | None:
        if not self.private:
            return None
        if pilot and self.tune is not None:
            steps = self.steps * self.pilot_length
            alone = Budget(self.tune.epsilon, self.required_delta)
            return calibrate(alone, rate=self.rate, steps=steps)
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
                    f"clip_sigma must be more than {together:.4g} to stay inside epsilon = "
                    f"{epsilon}, got {self.clip_sigma}"
                )
            return math.sqrt(1 / left)
        metrics = metric_events(self, self.metric_rounds(self.rounds))
        if metrics and spent(metrics, self.required_delta) >= epsilon:
            raise PlanError(
                f"metrics_sigma must be larger: the paid metrics alone cost more than "
                f"epsilon = {epsilon}, got {self.metrics_sigma}"
            )
        beside = metrics + self._pilots(overrides)
        if self.tune is not None and spent(beside, self.required_delta) >= epsilon:
            raise PlanError(
                f"tune.epsilon must be smaller: {self.candidates} pilots cost more than "
                f"epsilon = {epsilon}, got {self.tune.epsilon}"
            )
        steps = self.steps * (self.rounds - self.pilot_rounds)
        return calibrate(budget, rate=self.rate, steps=steps, beside=beside)

    def _pilots(self, overrides: SitePlan) -> tuple[Event, ...]:
        """What all pilots release at a site, apart from paid metrics."""
        event = self._event(overrides, True) if self.tune is not None else None
        return () if event is None else (replace(event, count=self.pilot_rounds),)

    @property
    def required_delta(self) -> float:
        """The plan's delta; PlanError for a plan without privacy, which has none."""
        if self.delta is None:
            raise PlanError('delta must be set unless unit = "none", got nothing')
        return self.delta

    def event(self, site: str) -> Event | None:
        """What one round's training at one site releases; None without privacy.

        With a search it is a round after the pilots.
        """
        return self._event(self.site_overrides(site))

    def _event(self, overrides: SitePlan, pilot: bool = False) -> Event | None:
        sigma = self._sigma(overrides, pilot)
        if sigma is None:
            return None
        if self.unit == "client":
            return Event("client", sigma, 1.0, 1, shares=self.shares)
        return Event(self.unit, sigma, self.rate, self.steps, shares=self.shares)

    def events_of_round(self, site: str, number: int | None = None) -> tuple[Event, ...]:
        """Everything that one round at one site pays for: the update, then the paid extras.

        Without a `number` (from 1) it is a round after the pilots of a search, with paid metrics.
        """
        pilot = number is not None and self.pilot_of(number) is not None
        metrics = number is None or self.asks_metrics(number)
        return self._events(self.site_overrides(site), pilot, metrics)

    def asks_metrics(self, number: int) -> bool:
        """Whether a round (from 1) has paid metrics."""
        return self.metric_rounds(number) > self.metric_rounds(number - 1)

    def metric_rounds(self, last: int) -> int:
        """How many of the rounds up to `last` have paid metrics."""
        return metric_rounds(self, last)

    def nominal_events(self) -> tuple[Event, ...]:
        """What one round costs a site without overrides, or the coordinator (unit "client")."""
        return self._events(NO_OVERRIDES)

    def _events(
        self, overrides: SitePlan, pilot: bool = False, metrics: bool = True
    ) -> tuple[Event, ...]:
        event = self._event(overrides, pilot)
        if event is None:
            return ()
        if self.unit == "client":
            adaptive = self.clip_sigma is not None
            return (
                (event, Event("client", self.clip_sigma or 0.0, 1.0, 1)) if adaptive else (event,)
            )
        return (event, *metric_events(self, 1)) if metrics else (event,)

    def limit_of(self, site: str) -> Budget | None:
        """The budget that a site does not pass in this run, where the plan sets one."""
        return self._limit(self.site_overrides(site))

    def nominal_limit(self) -> Budget | None:
        """The budget in this run of a site without overrides, or of the coordinator."""
        return self._limit(NO_OVERRIDES)

    def _limit(self, overrides: SitePlan) -> Budget | None:
        """The smaller of `limit` and `epsilon`; in format 1 `epsilon` only calibrated the noise."""
        limits = [overrides.limit if overrides.limit is not None else self.limit]
        if self.format > 1:
            limits.append(overrides.epsilon if overrides.epsilon is not None else self.epsilon)
        epsilon = min((one for one in limits if one is not None), default=None)
        return None if epsilon is None or not self.private else Budget(epsilon, self.required_delta)

    def epsilon_after(self, site: str, rounds: int) -> float | None:
        """Epsilon of a site after so many rounds of this plan; None without privacy."""
        return self._epsilon(self.site_overrides(site), rounds)

    def nominal_epsilon_after(self, rounds: int) -> float | None:
        """Epsilon after so many rounds of a site without overrides; None without privacy."""
        return self._epsilon(NO_OVERRIDES, rounds)

    def _epsilon(self, overrides: SitePlan, rounds: int) -> float | None:
        if not self.private:
            return None
        return spent(self._taken(overrides, rounds), self.required_delta)

    def _taken(self, overrides: SitePlan, rounds: int) -> tuple[Event, ...]:
        """Everything that so many rounds release."""
        events = self._events(overrides)
        pilot = self._events(overrides, True) if self.tune is not None else ()
        if not self.metrics:
            return released(events, pilot, self.pilot_rounds, rounds)
        updates = released(events[:1], pilot[:1], self.pilot_rounds, rounds)
        return updates + metric_events(self, self.metric_rounds(rounds))

    def to_dict(self) -> dict[str, Any]:
        """All keys that have a value, in the order of the class."""
        values: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if value is None or item.name in ("site", "operation", "simulation"):
                continue
            if item.name in _SINCE and value in (item.default, {}):
                continue
            value = dict(value) if isinstance(value, Mapping) else value
            tables = ModelPlan | SecurePlan | StatisticsPlan | AugmentPlan | TunePlan
            value = written(value) if isinstance(value, tables) else value
            values[item.name] = list(value) if isinstance(value, tuple) else value
        values["site"] = {name: written(one) for name, one in sorted(self.site.items())}
        values["operation"] = written(self.operation)
        values["simulation"] = written(self.simulation)
        return values

    def to_json(self) -> str:
        """The canonical text that travels to the sites and is hashed: what binds them.

        It leaves out `[operation]` and `[simulation]`. Format 1 (0.1.0) held min_sites as well.
        """
        values = self.to_dict()
        del values["simulation"], values["operation"]
        if self.format == 1:
            del values["format"]
            values["min_sites"] = self.operation.min_sites
        return canonical_json(values)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of `to_json()`: the contract that a site approves."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_toml(self) -> str:
        """The plan as a file that can be run again; the calibrated sigmas stand in comments."""
        lines = [tomli_w.dumps(self.to_dict(), multiline_strings=True)]
        if self.private and self.epsilon is not None and isinstance(self.nominal_units, int):
            rounds = self.rounds - self.pilot_rounds
            lines.append(f"# sigma, calibrated for {rounds} rounds: {self.nominal_sigma()!r}\n")
        if self.lr == "auto" and isinstance(self.nominal_units, int) and (self.sites or self.site):
            lines.append(f"# lr, by the rule for auto: {self.learning_rate!r}\n")
        for name, overrides in sorted(self.site.items()):
            if self.private and overrides.epsilon is not None:
                lines.append(f"# sigma of {name}, calibrated: {self.sigma_of(name)!r}\n")
        return "".join(lines)
