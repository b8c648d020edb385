"""What a plan's keys may hold: each type with its bounds and its words for a message."""

import re
from typing import Annotated, Final, Literal

from annotated_types import Interval, Len, Predicate

from privacy.contract.schema import Expected


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


def distinct(values: tuple[str, ...]) -> bool:
    """Whether no value stands twice in a list."""
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
    Predicate(distinct),
    Expected(
        "a list of different words among missing, outside, frequencies, histogram, quantiles, "
        "mean, moments"
    ),
]
Positive = Annotated[float, Interval(ge=1e-12, le=1e9)]
Factors = Annotated[tuple[Positive, ...], Len(1, 32), Predicate(distinct)]
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
