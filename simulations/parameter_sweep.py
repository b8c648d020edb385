"""A sweep: one plan over a grid of values and seeds, each cell a simulation of its own.

Every cell spends its own epsilon on the same rows: what is learnt from all cells together costs
more than any of them says.
"""

import csv
import io
import itertools
import multiprocessing
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from privacy.contract.plan import Plan, PlanError
from privacy.contract.plan_file import override, parse
from privacy.report.charts import Series, lines
from server.rounds.run_folder import FolderError, RunFolder
from simulations.display import metric_of
from simulations.result import Svg, frame
from simulations.run import simulate

_MOST_CELLS = 10_000


@dataclass(frozen=True, slots=True)
class Sweep:
    """The cells of a sweep, in the order of the grid.

    A record holds the keys that vary, the seed, the epsilon that was reached, the rounds, how the
    run ended, and each metric by its name.
    """

    keys: tuple[str, ...]
    records: tuple[Mapping[str, Any], ...] = field(repr=False)

    @property
    def metric(self) -> str:
        """The metric that the task is judged by; ValueError where no cell has one."""
        for record in self.records:
            if (name := metric_of(record)) is not None:
                return name
        raise ValueError("no run of the sweep has a metric")

    def frame(self) -> Any:
        """The records as a DataFrame of pandas, or of polars; ImportError without either."""
        return frame([dict(record) for record in self.records])

    def summary(self) -> list[dict[str, Any]]:
        """Mean, standard deviation (n - 1), least and most of the metric in each cell."""
        name, cells = self.metric, list[dict[str, Any]]()
        for values, group in itertools.groupby(self.records, key=self._cell):
            reached = [record[name] for record in group if name in record]
            spread = statistics.stdev(reached) if len(reached) > 1 else None
            figures = {
                "runs": len(reached),
                "mean": statistics.fmean(reached) if reached else None,
                "standard_deviation": spread,
                "least": min(reached, default=None),
                "most": max(reached, default=None),
            }
            cells.append(dict(zip(self.keys, values, strict=True)) | figures)
        return cells

    def _cell(self, record: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(record[key] for key in self.keys)

    def csv(self) -> str:
        """The records as CSV text with a header."""
        names = list(dict.fromkeys(name for record in self.records for name in record))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.records)
        return text.getvalue()

    def plot(self) -> Svg:
        """Mean and spread of the metric over the first key, a line for each of the other keys."""
        first, *others = self.keys
        cells = [cell for cell in self.summary() if cell["mean"] is not None]
        numbers = all(_is_number(cell[first]) for cell in cells)
        values = list(dict.fromkeys(cell[first] for cell in cells))
        series: dict[str, list[tuple[float, float]]] = {}
        for cell in cells:
            x = float(cell[first]) if numbers else float(values.index(cell[first]) + 1)
            where = "".join(f", {key} = {cell[key]}" for key in others)
            spread = cell["standard_deviation"] or 0.0
            series.setdefault(f"mean{where}", []).append((x, cell["mean"]))
            if spread:
                for sign, name in ((1, "+"), (-1, "-")):
                    point = (x, cell["mean"] + sign * spread)
                    series.setdefault(f"{name} standard deviation{where}", []).append(point)
        axis = first if numbers else f"{first}: " + ", ".join(map(str, values))
        runs = max((cell["runs"] for cell in cells), default=0)
        return Svg(
            lines(
                [Series(name, tuple(sorted(points))) for name, points in series.items()],
                title=f"{self.metric} by {', '.join(self.keys)}",
                description=f"mean and standard deviation of {runs} runs a cell",
                x_label=axis,
                y_label=self.metric,
                from_zero=False,
            )
        )


