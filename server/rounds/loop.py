"""The coordinator's loop: ask, combine, evaluate, keep; it resumes, it stops when nobody can.

Every effect comes in through the `Job`, so the same loop runs a simulation and a federation across
machines: only the Grid differs.
"""

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol, cast

from flwr.app import Message
from flwr.serverapp import Grid

from privacy.accounting.epsilon import spent
from privacy.accounting.events import Event
from privacy.arrays import Arrays, encode
from privacy.contract.plan import Plan
from privacy.ledger.heads import HeadError
from privacy.ledger.ledger import Exhausted, Ledger
from server.rounds import aggregation, checkpoint
from server.rounds.aggregation import State, Update
from server.rounds.messages import Answer, ReplyError, Request, ask, packed, read
from server.rounds.run_folder import RunFolder

NO_ANSWER: Final = "no-answer"
BUDGET: Final = "budget-exhausted"
_MOST_REPEATS: Final = 20


class Named(Protocol):
    """A Grid that knows which site each node is, and can wait for news."""

    def names(self) -> Mapping[int, str]: ...

    def wait(self, seconds: float) -> None: ...


class Heads(Protocol):
    """The counter-signed heads of the sites' ledgers (server/registry/heads.py)."""

    def last(self, site: str) -> Mapping[str, Any]: ...

    def accept(self, site: str, number: int, answer: Answer) -> None: ...


