"""Every key of a plan with its type and its bounds; the meanings stand in docs/plan.md.

`Contract` is what sites approve; `Operation` and `Simulation` change neither release nor price.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal

from annotated_types import Interval, Len, MaxLen, Predicate

from privacy.contract.schema import Expected, check


class PlanError(ValueError):
    """A plan that cannot be run: one line with the key, what it must be and what it is."""


FORMAT: Final = 2
"""The format of the canonical text; plans of format 1 (0.1.0) keep their digests."""

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_CODE: Final = re.compile(r"sha256:[0-9a-f]{64}")
_LAYER: Final = re.compile(r"[a-z][a-z0-9-]{0,20}( [0-9][0-9.]{0,8}){0,4}")
_KEY: Final = re.compile(r"[0-9a-f]{64}")
_OPTION: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")
_SPLIT: Final = re.compile(r"iid|natural|dirichlet:(?=.*[1-9])(\d+\.?\d*|\.\d+)|labels:[1-9]\d*")


def _is_name(value: str) -> bool:
    return bool(NAME.fullmatch(value))


def _is_code(value: str) -> bool:
    return bool(_CODE.fullmatch(value))


def _is_key(value: str) -> bool:
    return bool(_KEY.fullmatch(value))


def _is_layer(value: str) -> bool:
    return bool(_LAYER.fullmatch(value))


def _is_option(value: str) -> bool:
    return bool(_OPTION.fullmatch(value))


def _is_split(value: str) -> bool:
    return len(value) < 40 and bool(_SPLIT.fullmatch(value))


def _distinct(values: tuple[str, ...]) -> bool:
    return len(set(values)) == len(values)


Name = Annotated[
    str,
    Predicate(_is_name),
    Expected("a name of at most 64 letters, digits, '_', '-' and '.'"),
]
Split = Annotated[str, Predicate(_is_split), Expected("iid, dirichlet:ALPHA, labels:K or natural")]
Code = Annotated[
    str,
    Predicate(_is_code),
    Expected('"sha256:" and the 64 hexadecimal digits of a task package'),
]
ResultsDigest = Annotated[
    str,
    Predicate(_is_code),
    Expected('"sha256:" and the 64 hexadecimal digits of a statistics.json'),
]
VerifyingKey = Annotated[
    str, Predicate(_is_key), Expected("a verifying key of 64 hexadecimal digits")
]
Layer = Annotated[str, Predicate(_is_layer), Expected('a layer such as "conv 16 3"')]
Network = Literal[
    "linear", "mlp", "cnn", "resnet", "lstm", "text-cnn", "transformer", "bag", "mixed"
]
OptionName = Annotated[
    str, Predicate(_is_option), Expected("a name of lower-case letters, digits and '_'")
]
Metric = Literal["loss", "accuracy", "rows", "classes"]
Question = Literal["missing", "outside", "frequencies", "histogram", "quantiles", "mean", "moments"]
ColumnName = Annotated[
    str,
    Len(1, 200),
    Predicate(str.isprintable),
    Expected("a column's name of at most 200 printable characters"),
]
Questions = Annotated[
    tuple[Question, ...],
    Len(1, 6),
    Predicate(_distinct),
    Expected(
        "a list of different words among missing, outside, frequencies, histogram, quantiles, "
        "mean, moments"
    ),
]
Positive = Annotated[float, Interval(ge=1e-12, le=1e9)]
Factors = Annotated[tuple[Positive, ...], Len(1, 32), Predicate(_distinct)]
Weight = Annotated[float, Interval(ge=0, le=1e9)]
ClassWeight = Annotated[float, Interval(gt=0, le=1)]
Share = Annotated[float, Interval(ge=0, lt=1)]
Rate = Annotated[float, Interval(ge=1e-9, le=1)]
Sigma = Annotated[float, Interval(ge=1e-6, le=1e6)]
Epsilon = Annotated[float, Interval(ge=1e-6, le=1e6)]
Delta = Annotated[float, Interval(ge=1e-30, lt=1)]
Rounds = Annotated[int, Interval(ge=1, le=1_000_000)]
Rows = Annotated[int, Interval(ge=1, le=1_000_000_000)]
Sites = Annotated[int, Interval(ge=1, le=100_000)]


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
    `stop_metric` has not become better by more than `stop_gain` for so many rounds.
    """

    min_sites: Sites = 1
    round_timeout: Annotated[float, Interval(ge=0.1, le=1e7)] | None = None
    keep: Annotated[int, Interval(ge=1, le=1_000_000)] | None = None
    stop_after: Rounds | None = None
    patience: Rounds | None = None
    stop_metric: Literal["loss", "accuracy", "site_loss", "site_accuracy"] = "loss"
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
    """`[tune]`: pilots of so many `rounds`, each of which costs `epsilon` by itself."""

    epsilon: Epsilon
    rounds: Annotated[int, Interval(ge=1, le=10_000)] = 10
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
        tuple[ColumnName, ...], Len(0, 1000), Predicate(_distinct), Expected("a list of columns")
    ] = ()
    correlation: Annotated[
        tuple[ColumnName, ...],
        Len(0, 50),
        Predicate(_distinct),
        Expected("a list of at most 50 different columns"),
    ] = ()
    groups: Annotated[
        tuple[ColumnName, ...],
        Len(0, 10),
        Predicate(_distinct),
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


@dataclass(frozen=True)
class Contract:
    """The keys of a plan, each by itself; privacy/contract/rules.py says what fits together."""

    task: Name
    rounds: Rounds
    rate: Rate
    lr: Positive
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
        Predicate(_distinct),
        Expected("a list of different names among loss, accuracy, rows, classes"),
    ] = ()
    metrics_sigma: Sigma | None = None
    metrics_clip: Positive = 5.0
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
