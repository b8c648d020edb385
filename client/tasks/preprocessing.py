"""Raw columns to numbers, one row at a time, by bounds and categories that are public constants.

Training and prediction share this one encoding. A value that does not fit is reported by row and
column, never repeated.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from client.data.values import Coded, Floats, Mask, coded, numeric, plain, whole
from client.data.wanted import Wanted
from client.tasks.features.backbones import Backbone
from client.tasks.features.text import Text
from client.tasks.rows import Encoded, Misfit, TaskError

BLOCK: Final = 2**16
"""Values that are scaled at once: what a core's cache holds."""
ROWS: Final = 256
"""Rows that are scaled at once, at least."""


@dataclass(frozen=True, slots=True)
class Number:
    """A number of the public range low..high, held inside it and mapped to -1..1.

    `missing`: None refuses a missing value, a number stands in for it, "indicator" adds a feature
    that is 1 where the value is missing. `log` maps log(1 + value - low) instead of the value.
    Each of the `knots` adds a feature that is 1 from there on. `zero` is the value that becomes 0,
    where a common one is better known than the middle: features of mean 0 learn in fewer steps. A
    `date` counts in days since 1970-01-01 (UTC), by which `low` and `high` are meant too.
    """

    name: str
    low: float
    high: float
    missing: float | Literal["indicator"] | None = None
    log: bool = False
    knots: tuple[float, ...] = ()
    zero: float | None = None
    date: bool = False

    @property
    def plain(self) -> bool:
        """Whether the column is one feature, the value scaled."""
        return not (self.log or self.knots or self.date or self.missing == "indicator")

    @property
    def shift(self) -> float:
        """What is taken off the mapped value, so that `zero` becomes 0."""
        return 0.0 if self.zero is None else float(self._scaled(np.array(self.zero)))

    @property
    def width(self) -> int:
        """How many features the column becomes."""
        return 1 + len(self.knots) + (self.missing == "indicator")

    def numbers(self, column: Any) -> tuple[Floats, Mask]:
        """The values [n], NaN where missing; and which are no finite numbers."""
        return numeric(column, date=self.date)

    def encode(self, column: Any) -> tuple[NDArray[np.float32], Mask, Mask]:
        """Features [n, width], which values do not fit, and which are missing and may not be."""
        values, wrong = self.numbers(column)
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
        if self.date:
            low, high = (datetime.fromtimestamp(d * 86400, UTC) for d in (self.low, self.high))
            return f"a date in {low:%Y-%m-%d}..{high:%Y-%m-%d}"
        return f"a number in {self.low:g}..{self.high:g}"


@dataclass(frozen=True, slots=True)
class Category:
    """One of the public `values`, as one feature each; any other becomes the last one ("other").

    `aliases` are further spellings; with `fold`, upper and lower case are the same. Values are
    compared trimmed and in Unicode's NFC; 1.0 is 1; where the values are two that mean no and yes
    (false, true; 0, 1; ..), so is any other spelling of these. Without `other` an unknown or
    missing value does not fit. A feature is 1 or 0, or where `signed` 1 or -1.
    """

    name: str
    values: tuple[str, ...]
    other: bool = False
    aliases: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    signed: bool = False
    fold: bool = False

    @property
    def width(self) -> int:
        """How many features the column becomes."""
        return len(self.values) + self.other

    def codes(self, column: Any) -> tuple[NDArray[np.int64], Mask]:
        """The position of every value in `values`, else len(values); and which are missing."""
        coding = self._coded(column)
        return coding.codes[coding.index], coding.gone[coding.index]

    def _coded(self, column: Any) -> Coded:
        known = {self._same(value): code for code, value in enumerate(self.values)}
        known |= {self._same(alias): known[self._same(v)] for alias, v in self.aliases.items()}
        known |= _yes_or_no(known, len(self.values))
        return coded(column, lambda text: self._position(known, text), len(self.values))

    def _same(self, text: str) -> str:
        text = plain(text)
        return text.casefold() if self.fold else text

    def _position(self, known: Mapping[str, int], text: str) -> int | None:
        """Look a value up; 1.0 and 1 are the same category, and so are true and yes."""
        text = self._same(text)
        code = known.get(text)
        if code is None and (code := known.get(whole(text))) is None:
            code = known.get(f"\0{whole(text).casefold()}")
        return code

    def encode(self, column: Any) -> tuple[NDArray[np.float32], Mask, Mask]:
        """Features [n, width], which values do not fit, and which are missing and may not be."""
        features, wrong, refused, _ = self.counted(column)
        return features, wrong, refused

    def counted(self, column: Any) -> tuple[NDArray[np.float32], Mask, Mask, int]:
        """The same, and how many values are none of the public ones and stand as "other"."""
        coding = self._coded(column)
        unknown = coding.codes == len(self.values)
        each = np.eye(len(self.values) + 1, dtype=np.float32)[coding.codes, : self.width]
        if self.signed:
            each = 2 * each - 1
        features = each.take(coding.index, 0)
        if self.other or not unknown.any():
            none = np.zeros(len(features), dtype=bool)
            strange = unknown & ~coding.gone
            count = int(strange[coding.index].sum()) if strange.any() else 0
            return features, none, none, count
        return features, (unknown & ~coding.gone)[coding.index], coding.gone[coding.index], 0

    @property
    def expected(self) -> str:
        """What a value has to be."""
        few = ", ".join(self.values[:8]) + (", .." if len(self.values) > 8 else "")
        return f"one of {few}"


