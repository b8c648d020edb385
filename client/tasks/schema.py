"""The schema of a table: columns, bounds, categories and roles, as people wrote them down.

It is public and stands in the plan; nothing in it is computed from rows.
"""

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

from client.data.loading import Roles
from client.data.wanted import Wanted
from client.tasks.features.backbones import PACKAGED, Backbone
from client.tasks.features.text import Text
from client.tasks.preprocessing import Category, Column, Columns, Number
from client.tasks.rows import TaskError
from privacy.contract.keys.types import NAME
from privacy.files import DocumentError, parse_toml

KEYS: Final = {
    *("kind", "label", "subject", "site", "key", "hidden", "test", "delimiter", "columns"),
    *("norm", "random", "random_scale", "header", "quote"),
}
NUMBER: Final = {"type", "min", "max", "missing", "log", "knots"}
DATE: Final = {"type", "min", "max", "missing", "knots"}
CATEGORY: Final = {"type", "values", "aliases", "fold"}
ADAPTED: Final = ("adapted", "tokens", "rank")
TEXT: Final = {"type", "hashed", "vocabulary", "backbone", "digest", "vector", *ADAPTED}
PATTERN: Final = {"names", "from", "to"}
MOST_COLUMNS: Final = 100_000
LAYERS_MAX: Final = 16
FEATURES_MAX: Final = 65_536
PARAMETERS_MAX: Final = 50_000_000
"""What a plan's schema may ask a site to build."""


@dataclass(frozen=True, slots=True)
class Schema:
    """A schema file, read: the columns, the roles of some, and how rows are held out."""

    kind: Literal["classification", "regression"]
    columns: Columns
    roles: Roles
    hidden: tuple[int, ...]
    test: float | str
    delimiter: str
    norm: float = 0.0
    random: int = 0
    random_scale: float = 0.0
    header: tuple[str, ...] = ()
    quote: str | None = None

    @property
    def wanted(self) -> Wanted:
        """What a file is read for."""
        return self.columns.wanted(delimiter=self.delimiter, names=self.header, quote=self.quote)


def schema(text: str) -> Schema:
    """Read the TOML text of a schema; TaskError names the key, its value and what was expected."""
    try:
        given = parse_toml(text)
    except DocumentError as error:
        raise TaskError(f"schema: {error}") from None
    _known("", given, KEYS)
    kind = given.get("kind", "classification")
    if kind not in ("classification", "regression"):
        raise _refused("kind", "classification or regression", kind)
    described = given.get("columns")
    if not isinstance(described, dict) or not described:
        raise _refused("columns", "a table [columns.NAME] for each column", described)
    label = _text(given, "label", required=True)
    if label not in described:
        raise _refused("label", f"one of the columns {', '.join(described)}", label)
    columns = _columns(described)
    if label not in columns:
        raise _refused("label", "one column, not a pattern", label)
    target = columns.pop(label)
    if isinstance(target, Number):
        target = Number(target.name, target.low, target.high, date=target.date)
    elif isinstance(target, Text):
        raise _refused(f"columns.{label}.type", "number or category for a label", "text")
    else:
        target = replace(target, other=False)
    if isinstance(target, Number) != (kind == "regression"):
        wanted = "number" if kind == "regression" else "category"
        raise _refused(f"columns.{label}.type", f"{wanted} for a {kind}", described[label]["type"])
    if not columns:
        raise _refused("columns", "a column beside the label", label)
    roles = {role: _text(given, role) for role in ("subject", "site", "key")}
    for role, name in roles.items():
        if name in columns or (name and name == label):
            raise _refused(role, "a column that is not learnt from", name)
    return Schema(
        kind=kind,
        columns=Columns(tuple(columns.values()), target),
        roles=Roles(**roles),
        hidden=_hidden(given.get("hidden", [])),
        test=_held_out(given.get("test", 0.2)),
        delimiter=_delimiter(given.get("delimiter", "")),
        norm=_length(given, "norm"),
        random=_count(given.get("random", 0), "random", "columns of random features"),
        random_scale=_length(given, "random_scale"),
        header=_header(given.get("header", [])),
        quote=_quote(given.get("quote")),
    )


def _columns(described: Mapping[str, object]) -> dict[str, Column]:
    """Every column by name, those of a pattern one by one."""
    columns: dict[str, Column] = {}
    for name, given in described.items():
        settings: object = given
        if "*" in name and isinstance(given, dict):
            settings = {key: value for key, value in given.items() if key not in PATTERN}
        for each in _matched(name, given):
            if each in columns:
                raise _refused(f"columns.{name}", "columns that are not there yet", each)
            columns[each] = _column(each, settings, f"columns.{name}")
            if len(columns) > MOST_COLUMNS:
                raise _refused("columns", f"at most {MOST_COLUMNS}", "more")
    return columns


