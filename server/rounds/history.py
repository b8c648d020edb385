"""Record: the history's line of a complete round, from the plan and the sites' answers."""

import json
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from privacy.accounting.epsilon import spent
from privacy.accounting.events import Event
from privacy.contract.cadence import smoothed_over, stop_metrics
from privacy.contract.decision import alone
from privacy.contract.pilots import CHOICE, PILOT
from privacy.contract.plan import Plan
from server.rounds.messages import FINAL_REFUSALS, WAITING_REFUSALS, Answer, Request
from server.secure.sums import SecureSum


@dataclass(slots=True)
class RoundRecord:
    """What happened in one round: each site's answer, and the bytes that were sent to them.

    `late` holds the answers to requests of earlier rounds, with the round of each; `overdue` the
    requests, by message, that are not answered yet and may still be. `bytes_relayed` came from
    relays, whose sites' answers are among the others. `choice` is what a search has chosen.
    """

    answers: dict[str, Answer] = field(default_factory=dict)
    bytes_down: int = 0
    late: list[tuple[int, Answer]] = field(default_factory=list)
    overdue: dict[str, Request] = field(default_factory=dict)
    secure: SecureSum | None = None
    bytes_relayed: int = 0
    choice: int | None = None

    def trained(self) -> list[Answer]:
        """The answers that carried an update."""
        return [answer for answer in self.answers.values() if answer.status == "trained"]

    def sites(self) -> set[str]:
        """The sites whose updates count in this round."""
        late = {answer.site for _, answer in self.late if answer.status == "trained"}
        return late | {answer.site for answer in self.trained()}

    def refusals(self) -> dict[str, Answer]:
        """The answers that will be the same if the site is asked again at once."""
        codes = FINAL_REFUSALS | WAITING_REFUSALS
        answers = self.answers.items()
        return {s: a for s, a in answers if a.status == "declined" and a.reason in codes}

    def shortfall(self, plan: Plan) -> str:
        """Why the round does not count, for the operator."""
        if not self.answers:
            return "no site is connected"
        reasons = {f"{a.site}: {a.reason or a.status}" for a in self.answers.values()}
        listed = "; ".join(sorted(reasons))
        least = plan.least_sites
        return f"{len(self.sites())} of at least {least} sites trained ({listed})"


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

    Metrics on public rows, and paid ones, are post-processing of what the sites have released: what
    is chosen by them costs nothing more, and the rounds that are not asked are not paid.

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


def divergence(line: Mapping[str, Any], untrained: float | None) -> str | None:
    """Why a run is not worth more budget: its loss is no number, or a thousand times the first.

    A pilot may diverge: it is not chosen. `untrained` is the loss before the first round, where it
    is known.
    """
    where = f"the model diverged in round {line['round']}"
    if PILOT in line:
        return None
    if line.get("diverged"):
        return f"{where}: a metric is not finite; lower lr or server_lr"
    loss = line["metrics"].get("loss")
    if loss is not None and untrained is not None and loss > 1000 * max(1.0, untrained):
        return f"{where}: its loss rose from {untrained:.4g} to {loss:.4g}; lower lr or server_lr"
    return None