Column = Number | Category | Text


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a task: what goes in, and the label."""

    inputs: tuple[Column, ...]
    label: Number | Category

    @property
    def width(self) -> int:
        """How many features a row has."""
        return sum(column.width for column in self.inputs)

    @property
    def backbones(self) -> tuple[Backbone, ...]:
        """The frozen models that some columns are seen through."""
        texts = [one for one in self.inputs if isinstance(one, Text)]
        return tuple(one.backbone for one in texts if one.backbone is not None)

    @property
    def adapted(self) -> tuple[Text, ...]:
        """The texts that adapters in a frozen model are learnt for."""
        return tuple(one for one in self.inputs if isinstance(one, Text) and one.adapted)

    @property
    def features(self) -> tuple[str, ...]:
        """The column that each feature comes from."""
        return tuple(column.name for column in self.inputs for _ in range(column.width))

    def wanted(self, **more: Any) -> Wanted:
        """What a file is read for: the inputs, and the label where the file has it."""
        numbers = [one for one in (*self.inputs, self.label) if isinstance(one, Number)]
        return Wanted(
            required=tuple(column.name for column in self.inputs),
            optional=(self.label.name,),
            numbers=frozenset(column.name for column in numbers),
            dates=frozenset(column.name for column in numbers if column.date),
            **more,
        )

    def encode(self, table: Any) -> Encoded:
        """`arrays` as tensors."""
        import torch

        encoded = self.arrays(table)
        y = None if encoded.y is None else torch.from_numpy(encoded.y)
        return replace(encoded, x=torch.from_numpy(encoded.x), y=y)

    def arrays(self, table: Any) -> Encoded:
        """Encode a pyarrow table; columns of no interest are ignored, a label may be absent.

        x [rows, width] float32; y [rows], int64 for classes and float32 for numbers.
        """
        rows = table.num_rows
        fits = np.ones(rows, dtype=bool)
        misfits: list[tuple[int, int, Misfit]] = []

        def note(place: int, column: Column, wrong: Mask, refused: Mask) -> None:
            either = wrong | refused
            if not either.any():
                return
            expected = column.expected
            for row in np.flatnonzero(either).tolist():
                misfit = Misfit(row, column.name, expected, absent=not wrong[row])
                misfits.append((row, place, misfit))
            fits[either] = False

        x = np.empty((rows, self.width), dtype=np.float32)
        kinds = {field.name: field.type for field in table.schema}
        at, plain, unknown = 0, Scaling(), list[tuple[str, int]]()
        for place, column in enumerate(self.inputs):
            kind = kinds.get(column.name)
            if kind is None:
                raise TaskError(f"expected a column named {column.name!r}, found none")
            if isinstance(column, Number) and column.plain and pa.types.is_float64(kind):
                plain.add(column, place, at)
            else:
                with _named(column.name):
                    values = table.column(column.name)
                    if isinstance(column, Category):
                        features, wrong, refused, count = column.counted(values)
                        unknown += [(column.name, count)] if count else []
                    else:
                        features, wrong, refused = column.encode(values)
                x[:, at : at + column.width] = features
                note(place, column, wrong, refused)
            at += column.width
        for place, wrong, refused in plain.write(table, x):
            note(place, self.inputs[place], wrong, refused)
        y: NDArray[Any] | None = None
        if self.label.name in kinds:
            with _named(self.label.name):
                classes, *labels = self._labels(table.column(self.label.name))
            note(len(self.inputs), self.label, *labels)
            y = classes if fits.all() else classes[fits]
        indices = np.flatnonzero(fits).astype(np.int64)
        misfits.sort(key=lambda entry: entry[:2])
        x = x if len(indices) == rows else x[fits]
        reasons = tuple(entry[2] for entry in misfits)
        return Encoded(x, y, indices, reasons, unknown=tuple(unknown))

    def _labels(self, column: Any) -> tuple[NDArray[Any], Mask, Mask]:
        if isinstance(self.label, Number):
            features, wrong, refused = self.label.encode(column)
            return np.ascontiguousarray(features[:, 0]), wrong, refused
        codes, gone = self.label.codes(column)
        unknown = codes == len(self.label.values)
        return codes, unknown & ~gone, gone


_NO: Final = frozenset({"false", "f", "no", "n", "0"})
_YES: Final = frozenset({"true", "t", "yes", "y", "1"})


def _yes_or_no(known: Mapping[str, int], count: int) -> dict[str, int]:
    """The spellings of no and yes, where these are the two values; in a name space of their own."""
    if count != 2:
        return {}
    codes = {text.casefold(): code for text, code in known.items()}
    no = {code for text, code in codes.items() if text in _NO}
    yes = {code for text, code in codes.items() if text in _YES}
    if len(no) != 1 or len(yes) != 1 or no == yes:
        return {}
    return {f"\0{text}": min(no) for text in _NO} | {f"\0{text}": min(yes) for text in _YES}


@contextmanager
def _named(column: str) -> Iterator[None]:
    """Name the column in what is refused of it."""
    try:
        yield
    except TaskError as error:
        raise TaskError(f"column {column}: {error}") from None


@dataclass(slots=True)
class Scaling:
    """Columns of plain numbers, scaled together: the same numbers as each one's `encode` gives."""

    columns: list[Number] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    at: list[int] = field(default_factory=list)

    def add(self, column: Number, place: int, at: int) -> None:
        """A column, its place among the inputs, and where its feature goes."""
        self.columns.append(column)
        self.places.append(place)
        self.at.append(at)

    def write(self, table: Any, x: NDArray[np.float32]) -> list[tuple[int, Mask, Mask]]:
        """Write the features into x; of each column with some, what does not fit as in `encode`."""
        if not self.columns:
            return []
        low, high, fill, shift = np.array([self._constants(one) for one in self.columns]).T
        span, first, last = high - low, self.at[0], self.at[-1] + 1
        to: Any = slice(first, last) if last - first == len(self.at) else self.at
        odd: dict[int, tuple[Mask, Mask]] = {}
        start, size = 0, max(ROWS, BLOCK // len(self.columns))
        for batch in table.select([column.name for column in self.columns]).to_batches(size):
            rows = slice(start, start + batch.num_rows)
            values = batch.to_tensor(null_to_nan=True, row_major=False).to_numpy()
            with np.errstate(invalid="ignore", over="ignore"):
                total = values.sum()
            if not np.isfinite(total):
                self._mark(values, rows, len(x), odd)
                np.copyto(values, fill, where=~np.isfinite(values))
            np.clip(values, low, high, out=values)
            values -= low
            values *= 2
            values /= span
            values -= 1
            if shift.any():
                values -= shift
            x[rows, to] = values
            start = rows.stop
        return [(self.places[index], *masks) for index, masks in sorted(odd.items())]

    def _constants(self, column: Number) -> tuple[float, float, float, float]:
        middle = (column.low + column.high) / 2
        fill = column.missing if isinstance(column.missing, int | float) else middle
        return column.low, column.high, fill, column.shift

    def _mark(
        self, values: Floats, rows: slice, total: int, odd: dict[int, tuple[Mask, Mask]]
    ) -> None:
        """Note which values [r, k] of some rows do not fit."""
        wrong, gone = np.isinf(values), np.isnan(values)
        for index in np.flatnonzero((wrong | gone).any(0)).tolist():
            if index not in odd:
                odd[index] = (np.zeros(total, dtype=bool), np.zeros(total, dtype=bool))
            odd[index][0][rows] = wrong[:, index]
            if self.columns[index].missing is None:
                odd[index][1][rows] = gone[:, index]
