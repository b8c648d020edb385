"""The coordinator's loop: ask, judge, combine, record; it resumes, and stops when nobody can go on.

The same loop runs a simulation and a federation across machines: only the job's Grid, Evaluator,
Heads and Listener differ.
"""

import itertools
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from privacy.accounting.epsilon import spent
from privacy.accounting.events import Event
from privacy.contract.pilots import PILOT, chosen
from privacy.contract.plan import Plan
from privacy.ledger.ledger import Exhausted
from server.rounds import aggregation, checkpoint
from server.rounds.aggregation import State, Update
from server.rounds.collection import hand_out, updates_of
from server.rounds.history import Patience, RoundRecord, divergence, epsilons, round_line
from server.rounds.job import Interrupted, Job
from server.rounds.messages import BUDGET, Answer, Request
from server.secure.attempts import secure_sum
from server.secure.combination import combine_sum


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: "done", "budget" (nobody may go on), "failed", "paused" or "stopped"."""

    reason: str
    history: list[Mapping[str, Any]]
    detail: str = ""
    epsilons: Mapping[str, float] = field(default_factory=dict)


def federate(job: Job) -> Outcome:
    """Run the plan to its end, or to where nobody can go on; then hand the model to the sites.

    The outcome's `epsilons` count what each site reported last, in rounds that failed as well.
    """
    history: list[Mapping[str, Any]] = list(job.folder.history())
    reported: dict[str, tuple[Event, ...]] = {}
    try:
        outcome = _play(job, history, reported)
    except Interrupted as error:
        outcome = Outcome(error.reason, history, str(error))
    else:
        released = bool(history) and PILOT not in history[-1]  # no pilot's model is for use
        if job.attempts.hand_out and released and job.plan.statistics is None:
            _hand_out(job, chosen(job.plan, history))
    finally:
        if job.heads is not None:
            job.heads.flush()
    if not job.plan.private:
        return outcome
    paid = epsilons(history)
    for site, events in reported.items():
        if job.ledger is not None:
            events = job.ledger.events(job.folder.id)
        paid[site] = max(paid.get(site, 0.0), spent(events, job.plan.required_delta))
    return replace(outcome, epsilons=paid)


def _play(
    job: Job, history: list[Mapping[str, Any]], reported: dict[str, tuple[Event, ...]]
) -> Outcome:
    plan, listener = job.plan, job.listener
    state, totals = _start(job), epsilons(history)
    metrics = history[0]["metrics"] if history else _evaluated(job, state)
    untrained = metrics.get("loss")
    declined: dict[str, Answer] = {}  # the last refusal of each site in this run
    replaced: dict[str, Answer] = {}  # of those, who was asked in the present round
    overdue: dict[str, Request] = {}  # what sites may still answer, rounds after they were asked
    failures = 0
    last = min(plan.rounds, plan.operation.stop_after or plan.rounds)
    patience = Patience.of(plan, history)
    if patience is not None and (text := patience.missing(plan, metrics)):
        return Outcome("failed", history, text)
    if (text := _nothing_to_choose_by(plan, metrics)) is not None:
        return Outcome("failed", history, text)
    choice = chosen(plan, history)
    best = None if patience is None else _state_of(job, patience.best, state)
    while state.round < last:
        if patience is not None and best is not None and patience.spent():
            return _stopped(job, patience, best, state, history, totals)
        if plan.tune is not None:
            if state.round == plan.pilot_rounds:
                choice = chosen(plan, history)
                if choice is None:
                    text = f"no pilot ended with a finite {plan.tune.metric}"
                    return Outcome("failed", history, text)
            if state.round and plan.stage(state.round + 1, choice)[1] == 1:
                state = replace(_first(job), round=state.round)
                overdue = {}  # a reply to another pilot would be of other weights
        sites = listener.ready(job.grid, state.round + 1, declined)
        if sites is None or (declined and len(sites) < plan.least_sites):
            return _ended(history, declined, sites or ())
        began, record = time.perf_counter(), RoundRecord(overdue=overdue, choice=choice)
        try:
            following = _train(job, state, sites, record)
        except Exhausted as error:
            return Outcome("budget", history, str(error))
        finally:
            reported |= {a.site: a.events for _, a in record.late if a.events}
            reported |= {s: a.events for s, a in record.answers.items() if a.events}
        refusals = record.refusals()
        declined = {s: a for s, a in declined.items() if s not in record.answers} | refusals
        replaced |= refusals
        if following is not None:
            overdue = record.overdue
            others = {**listener.absent(), **declined} if plan.cohort is None else replaced
            record.answers = {**others, **record.answers}
            before = None if patience is None else state  # else a model more would be in memory
            state, failures, replaced = following, 0, {}
            history.append(_record(job, state, record, totals, began))
            if (text := divergence(history[-1], untrained)) is not None:
                return Outcome("failed", history, text)
            if patience is not None and patience.improved(history[-1]):
                best = state if patience.best == state.round else before
            del before
            continue
        overdue = {m: r for m, r in record.overdue.items() if r.round <= state.round}
        if refusals:
            continue  # the others are asked again in the same round, and answer as before
        failures += 1
        if failures >= job.attempts.most:
            return Outcome("failed", history, record.shortfall(plan))
        time.sleep(job.attempts.pause * failures)
    if last < plan.rounds:
        return Outcome("stopped", history, f"operation.stop_after = {last}")
    return Outcome("done", history)


def _nothing_to_choose_by(plan: Plan, metrics: Mapping[str, float]) -> str | None:
    """Why a search would end without a choice, from the metrics before the first round."""
    metric = "" if plan.tune is None else plan.tune.metric
    if not metric or metric in metrics or metric.removeprefix("site_") in plan.metrics:
        return None
    return f"tune.metric needs {metric}: give public rows, or have it paid for"


def _state_of(job: Job, number: int, present: State) -> State:
    """The state after a round whose checkpoint is still there, else the present one."""
    if number in (0, present.round) or number not in checkpoint.numbers(job.folder.checkpoints):
        return present
    arrays, _ = checkpoint.read(checkpoint.path_of(job.folder.checkpoints, number))
    return State.from_arrays(arrays, number)


def _stopped(
    job: Job,
    patience: Patience,
    best: State,
    state: State,
    history: list[Mapping[str, Any]],
    totals: dict[str, float],
) -> Outcome:
    """The end of a run that no longer gets better: the best round's model is released.

    It gets a line and a checkpoint of their own, without any site: its epsilon is that of all
    rounds, since all of them were looked at to choose it.
    """
    if not history[-1]["sites"]:
        return Outcome("done", history, patience.words(patience.best))
    if best.round < state.round:
        closing = replace(best, round=state.round + 1)
        record = RoundRecord(choice=chosen(job.plan, history))
        line = _record(job, closing, record, totals, time.perf_counter())
        history.append(line)
    return Outcome("done", history, patience.words(best.round))


def _evaluated(job: Job, state: State) -> Mapping[str, float]:
    """Metrics on public rows; none of statistics, which are no model."""
    return {} if job.plan.statistics is not None else job.evaluator.evaluate(state.released())


def _ended(
    history: list[Mapping[str, Any]], declined: Mapping[str, Answer], left: Collection[str]
) -> Outcome:
    """The outcome where too few sites are left that may be asked."""
    reasons = "; ".join(f"{site}: {a.reason}" for site, a in sorted(declined.items()))
    if not declined or any(a.reason != BUDGET for a in declined.values()):
        return Outcome("failed", history, f"too few sites can take part ({reasons})")
    if left:
        return Outcome("budget", history, f"too few sites can pay for a round ({reasons})")
    return Outcome("budget", history, "every site's budget is spent")


def _start(job: Job) -> State:
    """The state after the last complete round, or before the first."""
    last = job.folder.resume()
    if last is None:
        return _first(job)
    return State.from_arrays(*last)


def _first(job: Job) -> State:
    """The state before the first round, of a run or of a pilot."""
    return aggregation.start(job.evaluator.initial(), job.plan)


def _train(job: Job, state: State, sites: Collection[str], record: RoundRecord) -> State | None:
    """One round; None where too few sites trained. Only one update is in memory at a time."""
    if job.plan.is_secure:
        record.secure = secure_sum(job, state, sites, record)
        return None if record.secure is None else combine_sum(state, record.secure, job.plan)
    updates: Iterator[Update] = updates_of(job, state, sites, record)
    first = next(updates, None)
    if first is None:
        return None
    if job.ledger is not None:
        number = state.round + 1
        events = job.plan.nominal_events()
        limit = job.plan.nominal_limit()
        job.ledger.spend_all(events, limit, run=job.folder.id, round=number, plan=job.plan.digest)
    updates = itertools.chain(iter([first]), updates)
    del first
    plan, number = job.plan.stage(state.round + 1, record.choice)
    own = replace(state, round=number - 1)  # its schedules and means count from its own start
    following = aggregation.combine(own, updates, plan, sites=len(record.answers) or 1)
    following = replace(following, round=state.round + 1)
    return following if len(record.sites()) >= job.plan.least_sites else None


def _record(
    job: Job, state: State, record: RoundRecord, totals: dict[str, float], began: float
) -> Mapping[str, Any]:
    """Write the checkpoint and the history's line of a round that counts."""
    line = round_line(
        job.plan,
        state.round,
        record,
        _evaluated(job, state),
        totals,
        seconds=time.perf_counter() - began,
        coordinator_events=job.ledger.events(job.folder.id) if job.ledger is not None else (),
        records=job.records_per_person,
        choice=record.choice,
    )
    if job.heads is not None:
        job.heads.flush()
    job.folder.write_round(state.to_arrays(), job.plan, line, base=job.base)
    job.listener.on_round(line)
    return line


def _hand_out(job: Job, choice: int | None) -> None:
    """Send the last round's released model to the sites."""
    last = job.folder.resume()
    if last is None:
        return
    state = State.from_arrays(*last)
    number, released = state.round, state.released()
    del last, state
    hand_out(job, number, released, choice)
