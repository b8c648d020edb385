"""Is a release of statistics what it claims to be? Named checks through the site's own code.

Each looks at what leaves alone: its noise, its grid, and how far the worst record moves it.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from client.audit.check import Check
from client.statistics.counting import count
from client.statistics.statistics_task import statistics_task
from client.tasks.registry import task
from client.tasks.rows import Rows
from client.tasks.task import Task
from privacy.accounting.events import Event
from privacy.audit.p_values import beyond, chi_square
from privacy.contract.keys.tables import StatisticsPlan
from privacy.contract.plan import Plan
from privacy.mechanism.noise import grid
from privacy.statistics.release import SUMS, standard_deviation

_TINY: Final = 1e-4  # noise beside which the sums are seen plainly
_SIGMA: Final = 3.0
_WORST: Final = (0.0, 1.0, -1.0, 20.0, 90.0, 1e6, 1e300, -1e300, math.inf, -math.inf, math.nan)
_SCHEMA: Final = """label = "sick"
subject = "who"
[columns.age]
type = "number"
min = 20
max = 90
[columns.dose]
type = "number"
min = 0
max = 1
[columns.ward]
type = "category"
values = ["a", "b", "c"]
[columns.sick]
type = "category"
values = ["no", "yes"]
"""
_PLAN: Final = StatisticsPlan(
    of="table",
    columns={
        "age": ("quantiles", "histogram", "moments"),
        "dose": ("outside", "mean"),
        "ward": ("frequencies",),
        "sick": ("missing",),
    },
    bins=16,
    whole=("age",),
    correlation=("age", "dose"),
)


def statistics_are_noised() -> Check:
    """Of no rows nothing but noise is released, at the claimed scale, fresh and on its grid."""
    counted = _task()
    of = counted.statistics
    if of is None:
        raise ValueError("statistics: must have a design")
    std, releases = standard_deviation(of, _SIGMA), []
    for unit in ("record", "subject") * 12:
        releases.append(_release(counted, _rows(counted, 0), _SIGMA, unit) * of.bound)
    released = np.stack(releases)
    z = (released / std).reshape(-1)
    ratio = math.sqrt(float(z @ z) / len(z))
    columns = np.square(released / std).sum(0)
    p = min(
        chi_square(float(z @ z), len(z)),
        len(columns) * min(chi_square(float(one), len(released)) for one in columns),
    )
    steps = released / grid(std)
    off = float(np.abs(steps - np.rint(steps)).max())  # float32 rounds the quotient by the bound
    repeated = len(np.unique(releases, axis=0)) < len(releases)
    if off > 0.02 * max(1.0, float(np.abs(steps).max()) * 1e-4) or repeated:
        p = 0.0
    detail = f"{ratio:.3f} of the paid noise in {len(z)} numbers; {off:.2g} of a step off the grid"
    return Check("statistics are noised", ratio, min(1.0, 2 * p), detail)


def a_record_is_bounded_in_statistics() -> Check:
    """The worst record (or person with many rows) moves the release by its bound at most."""
    counted = _task()
    worst, p = 0.0, 1.0
    for unit, most in (("record", 1), ("subject", 40)):
        rows = _rows(counted, 40)
        without = _release(counted, rows, _TINY, unit)
        for value in _WORST:
            extra = torch.full((most, rows.x.shape[1]), value, dtype=torch.float64)
            more = rows + _made(extra, 10_000)
            moved = float(np.linalg.norm(_release(counted, more, _TINY, unit) - without))
            noise = _TINY * math.sqrt(2 * len(without))
            _, chance = beyond(np.array([moved]), 1.0 + 2 * noise, noise)
            worst, p = max(worst, moved), min(p, chance)
    detail = f"at most {worst:.3f} of the bound, over {2 * len(_WORST)} records and people"
    return Check("a record is bounded in statistics", worst, min(1.0, p), detail)


def _task() -> Task:
    return statistics_task(_PLAN, task("table", _SCHEMA))


def _rows(counted: Task, count_: int) -> Rows:
    """Made-up rows: every value is one that its column knows, or a missing one."""
    generator = np.random.default_rng(count_)
    x = generator.uniform(0, 4, (count_, counted.shape[0]))
    x[generator.random(x.shape) < 0.2] = np.nan
    return _made(torch.from_numpy(x), 0)


def _made(x: torch.Tensor, person: int) -> Rows:
    people = torch.full((len(x),), person) if person else torch.arange(len(x)) // 4
    return Rows(x, torch.zeros(len(x), dtype=torch.int64), subject=people)


def _release(counted: Task, rows: Rows, sigma: float, unit: str) -> NDArray[np.float64]:
    plan = Plan(
        task="statistics",
        statistics=_PLAN,
        schema=_SCHEMA,
        sites=1,
        rounds=1,
        rate=1.0,
        lr=1.0,
        clip=1.0,
        sigma=sigma,
        delta=1e-5,
        rows=100,
    )
    if unit == "subject":
        plan = replace(plan, unit="subject", rows=None, subjects=100)
    trained = count(rows, counted, plan, Event(unit, sigma, 1.0, 1), lambda: counted.model(0))
    return trained.update[SUMS].astype(np.float64)


STATISTICS_CHECKS: Final[tuple[Callable[[], Check], ...]] = (
    statistics_are_noised,
    a_record_is_bounded_in_statistics,
)
