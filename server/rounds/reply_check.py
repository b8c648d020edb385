"""A site's reply as one bounded value, held to the plan: anything else is that site's fault alone.

Nothing that a site sends reaches the record, the accountant or the aggregate before it is here
found to be what this very request allows: texts of fixed lists, numbers in the plan's ranges,
events that are the plan's own times a count.
"""

import math
from typing import Any, Final

from flwr.app import ArrayRecord, ConfigRecord, Message

from privacy.accounting.epsilon import spent
from privacy.accounting.events import Event, EventError
from privacy.accounting.segments import AccountingError
from privacy.arrays import Arrays, Shapes, WireError, decode
from privacy.contract.outputs import PUBLIC, REASONS
from privacy.contract.plan import Plan
from privacy.files import DocumentError, Limits, parse_json
from privacy.mechanism import noise
from privacy.secagg.masks import Words
from privacy.secagg.plan_ring import ring_of
from privacy.secagg.ring import RingError
from server.rounds.messages import ARRAYS, REPLY, STYPE, WORDS, Answer, ReplyError, Request

_FIELDS: Final = frozenset({*PUBLIC, "metrics", "below"})
_STATUSES: Final = ("trained", "declined", "failed")
_SMALL: Final = Limits(size=64 * 1024, depth=3, digits=32, length=128, count=2048)
_PROOF: Final = Limits(size=6 * 1024 * 1024, depth=3, digits=16, length=64, count=70_000)
_REPEATS_MAX: Final = 20
"""How often a site may pay for one round: each try of a killed client draws new noise."""
_DISTINCT_MAX: Final = 8
_MORE_NOISE: Final = 10.0
_ROWS_OVER_NOMINAL: Final = 10.0
_DEVIATIONS: Final = 10.0
_CLASSES_MAX: Final = 1000
_NORM_MAX: Final = 2.5e5
_WEIGHTS_NORM: Final = 1e4


def read_reply(message: Message, request: Request, plan: Plan, shapes: Shapes) -> Answer:
    """What a reply says; ReplyError, with a code of `REASONS`, where the plan does not allow it."""
    site = request.site
    if message.has_error():
        return Answer(site, "failed", "no-answer")
    content = message.content
    # Not `content.array_records`: such a view lies in a reference cycle and keeps all it shows.
    fields, record = content.get(REPLY), content.get(ARRAYS)
    if not isinstance(fields, ConfigRecord) or set(content) - {REPLY, ARRAYS}:
        raise ReplyError("bad-reply")
    if set(fields) - _FIELDS or fields.get("site", site) != site:
        raise ReplyError("bad-reply")
    status, reason = fields.get("status"), fields.get("reason")
    if status not in _STATUSES or reason not in REASONS or (status == "trained") != (reason == ""):
        raise ReplyError("bad-reply")
    if fields.get("run") != request.run or fields.get("round") != request.round:
        raise ReplyError("old-reply")
    trained = status == "trained"
    events = events_of(_json(fields.get("events", "[]"), _SMALL), plan, site)
    proof = _json(fields["head"], _PROOF) if "head" in fields else None
    paid, asked = planned_of(plan, site, request.round), plan.asks_metrics(request.round)
    plan = plan.stage(request.round, request.choice)[0]
    sigma = sigma_of(fields.get("sigma"), paid)
    if not trained:
        if "metrics" in fields or "below" in fields or record:
            raise ReplyError("bad-reply")
        return Answer(site, str(status), str(reason), events, sigma, proof=proof)
    words: Words | None = None
    arrays: Arrays | None = None
    if plan.is_secure:
        words, size = _words(record, plan, shapes)
    else:
        arrays, size = _update(record, plan, site, shapes, paid)
    return Answer(
        site,
        str(status),
        None,
        events,
        sigma,
        arrays,
        _below(fields.get("below"), plan),
        _metrics(fields.get("metrics"), plan, site, asked),
        proof,
        size,
        words,
    )


def _json(text: object, limits: Limits) -> Any:
    if not isinstance(text, str):
        raise ReplyError("bad-reply")
    try:
        return parse_json(text, limits)
    except DocumentError:
        raise ReplyError("bad-reply") from None


def events_of(listed: object, plan: Plan, site: str) -> tuple[Event, ...]:
    """What the site says that it spent in this run: the plan's events, at most so often.

    The accountant sees only these, a handful, in a range where it is quick; what it still refuses
    is the site's bad reply, since its epsilon could not be shown. ReplyError.
    """
    if not isinstance(listed, list):
        raise ReplyError("bad-reply")
    try:
        events = tuple(Event.from_dict(one) for one in listed)
    except EventError:
        raise ReplyError("bad-reply") from None
    if not events:
        return ()
    planned, rounds = planned_of(plan, site), _REPEATS_MAX * plan.rounds
    if len(events) > _DISTINCT_MAX or sum(e.count for e in events) > rounds * len(planned):
        raise ReplyError("bad-reply")
    known = planned if plan.tune is None else (*planned, *planned_of(plan, site, 1))
    if not all(any(_is_planned(e, one) for one in known) for e in events):
        raise ReplyError("bad-reply")
    try:
        if not math.isfinite(spent(events, plan.required_delta)):
            raise ReplyError("bad-reply")
    except (AccountingError, ArithmeticError, ValueError):
        raise ReplyError("bad-reply") from None
    return events


def planned_of(plan: Plan, site: str, number: int | None = None) -> tuple[Event, ...]:
    """What a round pays for where sites pay; without a number a round after all pilots."""
    return plan.events_of_round(site, number) if plan.noised_at_site else ()