def _matched(name: str, given: object) -> list[str]:
    """The columns of `gene_*`: with `names`, each in the place of *; else the numbers from..to."""
    if "*" not in name or not isinstance(given, dict):
        return [name]
    key, names = f"columns.{name}", given.get("names")
    if name.count("*") > 1:
        raise _refused(key, "one * in the name", name)
    if names is None:
        first, last = given.get("from", 1), given.get("to")
        if type(first) is not int or type(last) is not int or not 0 <= first <= last < 10**9:
            raise _refused(key, "names = [..], or from and to, for the place of *", last)
        if last - first >= MOST_COLUMNS:
            raise _refused(f"{key}.to", f"at most {MOST_COLUMNS} columns", last)
        names = [str(number) for number in range(first, last + 1)]
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise _refused(f"{key}.names", "a list of texts", names)
    return [name.replace("*", each) for each in names]


def _column(name: str, given: object, key: str) -> Column:
    if not isinstance(given, dict):
        raise _refused(key, 'a table with type = "number", "category", "date" or "text"', given)
    if given.get("type") == "date":
        return _date(name, given, key)
    if given.get("type") == "text":
        return _text_column(name, given, key)
    if given.get("type") == "category":
        _known(f"{key}.", given, CATEGORY)
        values = given.get("values")
        if not isinstance(values, list) or not values:
            raise _refused(f"{key}.values", "a list of texts or numbers", values)
        texts = tuple(text_of(value) for value in values)
        if len(set(texts)) < len(texts):
            raise _refused(f"{key}.values", "distinct values", values)
        fold = given.get("fold", False)
        if not isinstance(fold, bool):
            raise _refused(f"{key}.fold", "true or false", fold)
        if fold and len({text.casefold() for text in texts}) < len(texts):
            raise _refused(f"{key}.values", "values that differ by more than case", values)
        return Category(
            name, texts, True, _aliases(key, given.get("aliases", {}), texts), fold=fold
        )
    if given.get("type") != "number":
        raise _refused(f"{key}.type", "number, category, date or text", given.get("type"))
    _known(f"{key}.", given, NUMBER)
    low, high = (_real(f"{key}.{end}", given.get(end)) for end in ("min", "max"))
    if not low < high:
        raise _refused(f"{key}.max", f"more than min = {low:g}", high)
    missing = given.get("missing")
    if missing is not None and missing != "indicator":
        missing = _real(f"{key}.missing", missing, 'a number or "indicator"')
    log, knots = given.get("log", False), given.get("knots", [])
    if not isinstance(log, bool):
        raise _refused(f"{key}.log", "true or false", log)
    if not isinstance(knots, list):
        raise _refused(f"{key}.knots", "a list of numbers", knots)
    return Number(name, low, high, missing, log, tuple(_real(f"{key}.knots", k) for k in knots))


def _date(name: str, given: Mapping[str, Any], key: str) -> Number:
    """A column of dates, which count in days; its bounds are dates too."""
    _known(f"{key}.", given, DATE)
    days = []
    for end in ("min", "max"):
        value = given.get(end)
        if not isinstance(value, datetime.date):
            raise _refused(f"{key}.{end}", "a date such as 2020-01-31", value)
        day = datetime.date(value.year, value.month, value.day)
        days.append(float((day - datetime.date(1970, 1, 1)).days))
    if not days[0] < days[1]:
        raise _refused(f"{key}.max", "a date after min", given["max"])
    missing = given.get("missing")
    if missing not in (None, "indicator"):
        raise _refused(f"{key}.missing", 'nothing or "indicator"', missing)
    knots = given.get("knots", [])
    if not isinstance(knots, list) or not all(isinstance(k, datetime.date) for k in knots):
        raise _refused(f"{key}.knots", "a list of dates", knots)
    at = tuple(
        float((datetime.date(k.year, k.month, k.day) - datetime.date(1970, 1, 1)).days)
        for k in knots
    )
    return Number(name, days[0], days[1], missing, knots=at, date=True)


