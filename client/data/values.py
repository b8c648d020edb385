"""A raw column's values as numbers, days or distinct texts, by rules that are the same for all.

A value that is none of these is marked, never repeated.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from client.tasks.rows import TaskError

ABSENT: Final = frozenset({"", "?", "NA", "N/A", "NaN", "nan", "null", "NULL", "None"})
"""Texts that mean a missing value."""

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def numeric(column: Any, *, date: bool = False) -> tuple[Floats, Mask]:
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


_INVISIBLE: Final = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))
"""Soft hyphens, zero-width blanks and marks of byte order: what copying leaves in a cell."""
_WHOLE: Final = re.compile(r"([+-]?\d+)\.0+", re.ASCII)


def plain(text: str) -> str:
    """A text without blanks around it and what nobody sees in it, in Unicode's composed form."""
    text = text.strip()
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", text.translate(_INVISIBLE).strip())


def ident(text: str) -> str:
    """The name of a person or a place: plain, and 17.0 is 17, as a column with gaps is written."""
    text = plain(text)
    match = _WHOLE.fullmatch(text)
    return text if match is None else match[1]


_NUMBER: Final = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_NAN: Final = re.compile(r"[+-]?nan", re.IGNORECASE)


def _number(text: str | None) -> float:
    """A finite number, NaN for a missing one, infinity for what is none; true and false count."""
    if text is None or (text := plain(text)) in ABSENT or _NAN.fullmatch(text):
        return math.nan
    if _NUMBER.fullmatch(text):
        value = float(text)
        return value if math.isfinite(value) else math.inf
    return {"true": 1.0, "false": 0.0}.get(text.casefold(), math.inf)


def is_number(text: str) -> bool:
    """Whether a text is a number, and no word."""
    return _NUMBER.fullmatch(text) is not None


def _day(text: str | None) -> float:
    """An ISO date or time as days since 1970-01-01 in UTC; NaN and infinity as for numbers."""
    if text is None or (text := plain(text)) in ABSENT:
        return math.nan
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return math.inf
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.timestamp() / 86400


@dataclass(frozen=True, slots=True, eq=False)
class Coded:
    """Each distinct value's `codes` [d] and whether it is `gone`, and the rows' values `index` [n].

    A code that is `unknown` stands for any value without one.
    """

    codes: NDArray[np.int64]
    gone: Mask
    index: NDArray[np.integer[Any]]


def coded(column: Any, position: Callable[[str], int | None], unknown: int) -> Coded:
    """A column's values by `position`, which is asked once for each distinct text."""
    texts, index = distinct(column)
    positions = [None if text is None else position(plain(text)) for text in texts]
    codes = np.array([unknown if code is None else code for code in positions], dtype=np.int64)
    gone = [
        code is None and (text is None or plain(text) in ABSENT)
        for text, code in zip(texts, positions, strict=True)
    ]
    return Coded(codes, np.array(gone, dtype=bool), index)


def whole(text: str) -> str:
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


def distinct(column: Any) -> tuple[Sequence[str | None], NDArray[np.integer[Any]]]:
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
    encoding = pc.dictionary_encode(column, null_encoding="encode")
    return texts(encoding.dictionary), encoding.indices.to_numpy()


def texts(column: Any) -> list[Any]:
    """A column's values as Python has them; bytes that are no UTF-8 become U+FFFD in their row."""
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        raw = column.cast(_BYTES[str(column.type)]).to_pylist()
        values = [None if one is None else one.decode(errors="replace") for one in raw]
    return values


_BYTES: Final = {
    "string": pa.binary(),
    "large_string": pa.large_binary(),
    "string_view": pa.binary_view(),
}
UNREADABLE: Final = "\ufffd"
"""What stands in a text for bytes that are none."""
