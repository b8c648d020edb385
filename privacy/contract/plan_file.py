"""The rim of the plan: TOML text and `--set` overrides in, one valid Plan or one clear line out."""

import json
import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from privacy.contract.plan import PRIVACY_KEYS, Plan, PlanError, Simulation, SitePlan

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SPLIT: Final = re.compile(r"iid|natural|dirichlet:(\d+\.?\d*|\.\d+)|labels:[1-9]\d*")
_METRICS: Final = ("loss", "accuracy", "rows", "classes")
_MOST: Final = 1_000_000_000

Check = tuple[Callable[[Any], bool], str]


def _number(low: float, high: float, *, open_low: bool = False, open_high: bool = False) -> Check:
    def fits(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        above = value > low if open_low else value >= low
        below = value < high if open_high else value <= high
        return math.isfinite(value) and above and below

    left = f"{low:g} {'<' if open_low else '<='} value"
    right = "" if high >= _MOST else f" {'<' if open_high else '<='} {high:g}"
    return fits, f"a number, {left}{right}"


def _whole(low: int, high: int = _MOST) -> Check:
    def fits(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    return fits, f"a whole number >= {low}" + ("" if high == _MOST else f" and <= {high}")


def _choice(*names: str) -> Check:
    return lambda value: isinstance(value, str) and value in names, "one of " + ", ".join(names)


def _text(value: Any) -> bool:
    return isinstance(value, str)


_FLAG: Final[Check] = (lambda value: isinstance(value, bool), "true or false")
_POSITIVE = _number(0, _MOST, open_low=True)
_EPSILON = _number(0, 1e6, open_low=True)
_CHECKS: Final[Mapping[str, Check]] = {
    "task": (lambda v: _text(v) and bool(_NAME.fullmatch(v)), "the name of a task"),
    "rounds": _whole(1, 1_000_000),
    "rate": _number(0, 1, open_low=True),
    "rows": (lambda v: v == "actual" or _whole(1)[0](v), 'a whole number >= 1, or "actual"'),
    "lr": _POSITIVE,
    "sites": _whole(1, 100_000),
    "clip": _POSITIVE,
    "unit": _choice("record", "client", "none"),
    "sigma": _number(0, 1e9, open_low=True),
    "epsilon": _EPSILON,
    "delta": _number(0, 1, open_low=True, open_high=True),
    "limit": _EPSILON,
    "schema": (_text, "the path of a schema, or its text"),
    "split": (
        lambda v: _text(v) and bool(_SPLIT.fullmatch(v)) and not re.fullmatch(r"\w+:0*\.?0*", v),
        "iid, dirichlet:ALPHA, labels:K or natural",
    ),
    "steps": _whole(1, 1_000_000),
    "optimizer": _choice("sgd", "momentum", "adam"),
    "momentum": _number(0, 1, open_high=True),
    "schedule": _choice("constant", "cosine"),
    "l2": _number(0, _MOST),
    "aggregation": _choice("fedavg", "fedprox"),
    "mu": _number(0, _MOST),
    "server_lr": _POSITIVE,
    "server_momentum": _number(0, 1, open_high=True),
    "average": _FLAG,
    "weights": _choice("equal", "rows"),
    "clip_quantile": _number(0, 1, open_low=True, open_high=True),
    "clip_lr": _POSITIVE,
    "clip_sigma": _POSITIVE,
    "metrics": (
        lambda v: isinstance(v, list) and all(v.count(m) == 1 and m in _METRICS for m in v),
        "a list of " + ", ".join(_METRICS),
    ),
    "metrics_sigma": _POSITIVE,
    "metrics_clip": _POSITIVE,
    "micro_batch": _whole(1),
    "precision": _choice("float32", "bfloat16"),
    "wire": _choice("float32", "bfloat16", "int8"),
    "min_sites": _whole(1, 100_000),
    "cohort": _whole(1, 100_000),
    "seed": _whole(0, 2**63 - 1),
    "purpose": (_text, "a text"),
}
_SITE_CHECKS: Final[Mapping[str, Check]] = {
    "rows": _whole(1),
    "epsilon": _EPSILON,
    "limit": _EPSILON,
}
_SIMULATION_CHECKS: Final[Mapping[str, Check]] = {
    "engine": _choice("serial", "processes", "vector", "ray"),
    "workers": _whole(1, 1024),
    "compile": _FLAG,
    "dropout": _number(0, 1, open_high=True),
    "slow": _number(0, 1, open_high=True),
}
_REQUIRED: Final = ("task", "rounds", "rate", "rows", "lr")


def shipped() -> list[str]:
    """The names of the plans that come with the package."""
    folder = files("privacy").joinpath("plans")
    return sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".toml"))


