"""What a person sees of a run: a progress bar, a table a round, one honest sentence at the end."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final

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

from privacy.accounting.rounding import left_text, spent_text
from privacy.contract.plan import Plan

_SHOWN = 12
STATISTICS = "statistics"


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
        trained = sum(answer["status"] == "trained" for answer in sites.values())
        costs = [answer["epsilon_round"] for answer in sites.values()]
        cost = max((c for c in costs if c is not None), default=None)
        return [
            str(line["round"]),
            f"{trained}/{len(sites)}",
            _number(line["metrics"].get(metric)) if metric else "-",
            _number(line["metrics"].get("loss")),
            spent_text(cost),
            spent_text(line["epsilon"]),
            left_text(line["left"]),
            f"{line['seconds']:.2f}",
        ]

    def _left(self, line: Mapping[str, Any]) -> float | None:
        """The least that any site has left of its limit in this run."""
        plan = self._plan
        if plan is None or not plan.private:
            return None
        left = []
        for name, answer in line["sites"].items():
            limit = plan.limit_of(name)
            if limit is not None and answer["epsilon"] is not None:
                left.append(limit.epsilon - answer["epsilon"])
        return max(0.0, min(left)) if left else None


_LEADING: Final = ("accuracy", "r2", "mse", "c_index", "deviance", "mae", "loss")
_WORDS: Final = {"c_index": "C-index"}


def metric_of(metrics: Mapping[str, float]) -> str | None:
    """The metric that a task is judged by."""
    return next((name for name in _LEADING if name in metrics), None)


def sentence(summary: Mapping[str, Any]) -> str:
    """What was reached, and what it cost whom; nothing that was not computed."""
    rounds = f"{summary['rounds']} of {summary['planned_rounds']} rounds"
    if summary["task"] == STATISTICS and summary["rounds"]:
        return f"The rows of {len(summary['sites'])} sites were counted {_cost(summary)}."
    ended = {
        "done": "",
        "by itself": f"Stopped by itself ({summary['detail']}). ",
        "budget": "Stopped early, since a further round would pass the sites' limits. ",
        "failed": f"Failed: {summary['detail']}. ",
        "stopped": f"Stopped as asked ({summary['detail']}). ",
    }["by itself" if summary["reason"] == "done" and summary["detail"] else summary["reason"]]
    text = f"{ended}{rounds} of {summary['task']} reached {_reached(summary)} {_cost(summary)}."
    useless = verdict(summary)
    return text if useless is None else f"{text} {useless}"


def verdict(summary: Mapping[str, Any]) -> str | None:
    """One sentence where the model is no better than an answer that needs no data."""
    metrics, baseline = summary["metrics"], summary.get("baseline")
    if baseline is not None and "accuracy" in metrics:
        if metrics["accuracy"] <= baseline["accuracy"] + 0.002 and not _ranks(metrics, baseline):
            return (
                f"This model is useless: always '{baseline['class']}' has accuracy "
                f"{baseline['accuracy']:.4f}."
            )
    elif metrics.get("c_index", 1.0) <= 0.5:
        return "This model is useless: it orders patients no better than chance (C-index <= 0.5)."
    elif metrics.get("r2", 1.0) <= 0.0:
        return "This model is useless: the mean of the held-out labels is as good (r2 <= 0)."
    return None


def _ranks(metrics: Mapping[str, float], baseline: Mapping[str, Any]) -> bool:
    """Whether the model finds the rarer classes: then it is less accurate, and not useless."""
    return bool(metrics.get("balanced_accuracy", 0.0) >= 0.05 + 1 / baseline["classes"])


def _reached(summary: Mapping[str, Any]) -> str:
    """The metric; with skewed labels others beside it, and what a constant would have."""
    metrics, baseline = summary["metrics"], summary.get("baseline")
    name = metric_of(metrics)
    if name is None:
        return "no metric"
    text = f"{_WORDS.get(name, name)} {metrics[name]:.4f}"
    if name != "accuracy" or baseline is None:
        return text
    if baseline["accuracy"] < 1.3 / baseline["classes"]:
        return text
    balanced = metrics.get("balanced_accuracy")
    both = "" if balanced is None else f"balanced accuracy {balanced:.4f}, "
    if summary.get("auc") is not None:
        both += f"AUC {summary['auc']:.4f}, "
    if "f1" in metrics:
        both += f"{'macro ' if baseline['classes'] > 2 else ''}F1 {metrics['f1']:.4f}, "
    return f"{text} ({both}always '{baseline['class']}' would have {baseline['accuracy']:.4f})"


def _cost(summary: Mapping[str, Any]) -> str:
    """What the run cost whom: a record, and where it is known a person; rounded up."""
    if summary["insecure"]:
        return "NOT PRIVATE: noise and sampling were reproducible (--insecure-reproducible)"
    if not summary["private"]:
        return "NOT PRIVATE: trained without any privacy (unit none)"
    whose = {
        "record": "any one record",
        "subject": "any one person with all records",
        "client": "any one whole site",
    }[summary["unit"]]
    held = {
        "record": "against the coordinator, the other sites and the public",
        "subject": "against the coordinator, the other sites and the public",
        "client": "against the other sites and the public, not against the coordinator",
    }[summary["unit"]]
    records = summary.get("records_per_person", 1)
    person = ""
    if records > 1:
        epsilon = summary["epsilon_person"]
        figure = "no finite epsilon" if epsilon is None else f"epsilon {spent_text(epsilon, 2)}"
        person = f", and {figure} for any one person (who has up to {records} records)"
    return (
        f"at epsilon {spent_text(summary['epsilon'], 3)}, delta {summary['delta']:.3g} for "
        f"{whose} (added or removed){person}, {held}; tuning on this data is not included"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
