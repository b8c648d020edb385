"""Ask and judge: requests go out to the sites, judged answers come back one at a time."""

import time
from collections import ChainMap, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

from flwr.app import Message

from privacy.arrays import Arrays, encode
from privacy.contract.plan import Plan
from privacy.ledger.heads import GENESIS, HeadError
from privacy.statistics.release import SUMS
from server.registry.relays import behind, own_name, party_of, relays_for
from server.relay.message import FIELD, Directions
from server.relay.verdict import SumCheck, relay_verdict
from server.rounds.aggregation import State, Update, cohort
from server.rounds.history import RoundRecord
from server.rounds.job import Heads, Job
from server.rounds.messages import Answer, ReplyError, Request, ask, packed
from server.rounds.noise_check import check_noise, largest_in
from server.rounds.reply_check import read_reply
from server.rounds.site_grid import LATE, SiteGrid

NO_ANSWER: Final = "no-answer"
_PATIENCE: Final = 0.05
_RELAYS_SHARE: Final = 0.8
"""How much of a round's time a relay may wait for its sites; the rest is for the way."""

Shapes = Mapping[str, tuple[int, ...]]


def updates_of(
    job: Job, state: State, sites: Collection[str], record: RoundRecord
) -> Iterator[Update]:
    """The updates of a round, late ones of earlier rounds among them, one in memory at a time."""
    number, listener = state.round + 1, job.listener
    sums = _sum_check(job, state, sites)
    check = _checks(job, sums, record.choice)
    overdue = _still_overdue(job, record.overdue, number)

    def keep(made: int, answer: Answer) -> None:
        bare = without_arrays(answer)
        if made == number:
            record.answers[answer.site] = bare
        else:
            record.late.append((made, bare))
        listener.on_answer(number, bare)

    def update(request: Request, message: Message) -> Update | None:
        if request.behind is not None:
            return of_relay(request, message)
        answer = judged(
            message,
            request,
            job.plan,
            shapes_of(state, job.plan),
            job.heads,
            partial(check, request.round),
        )
        keep(request.round, answer)
        if answer.arrays is None:
            return None
        return Update(answer.site, answer.arrays, answer.below, number - request.round)

    def of_relay(request: Request, message: Message) -> Update | None:
        shapes = shapes_of(state, job.plan)
        relayed = relay_verdict(message, request, job.plan, shapes, job.heads, sums)
        record.bytes_relayed += relayed.size
        if request.round == number:
            record.answers.pop(request.site, None)
        for made, answer in relayed.answers:
            keep(made, answer)
        failure = relayed.failure
        if failure is not None and failure.status == "declined":
            for site in request.behind or {}:  # for all of its sites
                keep(request.round, replace(failure, site=behind(request.site, site)))
        elif failure is not None:
            keep(request.round, failure)
        if relayed.arrays is None:
            return None
        age = number - request.round
        return Update(request.site, relayed.arrays, age=age, weight=relayed.weight)

    for request, message in replies(job.grid, {}, 0.0, overdue=overdue):
        if (one := update(request, message)) is not None:
            yield one
        del one, message
    busy = {request.site for request in overdue.values()}
    parties = parties_of(job, sites)
    free = {party: members for party, members in parties.items() if party not in busy}
    pending = _ask(job, state, free, record)
    for site in sorted(busy & parties.keys()):
        record.answers[site] = Answer(site, "failed", NO_ANSWER)
    late = overdue if _may_be_late(job.plan) else None
    for request, message in replies(
        job.grid, pending, job.attempts.round_timeout, listener.waiting, late
    ):
        if (one := update(request, message)) is not None:
            yield one
        del one, message
    for request in pending.values():
        listener.on_answer(number, record.answers[request.site])
    record.overdue = overdue | (pending if late is not None else {})


def _may_be_late(plan: Plan) -> bool:
    """Where the coordinator adds the noise, all updates of a round make one release."""
    return plan.unit != "client" and plan.operation.late_rounds > 0


def _still_overdue(job: Job, overdue: dict[str, Request], number: int) -> dict[str, Request]:
    """The requests that may still be answered: of sites that are connected, and not too old."""
    there, most = set(job.grid.names().values()), job.plan.operation.late_rounds
    return {
        message: request
        for message, request in overdue.items()
        if request.site in there and number - request.round <= most
    }


def _sum_check(job: Job, state: State, sites: Collection[str]) -> SumCheck | None:
    """What noise is judged by; None where it is not."""
    plan = job.plan
    if not plan.operation.check_noise or not plan.noised_at_site:
        return None
    largest = max(map(largest_in, state.weights.values()))
    asked = min(len(sites), plan.cohort or len(sites)) + len(sites)  # late ones as well
    return SumCheck(largest, asked)


def _checks(job: Job, by: SumCheck | None, choice: int | None) -> Callable[[int, Answer], None]:
    """What each trained answer, of the round that it was made in, must pass to count."""
    if by is None:
        return lambda number, answer: None

    def check(number: int, answer: Answer) -> None:
        if answer.status == "trained":
            check_noise(answer, job.plan, number, largest=by.largest, sites=by.sites, choice=choice)

    return check


def parties_of(job: Job, sites: Collection[str]) -> dict[str, list[str]]:
    """Who is asked for these sites: each its own party, or several behind one relay."""
    relays = job.relays()
    parties: dict[str, list[str]] = {}
    for site in sorted(sites):
        party = party_of(site)
        parties.setdefault(party if party in relays else site, []).append(site)
    return parties


