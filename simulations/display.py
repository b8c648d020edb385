"""What a person sees of a run: a progress bar, a table a round, one honest sentence at the end."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from privacy.contract.plan import Plan

_SHOWN = 12


class RunView:
    """Shows the rounds of a run as they end; silent where the console is quiet."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lines: list[Mapping[str, Any]] = []
        self._least: float | None = None
        self._plan: Plan | None = None
        self._progress = Progress(
            TextColumn("rounds"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task("rounds", total=None)
        self._live = Live(console=console, refresh_per_second=4, transient=not console.is_terminal)

    def __enter__(self) -> "RunView":
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()
        if not self._console.is_terminal and self._plan is not None:
            self._console.print(self._table(self._lines))

    def start(self, plan: Plan, done: int) -> None:
        """The plan is known, and how many rounds are complete already."""
        self._plan = plan
        self._progress.update(self._task, total=plan.rounds, completed=done)

    def round(self, line: Mapping[str, Any]) -> None:
        """A round has ended."""
        left = [one for one in (self._least, self._left(line)) if one is not None]
        self._least = min(left, default=None)  # of a cohort only those asked are in the line
        self._lines.append({**line, "left": self._least})
        self._progress.update(self._task, completed=line["round"])
        if self._console.is_terminal:
            grid = Table.grid()
            grid.add_row(self._table(self._lines[-_SHOWN:]))
            grid.add_row(self._progress)
            self._live.update(grid)

    def _table(self, lines: list[Mapping[str, Any]]) -> Table:
        table = Table(box=None, header_style="bold", pad_edge=False)
        metric = metric_of(lines[-1]["metrics"]) if lines else None
        names = (
            "round",
            "trained",
            metric or "metric",
            "loss",
            "ε round",
            "ε so far",
            "ε left",
            "s",
        )
        for name in names:
            table.add_column(name, justify="right")
        for line in lines:
            table.add_row(*self._row(line, metric))
        return table

    def _row(self, line: Mapping[str, Any], metric: str | None) -> list[str]:
        sites = line["sites"]
        trained = sum(said["status"] == "trained" for said in sites.values())
        costs = [said["epsilon_round"] for said in sites.values()]
        cost = max((c for c in costs if c is not None), default=None)
        return [
            str(line["round"]),
            f"{trained}/{len(sites)}",
            _number(line["metrics"].get(metric)) if metric else "-",
            _number(line["metrics"].get("loss")),
            _number(cost),
            _number(line["epsilon"]),
            _number(line["left"]),
            f"{line['seconds']:.2f}",
        ]

    def _left(self, line: Mapping[str, Any]) -> float | None:
        """The least that any site has left of its limit in this run, or of the plan's epsilon."""
        plan = self._plan
        if plan is None or not plan.private:
            return None
        left = []
        for name, said in line["sites"].items():
            limit = plan.limit_of(name)
            own = plan.site_overrides(name).epsilon or plan.epsilon
            most = limit.epsilon if limit is not None else own
            if most is not None and said["epsilon"] is not None:
                left.append(most - said["epsilon"])
        return max(0.0, min(left)) if left else None


def metric_of(metrics: Mapping[str, float]) -> str | None:
    """The metric that a task is judged by."""
    return next((name for name in ("accuracy", "r2", "mse") if name in metrics), None)


def sentence(summary: Mapping[str, Any]) -> str:
    """What was reached, and what it cost whom; nothing that was not computed."""
    metrics = summary["metrics"]
    name = metric_of(metrics)
    reached = f"{name} {metrics[name]:.4f}" if name else "no metric"
    rounds = f"{summary['rounds']} of {summary['planned_rounds']} rounds"
    if summary["insecure"]:
        cost = "NOT PRIVATE: noise and sampling were reproducible (--insecure-reproducible)"
    elif not summary["private"]:
        cost = "NOT PRIVATE: trained without any privacy (unit none)"
    else:
        whose = {"record": "any one record", "client": "any one whole site"}[summary["unit"]]
        held = {
            "record": "against the coordinator, the other sites and the public",
            "client": "against the other sites and the public, not against the coordinator",
        }[summary["unit"]]
        cost = (
            f"at epsilon {summary['epsilon']:.4g}, delta {summary['delta']:.3g} for {whose} "
            f"(added or removed), {held}; tuning on this data is not included"
        )
    ended = {
        "done": "",
        "budget": "Stopped early, since every site's budget is spent. ",
        "failed": f"Failed: {summary['detail']}. ",
        "stopped": f"Stopped as asked ({summary['detail']}). ",
    }[summary["reason"]]
    return f"{ended}{rounds} of {summary['task']} reached {reached} {cost}."


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
