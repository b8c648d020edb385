"""Raw columns to numbers, one row at a time, by bounds and categories that are public constants.

Training and prediction share this one encoding. A value that does not fit is reported by row and
column, never repeated.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from client.data.wanted import Wanted
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
        return _numbers(column, date=self.date)

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

    def scale(self, column: Any, out: NDArray[np.float32]) -> tuple[Mask, Mask] | None:
        """Write the one feature of a plain column; what does not fit as in `encode`, if anything.

        The same numbers as `encode`, without what columns of good numbers do not need.
        """
        if not pa.types.is_float64(column.type) or column.null_count:
            features, wrong, refused = self.encode(column)
            out[:] = features[:, 0]
            return wrong, refused
        at, odd = 0, False
        for chunk in column.chunks:
            values = chunk.to_numpy(zero_copy_only=True)
            odd = odd or not np.isfinite(values.sum())
            held = np.clip(values, self.low, self.high)
            held -= self.low
            held *= 2
            held /= self.high - self.low
            held -= 1
            held -= self.shift
            out[at : at + len(values)] = held
            at += len(values)
        if not odd:
            return None
        features, wrong, refused = self.encode(column)
        out[:] = features[:, 0]
        return wrong, refused

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
        known = {self._same(value): code for code, value in enumerate(self.values)}
        known |= {self._same(alias): known[self._same(v)] for alias, v in self.aliases.items()}
        known |= _yes_or_no(known, len(self.values))
        return _coded(column, lambda text: self._position(known, text), len(self.values))

    def _same(self, text: str) -> str:
        text = unicodedata.normalize("NFC", text.strip())
        return text.casefold() if self.fold else text

    def _position(self, known: Mapping[str, int], text: str) -> int | None:
        """Look a value up; 1.0 and 1 are the same category, and so are true and yes."""
        text = self._same(text)
        code = known.get(text)
        if code is None and (code := known.get(_whole(text))) is None:
            code = known.get(f"\0{_whole(text).casefold()}")
        return code

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
        """Encode a pyarrow table; columns of no interest are ignored, a label may be absent."""
        rows = table.num_rows
        fits = np.ones(rows, dtype=bool)
        misfits: list[Misfit] = []

        def note(column: Number | Category, wrong: Mask, refused: Mask) -> None:
            either = wrong | refused
            if not either.any():
                return
            expected = column.expected
            for row in np.flatnonzero(either).tolist():
                misfits.append(Misfit(row, column.name, expected, absent=not wrong[row]))
            fits[either] = False

        x = np.empty((rows, self.width), dtype=np.float32)
        names, at = set(table.column_names), 0
        for column in self.inputs:
            if column.name not in names:
                raise TaskError(f"expected a column named {column.name!r}, found none")
            try:
                if isinstance(column, Number) and column.plain:
                    wrong = column.scale(table.column(column.name), x[:, at])
                    if wrong is not None:
                        note(column, *wrong)
                else:
                    features, wrong_, refused = column.encode(table.column(column.name))
                    x[:, at : at + column.width] = features
                    note(column, wrong_, refused)
            except TaskError as error:
                raise TaskError(f"column {column.name}: {error}") from None
            at += column.width
        y: torch.Tensor | None = None
        if self.label.name in names:
            try:
                values, *labels = self._labels(table.column(self.label.name))
            except TaskError as error:
                raise TaskError(f"column {self.label.name}: {error}") from None
            note(self.label, *labels)
            y = torch.from_numpy(values if fits.all() else values[fits])
        kept = np.flatnonzero(fits).astype(np.int64)
        misfits.sort(key=lambda misfit: misfit.row)
        x = x if len(kept) == rows else x[fits]
        return Encoded(torch.from_numpy(x), y, kept, tuple(misfits))

    def _labels(self, column: Any) -> tuple[NDArray[Any], Mask, Mask]:
        if isinstance(self.label, Number):
            features, wrong, refused = self.label.encode(column)
            return np.ascontiguousarray(features[:, 0]), wrong, refused
        codes, gone = self.label.codes(column)
        unknown = codes == len(self.label.values)
        return codes, unknown & ~gone, gone


def _numbers(column: Any, *, date: bool = False) -> tuple[Floats, Mask]:
    """A column as float64, NaN where missing; and where it is no finite number.

    Whole numbers beyond 2^53 are rounded: the schema's bounds are far below. Dates are days.
    """
    kind = column.type
    if pa.types.is_dictionary(kind) and not _is_text(kind.value_type):
        column = pc.cast(column, kind.value_type)
        kind = column.type
    if pa.types.is_temporal(kind):
        return _days(column, date), np.zeros(len(column), dtype=bool)
    if date and not (_is_text(kind) or pa.types.is_dictionary(kind) or pa.types.is_null(kind)):
        raise TaskError(f"expected dates, got {kind}")
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_decimal(kind):
        column = pc.cast(column, pa.float64(), safe=False)
    elif pa.types.is_floating(kind):
        column = pc.cast(column, pa.float64())
    if pa.types.is_float64(column.type):
        values = np.asarray(column.to_numpy(), dtype=np.float64)
        return np.where(np.isinf(values), np.nan, values), np.isinf(values)
    texts, index = distinct(column)
    read = _day if date else _number
    values = np.array([read(text) for text in texts], dtype=np.float64)[index]
    wrong = np.isinf(values)
    return np.where(wrong, np.nan, values), wrong


def _days(column: Any, date: bool) -> Floats:
    kind = column.type
    if not date or not (pa.types.is_date(kind) or pa.types.is_timestamp(kind)):
        raise TaskError(f"expected {'dates' if date else 'numbers'}, got {kind}")
    moments = pc.cast(column, pa.timestamp("us", tz=getattr(kind, "tz", None)), safe=False)
    micros = pc.cast(moments, pa.int64())
    values = np.asarray(pc.cast(micros, pa.float64(), safe=False).to_numpy(), dtype=np.float64)
    return values / 86_400e6


_NUMBER: Final = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_NAN: Final = re.compile(r"[+-]?nan", re.IGNORECASE)


def _number(text: str | None) -> float:
    """A finite number, NaN for a missing one, infinity for what is none; true and false count."""
    if text is None or (text := text.strip()) in ABSENT or _NAN.fullmatch(text):
        return math.nan
    if _NUMBER.fullmatch(text):
        value = float(text)
        return value if math.isfinite(value) else math.inf
    return {"true": 1.0, "false": 0.0}.get(text.casefold(), math.inf)


def _day(text: str | None) -> float:
    """An ISO date or time as days since 1970-01-01 in UTC; NaN and infinity as for numbers."""
    if text is None or (text := text.strip()) in ABSENT:
        return math.nan
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return math.inf
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.timestamp() / 86400


_NO: Final = frozenset({"false", "f", "no", "n", "0"})
_YES: Final = frozenset({"true", "t", "yes", "y", "1"})


def _yes_or_no(known: Mapping[str, int], count: int) -> dict[str, int]:
    """The spellings of no and yes, where these are the two values; in a name space of their own."""
    if count != 2:
        return {}
    said = {text.casefold(): code for text, code in known.items()}
    no = {code for text, code in said.items() if text in _NO}
    yes = {code for text, code in said.items() if text in _YES}
    if len(no) != 1 or len(yes) != 1 or no == yes:
        return {}
    return {f"\0{text}": min(no) for text in _NO} | {f"\0{text}": min(yes) for text in _YES}


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


def _whole(text: str) -> str:
    """A whole number written with a point as without one; any other text as it is."""
    if len(text) > 400 or not _NUMBER.fullmatch(text):
        return text
    if re.fullmatch(r"[+-]?\d+(?:\.0*)?", text, re.ASCII):
        return str(int(text.partition(".")[0]))
    value = float(text)
    return str(int(value)) if math.isfinite(value) and value == int(value) else text


def _is_text(kind: Any) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def distinct(column: Any) -> tuple[Sequence[str | None], NDArray[np.int64]]:
    """The distinct values of a column as texts, and for each row the position of its value."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    if not _is_text(column.type):
        try:
            column = pc.cast(column, pa.string())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise TaskError(f"expected text or numbers, got {column.type}") from error
    coded = pc.dictionary_encode(column, null_encoding="encode")
    index = np.asarray(coded.indices.to_numpy(zero_copy_only=False), dtype=np.int64)
    return coded.dictionary.to_pylist(), index
