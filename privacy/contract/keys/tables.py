"""The tables of a plan; what each key means stands in docs/plan.md.

`Operation` and `Simulation` change neither release nor price; the others are approved by sites.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal

from annotated_types import Interval, Len, Predicate

from privacy.contract.keys.types import (
    ColumnName,
    Epsilon,
    Factors,
    Layer,
    Name,
    Network,
    PlanError,
    Questions,
    Rounds,
    Rows,
    Share,
    Sites,
    VerifyingKey,
    Weight,
    distinct,
)
from privacy.contract.schema import Expected, check


@dataclass(frozen=True, slots=True)
class Simulation:
    """`[simulation]`: how a simulation is run."""

    engine: Literal["serial", "processes", "vector", "ray"] = "serial"
    workers: Annotated[int, Interval(ge=1, le=1024)] = 2
    dropout: Share = 0.0
    slow: Share = 0.0
    masks: bool = True

    def __post_init__(self) -> None:
        check(self, PlanError, "simulation.")


@dataclass(frozen=True, slots=True)
class Operation:
    """`[operation]`: how the coordinator runs the contract.

    `min_sites` trained sites make a round; `round_timeout` is in seconds; `keep` is how many
    checkpoints stay; the run stops after `stop_after` rounds, though the contract allows more.
    `check_noise` leaves out updates that are too quiet or too loud for the plan; a reply that comes
    at most `late_rounds` rounds late still counts. With `patience` a run stops by itself where
    `stop_metric` has not become better by more than `stop_gain` in so many looks at it.
    """

    min_sites: Sites = 1
    round_timeout: Annotated[float, Interval(ge=0.1, le=1e7)] | None = None
    keep: Annotated[int, Interval(ge=1, le=1_000_000)] | None = None
    stop_after: Rounds | None = None
    patience: Rounds | None = None
    stop_metric: Literal["public", "site", "loss", "accuracy", "site_loss", "site_accuracy"] = (
        "public"
    )
    stop_gain: Weight = 0.0
    check_noise: bool = True
    late_rounds: Annotated[int, Interval(ge=0, le=1000)] = 2

    def __post_init__(self) -> None:
        check(self, PlanError, "operation.")


@dataclass(frozen=True, slots=True)
class SitePlan:
    """`[site.NAME]`: what differs at one site: its rows or people, its epsilon, its limit.

    `key` is the site's verifying key, as its owner gave it: a party of secure aggregation.
    """

    rows: Rows | None = None
    epsilon: Epsilon | None = None
    limit: Epsilon | None = None
    subjects: Rows | None = None
    key: VerifyingKey | None = None

    def __post_init__(self) -> None:
        check(self, PlanError, "site.")


NO_OVERRIDES: Final = SitePlan()
"""Of a site that the plan does not name."""


@dataclass(frozen=True, slots=True)
class SecurePlan:
    """`[secure]`: how many parties may drop out of a round, and how many may collude.

    The noise of a sum is enough without that of so many: the sites' shares are larger for it.
    """

    dropouts: Annotated[int, Interval(ge=0, le=1000)]
    colluding: Annotated[int, Interval(ge=0, le=1000)]

    def __post_init__(self) -> None:
        check(self, PlanError, "secure.")


@dataclass(frozen=True, slots=True)
class TunePlan:
    """`[tune]`: pilots of so many `rounds`, each of which costs `epsilon` by itself.

    Without `rounds` a pilot has a fifth of the run's own (privacy/contract/pilots.py).
    """

    epsilon: Epsilon
    rounds: Annotated[int, Interval(ge=1, le=10_000)] | None = None
    lr_times: Factors = (0.1, 0.33, 1.0, 3.3, 10.0)
    clip_times: Factors = (1.0,)
    metric: Literal["loss", "accuracy", "site_loss", "site_accuracy"] = "loss"

    def __post_init__(self) -> None:
        check(self, PlanError, "tune.")


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """`[model]`: a model without code, by name or layer by layer (docs/no-code.md)."""

    name: Network | None = None
    layers: Annotated[tuple[Layer, ...], Len(1, 64), Expected("1 to 64 layers")] | None = None
    width: Annotated[int, Interval(ge=1, le=4096)] | None = None
    depth: Annotated[int, Interval(ge=1, le=32)] | None = None
    heads: Annotated[int, Interval(ge=1, le=64)] | None = None
    dropout: Share | None = None
    hazard: Literal["logistic", "cox"] | None = None
    norm: Annotated[float, Interval(ge=1e-3, le=1e3)] | None = None
    random: Annotated[int, Interval(ge=2, le=65_536)] | None = None

    def __post_init__(self) -> None:
        check(self, PlanError, "model.")
        if (self.name is None) == (self.layers is None):
            raise PlanError("model must have exactly one of name and layers")
        sizes = ("width", "depth", "heads", "dropout", "norm", "random")
        given = [one for one in sizes if getattr(self, one) is not None]
        if self.layers is not None and given:
            raise PlanError(f"model.{given[0]} must be left out where layers are given")


@dataclass(frozen=True, slots=True)
class AugmentPlan:
    """`[augment]`: random views of a picture or sound, averaged in one clipped gradient."""

    views: Annotated[int, Interval(ge=2, le=64)]
    across: Annotated[int, Interval(ge=0, le=64)] = 0
    down: Annotated[int, Interval(ge=0, le=64)] = 0
    flip: bool = False

    def __post_init__(self) -> None:
        check(self, PlanError, "augment.")
        if not (self.across or self.down or self.flip):
            raise PlanError("augment must set across, down or flip: views would all be the same")


@dataclass(frozen=True, slots=True)
class StatisticsPlan:
    """`[statistics]`: what is counted, column by column, in one noisy release.

    `of` is the task whose rows are counted. A column of numbers has `bins` cells of equal width, or
    one for each number where it is in `whole`. Moments of `correlation` are released together. In
    `groups`, columns of categories, the first model's predictions are held against the `label`.
    """

    of: Name
    columns: Annotated[
        Mapping[ColumnName, Questions], Len(0, 1000), Expected("a table: column = [words]")
    ] = field(default_factory=dict)
    bins: Annotated[int, Interval(ge=2, le=1024)] = 64
    whole: Annotated[
        tuple[ColumnName, ...], Len(0, 1000), Predicate(distinct), Expected("a list of columns")
    ] = ()
    correlation: Annotated[
        tuple[ColumnName, ...],
        Len(0, 50),
        Predicate(distinct),
        Expected("a list of at most 50 different columns"),
    ] = ()
    groups: Annotated[
        tuple[ColumnName, ...],
        Len(0, 10),
        Predicate(distinct),
        Expected("a list of at most 10 different columns"),
    ] = ()
    label: ColumnName | None = None

    def __post_init__(self) -> None:
        check(self, PlanError, "statistics.")
        if bool(self.groups) != (self.label is not None):
            raise PlanError("statistics.groups and statistics.label must be given together")
        stray = [name for name in self.whole if name not in self.columns]
        if stray:
            raise PlanError(
                f"statistics.whole must name columns of statistics.columns, got {stray[0]}"
            )
        if len(self.correlation) == 1:
            raise PlanError("statistics.correlation must name at least two columns, got one")