def _is_planned(event: Event, planned: Event) -> bool:
    """Whether an event is the planned one, `count` times, maybe with more noise.

    What epsilon is computed from counts; `records` is of the site's policy, and only its ledger's.
    """
    same = all(
        getattr(event, key) == getattr(planned, key)
        for key in ("unit", "sampling", "rate", "steps", "shares")
    )
    return same and event.count >= 1 and _is_noise(event.noise, planned.noise)


def _is_noise(sigma: float, planned: float) -> bool:
    return planned * (1 - 1e-9) <= sigma <= _MORE_NOISE * planned * (1 + 1e-9)


def sigma_of(value: object, planned: tuple[Event, ...]) -> float | None:
    """The noise multiplier that a site says it used: the plan's, or up to ten times as much.

    `planned` is what the round pays for.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not planned:
        raise ReplyError("bad-reply")
    if not _is_noise(value, planned[0].sigma):
        raise ReplyError("bad-reply")
    return float(value)


def _below(value: object, plan: Plan) -> float | None:
    """The clip bit of unit "client"."""
    if value is None:
        return None
    if not isinstance(value, float) or abs(value) != 0.5 or plan.unit != "client":
        raise ReplyError("bad-reply")
    return value


def _update(
    record: object, plan: Plan, site: str, shapes: Shapes, planned: tuple[Event, ...]
) -> tuple[Arrays, int]:
    array = record.get("update") if isinstance(record, ArrayRecord) and len(record) == 1 else None
    if array is None or array.stype != STYPE or array.dtype != "uint8":
        raise ReplyError("bad-update")
    try:
        arrays = decode(array.data, shapes, plan.wire)
    except WireError:
        raise ReplyError("bad-update") from None
    size = sum(math.prod(shape) for shape in shapes.values())
    if plan.unit != "client" and not noise.norm(list(arrays.values())) <= norm_bound(
        plan, site, size, planned
    ):  # in unit "client" the coordinator clips it
        raise ReplyError("bad-update")
    return arrays, len(array.data)


def _words(record: object, plan: Plan, shapes: Shapes) -> tuple[Words, int]:
    """A masked update: as many words of the ring as the model has numbers, whatever they are."""
    array = record.get("update") if isinstance(record, ArrayRecord) and len(record) == 1 else None
    if array is None or array.stype != WORDS or array.dtype != "uint8":
        raise ReplyError("bad-update")
    count = sum(math.prod(shape) for shape in shapes.values())
    try:
        return ring_of(plan, count).read(array.data, count), len(array.data)
    except RingError:
        raise ReplyError("bad-update") from None


def norm_bound(plan: Plan, site: str, parameters: int, planned: tuple[Event, ...]) -> float:
    """More than the L2 norm of any update that follows from the plan, paid for by such events.

    A step moves the weights by at most lr / (1 - momentum) times the noisy mean gradient: clipped
    gradients of at most 20 times the nominal sample, and noise whose norm is below
    (sqrt(d) + 10) sigma C except with probability exp(-50), at up to ten times the plan's sigma.
    Adam moves each of d weights by at most 10 lr. Without privacy gradients have no bound: then
    what counts is that the weights stay within what sites accept.
    """
    if not planned or plan.clip is None:
        return _NORM_MAX
    root = math.sqrt(parameters)
    if plan.statistics is not None:  # sums of vectors of norm at most 1, and their noise
        return _ROWS_OVER_NOMINAL * plan.units_of(site) + _MORE_NOISE * planned[0].sigma * (
            root + 10
        )
    if plan.optimizer == "adam":
        step = plan.learning_rate * 10 * root
    else:
        noisy = _MORE_NOISE * planned[0].sigma * (root + 10) / plan.denominator(site)
        step = plan.learning_rate * plan.clip * (20 + noisy) / (1 - plan.momentum)
    decay = plan.learning_rate * plan.l2 * _WEIGHTS_NORM
    return min(_NORM_MAX, 2 * plan.steps * (step + decay))


def _metrics(text: object, plan: Plan, site: str, asked: bool) -> dict[str, float] | None:
    if (text is not None) != asked:
        raise ReplyError("bad-reply")
    if text is None:
        return None
    return metrics_of(_json(text, _SMALL), plan, site)


def metrics_of(values: object, plan: Plan, site: str) -> dict[str, float]:
    """The site's noisy sums: exactly those of the plan, each within what its rows can add up to."""
    sigma = plan.metrics_sigma
    if not isinstance(values, dict) or not plan.metrics or sigma is None:
        raise ReplyError("bad-reply")
    classes = {name for name in values if name.startswith("class ")}
    names, expected = set(values) - classes, set(plan.metrics) - {"classes"}
    if names not in (expected, expected - {"accuracy"}):  # a number as label has no accuracy
        raise ReplyError("bad-reply")
    if classes and ("classes" not in plan.metrics or len(classes) > _CLASSES_MAX):
        raise ReplyError("bad-reply")
    if not all(name.isprintable() for name in classes):
        raise ReplyError("bad-reply")
    rows = _ROWS_OVER_NOMINAL * plan.units_of(site)
    noisy = _DEVIATIONS * _MORE_NOISE * sigma * math.sqrt(len(plan.metrics))
    for name, value in values.items():
        scale = plan.metrics_clip if name == "loss" else 1.0
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ReplyError("bad-reply")
        if not -noisy * scale <= value <= (rows + noisy) * scale:
            raise ReplyError("bad-reply")
    if values.get("accuracy", 0.0) > values.get("rows", rows) + 2 * noisy:
        raise ReplyError("bad-reply")
    return {name: float(value) for name, value in values.items()}
