"""How a model does in each group, from noisy counts of (group, label, prediction) over the sites.

All of it is post-processing. A group whose size is below five standard deviations of its noise is
not shown. Of two classes the second is the one that is selected.
"""

import math
from typing import Any

import numpy as np

from privacy.statistics.columns import CategoryColumn, Floats
from privacy.statistics.design import Block, Design
from privacy.statistics.estimates import ENOUGH, Interval, Z, ratio
from privacy.statistics.figures import shown

RATES = ("accuracy", "recall", "selection", "calibration")


def fairness(of: Design, sums: Floats, std: float) -> list[dict[str, Any]]:
    """For each column of groups: every group's rates with intervals, and the widest gaps."""
    return [_column(of, block, sums, std) for block in of.blocks if block.kind == "groups"]


def _column(of: Design, block: Block, sums: Floats, std: float) -> dict[str, Any]:
    column, label = (of.columns[i] for i in block.columns)
    if not isinstance(column, CategoryColumn) or not isinstance(label, CategoryColumn):
        raise ValueError("block: must be of categories")
    tables = sums[block.at].reshape(-1, of.classes, of.classes)
    scores = next((b for b in of.blocks if (b.kind, b.columns) == ("scores", block.columns)), None)
    names = [*column.values, "any other value", "missing"]
    groups: list[dict[str, Any]] = []
    suppressed: list[str] = []
    for place, (name, table) in enumerate(zip(names, tables, strict=True)):
        noise = std * math.sqrt(table.size)
        if table.sum() <= ENOUGH * noise or table.sum() <= 0:
            suppressed.append(name)
            continue
        score = None if scores is None else float(sums[scores.at][place])
        rates = _rates(table, std, score)
        count = float(table.sum())
        rows = Interval(count, count - Z * noise, count + Z * noise).within(0, math.inf)
        groups.append(
            {"group": name, "rows": shown(rows)} | {k: shown(v) for k, v in rates.items()}
        )
    gaps = {name: _gap([one[name] for one in groups if one.get(name)]) for name in RATES}
    return {
        "column": column.name,
        "label": label.name,
        "selected": label.values[1] if of.classes == 2 else None,
        "groups": groups,
        "suppressed": suppressed,
        "gaps": {name: shown(gap) for name, gap in gaps.items() if gap is not None},
    }


def _rates(table: Floats, std: float, score: float | None) -> dict[str, Interval | None]:
    """The rates of one group from its counts [label, prediction] and the sum of its scores."""
    classes, variance = len(table), std * std
    hits = classes * variance
    every = table.size * variance
    rates = {"accuracy": ratio(float(np.trace(table)), float(table.sum()), hits, every, hits)}
    if classes != 2:
        return {name: _held(rate) for name, rate in rates.items()}
    sick, selected = table[1], table[:, 1]
    rates["recall"] = ratio(float(sick[1]), float(sick.sum()), variance, 2 * variance, variance)
    both = 2 * variance
    rates["selection"] = ratio(float(selected.sum()), float(table.sum()), both, every, both)
    rates = {name: _held(rate) for name, rate in rates.items()}
    if score is not None:  # the share that has the class, less the mean score
        lead = float(sick.sum()) - score
        rates["calibration"] = ratio(lead, float(table.sum()), 3 * variance, every, both)
    return rates


def _held(rate: Interval | None) -> Interval | None:
    return None if rate is None else rate.within(0, 1)


def _gap(rates: list[dict[str, float]]) -> Interval | None:
    """The widest difference between two groups; its interval is for these two groups."""
    if len(rates) < 2:
        return None
    most = max(rates, key=lambda one: one["value"])
    least = min(rates, key=lambda one: one["value"])
    errors = [(one["high"] - one["low"]) / 2 for one in (most, least)]
    gap, error = most["value"] - least["value"], math.hypot(*errors)
    return Interval(gap, gap - error, gap + error)
