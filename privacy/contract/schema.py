"""Checks a frozen dataclass against its annotations: the types, the bounds and the names of keys.

The annotations are the schema (PEP 593, with `annotated_types`), and pydantic reads them. It is
imported when the first value is made, so that no `--help` waits for it.
"""

import difflib
import math
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, fields
from functools import lru_cache
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from annotated_types import Interval, Len, MaxLen

T = TypeVar("T")
_MOST_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Expected:
    """Metadata of an annotation: what its values must be, in words."""

    text: str


INFINITE: Final = Expected("")
"""Metadata of a number that code, but no file, may set to infinity."""


def check(value: Any, error: Callable[[str], Exception], prefix: str = "") -> None:
    """Raise `error` where a field of a dataclass does not fit its annotation."""
    kind: Any = type(value)
    for name, hint in _hints(kind).items():
        _check_one(prefix + name, hint, getattr(value, name), error)


def build(
    kind: type[T], table: Mapping[str, Any], error: Callable[[str], Exception], prefix: str = ""
) -> T:
    """A dataclass from the keys of a TOML or JSON table; `error` names the key that is wrong."""
    keys: Any = kind
    hints = _hints(keys)
    for key in table:
        if key not in hints:
            raise error(unknown(key, hints, prefix))
    for item in fields(keys):
        if item.name not in table and _required(item):
            raise error(f"{prefix}{item.name} is missing: it must be {expected(hints[item.name])}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    for key, value in values.items():
        _check_one(prefix + key, hints[key], value, error)
        if value in (math.inf, -math.inf):
            raise error(f"{prefix}{key} must be {expected(hints[key])}, got {value}")
    return kind(**values)


def field_names(kind: Any) -> tuple[str, ...]:
    """The keys of a dataclass."""
    return tuple(item.name for item in fields(kind))


def unknown(key: object, names: Iterable[str], prefix: str = "") -> str:
    """One line about a key that does not exist, with the nearest that does."""
    names = sorted(set(names))
    text = key if isinstance(key, str) and key.isprintable() else repr(key)
    near = difflib.get_close_matches(str(key)[:_MOST_SHOWN], names, 1)
    what = f"unknown key {prefix}{text[:_MOST_SHOWN]}"
    if near:
        return f"{what}, did you mean {prefix}{near[0]}?"
    return f"{what}, the keys are {', '.join(names)}"


def shown(value: object) -> str:
    """A value as one short printable line, whatever it is."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a table"
    try:
        text = repr(list(value) if isinstance(value, tuple) else value)
    except (ValueError, RecursionError):
        return f"a very large {type(value).__name__}"
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "..."


def expected(hint: Any) -> str:
    """What an annotation allows, in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        texts = [one.text for one in arguments[1:] if isinstance(one, Expected) and one.text]
        return texts[-1] if texts else expected(arguments[0]) + _bounds(arguments[1:])
    if origin in (Union, types.UnionType):
        return " or ".join(expected(one) for one in arguments if one is not type(None))
    if origin is Literal:
        names = [f'"{one}"' if isinstance(one, str) else str(one) for one in arguments]
        return names[0] if len(names) == 1 else "one of " + ", ".join(names)
    if origin is tuple:
        return f"a list of {expected(arguments[0])}"
    if origin is not None:
        return "a table"
    names_of = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}
    return names_of.get(hint, "a table")


def _bounds(metadata: Iterable[Any]) -> str:
    words = []
    for one in metadata:
        if isinstance(one, Interval):
            pairs = ((">", one.gt), (">=", one.ge), ("<", one.lt), ("<=", one.le))
            words += [f"{sign} {_figure(bound)}" for sign, bound in pairs if bound is not None]
        elif isinstance(one, MaxLen):
            words.append(f"of at most {one.max_length} characters")
        elif isinstance(one, Len):
            words.append(f"of at most {one.max_length} items")
    return " " + " and ".join(words) if words else ""


def _figure(bound: Any) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def _required(item: "Field[Any]") -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def _check_one(key: str, hint: Any, value: Any, error: Callable[[str], Exception]) -> None:
    from pydantic import ValidationError

    try:
        _validate(hint)(value)
    except ValidationError:
        raise error(f"{key} must be {expected(hint)}, got {shown(value)}") from None


@lru_cache(maxsize=16)
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {item.name: hints[item.name] for item in fields(kind)}


@lru_cache(maxsize=512)
def _validate(hint: Any) -> Callable[[Any], Any]:
    from pydantic import ConfigDict, TypeAdapter

    infinite = INFINITE in getattr(hint, "__metadata__", ())
    config = ConfigDict(strict=True, allow_inf_nan=infinite)
    if isinstance(hint, type) and hasattr(hint, "__dataclass_fields__"):
        from pydantic import InstanceOf

        return TypeAdapter(InstanceOf[hint]).validate_python
    return TypeAdapter(hint, config=config).validate_python


def written(table: Any) -> dict[str, Any]:
    """The keys of a table that have a value."""
    values = {key: value for key, value in asdict(table).items() if value is not None}
    return {k: _plain(v) for k, v in values.items()}


def _plain(value: Any) -> Any:
    """A value as TOML and JSON have it."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in sorted(value.items())}
    return list(value) if isinstance(value, tuple) else value
