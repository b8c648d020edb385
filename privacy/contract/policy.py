"""A data owner's limits as a file: each key with its meaning, read strictly, written in full."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from annotated_types import Interval, Len, Predicate

from privacy.accounting.segments import Budget
from privacy.contract.plan import Plan
from privacy.contract.schema import INFINITE, Expected, build, check
from privacy.files import DocumentError, Limits, parse_toml, read_bounded

ANY: Final = "*"
"""Among the tasks: any task."""
NO_CODE: Final = "no-code"
"""Among the tasks: every task that a schema and the plan describe without any code."""
UPDATE: Final = "update"
"""The output that every plan of training asks for."""
STATISTICS: Final = "statistics"
"""The output that a plan of statistics asks for."""


LIMITS: Final = Limits(size=16_000_000, count=1 << 20)


class PolicyError(ValueError):
    """A policy that cannot be read: one line with the key and what it must be."""


def _is_limit(value: float) -> bool:
    return 0 <= value <= 1e6 or value == math.inf


Names = Annotated[
    tuple[Annotated[str, Len(1, 200)], ...], Len(0, 100_000), Expected("a list of names")
]


@dataclass(frozen=True, slots=True)
class Policy:
    """A site's own limits, each in its bounds (else PolicyError).

    The meanings stand beside the keys in `to_toml()`. `epsilon` is infinite in a simulation alone.
    """

    epsilon: Annotated[
        float, Predicate(_is_limit), Expected("a number >= 0 and <= 1e+06"), INFINITE
    ]
    delta: Annotated[float, Interval(ge=1e-30, lt=1)]
    min_sigma: Annotated[float, Interval(ge=0, le=1e9)] = 0.5
    max_rate: Annotated[float, Interval(ge=1e-9, le=1)] = 1.0
    max_steps: Annotated[int, Interval(ge=1, le=1_000_000)] = 1000
    max_rounds_per_day: Annotated[int, Interval(ge=0, le=1_000_000_000)] = 10_000
    min_rows: Annotated[int, Interval(ge=1, le=1_000_000_000)] = 1
    max_unfit: Annotated[float, Interval(ge=0, le=1)] = 1.0
    tasks: Names = (ANY,)
    approve: Literal["list", "within-limits"] = "list"
    plans: Names = ()
    denied: Names = ()
    packages: Names = ()
    outputs: Names = (UPDATE,)
    more_noise: bool = False
    trust_coordinator: bool = False
    unit: Literal["any", "record", "subject"] = "any"
    records_per_subject: Annotated[int, Interval(ge=1, le=1_000_000_000)] = 1
    forecast: bool = True
    epsilon_alone: Annotated[
        float, Predicate(_is_limit), Expected("a number >= 0 and <= 1e+06"), INFINITE
    ] = 0.0
    min_parties: Annotated[int, Interval(ge=3, le=1000)] = 3
    max_colluding: Annotated[int, Interval(ge=0, le=1000)] = 1
    parties: Names = ()

    def __post_init__(self) -> None:
        check(self, PolicyError)

    @property
    def rows_of_a_person(self) -> int:
        """The most rows of one person that are trained on; where people are the unit, all are."""
        return 1_000_000_000 if self.unit == "subject" else self.records_per_subject

    def needs_subjects(self, plan: Plan) -> bool:
        """Whether a plan can be taken only where the rows say whose they are."""
        return plan.unit == "subject" or (plan.unit == "record" and self.records_per_subject > 1)

    @property
    def budget(self) -> Budget | None:
        """The limit over the life of the population; None only in a simulation without one."""
        return Budget(self.epsilon, self.delta) if math.isfinite(self.epsilon) else None

    @property
    def budget_alone(self) -> Budget | None:
        """The limit where all other parties collude; None only in a simulation without one."""
        if not math.isfinite(self.epsilon_alone):
            return None
        return Budget(self.epsilon_alone, self.delta)

    @classmethod
    def simulated(cls, plan: Plan, limit: Budget | None) -> "Policy":
        """What a simulated site allows: the whole plan, up to its limit in it."""
        return cls(
            epsilon=math.inf if limit is None else limit.epsilon,
            delta=0.5 if limit is None else limit.delta,
            min_sigma=0.0,
            max_steps=plan.steps,
            max_rounds_per_day=10**9,
            approve="within-limits",
            packages=() if plan.code is None else (plan.code,),
            outputs=outputs_of(plan),
            trust_coordinator=True,
            epsilon_alone=math.inf,
            max_colluding=0,
            parties=(ANY,),
        )

    def to_toml(self) -> str:
        """The policy as a file, each key with its meaning."""
        lines = ["# What this site allows. Its owner edits this file; no coordinator can."]
        for item in fields(self):
            lines += [
                f"# {MEANINGS[item.name]}",
                f"{item.name} = {_toml(getattr(self, item.name))}",
            ]
        return "\n".join(lines) + "\n"


@cache
def builtin_policy() -> Policy:
    """The policy for embedded data, which is public: a federation without files."""
    return Policy(
        epsilon=10.0,
        delta=1e-3,
        min_sigma=0.0,
        approve="within-limits",
        outputs=(UPDATE, STATISTICS),
        epsilon_alone=1000.0,
        parties=(ANY,),
    )


def outputs_of(plan: Plan) -> tuple[str, ...]:
    """What a plan asks to let out of a site, by the names that a policy lists."""
    return (UPDATE if plan.statistics is None else STATISTICS, *plan.metrics)


MEANINGS: Final[Mapping[str, str]] = {
    "epsilon": "the most that may ever be spent of this population, over all runs",
    "delta": "the delta at which epsilon is counted; well below 1 / (number of people)",
    "min_sigma": "the least noise of any release, as a multiple of the clip",
    "max_rate": "the largest share of the rows that one training step may sample",
    "max_steps": "the most training steps a round",
    "max_rounds_per_day": "the most rounds that may be spent on in one UTC day",
    "min_rows": "with fewer rows the client does not start",
    "max_unfit": "with a larger share of rows or of a column's values unfit it does not start",
    "tasks": 'the tasks that may be trained; "*" is any, "no-code" any that a schema describes',
    "approve": '"list": only the plans below; "within-limits": any plan that keeps to this file',
    "plans": "hashes of the approved plans (tacit-client approve HASH)",
    "denied": "hashes of the denied plans (tacit-client deny HASH)",
    "packages": "task packages whose code may run here (tacit-client task approve HASH)",
    "outputs": "what may leave: update, statistics, paid metrics (loss, accuracy, rows, classes)",
    "more_noise": "where the budget is too small, answer with more noise rather than decline",
    "trust_coordinator": "allow plans that show the coordinator un-noised updates",
    "unit": 'whom a plan must protect: "record", "subject" (a person with all rows), or "any"',
    "forecast": "tell a coordinator that proposes a plan how many of its rounds the budget holds",
    "records_per_subject": "the limit binds this many records of one person together",
    "epsilon_alone": "secure aggregation: the most that may ever be spent if all other parties "
    "collude; 0 refuses it",
    "min_parties": "secure aggregation: the fewest parties that a plan may have",
    "max_colluding": "secure aggregation: a plan must hold against so many colluding parties",
    "parties": "verifying keys of the parties whose owners gave them to this one; an approved plan "
    "names its own",
}


def load_policy(path: Path | str) -> Policy:
    """Read a policy file; PolicyError for an unknown key, a missing limit, a value out of range."""
    try:
        return parse_policy(read_bounded(Path(path), LIMITS.size).decode("utf-8"))
    except FileNotFoundError:
        raise PolicyError(f"{path}: no such file (`tacit-client policy new` writes one)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"{path}: cannot be read: {error}") from None
    except DocumentError as error:
        raise PolicyError(str(error)) from None
    except PolicyError as error:
        raise PolicyError(f"{path}: {error}") from None


def parse_policy(text: str) -> Policy:
    """A policy from TOML text."""
    try:
        table = parse_toml(text, LIMITS)
    except DocumentError as error:
        raise PolicyError(f"policy: {error}") from None
    return build(Policy, table, PolicyError)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(_quoted(one) for one in value) + "]"
    return _quoted(value) if isinstance(value, str) else repr(value)


def _quoted(text: str) -> str:
    escaped = "".join(
        f"\\u{ord(c):04x}" if ord(c) < 0x20 or c == "\x7f" else f"\\{c}" if c in '"\\' else c
        for c in text
    )
    return f'"{escaped}"'
