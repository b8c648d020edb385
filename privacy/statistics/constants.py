"""Public constants of a later plan, from statistics that were released with noise."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from privacy.files import DocumentError, read_toml
from privacy.statistics.columns import CategoryColumn, StatisticsError
from privacy.statistics.estimates import counts, ranks
from privacy.statistics.results import Results


def narrowed(
    schema: Path, results: Results, tail: float, digest: str
) -> tuple[str, dict[str, tuple[float, float]]]:
    """A schema's text with `min` and `max` of its numbers at the noisy quantiles of all sites.

    Only columns whose quantiles were asked change, and never beyond the old range; also the new
    ranges by column. StatisticsError where there is nothing to change.
    """
    if not 0 < tail < 0.5:
        raise StatisticsError(f"--tail must be above 0 and below 0.5, got {tail:g}")
    try:
        table = read_toml(schema)
    except (OSError, DocumentError) as error:
        raise StatisticsError(f"{schema}: must be a schema ({error})") from None
    columns = table.get("columns")
    if not isinstance(columns, dict):
        raise StatisticsError(f"{schema}: must have a table [columns.NAME] for each column")
    changes = {}
    for name, (low, high) in _ranges(results, tail).items():
        given: Any = columns.get(name)
        if not isinstance(given, dict) or given.get("type") != "number":
            continue
        low, high = max(low, float(given["min"])), min(high, float(given["max"]))
        if low < high:
            given["min"], given["max"] = low, high
            changes[name] = (low, high)
    if not changes:
        raise StatisticsError(
            f"{schema}: must have a column of numbers whose quantiles were asked and are known"
        )
    origin = (
        f"# min and max of {', '.join(changes)}: {tail:g} and {1 - tail:g} quantiles of noisy\n"
    )
    origin += f"# statistics, sha256:{digest} (run {results.run})\n"
    return origin + tomli_w.dumps(table), changes


def _ranges(results: Results, tail: float) -> dict[str, tuple[float, float]]:
    of, released = results.design, results.released()
    sums = np.sum([one for one, _ in released.values()], 0)
    std = math.sqrt(sum(one**2 for _, one in released.values()))
    ranges = {}
    for index, column in enumerate(of.columns):
        wanted = "quantiles" in of.plan.columns.get(column.name, ())
        cells = counts(of, index, sums, std)
        if isinstance(column, CategoryColumn) or column.date or not wanted or cells is None:
            continue
        ordered = ranks(of, index, cells)
        low, high = ordered.quantile(tail), ordered.quantile(1 - tail)
        if low is not None and high is not None:
            ranges[column.name] = (low.value, high.value)
    return ranges