@dataclass(frozen=True, slots=True)
class Job:
    """One run, and everything outside of mathematics that it needs.

    A round that too few sites trained is tried `attempts` times in all, each after a `pause` in
    seconds that grows: what fails at once, everywhere, may be mended in a moment. `hand_out` is how
    many seconds the sites have to take the released model at the end; 0 is none.
    """

    plan: Plan
    folder: RunFolder
    initial: Callable[[], Arrays]
    evaluate: Callable[[Arrays], Mapping[str, float]] | None = None
    heads: Heads | None = None
    ledger: Ledger | None = None
    sign: Callable[[Path], None] | None = None
    gather: Callable[[], None] = lambda: None
    on_round: Callable[[Mapping[str, Any]], None] = lambda line: None
    on_answer: Callable[[int, Answer], None] = lambda number, answer: None
    timeout: float | None = None
    attempts: int = 1
    pause: float = 0.0
    hand_out: float = 0.0
    insecure: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: "done", "budget" (nobody may go on) or "failed", and its history."""

    reason: str
    history: list[Mapping[str, Any]]
    detail: str = ""


@dataclass(slots=True)
class _Round:
    """What the answers of one round add up to, beside the state."""

    answers: dict[str, Answer] = field(default_factory=dict)
    bytes_down: int = 0
    leaves_out: frozenset[str] = frozenset()

    def trained(self) -> list[Answer]:
        return [a for a in self.answers.values() if a.status == "trained"]

    def exhausted(self) -> dict[str, Answer]:
        """Who declined for its budget."""
        said = ("declined", BUDGET)
        return {s: a for s, a in self.answers.items() if (a.status, a.reason) == said}


def federate(grid: Grid, job: Job) -> Outcome:
    """Run the plan to its end, or to where nobody can go on; then hand the model to the sites."""
    outcome = _federate(grid, job)
    if job.hand_out and outcome.history:
        _hand_out(grid, job)
    return outcome


def _hand_out(grid: Grid, job: Job) -> None:
    """Send the released model to every site that is there; who is not, does without."""
    last = checkpoint.latest(job.folder.checkpoints)
    if last is None:
        return
    arrays, metadata = checkpoint.read(last)
    number = int(metadata["round"])
    released = packed(encode(State.from_arrays(arrays, number).released()))
    del arrays
    text = job.plan.to_json()
    messages, requests = [], []
    for node, site in names(grid).items():
        request = Request(job.folder.id, number, site, text)
        requests.append(request)
        messages.append(ask(grid, node, request, released, kind="evaluate"))
    pending = dict(zip(grid.push_messages(messages), requests, strict=True))
    for _ in _replies(grid, pending, job.hand_out):
        continue


def _federate(grid: Grid, job: Job) -> Outcome:
    history: list[Mapping[str, Any]] = list(job.folder.history())
    state = _resume(job, len(history))
    totals = _totals(history)
    failures = 0
    gone: set[str] = set()  # who declined for its budget is drawn into no cohort again
    replaced: dict[str, Answer] = {}
    while state.round < job.plan.rounds:
        job.gather()
        began = time.perf_counter()
        found = _Round(leaves_out=frozenset(gone))
        try:
            following = _play(grid, job, state, found)
        except Exhausted as error:
            return Outcome("budget", history, str(error))
        declined = found.exhausted()
        if job.plan.cohort is not None:
            gone |= declined.keys()
        if following is None:
            if gone and declined and not gone >= set(names(grid).values()):
                replaced |= declined
                continue  # others take their places, in the same round
            if found.answers.keys() == declined.keys() and (declined or gone):
                return Outcome("budget", history, "every site's budget is spent")
            failures += 1
            if failures >= job.attempts:
                return Outcome("failed", history, _why(found, job.plan))
            time.sleep(job.pause * failures)
            continue
        failures = 0
        state = following
        found.answers |= replaced
        replaced = {}
        line = _line(job, state, found, totals, began)
        path, _ = job.folder.write_round(state.to_arrays(), job.plan, line)
        if job.sign is not None:
            job.sign(path)
        history.append(line)
        job.on_round(line)
    return Outcome("done", history)


def _resume(job: Job, rounds_done: int) -> State:
    last = checkpoint.latest(job.folder.checkpoints)
    if last is None:
        return aggregation.start(job.initial(), job.plan)
    arrays, _ = checkpoint.read(last)
    if job.sign is not None and not last.with_name(f"{last.name}.sig").exists():
        job.sign(last)  # a kill came between the two
    return State.from_arrays(arrays, rounds_done)


def _play(grid: Grid, job: Job, state: State, found: _Round) -> State | None:
    """One round; None where too few sites trained. Only one update is in memory at a time."""
    updates: Iterator[Update] = _updates(grid, job, state, found)
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
    following = aggregation.combine(state, updates, job.plan, asked=len(found.answers) or 1)
    return following if len(found.trained()) >= job.plan.min_sites else None


def _updates(grid: Grid, job: Job, state: State, found: _Round) -> Iterator[Update]:
    plan, number = job.plan, state.round + 1
    weights = packed(encode(state.weights))
    shapes = {name: array.shape for name, array in state.weights.items()}
    clip = state.clip if plan.unit == "client" else None
    text = plan.to_json()
    messages, requests = [], []
    nodes = {site: node for node, site in names(grid).items() if site not in found.leaves_out}
    for site in aggregation.cohort(nodes, plan, number):
        head = job.heads.last(site) if job.heads is not None else None
        request = Request(job.folder.id, number, site, text, clip, head)
        found.answers[site] = Answer(site, "failed", NO_ANSWER)
        requests.append(request)
        messages.append(ask(grid, nodes[site], request, weights))
    found.bytes_down = len(weights.data) * len(messages)
    pending = dict(zip(grid.push_messages(messages), requests, strict=True))
    del messages, weights  # what is posted is the Grid's, what is decoded is nobody's
    for request, message in _replies(grid, pending, job.timeout):
        answer = _judged(job, number, request, message, shapes)
        del message
        found.answers[request.site] = _without_arrays(answer)
        job.on_answer(number, found.answers[request.site])
        if answer.arrays is not None:
            yield Update(answer.site, answer.arrays, answer.below)
        del answer
    for request in pending.values():
        job.on_answer(number, found.answers[request.site])


def _replies(
    grid: Grid, pending: dict[str, Request], timeout: float | None
) -> Iterator[tuple[Request, Message]]:
    """Replies as they come; each request is answered once, and not after the time is up."""
    deadline = time.monotonic() + timeout if timeout is not None else None
    while pending:
        came = False
        arrived = deque(grid.pull_messages(list(pending)))
        while arrived:  # given away one by one: no reply stays in memory here
            request = pending.pop(arrived[0].metadata.reply_to_message_id, None)
            if request is None:
                arrived.popleft()
            else:
                came = True
                yield request, arrived.popleft()
        if deadline is not None and time.monotonic() >= deadline:
            return
        if pending and not came:
            cast(Named, grid).wait(0.05)


def _judged(
    job: Job, number: int, request: Request, message: Message, shapes: Mapping[str, tuple[int, ...]]
) -> Answer:
    """The answer; or the site failed: its update unreadable or unpaid, its ledger untrusted."""
    site = request.site
    try:
        answer = read(message, request, shapes, job.plan.wire)
        if not _countable(job.plan, answer):
            return Answer(site, "failed", "bad-reply")
        if answer.status == "trained" and job.plan.unit == "record" and not answer.events:
            return Answer(site, "failed", "unpaid")
        if job.heads is not None and answer.proof is not None:
            job.heads.accept(site, number, answer)
        elif job.heads is not None and answer.status == "trained" and job.plan.unit == "record":
            return Answer(site, "failed", "ledger-untrusted")
    except ReplyError as error:
        return Answer(site, "failed", str(error))
    except HeadError:
        return Answer(site, "failed", "ledger-untrusted")
    return answer


def _countable(plan: Plan, answer: Answer) -> bool:
    """Whether what a site says that it released can be: of the plan's unit and noise, not endless.

    A site may have paid more than once, and added noise; a claim beyond that could neither be
    shown (an infinite epsilon) nor accounted in any time.
    """
    if plan.unit != "record" or not answer.events:
        return True
    asked = plan.events_of_round(answer.site)
    least = min(event.sigma for event in asked) * (1 - 1e-9)
    steps = sum(event.steps * event.count for event in asked)
    said = sum(event.steps * event.count for event in answer.events)
    return (
        len(answer.events) <= _MOST_REPEATS * plan.rounds
        and said <= _MOST_REPEATS * plan.rounds * steps
        and all(event.unit == plan.unit and event.sigma >= least for event in answer.events)
    )


def _without_arrays(answer: Answer) -> Answer:
    return replace(answer, arrays=None, below=None, proof=None)


def names(grid: Grid) -> Mapping[int, str]:
    """Which site each connected node is: what the Grid vouches for."""
    return cast(Named, grid).names()


def _totals(history: list[Mapping[str, Any]]) -> dict[str, float]:
    """The last known epsilon of every site that took part."""
    totals: dict[str, float] = {}
    for line in history:
        for site, said in line["sites"].items():
            if said["epsilon"] is not None:
                totals[site] = said["epsilon"]
    return totals


def _line(
    job: Job, state: State, found: _Round, totals: dict[str, float], began: float
) -> dict[str, Any]:
    """The history's line of a round: metrics, each site's answer and cost, epsilon, traffic."""
    plan = job.plan
    metrics = dict(job.evaluate(state.released())) if job.evaluate is not None else {}
    metrics |= _paid(plan, found.trained(), prefix="site_" if metrics else "")
    sites = {}
    for site, answer in sorted(found.answers.items()):
        sites[site] = _said(job, answer, totals)
    line: dict[str, Any] = {
        "round": state.round,
        "metrics": metrics,
        "sites": sites,
        "epsilon": max(totals.values(), default=0.0) if plan.private else None,
        "seconds": round(time.perf_counter() - began, 4),
        "bytes_up": sum(a.size for a in found.answers.values()),
        "bytes_down": found.bytes_down,
    }
    return line | {"insecure": True} if job.insecure else line


def _said(job: Job, answer: Answer, totals: dict[str, float]) -> dict[str, Any]:
    plan, site, trained = job.plan, answer.site, answer.status == "trained"
    said: dict[str, Any] = {"status": answer.status, "reason": answer.reason}
    if not plan.private:
        none = dict.fromkeys(("epsilon_round", "epsilon", "delta", "sigma"))
        return said | none | {"rate": plan.rate, "steps": plan.steps if trained else 0}
    events: tuple[Event, ...] = answer.events
    if plan.unit == "client" and job.ledger is not None:
        events = job.ledger.events(job.folder.id)
    before = totals.get(site, 0.0)
    epsilon = max(before, spent(events, plan.required_delta)) if events else before
    totals[site] = epsilon
    return said | {
        "epsilon_round": epsilon - before,
        "epsilon": epsilon,
        "delta": plan.required_delta,
        "sigma": answer.sigma if answer.sigma is not None else plan.sigma_of(site),
        "rate": 1.0 if plan.unit == "client" else plan.rate,
        "steps": (1 if plan.unit == "client" else plan.steps) if trained else 0,
    }


def _paid(plan: Plan, answers: list[Answer], *, prefix: str) -> dict[str, float]:
    """The sites' paid metrics added up: noisy sums over a noisy or public count of rows."""
    sums: dict[str, float] = {}
    count = 0.0
    for answer in answers:
        if answer.metrics:
            count += answer.metrics.get("rows", plan.rows_of(answer.site))
            for name, value in answer.metrics.items():
                sums[name] = sums.get(name, 0.0) + value
    if not sums:
        return {}
    shares = ("loss", "accuracy")
    return {
        prefix + name: value / max(count, 1.0) if name in shares else value
        for name, value in sums.items()
    }


def _why(found: _Round, plan: Plan) -> str:
    if not found.answers:
        return "no site is connected"
    reasons = sorted({f"{a.site}: {a.reason or a.status}" for a in found.answers.values()})
    trained = len(found.trained())
    return f"{trained} of at least {plan.min_sites} sites trained ({'; '.join(reasons)})"
