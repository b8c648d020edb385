"""Raw columns to numbers, one row at a time, by bounds and categories that are public constants.

Training and prediction share this one encoding. A value that does not fit is reported by row and
column, never repeated.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from client.tasks.rows import Encoded, Misfit, TaskError

ABSENT: Final = frozenset({"", "?", "NA", "N/A", "NaN", "nan", "null", "NULL", "None"})
"""Texts that mean a missing value."""

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Number:
    """A number of the public range low..high, held inside it and mapped to -1..1.

    `missing`: None refuses a missing value, a number stands in for it, "indicator" adds a feature
    that is 1 where the value is missing. `log` maps log(1 + value - low) instead of the value.
    Each of the `knots` adds a feature that is 1 from there on. `zero` is the value that becomes 0,
    where a common one is better known than the middle: features of mean 0 learn in fewer steps.
    """

    name: str
    low: float
    high: float
    missing: float | Literal["indicator"] | None = None
    log: bool = False
    knots: tuple[float, ...] = ()
    zero: float | None = None

    @property
    def shift(self) -> float:
        """What is taken off the mapped value, so that `zero` becomes 0."""
        return 0.0 if self.zero is None else float(self._scaled(np.array(self.zero)))

    @property
    def width(self) -> int:
        """How many features the column becomes."""
        return 1 + len(self.knots) + (self.missing == "indicator")

    def encode(self, column: Any) -> tuple[NDArray[np.float32], Mask, Mask]:
        """Features [n, width], which values do not fit, and which are missing and may not be."""
        values, wrong = _numbers(column)
        gone = np.isnan(values) & ~wrong
        refused = gone if self.missing is None else np.zeros_like(gone)
        middle = (self.low + self.high) / 2
        fill = self.missing if isinstance(self.missing, int | float) else middle
        held = np.clip(np.where(gone | wrong, fill, values), self.low, self.high)
        features = [self._scaled(held) - self.shift]
        features += [(held >= knot).astype(np.float64) for knot in self.knots]
        if self.missing == "indicator":
            features[0] = np.where(gone, 0.0, features[0])
            features.append(gone.astype(np.float64))
        return np.stack(features, 1).astype(np.float32), wrong, refused

    def _scaled(self, held: Floats) -> Floats:
        low, high = self.low, self.high
        if self.log:
            held, low, high = np.log1p(held - low), 0.0, math.log1p(high - low)
        return 2 * (held - low) / (high - low) - 1

    @property
    def expected(self) -> str:
        """What a value has to be."""
        return f"a number in {self.low:g}..{self.high:g}"


@dataclass(frozen=True, slots=True)
class Category:
    """One of the public `values`, as one feature each; any other becomes the last one ("other").

    `aliases` are further spellings. Without `other` an unknown or missing value does not fit. A
    feature is 1 or 0, or where `signed` 1 or -1.
    """

    name: str
    values: tuple[str, ...]
    other: bool = False
    aliases: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    signed: bool = False

    @property
    def width(self) -> int:
        """How many features the column becomes."""
        return len(self.values) + self.other

    def codes(self, column: Any) -> tuple[NDArray[np.int64], Mask]:
        """The position of every value in `values`, else len(values); and which are missing."""
        known = {value: code for code, value in enumerate(self.values)}
        known |= {alias: known[value] for alias, value in self.aliases.items()}
        return _coded(column, lambda text: _position(known, text), len(self.values))

    def encode(self, column: Any) -> tuple[NDArray[np.float32], Mask, Mask]:
        """Features [n, width], which values do not fit, and which are missing and may not be."""
        codes, gone = self.codes(column)
        unknown = codes == len(self.values)
        features = np.eye(len(self.values) + 1, dtype=np.float32)[codes][:, : self.width]
        if self.signed:
            features = 2 * features - 1
        if self.other:
            none = np.zeros_like(unknown)
            return features, none, none
        return features, unknown & ~gone, gone

    @property
    def expected(self) -> str:
        """What a value has to be."""
        few = ", ".join(self.values[:8]) + (", .." if len(self.values) > 8 else "")
        return f"one of {few}"


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a task: what goes in, and the label."""

    inputs: tuple[Number | Category, ...]
    label: Number | Category

    @property
    def width(self) -> int:
        """How many features a row has."""
        return sum(column.width for column in self.inputs)

    @property
    def features(self) -> tuple[str, ...]:
        """The column that each feature comes from."""
        return tuple(column.name for column in self.inputs for _ in range(column.width))

    def encode(self, table: Any) -> Encoded:
        """Encode a pyarrow table; columns of no interest are ignored, a label may be absent."""
        rows = table.num_rows
        fits = np.ones(rows, dtype=bool)
        misfits: list[Misfit] = []
        parts: list[NDArray[np.float32]] = []

        def note(column: Number | Category, wrong: Mask, refused: Mask) -> None:
            for row in np.flatnonzero(wrong | refused).tolist():
                misfits.append(Misfit(row, column.name, column.expected, absent=not wrong[row]))
            fits[wrong | refused] = False

        for column in self.inputs:
            if column.name not in table.column_names:
                raise TaskError(f"expected a column named {column.name!r}, found none")
            features, wrong, refused = column.encode(table.column(column.name))
            parts.append(features)
            note(column, wrong, refused)
        y: torch.Tensor | None = None
        kept = np.arange(rows)
        if self.label.name in table.column_names:
            values, wrong, refused = self._labels(table.column(self.label.name))
            note(self.label, wrong, refused)
            y = torch.from_numpy(values[fits])
        kept = np.flatnonzero(fits).astype(np.int64)
        x = np.concatenate(parts, axis=1) if parts else np.zeros((rows, 0), dtype=np.float32)
        misfits.sort(key=lambda misfit: misfit.row)
        return Encoded(torch.from_numpy(x[fits]), y, kept, tuple(misfits))

    def _labels(self, column: Any) -> tuple[NDArray[Any], Mask, Mask]:
        if isinstance(self.label, Number):
            features, wrong, refused = self.label.encode(column)
            return np.ascontiguousarray(features[:, 0]), wrong, refused
        codes, gone = self.label.codes(column)
        unknown = codes == len(self.label.values)
        return codes, unknown & ~gone, gone


