"""`lr = "auto"`: a learning rate from the plan alone, by one rule for linear models and MLPs.

The noise of all steps adds up to lr * sqrt(steps) * s in each weight, s being that of one step of
all sites together. Over a row of length R it moves a logit by R times as much. For softmax
regression under DP-SGD the best learning rate is near that which moves it by 2.4: measured on six
sets of rows at epsilon 1, 3 and 8 (docs/search.md), of 486 to 60,000 rows and 30 to 150
rounds. That the best lr * rounds is proportional to epsilon is the linear scaling rule (Panda et
al. 2024); here its constant comes from the length of a row, which is public. Each further layer
passes noise on, so that L layers divide it by L.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from privacy.contract.keys.contract import Contract
from privacy.files import DocumentError, parse_toml

LOGIT_NOISE: Final = 2.4
"""Standard deviation of the noise in a logit of the last weights, over a row of public length."""
_LARGEST_STEP: Final = 150.0
"""A step on which all records agree moves a logit by lr * clip * length, at most by this.

It binds where there is little noise: accuracy stays, and probabilities are less overconfident.
"""
_LENGTHS: Final = {
    "digits": math.sqrt(64),  # numbers in -1..1
    "adult": math.sqrt(12),  # columns
    "heart-disease": math.sqrt(10),
    "fashion-mnist": math.sqrt(3.0**2 + 1.5**2),  # edges and brightness, each of fixed length
    "spoken-digits": 2.0,
}
"""The public length of a row of each embedded linear task."""
_LOOKED: Final = 10_000
_RANDOM_LENGTH: Final = 2.0
"""Of random features, where a model gives no `norm`."""


@dataclass(frozen=True, slots=True)
class Share:
    """So many `sites` of a round with the same noise multiplier and public number of units."""

    sigma: float
    units: int
    sites: int = 1


def has_a_rule(plan: Contract) -> str | None:
    """Why a plan has no automatic learning rate, in one line; None where it has."""
    if plan.lr != "auto":
        return None
    for key, why in (
        ("unit", "the rule weighs the noise of clipped gradients"),
        ("optimizer", "its steps have the length of lr, whatever the noise is"),
        ("server_optimizer", "its steps have the length of server_lr, whatever the noise is"),
        ("combine", "the rule is of the mean"),
    ):
        value = getattr(plan, key)
        if value not in _COVERED[key]:
            return f'lr must be a number where {key} = "{value}": {why}'
    if plan.statistics is not None:
        return "lr must be 1, or left out, for statistics, got auto"
    if plan.sites is None and not plan.site and plan.split != "natural":
        return "sites must be the number of sites where lr is auto, got nothing"
    found = shape(plan)
    return found if isinstance(found, str) else None


_COVERED: Final[Mapping[str, tuple[str, ...]]] = {
    "unit": ("record", "subject"),
    "optimizer": ("sgd", "momentum"),
    "server_optimizer": ("sgd",),
    "combine": ("mean",),
}


def shape(plan: Contract) -> tuple[float, int] | str:
    """The public length of a row and the number of layers, by task, schema and model; else why not.

    The bias counts as a column of ones.
    """
    if plan.code is not None:
        return "lr must be a number where code names a task package: its rows have no known length"
    if plan.model is not None and plan.model.name not in ("linear", "mlp"):
        name = plan.model.name or "layers"
        return f'lr must be a number where the model is "{name}": the rule is for linear and mlp'
    if plan.schema is None:
        if (length := _LENGTHS.get(plan.task)) is None:
            return f'lr must be a number for task = "{plan.task}": its rows have no known length'
        return math.hypot(length, 1.0), 1
    return _described(plan)


def _described(plan: Contract) -> tuple[float, int] | str:
    try:
        schema = parse_toml(plan.schema or "")
    except DocumentError as error:
        return f"schema: {error}"
    if schema.get("kind", "classification") != "classification":
        return "lr must be a number unless classes are learnt: the rule is of their logits"
    columns = schema.get("columns")
    given = columns.values() if isinstance(columns, Mapping) else ()
    if any(isinstance(one, Mapping) and one.get("adapted") for one in given):
        return (
            "lr must be a number where a column has adapted layers: the rule is for linear and mlp"
        )
    if plan.model is not None:
        length = plan.model.norm or (_RANDOM_LENGTH if plan.model.random else None)
        hidden = (plan.model.depth or 2) if plan.model.name == "mlp" else 0
    else:
        length = _number(schema, "norm") or (_RANDOM_LENGTH if schema.get("random") else None)
        layers = schema.get("hidden", [])
        hidden = len(layers) if isinstance(layers, list) else 0
    if length is None and plan.task == "table":
        length = math.sqrt(_columns(schema))
    if not length:
        return "lr must be a number, or model.norm given: rows have no known length"
    return math.hypot(length, 1.0), 1 + hidden


def _number(schema: Mapping[str, Any], key: str) -> float | None:
    value = schema.get(key)
    return float(value) if isinstance(value, int | float) and value > 0 else None


def _columns(schema: Mapping[str, Any]) -> int:
    """How many columns a table's rows are learnt from, those of a pattern one by one."""
    described, count = schema.get("columns"), 0
    if not isinstance(described, Mapping):
        return 0
    for name, given in described.items():
        if name == schema.get("label") or not isinstance(given, Mapping):
            continue
        names, first, last = given.get("names"), given.get("from", 1), given.get("to")
        if "*" not in name:
            count += 1
        elif isinstance(names, list):
            count += len(names)
        elif type(first) is int and type(last) is int:
            count += max(0, last - first + 1)
    return count


