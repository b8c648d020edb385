"""When a run has become as good as it will: means of several looks at its metrics, not single ones.

Metrics on public rows, and paid ones, are post-processing of what the sites have released: what is
chosen by them costs nothing more, and the rounds that are not asked are not paid.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from privacy.contract.cadence import smoothed_over, stop_metrics
from privacy.contract.pilots import PILOT
from privacy.contract.plan import Plan


@dataclass(slots=True)
class Watched:
    """One metric: its last values, and the least mean of `window` of them so far."""

    window: int
    gain: float
    values: deque[float] = field(default_factory=deque)
    least: float = math.inf

    def better(self, value: float) -> bool:
        """Whether the mean with this value is less than all before by more than `gain`."""
        self.values.append(value)
        if len(self.values) > self.window:
            self.values.popleft()
        mean = math.fsum(self.values) / self.window
        if len(self.values) < self.window or not mean < self.least - self.gain:
            return False
        self.least = mean
        return True


@dataclass(slots=True)
class Patience:
    """Whether a run still gets better, by any of its metrics; `best` is the last round that did.

    A look is a round that has one of the metrics. One look is moved by the noise of training as
    much as by what was learnt; the loss alone begins to rise under noise while accuracy still does.
    """

    metrics: Mapping[str, Watched]
    looks: int
    best: int = 0
    since: int = 0
    reached: int = 0

    @classmethod
    def of(cls, plan: Plan, history: Sequence[Mapping[str, Any]]) -> "Patience | None":
        """As the plan's `[operation]` has it, after the rounds of the history; None without."""
        looks, gain = plan.operation.patience, plan.operation.stop_gain
        if looks is None or plan.statistics is not None:
            return None
        window = smoothed_over(looks)
        patience = cls({name: Watched(window, gain) for name in stop_metrics(plan)}, looks)
        for line in history:
            patience.improved(line)
        return patience

    def missing(self, plan: Plan, metrics: Mapping[str, float]) -> str | None:
        """Why there is nothing to stop by, from the metrics before the first round."""
        if any(n in metrics or n.removeprefix("site_") in plan.metrics for n in self.metrics):
            return None
        names = " or ".join(self.metrics)
        return f"operation.patience needs {names}: give public rows, or have it paid for"

    def improved(self, line: Mapping[str, Any]) -> bool:
        """Whether a look makes its round's model, or that before, the best so far.

        What a round's sites measure is the model that the round began with; the first one's is
        untrained. Pilots, and the line of a released model, are no looks.
        """
        number, values = line["round"], line["metrics"]
        seen = {name: values[name] for name in self.metrics if name in values}
        paid = any(name.startswith("site_") for name in seen)
        if not seen or PILOT in line or not line["sites"] or (paid and number == 1):
            return False
        self.since, self.reached = self.since + 1, number
        signed = {n: -v if n.endswith("accuracy") else v for n, v in seen.items()}
        better = [self.metrics[name].better(value) for name, value in signed.items()]
        if not any(better):
            return False
        self.best, self.since = number - 1 if paid else number, 0
        return True

    def spent(self) -> bool:
        """Whether so many looks in vain are enough."""
        return self.best > 0 and self.since >= self.looks

    def words(self, released: int) -> str:
        """Why the run stopped by itself, and with the model of which round."""
        names = [name for name, watched in self.metrics.items() if watched.values]
        verb, looks = "has" if len(names) == 1 else "have", "look" if self.since == 1 else "looks"
        return (
            f"{' and '.join(names)} {verb} not become better in {self.since} {looks}: stopped by "
            f"itself after round {self.reached}, and the model of round {released} is released"
        )
