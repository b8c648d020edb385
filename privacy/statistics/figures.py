"""The figures of one site, or of all together, as JSON values with their intervals."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from privacy.statistics.columns import CategoryColumn, Floats, NumberColumn
from privacy.statistics.design import Block, Design
from privacy.statistics.estimates import (
    QUANTILES,
    Counts,
    Interval,
    Z,
    correlation,
    counts,
    deviation,
    mean,
    ranks,
)

Json = dict[str, Any]


def figures(of: Design, sums: Floats, std: float) -> Json:
    """Everything that the plan asks, from noisy sums [size] in records with noise `std`.

    `std` = 0 gives the exact figures, for the data's owner alone.
    """
    rows = Interval(float(sums[0]), float(sums[0]) - Z * std, float(sums[0]) + Z * std)
    columns = [_column(of, index, sums, std) for index in range(len(of.columns))]
    return {
        "rows": shown(rows.within(0, math.inf)),
        "columns": [one for one in columns if len(one) > 2],
        "correlation": _correlations(of, sums, std),
    }


def shown(interval: Interval | None, of: NumberColumn | None = None) -> Json | None:
    """An interval as JSON, in the words of a column; None where nothing can be said."""
    if interval is None:
        return None
    values = (interval.value, interval.low, interval.high)
    texts = [of.shown(one) if of is not None else one for one in values]
    # An interval without an upper end has none in JSON either.
    ends = [None if isinstance(one, float) and math.isinf(one) else one for one in texts]
    return dict(zip(("value", "low", "high"), ends, strict=True))


def _column(of: Design, index: int, sums: Floats, std: float) -> Json:
    column = of.columns[index]
    questions = of.plan.columns.get(column.name, ())
    kind = "category" if isinstance(column, CategoryColumn) else "number"
    result: Json = {"column": column.name, "kind": kind}
    cells = counts(of, index, sums, std)
    if cells is not None and isinstance(column, CategoryColumn):
        result |= _category(column, cells, questions)
    elif cells is not None and isinstance(column, NumberColumn):
        result |= _number(of, index, column, cells, questions)
    block = next((b for b in of.blocks if b.kind == "moments" and b.columns == (index,)), None)
    if block is not None and isinstance(column, NumberColumn):
        result["mean"] = shown(mean(of, block, 0, sums, std), column)
        if block.squares:
            result["deviation"] = shown(deviation(of, block, 0, sums, std))
    return result


def _category(column: CategoryColumn, cells: Counts, questions: Sequence[str]) -> Json:
    size = len(cells.counts)
    result: Json = {"missing": shown(cells.share([size - 1]))}
    if "frequencies" in questions:
        names = [*column.values, None]
        result["frequencies"] = [
            {"value": name, "count": shown(cells.count([i])), "share": shown(cells.share([i]))}
            for i, name in enumerate(names)
        ]
    return result


def _number(
    of: Design, index: int, column: NumberColumn, cells: Counts, questions: Sequence[str]
) -> Json:
    ordered = ranks(of, index, cells)
    inside = len(ordered.edges) - 1
    result: Json = {
        "missing": shown(cells.share([inside + 3])),
        "unreadable": shown(cells.share([inside + 2])),
        "below": shown(cells.share([inside])),
        "above": shown(cells.share([inside + 1])),
        "outside": shown(cells.share([inside, inside + 1])),
    }
    if "histogram" in questions:
        ends = ordered.edges.tolist()
        result["histogram"] = [
            {
                "from": column.shown(ends[i]),
                "to": column.shown(ends[i] if ordered.whole else ends[i + 1]),
                "share": shown(cells.share([i])),
            }
            for i in range(inside)
        ]
    if "quantiles" in questions:
        result["quantiles"] = [
            {"share": share, "value": shown(ordered.quantile(share), column)} for share in QUANTILES
        ]
    return result


def _correlations(of: Design, sums: Floats, std: float) -> list[Json]:
    block = _correlated(of)
    if block is None:
        return []
    names = [of.columns[i].name for i in block.columns]
    return [
        {
            "columns": [names[i], names[j]],
            "correlation": shown(correlation(block, i, j, sums, std)),
        }
        for j in range(len(names))
        for i in range(j)
    ]


def _correlated(of: Design) -> Block | None:
    return next((b for b in of.blocks if b.kind == "moments" and len(b.columns) > 1), None)


def order_of(of: Design, index: int, cells: Counts) -> list[int] | None:
    """The cells of a number in the order of their values; None for a category."""
    if isinstance(of.columns[index], CategoryColumn):
        return None
    return ranks(of, index, cells).order


def by_column(
    of: Design, released: Mapping[str, tuple[Floats, float]]
) -> dict[int, dict[str, Counts]]:
    """Each column's cells at each site, from noisy sums and their noise."""
    table: dict[int, dict[str, Counts]] = {}
    for index in range(len(of.columns)):
        for site, (sums, std) in released.items():
            cells = counts(of, index, sums, std)
            if cells is not None:
                table.setdefault(index, {})[site] = cells
    return table
