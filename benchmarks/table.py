"""Interleaved timings and their table: ratios of one run, medians with quartiles, versions, JSON.

Absolute times move from machine to machine and from minute to minute; ratios of turns taken one
after the other do not, so contenders alternate and every turn is compared with its own base.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
Times = dict[str, list[float]]


def interleaved(
    contenders: Mapping[str, Callable[[], Any]],
    turns: int,
    warm: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """Seconds of each contender in each of `turns` rounds of turns, after `warm` unmeasured."""
    times: Times = {name: [] for name in contenders}
    for turn in range(-warm, turns):
        for name, run in contenders.items():
            start = clock()
            run()
            if turn >= 0:
                times[name].append(clock() - start)
    return times


def ratios(times: Times, base: str) -> dict[str, tuple[float, float, float]]:
    """Lower quartile, median and upper quartile of each contender's turns over the base's."""
    return {
        name: quartiles([t / b for t, b in zip(own, times[base], strict=True)])
        for name, own in times.items()
    }


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The three quartiles of at least one value."""
    if len(values) == 1:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def versions(*packages: str) -> dict[str, str]:
    """What was measured, on what: no name of the machine, nothing of its owner."""
    found = {p: metadata.version(p) for p in packages}
    cores = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    return {"python": platform.python_version(), **found, "cores": cores}


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> None:
    """Print a table."""
    table = Table(title=title, caption=note, title_justify="left", caption_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=110).print(table)


def save(name: str, result: Mapping[str, Any]) -> Path:
    """Write a benchmark's result as `results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    return path