def load_plan(source: str | Path, overrides: Sequence[str] = ()) -> Plan:
    """A shipped plan by name, or a TOML file by path, with `KEY=VALUE` overrides; PlanError."""
    text, folder = _read(str(source))
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"{source}: expected TOML, got {error}") from None
    for override in overrides:
        _override(table, override, chosen={o.partition("=")[0].strip() for o in overrides})
    schema = table.get("schema")
    if isinstance(schema, str) and "\n" not in schema:
        path = folder / schema
        try:
            table["schema"] = path.read_text(encoding="utf-8").rstrip("\n") + "\n"
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"schema: expected a readable file, got {path} ({error})") from None
    return parse(table)


@lru_cache(maxsize=2)  # every round, and in a simulation every site, is asked with the same text
def from_json(text: str) -> Plan:
    """The plan that a coordinator sent; PlanError where it is none."""
    try:
        table = json.loads(text)
    except ValueError:
        raise PlanError("plan: expected JSON") from None
    if not isinstance(table, dict):
        raise PlanError("plan: expected a JSON object")
    return parse(table)


def parse(table: Mapping[str, Any]) -> Plan:
    """Check every key and value by itself, then what they say together."""
    known = {f.name for f in fields(Plan)}
    for key in table:
        if key not in known:
            raise PlanError(f"{key}: unknown key, expected one of {', '.join(sorted(known))}")
    for key in _REQUIRED:
        if key not in table:
            raise PlanError(f"{key}: missing, expected {_CHECKS[key][1]}")
    values = _checked(table, _CHECKS, "", skip=("site", "simulation"))
    if "metrics" in values:
        values["metrics"] = tuple(values["metrics"])
    simulation = _checked(_table(table, "simulation"), _SIMULATION_CHECKS, "simulation.")
    sites: dict[str, SitePlan] = {}
    for name, own in _table(table, "site").items():
        if not _NAME.fullmatch(name):
            raise PlanError(f"site.{name}: expected letters, digits, '_', '-' and '.'")
        if not isinstance(own, dict):
            raise PlanError(f"site.{name}: expected a table, got {own!r}")
        sites[name] = SitePlan(**_checked(own, _SITE_CHECKS, f"site.{name}."))
    plan = Plan(**values, site=sites, simulation=Simulation(**simulation))
    _consistent(plan)
    return plan


def with_rows(plan: Plan, rows: Mapping[str, int]) -> Plan:
    """The plan with the sites' actual row counts written into it; delta is checked against them."""
    sites = {
        n: replace(plan.site_overrides(n), rows=plan.site_overrides(n).rows or count)
        for n, count in rows.items()
    }
    most = max(n.rows or 1 for n in sites.values())
    nominal = plan.rows if isinstance(plan.rows, int) else most
    resolved = replace(plan, rows=nominal, site={**plan.site, **sites})
    _consistent(resolved)
    return resolved


