"""What a federation gives its sites: plans by epsilon, beside each site alone and no privacy.

Every cell is a run of its own on the same rows: what is learnt from all of them together costs more
than any of them says.
"""

import csv
import io
import json
import shlex
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from privacy.contract.plan import Plan, PlanError
from privacy.contract.plan_file import load_plan, override, parse, swept_values
from privacy.contract.schema import shown
from privacy.report.charts import Series, lines
from simulations.dataset import World, prepare
from simulations.display import metric_of
from simulations.result import Svg, frame
from simulations.run import simulate

FEDERATION: Final = "federation"
ALONE: Final = "each site alone"
NO_PRIVACY: Final = "federation without privacy"
_MOST_RUNS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Comparison:
    """The runs of a comparison: by which plan, who trained, at which epsilon, what was reached.

    Of a site alone a record has its name. `metric` is measured on the same held-out rows for all.
    """

    metric: str
    records: tuple[Mapping[str, Any], ...] = field(repr=False)

    def table(self) -> list[dict[str, Any]]:
        """Mean, standard deviation (n - 1), least and most of each plan and kind at each epsilon.

        A site alone counts as the mean over the sites of a seed; `least_site` is the worst of them.
        """
        cells: dict[tuple[str, str, float | None], dict[int, list[float]]] = {}
        for one in self.records:
            by_seed = cells.setdefault((one["plan"], one["who"], one["epsilon"]), {})
            by_seed.setdefault(one["seed"], []).append(one[self.metric])
        rows = []
        for (plan, who, epsilon), by_seed in cells.items():
            means = [statistics.fmean(values) for values in by_seed.values()]
            row: dict[str, Any] = {
                "plan": plan,
                "who": who,
                "epsilon": epsilon,
                "runs": len(means),
                "mean": statistics.fmean(means),
                "standard_deviation": statistics.stdev(means) if len(means) > 1 else None,
                "least": min(means),
                "most": max(means),
            }
            if who == ALONE:
                row["least_site"] = min(min(values) for values in by_seed.values())
            rows.append(row)
        return rows

    def frame(self) -> Any:
        """The records as a DataFrame of pandas, or of polars; ImportError without either."""
        return frame([dict(record) for record in self.records])

    def csv(self) -> str:
        """The records as CSV text with a header."""
        text = io.StringIO()
        names = ["plan", "who", "site", "epsilon", "seed", "rounds", self.metric]
        writer = csv.DictWriter(text, names, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(self.records)
        return text.getvalue()

    def json(self) -> str:
        """The table and the records as one JSON object."""
        facts = {"metric": self.metric, "table": self.table(), "runs": list(self.records)}
        return json.dumps(facts, indent=1, allow_nan=False) + "\n"

    def plot(self) -> Svg:
        """Mean of the metric over epsilon, with bars of a standard deviation over the seeds.

        The best plan without privacy is a level line.
        """
        table = self.table()
        several = len({row["plan"] for row in table}) > 1
        series: dict[str, list[tuple[float, float, float]]] = {}
        for row in table:
            name = f"{row['plan']}: {row['who']}" if several else row["who"]
            point = (row["epsilon"], row["mean"], row["standard_deviation"] or 0.0)
            if row["epsilon"] is not None:
                series.setdefault(name, []).append(point)
        levels = [row["mean"] for row in table if row["who"] == NO_PRIVACY]
        runs = max(row["runs"] for row in table)
        return Svg(
            lines(
                [_with_bars(name, sorted(points)) for name, points in series.items()],
                title=f"{self.metric} by epsilon",
                description=f"mean and standard deviation of {runs} runs a point",
                x_label="epsilon",
                y_label=self.metric,
                limit=("without privacy", max(levels)) if levels else None,
                from_zero=False,
                most=len(series),
            )
        )


def _with_bars(name: str, points: Sequence[tuple[float, float, float]]) -> Series:
    spread = tuple(e for *_, e in points)
    return Series(name, tuple((x, y) for x, y, _ in points), spread if any(spread) else ())


def compare(
    plans: Plan | Mapping[str, Plan],
    epsilons: Sequence[float],
    *,
    seeds: Sequence[int] | int = 1,
    data: Any = None,
    on_run: Callable[[Mapping[str, Any], int], None] = lambda record, runs: None,
) -> Comparison:
    """Simulate each plan's federation, each of its sites alone, and it without privacy.

    A site alone has the same plan, rows and epsilon, and its own where the plan gives it one; all
    are measured on the same held-out rows. `seeds` is a number of seeds, counted up from the first
    plan's, or the seeds themselves. PlanError for a plan whose sites add no noise themselves, and
    for plans of other rows, sites or guarantees than the first.
    """
    named = {plans.task: plans} if isinstance(plans, Plan) else dict(plans)
    _comparable(named, epsilons)
    start = next(iter(named.values())).seed
    chosen = range(start, start + seeds) if isinstance(seeds, int) else list(seeds)
    records: list[Mapping[str, Any]] = []
    metric = ""
    for seed in chosen:
        rows: Any = data
        for name, plan in named.items():
            resolved, world = prepare(_changed(plan, [f"seed={seed}"]), rows)
            rows = (world.train, world.test)  # read once a seed
            runs = len(chosen) * len(named) * (1 + len(epsilons) * (1 + len(world.parts)))
            if runs > _MOST_RUNS:
                raise PlanError(f"a comparison must have at most {_MOST_RUNS} runs, got {runs}")
            for who, site, epsilon, work, part in _runs(resolved, world, epsilons):
                result = simulate(work, data=part)
                reached = result.summary["metrics"]
                metric = metric or _metric(reached)
                record = {
                    "plan": name,
                    "who": who,
                    "site": site,
                    "epsilon": epsilon,
                    "seed": seed,
                    "rounds": result.summary["rounds"],
                    metric: reached.get(f"pooled_{metric}", reached.get(metric)),
                }
                records.append(record)
                on_run(record, runs)
    return Comparison(metric, tuple(records))


_ALIKE: Final = ("task", "schema", "code", "task_options", "split", "sites", "unit", "delta")
"""What makes epsilon mean the same, and the held-out rows and the sites' rows the same."""


def _comparable(plans: Mapping[str, Plan], epsilons: Sequence[float]) -> None:
    if not epsilons or len(set(epsilons)) < len(epsilons):
        raise PlanError("a comparison must have different values of epsilon")
    first = next(iter(plans.values()))
    for name, plan in plans.items():
        if not plan.noised_at_site or plan.statistics is not None:
            raise PlanError('unit must be "record" or "subject" for a comparison of sites')
        differ = next((key for key in _ALIKE if getattr(plan, key) != getattr(first, key)), None)
        if differ is not None:
            raise PlanError(
                f"{differ} must be {getattr(first, differ)!r} in every plan that is compared, got "
                f"{getattr(plan, differ)!r} in {name}"
            )
        for epsilon in epsilons:  # refused before the first of many runs, not between them
            _changed(plan, [f"epsilon={epsilon!r}"])


def levels(text: str) -> list[float]:
    """The values of EPSILON,EPSILON, as a plan reads each; PlanError where one is empty."""
    if not all(part.strip() for part in text.split(",")):
        raise PlanError(f"--compare must be EPSILON,EPSILON, got {shown(text)}")
    return swept_values([f"epsilon={text}"])["epsilon"]


def contenders(source: str, plan: Plan, beside: Sequence[str]) -> dict[str, Plan]:
    """A plan, and what is held beside it: each a plan's name or file, KEY=VALUE words, or both.

    Words without a plan before them change the first plan.
    """
    plans = {source: plan}
    for text in beside:
        words = shlex.split(text)
        if not words or text in plans:
            raise PlanError(f"--beside must be another plan or KEY=VALUE words, got {text!r}")
        if "=" in words[0]:
            table = plan.to_dict()
            override(table, words)
            plans[text] = parse(table)
        else:
            plans[text] = load_plan(words[0], words[1:])
    return plans


_Run = tuple[str, str, float | None, Plan, Any]


def _runs(plan: Plan, world: World, epsilons: Sequence[float]) -> Iterator[_Run]:
    whole = (world.train, world.test)
    yield NO_PRIVACY, "", None, _changed(plan, ["unit=none"]), whole
    for epsilon in epsilons:
        yield FEDERATION, "", epsilon, _changed(plan, [f"epsilon={epsilon!r}"]), whole
        for name in world.parts:
            site_epsilon = plan.site_overrides(name).epsilon or epsilon
            yield (
                ALONE,
                name,
                epsilon,
                _alone(plan, name, site_epsilon),
                (world.rows(name), world.test),
            )


def _alone(plan: Plan, site: str, epsilon: float) -> Plan:
    """The plan of one site that trains by itself, on its own rows."""
    table = plan.to_dict()
    for key in ("cohort", "combine", "trim"):
        table.pop(key, None)
    table |= {"sites": 1, "split": "iid", "site": {}, plan.units_key: plan.units_of(site)}
    table["operation"] = {**table["operation"], "min_sites": 1}
    override(table, [f"epsilon={epsilon!r}"])
    return parse(table)


def _changed(plan: Plan, changes: Sequence[str]) -> Plan:
    table = plan.to_dict()
    if "unit=none" in changes:  # nobody has an epsilon where nothing is private
        sites = table["site"].items()
        table["site"] = {n: {k: v for k, v in one.items() if k == "rows"} for n, one in sites}
        for key in ("metrics", "metrics_sigma", "tune"):
            table.pop(key, None)
        table["lr"] = plan.learning_rate  # the rule for "auto" weighs noise
    override(table, changes)
    return parse(table)


def _metric(metrics: Mapping[str, float]) -> str:
    name = metric_of(metrics)
    if name is None:
        raise PlanError("a comparison must have held-out rows to measure on, got none")
    return name


def write(comparison: Comparison, folder: Path) -> None:
    """`comparison.csv`, `.json` and `.svg` in a folder."""
    from privacy.files import write_atomic

    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "comparison.csv", comparison.csv().encode())
    write_atomic(folder / "comparison.json", comparison.json().encode())
    write_atomic(folder / "comparison.svg", comparison.plot().encode())