def _numbers(column: Any) -> tuple[Floats, Mask]:
    """A column as float64, NaN where missing; and where it is no finite number."""
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        values = np.asarray(pc.cast(column, pa.float64()).to_numpy(), dtype=np.float64)
        return np.where(np.isinf(values), np.nan, values), np.isinf(values)
    texts, index = distinct(column)
    read = np.array([_number(text) for text in texts], dtype=np.float64)
    values = read[index]
    wrong = np.isinf(values)
    return np.where(wrong, np.nan, values), wrong


def _number(text: str | None) -> float:
    """A finite number, NaN for a missing one, infinity for what is none."""
    if text is None or text.strip() in ABSENT:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        return math.inf
    return value if math.isfinite(value) else math.inf


def _coded(
    column: Any, position: Callable[[str], int | None], unknown: int
) -> tuple[NDArray[np.int64], Mask]:
    texts, index = distinct(column)
    found = [None if text is None else position(text.strip()) for text in texts]
    codes = np.array([unknown if code is None else code for code in found], dtype=np.int64)
    gone = np.array(
        [
            code is None and (text is None or text.strip() in ABSENT)
            for text, code in zip(texts, found, strict=True)
        ],
        dtype=bool,
    )
    return codes[index], gone[index]


def _position(known: Mapping[str, int], text: str) -> int | None:
    """Look a value up; 1.0 and 1 are the same category."""
    if text in known:
        return known[text]
    try:
        value = float(text)
    except ValueError:
        return None
    return known.get(str(int(value))) if math.isfinite(value) and value == int(value) else None


def distinct(column: Any) -> tuple[Sequence[str | None], NDArray[np.int64]]:
    """The distinct values of a column as texts, and for each row the position of its value."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        try:
            column = pc.cast(column, pa.string())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise TaskError(f"expected text or numbers, got {column.type}") from error
    coded = pc.dictionary_encode(column, null_encoding="encode")
    index = np.asarray(coded.indices.to_numpy(zero_copy_only=False), dtype=np.int64)
    return coded.dictionary.to_pylist(), index
