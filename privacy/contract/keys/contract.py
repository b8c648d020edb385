"""Every key of a plan with its type and its bounds; the meanings stand in docs/plan.md."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal

from annotated_types import Interval, MaxLen, Predicate

from privacy.contract.keys.tables import (
    AugmentPlan,
    ModelPlan,
    Operation,
    SecurePlan,
    Simulation,
    SitePlan,
    StatisticsPlan,
    TunePlan,
)
from privacy.contract.keys.types import (
    FORMAT,
    ClassWeight,
    Code,
    ColumnName,
    Delta,
    Epsilon,
    Metric,
    Name,
    OptionName,
    Positive,
    Rate,
    ResultsDigest,
    Rounds,
    Rows,
    Share,
    Sigma,
    Sites,
    Split,
    Weight,
    distinct,
)
from privacy.contract.schema import Expected


@dataclass(frozen=True)
class Contract:
    """The keys of a plan, each by itself; privacy/contract/rules/ says what fits together."""

    task: Name
    rounds: Rounds
    rate: Rate
    lr: Positive | Literal["auto"]
    rows: Rows | Literal["actual"] | None = None
    subjects: Rows | Literal["actual"] | None = None
    sites: Sites | None = None
    clip: Positive | None = None
    unit: Literal["record", "subject", "client", "none"] = "record"
    sigma: Sigma | None = None
    epsilon: Epsilon | None = None
    delta: Delta | None = None
    limit: Epsilon | None = None
    schema: Annotated[str, MaxLen(100_000)] | None = None
    constants_from: ResultsDigest | None = None
    model: ModelPlan | None = None
    statistics: StatisticsPlan | None = None
    tune: TunePlan | None = None
    code: Code | None = None
    task_options: Mapping[OptionName, Annotated[str, MaxLen(200)] | int | float | bool] = field(
        default_factory=dict
    )
    augment: AugmentPlan | None = None
    class_weights: Mapping[ColumnName, ClassWeight] = field(default_factory=dict)
    split: Split = "iid"
    steps: Rounds = 1
    optimizer: Literal["sgd", "momentum", "adam"] = "sgd"
    momentum: Share = 0.9
    schedule: Literal["constant", "cosine"] = "constant"
    l2: Weight = 0.0
    aggregation: Literal["fedavg", "fedprox", "secure"] = "fedavg"
    secure: SecurePlan | None = None
    mu: Weight = 0.0
    combine: Literal["mean", "median", "trimmed-mean"] = "mean"
    trim: Annotated[float, Interval(gt=0, lt=0.5)] = 0.1
    server_lr: Positive = 1.0
    server_momentum: Share = 0.0
    server_optimizer: Literal["sgd", "adam", "yogi", "rmsprop"] = "sgd"
    server_tau: Positive = 1e-3
    server_schedule: Literal["constant", "cosine"] = "constant"
    warmup: Annotated[int, Interval(ge=0, le=1_000_000)] = 0
    l1: Weight | None = None
    average: bool = False
    weights: Literal["equal", "rows"] = "equal"
    clip_quantile: Annotated[float, Interval(gt=0, lt=1)] | None = None
    clip_lr: Positive = 0.2
    clip_sigma: Sigma | None = None
    metrics: Annotated[
        tuple[Metric, ...],
        Predicate(distinct),
        Expected("a list of different names among loss, accuracy, rows, classes"),
    ] = ()
    metrics_sigma: Sigma | None = None
    metrics_clip: Positive = 5.0
    metrics_every: Rounds = 1
    rows_per_subject: Rows | None = None
    micro_batch: Rows | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    wire: Literal["float32", "bfloat16", "int8"] = "float32"
    cohort: Sites | None = None
    seed: Annotated[int, Interval(ge=0, le=2**63 - 1)] = 0
    purpose: Annotated[
        str,
        MaxLen(500),
        Predicate(str.isprintable),
        Expected("a line of at most 500 printable characters"),
    ] = ""
    format: Literal[1, 2] = FORMAT
    site: Mapping[Name, SitePlan] = field(default_factory=dict)
    operation: Operation = field(default_factory=Operation)
    simulation: Simulation = field(default_factory=Simulation)

    @property
    def private(self) -> bool:
        """Whether the plan claims any privacy at all."""
        return self.unit != "none"

    @property
    def reads(self) -> str:
        """The task whose rows a site reads: the plan's own, or the one whose rows are counted."""
        return self.task if self.statistics is None else self.statistics.of

    @property
    def noised_at_site(self) -> bool:
        """Whether each site adds noise itself and pays from a ledger of its own."""
        return self.per_example or (self.unit == "client" and self.is_secure)

    @property
    def per_example(self) -> bool:
        """Whether every record's or person's gradient is bounded by itself."""
        return self.unit in ("record", "subject")

    @property
    def is_secure(self) -> bool:
        """Whether the coordinator learns the sum of the sites' updates alone."""
        return self.aggregation == "secure"

    @property
    def noised_centrally(self) -> bool:
        """Whether the coordinator adds the noise, and pays from its own ledger."""
        return self.unit == "client" and not self.is_secure

    @property
    def units_key(self) -> Literal["rows", "subjects"]:
        """The key that holds the public number of units at a site."""
        return "subjects" if self.unit == "subject" else "rows"

    @property
    def nominal_units(self) -> int | Literal["actual"]:
        """The public number of rows, or of people, at a site without overrides."""
        return self.subjects or 0 if self.unit == "subject" else self.rows or 0


PRIVACY_KEYS: Final = frozenset({"clip", "sigma", "epsilon", "delta", "limit"})
"""The keys that unit "none" does not have."""
