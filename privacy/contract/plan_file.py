"""Plans from outside: TOML text with `--set` overrides, or JSON; a Plan or one clear line."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from privacy.contract.keys.contract import PRIVACY_KEYS, Contract
from privacy.contract.keys.tables import (
    AugmentPlan,
    ModelPlan,
    Operation,
    SecurePlan,
    Simulation,
    SitePlan,
    StatisticsPlan,
    TunePlan,
)
from privacy.contract.keys.types import PlanError
from privacy.contract.plan import Plan
from privacy.contract.schema import build, field_names, shown, unknown
from privacy.files import DocumentError, Limits, parse_json, parse_toml, read_bounded

LIMITS: Final = Limits(size=8_000_000, length=4_000_000, count=1 << 20)
_MOST_SITES: Final = 100_000
_SITE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_TABLES: Final = (
    *("site", "operation", "simulation", "model", "secure", "statistics", "augment"),
    "tune",
)
_ONE_RELEASE: Final = {"rounds": 1, "rate": 1.0, "lr": 1.0, "clip": 1.0}
"""The keys that a plan of statistics need not write, since they can have no other value."""
_REMOVED: Final = frozenset({"compile"})
"""Keys of [simulation] in run folders of 0.1.0 that no longer do anything: ignored."""
_MOVED: Final = {name: f"operation.{name}" for name in field_names(Operation)}


def shipped() -> list[str]:
    """The names of the plans that come with the package."""
    folder = files("privacy").joinpath("plans")
    return sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".toml"))


def load_plan(source: str | Path, overrides: Sequence[str] = ()) -> Plan:
    """A shipped plan by name, or a TOML file by path, with `KEY=VALUE` overrides; PlanError."""
    text, folder = _read(str(source))
    try:
        table = parse_toml(text, LIMITS)
    except DocumentError as error:
        raise PlanError(f"{source}: {error}") from None
    override(table, overrides)
    schema = table.get("schema")
    if isinstance(schema, str) and "\n" not in schema:
        path = folder / schema
        try:
            table["schema"] = path.read_text(encoding="utf-8").rstrip("\n") + "\n"
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise PlanError(f"schema must be a readable file, got {path} ({error})") from None
    return parse(table)


@lru_cache(maxsize=2)  # every round, and in a simulation every site, is asked with the same text
def from_json(text: str) -> Plan:
    """The plan that a coordinator sent; PlanError where it is none."""
    try:
        table = parse_json(text, LIMITS)
    except DocumentError as error:
        raise PlanError(f"plan: {error}") from None
    if not isinstance(table, dict):
        raise PlanError("a plan must be a JSON object, got something else")
    return parse({"format": 1, **table})


def parse(table: Mapping[str, Any]) -> Plan:
    """A plan from its keys; PlanError names the key that is wrong.

    A plan of 0.1.0 has `min_sites` among its keys and no format: it keeps its digest.
    """
    values = {key: value for key, value in table.items() if key not in _TABLES}
    operation = dict(_table(table, "operation"))
    if values.get("format", 1) == 1 and "min_sites" in values:
        operation.setdefault("min_sites", values.pop("min_sites"))
        values["format"] = 1
    for key in values:
        if key in _MOVED:
            raise PlanError(f"unknown key {key}, it must be in the table [operation]")
        if key not in field_names(Contract):
            raise PlanError(unknown(key, [*field_names(Contract), *_TABLES]))
    simulation = {k: v for k, v in _table(table, "simulation").items() if k not in _REMOVED}
    sites = _table(table, "site")
    if len(sites) > _MOST_SITES:
        raise PlanError(f"site must hold at most {_MOST_SITES} tables, got {len(sites)}")
    for name, overrides in sites.items():
        if not _SITE_NAME.fullmatch(name):
            raise PlanError(
                "a site's name must be at most 64 letters, digits, '_', '-' and '.', "
                f"got {shown(name)}"
            )
        if not isinstance(overrides, dict):
            raise PlanError(f"site.{name} must be a table, got {shown(overrides)}")
    if "statistics" in table:
        values = {**_ONE_RELEASE, **values}
        values["statistics"] = _statistics(_table(table, "statistics"))
    if "model" in table:
        values["model"] = build(ModelPlan, _table(table, "model"), PlanError, "model.")
    if "augment" in table:
        values["augment"] = build(AugmentPlan, _table(table, "augment"), PlanError, "augment.")
    if "secure" in table:
        values["secure"] = build(SecurePlan, _table(table, "secure"), PlanError, "secure.")
    if "tune" in table:
        values["tune"] = build(TunePlan, _table(table, "tune"), PlanError, "tune.")
    return build(
        Plan,
        {
            **values,
            "site": {
                name: build(SitePlan, overrides, PlanError, f"site.{name}.")
                for name, overrides in sites.items()
            },
            "operation": build(Operation, operation, PlanError, "operation."),
            "simulation": build(Simulation, simulation, PlanError, "simulation."),
        },
        PlanError,
    )


def _statistics(table: Mapping[str, Any]) -> StatisticsPlan:
    """`[statistics]`, with the lists of its columns as tuples."""
    columns = _table(table, "columns")
    lists = {name: tuple(v) if isinstance(v, list) else v for name, v in columns.items()}
    return build(StatisticsPlan, {**table, "columns": lists}, PlanError, "statistics.")


def with_counts(plan: Plan, counts: Mapping[str, int]) -> Plan:
    """The plan with the sites' actual numbers of rows or people; delta is checked against these."""
    key, sites = plan.units_key, {}
    for name, count in counts.items():
        overrides = plan.site_overrides(name)
        number: dict[str, Any] = {key: getattr(overrides, key) or count}
        sites[name] = replace(overrides, **number)
    most = max(getattr(one, key) for one in sites.values())
    nominal = plan.nominal_units if isinstance(plan.nominal_units, int) else most
    numbers: dict[str, Any] = {key: nominal, "site": {**plan.site, **sites}}
    return replace(plan, **numbers)