def step_noise(plan: Contract, shares: list[Share], noise_shares: int = 1) -> float:
    """Standard deviation of the noise that one step leaves in each coordinate of the mean gradient.

    Every site divides by its public number of units and adds noise of its own; the coordinator
    weighs sites as the plan says. Of a cohort fewer sites make the mean, with as much noise each.
    `noise_shares` is how many honest parties' shares are one sigma (secure aggregation).
    """
    sites = sum(one.sites for one in shares)
    units = sum(one.sites * one.units for one in shares)
    total = 0.0
    for one in shares:
        weight = one.units / units if plan.weights == "rows" else 1 / sites
        noise = weight * one.sigma * (plan.clip or 0.0) / (plan.rate * one.units)
        total += one.sites * noise**2
    asked = min(plan.cohort or sites, sites)
    return math.sqrt(total / noise_shares * sites / asked)


def automatic(plan: Contract, noise: float, rounds: int) -> float:
    """The learning rate whose noise over `rounds` moves a logit by `LOGIT_NOISE`, in 3 digits.

    `noise` is that of one step. Momentum repeats a step's gradient.
    """
    found = shape(plan)
    if isinstance(found, str):
        raise ValueError(found)
    length, layers = found
    reach = plan.server_lr / (1 - plan.server_momentum) * _repeated(plan)
    lr = min(
        LOGIT_NOISE / (noise * math.sqrt(whole_steps(plan, rounds))),
        _LARGEST_STEP / (plan.clip or 1.0),
    ) / (length * layers * reach)
    return float(f"{min(max(lr, 1e-12), 1e9):.3g}")


def whole_steps(plan: Contract, rounds: int) -> float:
    """How many steps at the whole rates leave as much noise as all steps of `rounds` do.

    A schedule makes a step's noise less, at the site, at the coordinator, or at both; so does a
    warm-up: the squares of the rates add up. Of more than 10,000 steps so many are looked at.
    """
    steps = rounds * plan.steps
    looked = min(steps, _LOOKED)
    total = 0.0
    for i in range(looked):
        step = (2 * i + 1) * steps // (2 * looked)
        rate = server_part(plan, step // plan.steps, rounds)
        if plan.schedule == "cosine":
            rate *= cosine(step / steps)
        total += rate * rate
    return total * steps / looked


def server_part(plan: Contract, done: int, rounds: int) -> float:
    """Which part of `server_lr` the round after `done` of `rounds` has, above 0 and at most 1.

    It rises over the first `warmup` rounds, then stays, or falls as a cosine.
    """
    warmup = min(plan.warmup, rounds - 1)
    if done < warmup:
        return (done + 1) / (warmup + 1)
    if plan.server_schedule == "cosine":
        return cosine((done - warmup) / max(1, rounds - warmup))
    return 1.0


def cosine(share: float) -> float:
    """Half a cosine, from 1 to 0, after a `share` of the steps in 0..1."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def _repeated(plan: Contract) -> float:
    """How often a local step's gradient counts until its round ends, on average."""
    if plan.optimizer != "momentum":
        return 1.0
    m, steps = plan.momentum, plan.steps
    # the mean over i = 1..steps of 1 + m + .. + m^(i - 1) = (1 - m^i) / (1 - m)
    return (1 - m * (1 - m**steps) / ((1 - m) * steps)) / (1 - m)
