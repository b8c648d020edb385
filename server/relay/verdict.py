"""A coordinator's judgement of a relay's reply: each site's facts as of a direct site, and the sum.

What only a single update shows (its norm, its noise) the relay has judged. Here the sum is held to
what so many honest updates add up to. One fact that does not hold, and the whole reply does not
count: a sum cannot be counted in part.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from privacy.arrays import Arrays, Buffer, Shapes, WireError, decode
from privacy.contract.plan import Plan
from privacy.ledger.heads import HeadError
from privacy.mechanism import noise
from server.registry.relays import behind, own_name
from server.relay.message import JSON, RELAYED, SITES, SUM, Leaf, read_leaves
from server.rounds.aggregation import weight_of
from server.rounds.job import Heads
from server.rounds.messages import ARRAYS, REPLY, STYPE, Answer, ReplyError, Request
from server.rounds.noise_check import check_sum
from server.rounds.reply_check import (
    events_of,
    metrics_of,
    norm_bound,
    planned_of,
    read_reply,
    sigma_of,
)

_FIELDS = {"run", "round", "site", "status", "reason"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What there is of a relay's reply: each site's answer with the round that it was made in.

    `arrays` is the sum of those that trained, `weight` the sum of their weights; `size` in bytes.
    `failure` is the relay's own answer where its reply does not count.
    """

    answers: Sequence[tuple[int, Answer]] = ()
    arrays: Arrays | None = None
    weight: float = 0.0
    size: int = 0
    failure: Answer | None = None


@dataclass(frozen=True, slots=True)
class SumCheck:
    """What a sum is held to: the largest weight sent out, and how many replies share a chance."""

    largest: float
    sites: int


def relay_verdict(
    message: Message,
    request: Request,
    plan: Plan,
    shapes: Shapes,
    heads: Heads | None,
    check: SumCheck | None,
) -> Verdict:
    """What counts of a relay's reply; where nothing does, its `failure` says why.

    Where the sum alone is wrong, what the sites have paid stays known.
    """
    relay = request.site
    try:
        content = message.content if not message.has_error() else None
        if content is None or not _is_relayed(content):
            return Verdict(failure=_refusal(message, request, plan, shapes))
        leaves, total, size = _read(content, request)
        answers = [(leaf.round, _answer(leaf, request, plan)) for leaf in leaves]
        _accept(answers, plan, heads)
        trained = [
            (answer, made, weight_of(plan, answer.site, request.round - made))
            for made, answer in answers
            if answer.status == "trained"
        ]
        arrays = _sum(total, trained, plan, shapes)
    except ReplyError as error:
        return Verdict(failure=Answer(relay, "failed", str(error)))
    except HeadError:
        return Verdict(failure=Answer(relay, "failed", "ledger-untrusted"))
    if heads is not None:
        for made, answer in answers:
            if answer.proof is not None:
                heads.accept(answer.site, made, answer)
    try:
        if arrays is not None and check is not None:
            check_sum(arrays, trained, plan, largest=check.largest, sites=check.sites)
    except ReplyError as error:
        code = str(error)
        wrong = [(made, _without_update(answer, code)) for made, answer in answers]
        return Verdict(wrong, size=size, failure=Answer(relay, "failed", code))
    return Verdict(answers, arrays, sum(weight for _, _, weight in trained), size)


def _is_relayed(content: RecordDict) -> bool:
    fields = content.get(REPLY)
    return isinstance(fields, ConfigRecord) and fields.get("status") == RELAYED


def _refusal(message: Message, request: Request, plan: Plan, shapes: Shapes) -> Answer:
    """A relay that passes nothing on says so like a site that declines; it has no update itself."""
    answer = read_reply(message, request, plan, shapes)
    if answer.status == "trained" or answer.events or answer.proof is not None:
        raise ReplyError("bad-reply")
    return answer


def _read(content: RecordDict, request: Request) -> tuple[tuple[Leaf, ...], bytes | None, int]:
    """The sites' answers, the sum's bytes and the size of both; only of sites that were asked."""
    fields, record = content.get(REPLY), content.get(ARRAYS)
    if not isinstance(fields, ConfigRecord) or set(fields) != _FIELDS:
        raise ReplyError("bad-reply")
    if set(content) - {REPLY, ARRAYS}:
        raise ReplyError("bad-reply")
    if fields["site"] != request.site or fields["reason"] != "":
        raise ReplyError("bad-reply")
    if fields["run"] != request.run or fields["round"] != request.round:
        raise ReplyError("old-reply")
    if not isinstance(record, ArrayRecord) or set(record) - {SITES, SUM} or SITES not in record:
        raise ReplyError("bad-reply")
    listed = record[SITES]
    if listed.stype != JSON or listed.dtype != "uint8":
        raise ReplyError("bad-reply")
    leaves = read_leaves(listed.data)
    sites = request.behind or {}
    if not all(leaf.site in sites and leaf.round <= request.round for leaf in leaves):
        raise ReplyError("bad-reply")
    total = record.get(SUM)
    if total is not None and (total.stype != STYPE or total.dtype != "uint8"):
        raise ReplyError("bad-update")
    data = None if total is None else total.data
    return leaves, data, len(listed.data) + (0 if data is None else len(data))


def _answer(leaf: Leaf, request: Request, plan: Plan) -> Answer:
    """A site's facts as they are checked of a direct site's reply; its update is in the sum."""
    site, trained = behind(request.site, leaf.site), leaf.status == "trained"
    if request.round - leaf.round > plan.operation.late_rounds:
        raise ReplyError("bad-reply")
    events = events_of(list(leaf.events), plan, site)
    if trained and plan.noised_at_site and not events:
        raise ReplyError("unpaid")
    if (leaf.metrics is not None) != (trained and plan.asks_metrics(leaf.round)):
        raise ReplyError("bad-reply")
    metrics = None if leaf.metrics is None else metrics_of(leaf.metrics, plan, site)
    sigma = sigma_of(leaf.sigma, planned_of(plan, site))
    reason = None if trained else leaf.reason
    return Answer(site, leaf.status, reason, events, sigma, metrics=metrics, proof=leaf.head)


def _accept(answers: Sequence[tuple[int, Answer]], plan: Plan, heads: Heads | None) -> None:
    """HeadError unless every ledger goes on from where this coordinator knows it."""
    if heads is None:
        return
    for _, answer in answers:
        if answer.status == "trained" and plan.noised_at_site and answer.proof is None:
            raise HeadError(f"{own_name(answer.site)}: no head")
    heads.check(answer for _, answer in answers if answer.proof is not None)


def _sum(
    data: Buffer | None, trained: Sequence[tuple[Answer, int, float]], plan: Plan, shapes: Shapes
) -> Arrays | None:
    """The sum, no longer than that of so many updates can be."""
    if (data is not None) != bool(trained):
        raise ReplyError("bad-update")
    if data is None:
        return None
    try:
        arrays = decode(data, shapes)
    except WireError:
        raise ReplyError("bad-update") from None
    size = sum(math.prod(shape) for shape in shapes.values())
    most = sum(
        weight * norm_bound(plan, answer.site, size, planned_of(plan, answer.site))
        for answer, _, weight in trained
    )
    if not noise.norm(list(arrays.values())) <= most:
        raise ReplyError("bad-update")
    return arrays


def _without_update(answer: Answer, code: str) -> Answer:
    """The answer of a site whose update was in a sum that does not count: it stays paid."""
    if answer.status != "trained":
        return answer
    return replace(answer, status="failed", reason=code, metrics=None)