def _consistent(plan: Plan) -> None:
    if plan.unit == "none":
        for key in sorted(PRIVACY_KEYS):
            if getattr(plan, key) is not None:
                raise PlanError(f'{key}: expected nothing where unit = "none"')
    else:
        if plan.clip is None:
            raise PlanError('clip: missing, expected a number > 0 unless unit = "none"')
        if plan.delta is None:
            raise PlanError('delta: missing, expected 0 < delta < 1 unless unit = "none"')
        if (plan.sigma is None) == (plan.epsilon is None):
            got = "both" if plan.sigma is not None else "neither"
            raise PlanError(f"sigma, epsilon: expected exactly one of the two, got {got}")
        counts = [own.rows for own in plan.site.values()] + [plan.rows]
        most = max((n for n in counts if isinstance(n, int)), default=1)
        if plan.delta >= 1 / most:
            raise PlanError(f"delta: expected less than 1/rows = {1 / most:.3g}, got {plan.delta}")
    if plan.sites is None and plan.split != "natural":
        raise PlanError('sites: missing, expected a whole number >= 1 unless split = "natural"')
    if plan.sites is not None and plan.min_sites > plan.sites:
        raise PlanError(f"min_sites: expected at most sites = {plan.sites}, got {plan.min_sites}")
    if plan.cohort is not None and plan.sites is not None and plan.cohort > plan.sites:
        raise PlanError(f"cohort: expected at most sites = {plan.sites}, got {plan.cohort}")
    if plan.cohort is not None and plan.min_sites > plan.cohort:
        raise PlanError(f"min_sites: expected at most cohort = {plan.cohort}, got {plan.min_sites}")
    if plan.mu and plan.aggregation != "fedprox":
        raise PlanError(f'mu: expected aggregation = "fedprox" beside it, got {plan.aggregation}')
    if (plan.clip_quantile is None) != (plan.clip_sigma is None):
        raise PlanError("clip_quantile, clip_sigma: expected both or neither")
    if plan.clip_quantile is not None and plan.unit != "client":
        raise PlanError(f'clip_quantile: expected unit = "client" beside it, got {plan.unit}')
    if plan.metrics and plan.unit != "record":
        raise PlanError(f'metrics: expected unit = "record" beside them, got {plan.unit}')
    if plan.metrics and plan.metrics_sigma is None:
        raise PlanError("metrics_sigma: missing, expected the noise multiplier of the metrics")
    if plan.precision != "float32" and plan.unit != "record":
        raise PlanError(f'precision: expected float32 unless unit = "record", got {plan.precision}')
    if plan.simulation.engine == "vector" and plan.precision != "float32":
        raise PlanError(f'precision: expected float32 with "vector", got {plan.precision}')
    if plan.simulation.engine == "vector" and plan.simulation.compile:
        raise PlanError('simulation.compile: expected false with "vector", got true')
    if plan.unit == "client" and plan.weights != "equal":
        raise PlanError('weights: expected "equal" where unit = "client", got ' + plan.weights)
    if plan.unit == "client" and any(own.epsilon for own in plan.site.values()):
        raise PlanError('site: expected no epsilon of its own where unit = "client"')


def _read(source: str) -> tuple[str, Path]:
    if source in shipped():
        return files("privacy").joinpath("plans", f"{source}.toml").read_text("utf-8"), Path()
    path = Path(source)
    if not path.is_file():
        names = ", ".join(shipped())
        raise PlanError(f"plan: expected a TOML file or one of {names}, got {source}")
    try:
        return path.read_text(encoding="utf-8"), path.parent
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{source}: expected a readable text file ({error})") from None


def _override(table: dict[str, Any], override: str, *, chosen: set[str]) -> None:
    """Set one dotted key; sigma, epsilon and unit "none" take the place of the file's choice."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise PlanError(f"--set: expected KEY=VALUE, got {override!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *path, last = key.split(".") if not key.startswith("site.") else _site_key(key)
    place = table
    for part in path:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise PlanError(f"--set {key}: expected a table at {part}")
    place[last] = value
    if key == "unit" and value == "none":
        for name in PRIVACY_KEYS - chosen:
            table.pop(name, None)
    for one, other in (("sigma", "epsilon"), ("epsilon", "sigma")):
        if key == one and other not in chosen:
            table.pop(other, None)


def _site_key(key: str) -> list[str]:
    name, _, last = key.removeprefix("site.").rpartition(".")
    return ["site", name, last]


def _table(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise PlanError(f"{key}: expected a table, got {value!r}")
    return value


def _checked(
    table: Mapping[str, Any], checks: Mapping[str, Check], prefix: str, skip: Sequence[str] = ()
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key in skip:
            continue
        if key not in checks:
            expected = ", ".join(sorted(checks))
            raise PlanError(f"{prefix}{key}: unknown key, expected one of {expected}")
        fits, expected = checks[key]
        if not fits(value):
            raise PlanError(f"{prefix}{key}: expected {expected}, got {value!r}")
        values[key] = value
    return values