def _ask(
    job: Job, state: State, parties: Mapping[str, list[str]], record: RoundRecord
) -> dict[str, Request]:
    """Send the round's requests to the cohort; the requests by the ids of their messages."""
    plan, number = job.plan, state.round + 1
    weights = packed(encode(state.weights))
    clip = state.clip if plan.noised_centrally else None
    choice = None if plan.pilot_of(number) is not None else record.choice
    text = plan.to_json()
    messages, requests = [], []
    nodes = {site: node for node, site in job.grid.names().items() if site in parties}
    able = [site for party in nodes for site in parties[party]]
    for party, members in parties_of(job, cohort(able, plan, number)).items():
        more = {}
        request = Request(job.folder.id, number, party, text, clip, base=job.base, choice=choice)
        if members != [party]:
            request = replace(request, behind=_heads_behind(job, members))
            more = {FIELD: _directions(job, request).to_text()}
        elif job.heads is not None:
            request = replace(request, head=job.heads.last(party))
        record.answers[party] = Answer(party, "failed", NO_ANSWER)
        requests.append(request)
        messages.append(ask(job.grid, nodes[party], request, weights, more=more))
    record.bytes_down = len(weights.data) * len(messages)
    return dict(zip(job.grid.push_messages(messages), requests, strict=True))


def _heads_behind(job: Job, sites: Collection[str]) -> dict[str, dict[str, Any]]:
    """By their own names, where this coordinator knows each site's ledger to be."""
    heads: dict[str, dict[str, Any]] = {}
    for site in sites:
        last = GENESIS.to_dict() if job.heads is None else job.heads.last(site)
        heads[own_name(site)] = {"n": last["n"], "digest": last["digest"]}
    return heads


def _directions(job: Job, request: Request) -> Directions:
    operation = job.plan.operation
    timeout = job.attempts.round_timeout
    return Directions(
        {site: dict(head) for site, head in (request.behind or {}).items()},
        None if timeout is None else _RELAYS_SHARE * timeout,
        operation.late_rounds,
        operation.check_noise,
    )


def hand_out(job: Job, number: int, arrays: Arrays, choice: int | None = None) -> None:
    """Send a released model to every connected site; a site that is away does without.

    So do the sites behind a relay that took no part in the run.
    """
    released, text = packed(encode(arrays)), job.plan.to_json()
    relays = set(job.relays())
    absent = relays - relays_for(job.plan, relays)
    messages, requests = [], []
    for node, site in job.grid.names().items():
        if site in absent:
            continue
        request = Request(job.folder.id, number, site, text, base=job.base, choice=choice)
        requests.append(request)
        messages.append(ask(job.grid, node, request, released, kind="evaluate"))
    pending = dict(zip(job.grid.push_messages(messages), requests, strict=True))
    for _ in replies(job.grid, pending, job.attempts.hand_out):
        continue


def replies(
    grid: SiteGrid,
    pending: dict[str, Request],
    timeout: float | None,
    waiting: Callable[[], None] = lambda: None,
    overdue: dict[str, Request] | None = None,
) -> Iterator[tuple[Request, Message]]:
    """Replies as they arrive, each taken out of `pending`, for at most `timeout` seconds.

    `waiting` is called between looks; what it raises ends the wait. Whatever is left in `pending`
    was not answered in time; a reply that is there by then still comes. Replies to the `overdue`
    requests of earlier rounds come as well, but nobody waits for them, unless they are all that
    there is. A reply that its grid calls late joins them at the end.
    """
    older, late = overdue or {}, dict[str, Request]()
    deadline = time.monotonic() + timeout if timeout is not None else None
    alone, owed = not pending, ChainMap(older, pending).keys()  # pending ones first
    try:
        while pending or (alone and older):
            arrived = deque(grid.pull_messages(owed))
            answered = bool(arrived)
            while arrived:  # given away one by one: no reply stays in memory here
                number = arrived[0].metadata.reply_to_message_id
                request = pending.pop(number, None) or older.pop(number, None)
                if request is not None and overdue is not None and _is_late(arrived[0]):
                    late[number] = request
                elif request is not None:
                    yield request, arrived.popleft()
                    continue
                arrived.popleft()
            if not answered and deadline is not None and time.monotonic() >= deadline:
                return
            waiting()
            if not answered:
                grid.wait(_PATIENCE)
    finally:
        if overdue is not None:
            overdue |= late


def _is_late(message: Message) -> bool:
    return message.has_error() and message.error.code == LATE


def judged(
    message: Message,
    request: Request,
    plan: Plan,
    shapes: Shapes,
    heads: Heads | None,
    check: Callable[[Answer], None] = lambda answer: None,
) -> Answer:
    """The site's answer; "failed" where it is malformed, unpaid, or its ledger's proof is wrong.

    `check(answer)` raises ReplyError where a paid update must not count: it stays paid.
    """
    site = request.site
    try:
        answer = read_reply(message, request, plan, shapes)
        paid = answer.status == "trained" and plan.noised_at_site
        if paid and not answer.events:
            return Answer(site, "failed", "unpaid")
        if heads is not None and answer.proof is not None:
            heads.accept(site, request.round, answer)
        elif heads is not None and paid:
            return Answer(site, "failed", "ledger-untrusted")
    except ReplyError as error:
        return Answer(site, "failed", str(error))
    except HeadError:
        return Answer(site, "failed", "ledger-untrusted")
    try:
        check(answer)
    except ReplyError as error:
        return replace(answer, status="failed", reason=str(error), arrays=None, metrics=None)
    return answer


def shapes_of(state: State, plan: Plan) -> Shapes:
    """The shapes that every update must have; of statistics the sums alone come back."""
    names = state.weights if plan.statistics is None else (SUMS,)
    return {name: state.weights[name].shape for name in names}


def without_arrays(answer: Answer) -> Answer:
    """The answer for the record: what was released is not part of it."""
    return replace(answer, arrays=None, below=None, proof=None, words=None)