def override(table: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set `KEY=VALUE` in a plan's table; sigma, epsilon and unit "none" replace the old choice."""
    chosen = {one.partition("=")[0].strip() for one in overrides}
    for one in overrides:
        _override(table, one, chosen=chosen)


def swept_values(options: Sequence[str]) -> dict[str, list[Any]]:
    """The values of `KEY=VALUE,VALUE` by key, as TOML reads each, or as text; PlanError."""
    values: dict[str, list[Any]] = {}
    for one in options:
        key, equals, text = one.partition("=")
        key, parts = key.strip(), [part.strip() for part in text.split(",")]
        if not equals or not key or not all(parts) or key in values:
            raise PlanError(f"--sweep must be KEY=VALUE,VALUE, once a key, got {shown(one)}")
        values[key] = [_value(part) for part in parts]
    return values


def _value(text: str) -> Any:
    try:
        return parse_toml(f"value = {text}", LIMITS)["value"]
    except DocumentError:
        return text.strip()


def _read(source: str) -> tuple[str, Path]:
    if source in shipped():
        return files("privacy").joinpath("plans", f"{source}.toml").read_text("utf-8"), Path()
    path = Path(source)
    if "\0" in source or not path.is_file():
        names = ", ".join(shipped())
        raise PlanError(f"a plan must be a TOML file or one of {names}, got {shown(source)}")
    try:
        return read_bounded(path, LIMITS.size).decode("utf-8"), path.parent
    except DocumentError as error:
        raise PlanError(str(error)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{source} must be a readable text file, got {error}") from None


def _override(table: dict[str, Any], one: str, *, chosen: set[str]) -> None:
    key, equals, text = one.partition("=")
    key = key.strip()
    if not equals or not key:
        raise PlanError(f"--set must be KEY=VALUE, got {shown(one)}")
    value = _value(text)
    if key == "min_sites" and "min_sites" not in table:
        key = _MOVED[key]
    *path, last = key.split(".") if not key.startswith("site.") else _site_key(key)
    place = table
    for part in path:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise PlanError(f"--set {key}: {part} must be a table, got {shown(place)}")
    place[last] = value
    if key == "unit" and value == "none":
        for name in PRIVACY_KEYS - chosen:
            table.pop(name, None)
    for this, other in (("sigma", "epsilon"), ("epsilon", "sigma")):
        if key == this and other not in chosen:
            table.pop(other, None)


def _site_key(key: str) -> list[str]:
    name, _, last = key.removeprefix("site.").rpartition(".")
    return ["site", name, last]


def _table(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise PlanError(f"{key} must be a table, got {shown(value)}")
    return value


def schema_digest(text: str) -> str:
    """SHA-256 of a schema's keys and values in their order; layout and comments do not count."""
    try:
        table = parse_toml(text)
    except DocumentError as error:
        raise PlanError(f"schema: {error}") from None
    return hashlib.sha256(json.dumps(table, default=str).encode()).hexdigest()