def _text_column(name: str, given: Mapping[str, Any], key: str) -> Text:
    """A column of texts: hashed, by a vocabulary, or by a backbone, named with its digest."""
    _known(f"{key}.", given, TEXT)
    ways = [way for way in ("hashed", "vocabulary", "backbone") if way in given]
    if len(ways) > 1:
        raise _refused(key, "one of hashed, vocabulary and backbone", " and ".join(ways))
    backbone = given.get("backbone")
    if backbone is None:
        for one in ("digest", "vector", *ADAPTED):
            if one in given:
                raise _refused(f"{key}.{one}", "a backbone beside it", given[one])
    if "vocabulary" in given:
        words = given["vocabulary"]
        if (
            not isinstance(words, list)
            or not all(isinstance(word, str) and word.strip() for word in words)
            or not 1 <= len({word.casefold() for word in words}) == len(words) <= FEATURES_MAX
        ):
            raise _refused(f"{key}.vocabulary", "a list of different words", words)
        return Text(name, vocabulary=tuple(words))
    if backbone is None:
        return Text(name, hashed=_count(given.get("hashed", 1024), f"{key}.hashed", "places"))
    if not isinstance(backbone, str) or not NAME.fullmatch(backbone):
        raise _refused(f"{key}.backbone", "the name of a backbone", backbone)
    digest = given.get("digest")
    if not isinstance(digest, str) or not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise _refused(f"{key}.digest", '"sha256:" and 64 hexadecimal digits', digest)
    known = PACKAGED.get(backbone)
    vector = given.get("vector", known.width if known is not None else None)
    if type(vector) is not int or not 1 <= vector <= FEATURES_MAX:
        raise _refused(f"{key}.vector", "how many numbers the backbone gives a text", vector)
    text = Text(name, backbone=Backbone(backbone, digest), vector=vector)
    adapted = _whole(given.get("adapted", 0), f"{key}.adapted", 0, 32)
    if not adapted:
        if "tokens" in given or "rank" in given:
            raise _refused(f"{key}.adapted", "how many last layers are adapted", adapted)
        return text
    tokens = _whole(given.get("tokens", 64), f"{key}.tokens", 2, FEATURES_MAX // vector)
    rank = _whole(given.get("rank", 4), f"{key}.rank", 1, 256)
    return replace(text, adapted=adapted, tokens=tokens, rank=rank)


def _whole(value: object, key: str, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise _refused(key, f"a whole number from {least} to {most}", value)
    return value


def _length(given: Mapping[str, object], key: str) -> float:
    """A positive number, or 0 where the key is left out."""
    if key not in given:
        return 0.0
    value = _real(key, given[key])
    if not 1e-3 <= value <= 1e3:
        raise _refused(key, "a number from 0.001 to 1000", value)
    return value


def _count(value: object, key: str, of: str) -> int:
    if type(value) is not int or not (value == 0 or 2 <= value <= FEATURES_MAX):
        raise _refused(key, f"2 to {FEATURES_MAX} {of}", value)
    return value


def _aliases(key: str, given: object, values: tuple[str, ...]) -> Mapping[str, str]:
    """Further spellings of the values."""
    if not isinstance(given, dict):
        raise _refused(f"{key}.aliases", "a table: another spelling = the value", given)
    aliases = {str(other): text_of(value) for other, value in given.items()}
    for other, value in aliases.items():
        if value not in values or other in values:
            raise _refused(f"{key}.aliases.{other}", f"one of {', '.join(values)}", value)
    return MappingProxyType(aliases)


def text_of(value: object) -> str:
    """A TOML value as the text that a file would hold."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _hidden(given: object) -> tuple[int, ...]:
    if (
        isinstance(given, list)
        and len(given) <= LAYERS_MAX
        and all(type(width) is int and 1 <= width <= 4096 for width in given)
    ):
        return tuple(given)
    raise _refused("hidden", f"at most {LAYERS_MAX} layer widths from 1 to 4096", given)


def _held_out(given: object) -> float | str:
    if isinstance(given, str) and given and Path(given).name == given:
        return given
    if isinstance(given, float) and 0 < given < 1:
        return given
    raise _refused(
        "test", "a fraction between 0 and 1, or the name of a file beside the data", given
    )


def _delimiter(given: object) -> str:
    if isinstance(given, str) and len(given) <= 1:
        return given
    raise _refused("delimiter", "one character", given)


def _header(given: object) -> tuple[str, ...]:
    names = given if isinstance(given, list) else [None]
    if not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise _refused("header", "the different names of a file's columns", given)
    return tuple(names)


def _quote(given: object) -> str | None:
    if given is None or given == "" or (isinstance(given, str) and len(given) == 1):
        return given
    raise _refused("quote", 'one character, or "" for none', given)


def _text(given: Mapping[str, object], key: str, required: bool = False) -> str:
    value = given.get(key, "")
    if not isinstance(value, str) or (required and not value):
        raise _refused(key, "the name of a column", given.get(key))
    return value


def _real(key: str, value: object, expected: str = "a number") -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        raise _refused(key, expected, value)
    return float(value)


def _known(prefix: str, given: Mapping[str, object], keys: set[str]) -> None:
    for key in given:
        if key not in keys:
            raise TaskError(f"schema: {prefix}{key}: expected one of {', '.join(sorted(keys))}")


def _refused(key: str, expected: str, value: object) -> TaskError:
    got = "nothing" if value is None else repr(value)
    return TaskError(f"schema: {key}: expected {expected}, got {got}")
