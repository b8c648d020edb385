"""A data owner's limits as a file: each key with its meaning, read strictly, written in full."""

import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from privacy.accounting.segments import Budget
from privacy.contract.plan import Plan

ANY: Final = "*"
"""Among the tasks: any task."""
UPDATE: Final = "update"
"""The output that every plan asks for."""


class PolicyError(ValueError):
    """A policy that cannot be read: one line naming the key and what was expected."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A site's own limits; the meanings stand beside the keys in `to_toml()`."""

    epsilon: float
    delta: float
    min_sigma: float = 0.5
    max_rate: float = 1.0
    max_steps: int = 1000
    max_rounds_per_day: int = 10_000
    min_rows: int = 1
    tasks: tuple[str, ...] = (ANY,)
    approve: str = "list"
    plans: tuple[str, ...] = ()
    denied: tuple[str, ...] = ()
    outputs: tuple[str, ...] = (UPDATE,)
    more_noise: bool = False
    trust_coordinator: bool = False
    records_per_subject: int = 1

    @property
    def budget(self) -> Budget | None:
        """The limit over the life of the population; None only in a simulation without one."""
        return Budget(self.epsilon, self.delta) if math.isfinite(self.epsilon) else None

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
            outputs=(UPDATE, *plan.metrics),
            trust_coordinator=True,
        )

    def to_toml(self) -> str:
        """The policy as a file, each key with its meaning."""
        lines = ["# What this site allows. Its owner edits this file; no coordinator can."]
        for item in fields(self):
            lines += [
                f"# {_MEANINGS[item.name]}",
                f"{item.name} = {_toml(getattr(self, item.name))}",
            ]
        return "\n".join(lines) + "\n"


BUILTIN: Final = Policy(
    epsilon=10.0, delta=1e-3, min_sigma=0.0, approve="within-limits", more_noise=False
)
"""The policy for embedded data, which is public: enough to try a federation without files."""


Check = tuple[Callable[[Any], bool], str]


def _number(low: float, high: float = math.inf, *, above: bool = False) -> Check:
    def fits(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return math.isfinite(value) and (low < value if above else low <= value) and value <= high

    most = f" <= {high:g}" if math.isfinite(high) else ""
    return fits, f"a number {low:g} {'<' if above else '<='} value{most}"


def _whole(low: int) -> Check:
    def fits(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= low

    return fits, f"a whole number >= {low}"


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) and v for v in value)


_BOOL: Final[Check] = (lambda value: isinstance(value, bool), "true or false")
_CHECKS: Final[Mapping[str, Check]] = {
    "epsilon": _number(0, 1e6),
    "delta": (lambda v: _number(0, above=True)[0](v) and v < 1, "a number 0 < value < 1"),
    "min_sigma": _number(0, 1e9),
    "max_rate": _number(0, 1, above=True),
    "max_steps": _whole(1),
    "max_rounds_per_day": _whole(0),
    "min_rows": _whole(1),
    "tasks": (_names, 'a list of task names, or ["*"]'),
    "approve": (lambda v: v in ("list", "within-limits"), "list or within-limits"),
    "plans": (_names, "a list of plan hashes"),
    "denied": (_names, "a list of plan hashes"),
    "outputs": (_names, "a list of output names"),
    "more_noise": _BOOL,
    "trust_coordinator": _BOOL,
    "records_per_subject": _whole(1),
}
_MEANINGS: Final[Mapping[str, str]] = {
    "epsilon": "the most that may ever be spent of this population, over all runs",
    "delta": "the delta at which epsilon is counted; well below 1 / (number of people)",
    "min_sigma": "the least noise of any release, as a multiple of the clip",
    "max_rate": "the largest share of the rows that one training step may sample",
    "max_steps": "the most training steps a round",
    "max_rounds_per_day": "the most rounds that may be spent on in one UTC day",
    "min_rows": "with fewer rows the client does not start",
    "tasks": 'the tasks that may be trained; ["*"] allows any',
    "approve": '"list": only the plans below; "within-limits": any plan that keeps to this file',
    "plans": "hashes of the approved plans (tacit-client approve HASH)",
    "denied": "hashes of the denied plans (tacit-client deny HASH)",
    "outputs": "what may leave: update, and paid metrics by name (loss, accuracy, rows, classes)",
    "more_noise": "where the budget is too small, answer with more noise rather than decline",
    "trust_coordinator": "allow plans that show the coordinator un-noised updates",
    "records_per_subject": "the limit binds this many records of one person together",
}


def load_policy(path: Path | str) -> Policy:
    """Read a policy file; PolicyError for an unknown key, a missing limit, a value out of range."""
    try:
        return parse_policy(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PolicyError(f"{path}: no such file (`tacit-client policy new` writes one)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"{path}: cannot be read: {error}") from None
    except PolicyError as error:
        raise PolicyError(f"{path}: {error}") from None


def parse_policy(text: str) -> Policy:
    """A policy from TOML text."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PolicyError(f"expected TOML: {error}") from None
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in _CHECKS:
            raise PolicyError(f"{key}: unknown key, expected one of {', '.join(_CHECKS)}")
        fits, expected = _CHECKS[key]
        if not fits(value):
            raise PolicyError(f"{key}: expected {expected}, got {value!r}")
        values[key] = tuple(value) if isinstance(value, list) else value
    for key in ("epsilon", "delta"):
        if key not in values:
            raise PolicyError(f"{key}: missing, expected {_CHECKS[key][1]}")
    return Policy(**values)


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