def present(
    console: Console,
    plans: Mapping[str, Plan],
    epsilons: Sequence[float],
    repeat: int,
    folder: Path,
    data: Path | None,
    *,
    as_json: bool,
) -> None:
    """The command: run a comparison, write its files, and show its table or one JSON object."""
    with Progress(console=Console(stderr=True), disable=as_json) as bar:
        shown = bar.add_task("runs", total=None)
        result = compare(
            plans,
            epsilons,
            seeds=repeat,
            data=data,
            on_run=lambda _, runs: bar.update(shown, total=runs, advance=1),
        )
    write(result, folder)
    if as_json:
        facts = {"run": str(folder), "metric": result.metric, "table": result.table()}
        print(json.dumps(facts, allow_nan=False))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("who", "epsilon", "runs", f"mean {result.metric}", "deviation", "worst site"):
        justify: Literal["left", "right"] = "left" if name == "who" else "right"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name != "who")
    above = ""
    for row in result.table():
        if len(plans) > 1 and row["plan"] != above:
            above = row["plan"]
            table.add_row(Text(above, style="bold"))
        figures = (row["mean"], row["standard_deviation"], row.get("least_site"))
        texts = ["-" if value is None else f"{value:.4f}" for value in figures]
        epsilon = "-" if row["epsilon"] is None else f"{row['epsilon']:g}"
        table.add_row(row["who"], epsilon, str(row["runs"]), *texts)
    console.print(table, highlight=False)
    console.print(f"comparison.csv, .json, .svg are in {folder}", highlight=False, soft_wrap=True)
    console.print("Each run's epsilon counts that run alone: choosing by them costs more.")