def epsilons(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The last known epsilon of every site that took part."""
    totals: dict[str, float] = {}
    for line in history:
        for site, entry in line["sites"].items():
            if entry["epsilon"] is not None:
                totals[site] = entry["epsilon"]
    return totals


def round_line(
    plan: Plan,
    number: int,
    record: RoundRecord,
    metrics: Mapping[str, float],
    totals: dict[str, float],
    *,
    seconds: float,
    coordinator_events: tuple[Event, ...] = (),
    records: Mapping[str, int] | None = None,
    choice: int | None = None,
) -> dict[str, Any]:
    """Metrics, each site's answer and cost, epsilon, seconds and bytes; updates `totals`.

    `coordinator_events` are this run's events of the coordinator's own ledger (unit "client");
    `records` are the most records of one person at each site, where that is known; else a site's
    own events say how many its policy allows. A metric that is not finite is left
    out, and the line says "diverged".
    """
    sites = {}
    late = {a.site: number for number, a in record.late if a.status == "trained"}
    for _, answer in record.late:
        if plan.private and answer.events:
            paid = spent(answer.events, plan.required_delta)
            totals[answer.site] = max(totals.get(answer.site, 0.0), paid)
    for site, answer in sorted(record.answers.items()):
        events = coordinator_events if plan.noised_centrally else answer.events
        sites[site] = _site_entry(plan, number, answer, events, totals)
        if plan.unit == "record" and records and site in records:
            sites[site] |= _person(plan, events, records[site])
        elif plan.unit == "record" and any(event.records > 1 for event in events):
            sites[site] |= _person(plan, events, None)
    every = {
        **metrics,
        **paid_metrics(plan, record.trained()),
    }
    secure = {} if record.secure is None else {"secure": record.secure.facts(plan.terms)}
    finite = {name: value for name, value in every.items() if math.isfinite(value)}
    diverged = {"diverged": True} if len(finite) < len(every) else {}
    search: dict[str, Any] = {}
    if plan.tune is not None:
        pilot = plan.pilot_of(number)
        search = {CHOICE: choice} if pilot is None else {PILOT: pilot}
    extra = diverged | secure | search | ({"late": dict(sorted(late.items()))} if late else {})
    return extra | {
        "round": number,
        "metrics": finite,
        "sites": sites,
        "epsilon": max(totals.values(), default=0.0) if plan.private else None,
        "seconds": round(seconds, 4),
        "bytes_up": record.bytes_relayed
        + sum(a.size for a in (*record.answers.values(), *(a for _, a in record.late))),
        "bytes_down": record.bytes_down,
    }


def _person(plan: Plan, events: tuple[Event, ...], records: int | None) -> dict[str, Any]:
    """The epsilon of a person with so many records; None where no finite one is known.

    Without `records` each event counts for those that it names.
    """
    epsilon = spent(events, plan.required_delta, records=records)
    return {
        "records_per_person": records or max(event.records for event in events),
        "epsilon_person": epsilon if math.isfinite(epsilon) else None,
    }


def _site_entry(
    plan: Plan, number: int, answer: Answer, events: tuple[Event, ...], totals: dict[str, float]
) -> dict[str, Any]:
    site, trained = answer.site, answer.status == "trained"
    entry: dict[str, Any] = {"status": answer.status, "reason": answer.reason}
    if not plan.private:
        none = dict.fromkeys(("epsilon_round", "epsilon", "delta", "sigma"))
        return entry | none | {"rate": plan.rate, "steps": plan.steps if trained else 0}
    before = totals.get(site, 0.0)
    epsilon = max(before, spent(events, plan.required_delta)) if events else before
    totals[site] = epsilon
    planned = plan.events_of_round(site, number)[0].sigma
    if plan.is_secure:
        entry["epsilon_alone"] = spent(alone(events), plan.required_delta) if events else 0.0
    return entry | {
        "epsilon_round": epsilon - before,
        "epsilon": epsilon,
        "delta": plan.required_delta,
        "sigma": answer.sigma if answer.sigma is not None else planned,
        "rate": 1.0 if plan.unit == "client" else plan.rate,
        "steps": (1 if plan.unit == "client" else plan.steps) if trained else 0,
    }


def last_line(run: Path) -> dict[str, Any]:
    """The last complete line of a run's history; {} before the first."""
    try:
        text = (run / "history.jsonl").read_bytes()
        line: dict[str, Any] = json.loads(text[: text.rindex(b"\n")].splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return {}
    return line


def paid_metrics(plan: Plan, answers: Sequence[Answer]) -> dict[str, float]:
    """The sites' paid metrics added up: noisy sums over a noisy or public count of rows.

    They are the sites' word and no evaluation of the coordinator's, so each name begins `site_`.
    """
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    for answer in answers:
        if answer.metrics:
            rows = answer.metrics.get("rows", plan.units_of(answer.site))
            for name, value in answer.metrics.items():
                sums[name] = sums.get(name, 0.0) + value
                counts[name] = counts.get(name, 0.0) + rows
    means = {n: sums[n] / max(counts[n], 1.0) for n in ("loss", "accuracy") if n in sums}
    if "accuracy" in means:
        means["accuracy"] = min(1.0, max(0.0, means["accuracy"]))  # noise may lead beyond
    return {f"site_{name}": value for name, value in (sums | means).items()}