def sweep(
    plan: Plan,
    *,
    seeds: Sequence[int] | int = 1,
    folder: Path | str | None = None,
    workers: int = 1,
    on_cell: Callable[[Mapping[str, Any], int], None] = lambda record, cells: None,
    task: Any = None,
    data: Any = None,
    label: str | None = None,
    loss: Any = None,
    **values: Sequence[Any],
) -> Sweep:
    """Simulate a plan with every combination of `values` and every seed.

    Each keyword is a plan key (a dotted key such as `site.a.epsilon` in a mapping: `**{...}`) and
    its values; `epsilon` and `sigma` replace each other. `seeds` is a number of seeds, counted up
    from the plan's, or the seeds themselves. Every cell is checked before the first one runs;
    PlanError. With a `folder` each run is kept there: a sweep that was cut goes on where it was,
    and runs that are complete are only read. `workers` processes share the cells (Linux).
    `task`, `data`, `label` and `loss` are those of `simulate`.
    """
    chosen = range(plan.seed, plan.seed + seeds) if isinstance(seeds, int) else list(seeds)
    if not values or not all(values.values()) or not chosen:
        raise PlanError("a sweep must have at least one key with a value, and one seed")
    cells = [
        (dict(zip(values, combination, strict=True)), seed)
        for combination in itertools.product(*values.values())
        for seed in chosen
    ]
    if len(cells) > _MOST_CELLS:
        raise PlanError(f"a sweep must have at most {_MOST_CELLS} runs, got {len(cells)}")
    work = [
        _Cell(keys, seed, _changed(plan, keys, seed), _place(folder, keys, seed))
        for keys, seed in cells
    ]
    options = {"task": task, "data": data, "label": label, "loss": loss}
    records = []
    for record in _all(work, options, workers):
        records.append(record)
        on_cell(record, len(work))
    return Sweep(tuple(values), tuple(records))


@dataclass(frozen=True, slots=True)
class _Cell:
    keys: Mapping[str, Any]
    seed: int
    plan: Plan
    folder: Path | None


def _changed(plan: Plan, keys: Mapping[str, Any], seed: int) -> Plan:
    table = plan.to_dict()
    override(table, [f"{key}={_toml(value)}" for key, value in keys.items()])
    return parse(table | {"seed": seed})


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _place(folder: Path | str | None, keys: Mapping[str, Any], seed: int) -> Path | None:
    if folder is None:
        return None
    name = ",".join([*(f"{key}={value}" for key, value in keys.items()), f"seed={seed}"])
    if "/" in name or len(name) > 200:
        raise FolderError(f"the values must make a file name of at most 200 characters, got {name}")
    return Path(folder) / name


_work: tuple[list[_Cell], Mapping[str, Any]] = ([], {})


def _all(
    cells: list[_Cell], options: Mapping[str, Any], workers: int
) -> Iterator[Mapping[str, Any]]:
    if workers <= 1 or sys.platform != "linux":
        for cell in cells:
            yield _record(cell, options)
        return
    with _inherited(cells, options):
        context = multiprocessing.get_context("fork")  # an own model cannot always be pickled
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool:
            yield from pool.map(_numbered, range(len(cells)))


@contextmanager
def _inherited(cells: list[_Cell], options: Mapping[str, Any]) -> Iterator[None]:
    """What forked workers find in this module."""
    global _work
    _work = (cells, options)
    try:
        yield
    finally:
        _work = ([], {})


def _one_thread() -> None:
    torch.set_num_threads(1)


def _numbered(number: int) -> Mapping[str, Any]:
    cells, options = _work
    return _record(cells[number], options)


def _record(cell: _Cell, options: Mapping[str, Any]) -> Mapping[str, Any]:
    resume = cell.folder is not None and cell.folder.exists()
    if resume and cell.folder is not None:
        summary = RunFolder.open(cell.folder).summary()
        if summary is not None and summary["reason"] != "stopped":
            return _row(cell, summary)
    is_object = options["task"] is not None and not isinstance(options["task"], Path | str)
    if resume and cell.folder is not None and is_object:
        shutil.rmtree(cell.folder)  # an own model's run cannot be resumed: it begins anew
        resume = False
    result = simulate(cell.plan, cell.folder, resume=resume, **options)
    return _row(cell, result.summary)


def _row(cell: _Cell, summary: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **cell.keys,
        "seed": cell.seed,
        "epsilon_spent": summary["epsilon"],
        "rounds": summary["rounds"],
        "ended": summary["reason"],
        **summary["metrics"],
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
