"""What a simulation gives back: its history, its model, what it cost, and a picture."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from client.dpsgd.weights import filled
from client.tasks.task import Task
from privacy.arrays import Arrays
from privacy.contract.plan import Plan
from privacy.report.charts import Series, lines
from server.rounds.loop import Outcome
from simulations.display import metric_of, sentence


class History(tuple[Mapping[str, Any], ...]):
    """The rounds of a run, each as its line of history.jsonl."""

    __slots__ = ()

    def records(self) -> list[dict[str, Any]]:
        """A flat record per round: round, epsilon, seconds, bytes, and each metric by its name."""
        keys = ("round", "epsilon", "seconds", "bytes_up", "bytes_down")
        return [{key: line[key] for key in keys} | dict(line["metrics"]) for line in self]

    def frame(self) -> Any:
        """The records as a DataFrame of pandas, or of polars; ImportError without either."""
        return frame(self.records())


class Svg(str):
    """An SVG image as text; a notebook shows it."""

    __slots__ = ()

    def _repr_svg_(self) -> str:
        return str(self)

    def save(self, path: Path | str) -> None:
        """Write the image to a file."""
        Path(path).write_text(self, encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Result:
    """How a simulated run ended; `folder` is None where it was kept nowhere.

    `weights` are those of the released model, by name; None before the first round.
    """

    outcome: Outcome
    folder: Path | None
    summary: Mapping[str, Any]
    plan: Plan = field(repr=False)
    task: Task = field(repr=False)
    history: History = field(repr=False)
    weights: Arrays | None = field(repr=False)

    @property
    def epsilon(self) -> float | None:
        """The largest epsilon of any site in this run; None without privacy."""
        value: float | None = self.summary["epsilon"]
        return value

    @property
    def metrics(self) -> Mapping[str, float]:
        """The metrics on the held-out rows after the last round."""
        values: Mapping[str, float] = self.summary["metrics"]
        return values

    @property
    def model(self) -> torch.nn.Module:
        """The released model in evaluation mode; ValueError where no round was complete."""
        if self.weights is None:
            raise ValueError("no round was complete, so there is no model")
        return filled(self.task, self.plan.seed, self.weights).eval()

    def plot(self) -> Svg:
        """The metric that the task is judged by, over the epsilon spent (over rounds without)."""
        name = (metric_of(self.history[-1]["metrics"]) if self.history else None) or "loss"
        private = self.epsilon is not None
        points = tuple(
            (float(line["epsilon"] if private else line["round"]), float(line["metrics"][name]))
            for line in self.history
            if name in line["metrics"]
        )
        if not points:
            raise ValueError("no round has a metric to show")
        return Svg(
            lines(
                [Series(name, points)],
                title=f"{name} of {self.summary['task']}",
                description=str(self),
                x_label="epsilon" if private else "round",
                y_label=name,
                from_zero=False,
            )
        )

    def __str__(self) -> str:
        return sentence(self.summary)


def frame(records: list[dict[str, Any]]) -> Any:
    """Records as a DataFrame of whichever of pandas and polars is installed."""
    try:
        import pandas
    except ImportError:
        pass
    else:
        return pandas.DataFrame(records)
    try:
        import polars
    except ImportError:
        raise ImportError("frame() needs pandas or polars: install one of them") from None
    return polars.DataFrame(records)
