"""The ClientApp: a message in; judge, spend, train, release; a message out.

What the coordinator asks is a request. The order is the guarantee: weights are checked, the policy
judges, the ledger is spent and on disk, and only then is a row looked at.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod

from client import secure_round
from client.dpsgd.examination.rows_taken import rows_taken
from client.dpsgd.private_metrics import paid_metrics
from client.dpsgd.training import Trained, clipped_sum, loss_of, model_refusal, train
from client.dpsgd.weights import MOST_NORM, filled
from client.judgement import accepted
from client.proposal import ACTION, answer_proposal
from client.release import Field, Paid, Public, Trusted, release
from client.reply import REPLY, Coded, about, carried
from client.round_request import (
    ARRAYS,
    STYPE,
    Refused,
    check_permitted,
    fields_of,
    read_round_request,
    read_weights,
)
from client.site import Site, packed, unpacked
from client.statistics.counting import count
from client.tasks.rows import Rows
from client.tasks.task import Task, none_of
from privacy.accounting.events import Event
from privacy.arrays import Arrays, encode
from privacy.contract.plan import Plan
from privacy.ledger.ledger import Entry, Exhausted, LedgerError, LedgerNotWritten
from privacy.mechanism import noise
from privacy.secagg.party import Agreed
from privacy.secagg.plan_ring import largest_batch
from privacy.secagg.ring import Sums
from privacy.statistics.release import SUMS

T = TypeVar("T")


def make_app(resolve: Callable[[Context, RecordDict], Site], mods: Sequence[Mod] = ()) -> ClientApp:
    """The ClientApp of one process; `resolve` says whose a request is, by context and content.

    `mods` are Flower's: each is given the message and what handles it.
    """
    app = ClientApp(mods=list(mods))

    @app.train()
    def on_train(message: Message, context: Context) -> Message:
        site = resolve(context, message.content)
        return Message(answer(site, message.content), reply_to=message)

    @app.evaluate()
    def on_release(message: Message, context: Context) -> Message:
        return Message(
            received(resolve(context, message.content), message.content), reply_to=message
        )

    @app.query(ACTION)
    def on_proposal(message: Message, context: Context) -> Message:
        return Message(
            answer_proposal(resolve(context, message.content), message.content), reply_to=message
        )

    @app.query(secure_round.ACTION)
    def on_step(message: Message, context: Context) -> Message:
        site = resolve(context, message.content)
        return Message(secure_round.answer_step(site, message.content), reply_to=message)

    @app.query()
    def on_query(message: Message, context: Context) -> Message:
        name = {"site": Public(resolve(context, message.content).name)}
        fields = release(name, ledger=None, trust_coordinator=False)
        return Message(RecordDict({REPLY: ConfigRecord(fields)}), reply_to=message)

    return app


@dataclass(frozen=True, slots=True)
class Begun:
    """A round that was accepted and paid for: everything is settled but the training itself.

    `plan` is what the round follows: of a plan with a search, its pilot's or what was chosen, and
    `stage_round` the round of it. `agreed` is what the parties of secure aggregation know of each
    other.
    """

    site: Site
    request_fields: Mapping[str, Any]
    run: str
    number: int
    plan: Plan
    task: Task
    weights: Arrays
    event: Event | None
    entries: tuple[Entry, ...]
    key: str
    began: float
    stage_round: int
    agreed: Agreed | None = None

    def model(self) -> torch.nn.Module:
        """A model of its own, with the weights that were asked."""
        return filled(self.task, self.plan.seed, self.weights)

    def train(self) -> Trained:
        """Exactly the steps that were paid for, on the rows."""
        if self.task.statistics is not None:
            return self.on_rows(
                lambda rows, device: count(rows, self.task, self.plan, self.event, self.model)
            )
        return self.on_rows(
            lambda rows, device: train(
                self.model(),
                rows,
                self.task,
                self.plan,
                site=self.site.name,
                event=self.event,
                round=self.stage_round,
                device=device,
                start=self.weights,
            )
        )

    def on_rows(self, compute: Callable[[Rows, torch.device], T]) -> T:
        """`compute` on the site's rows; where that raises, on those that the model takes, or none.

        Whether a row can be read or trained on is a fact about the data that no epsilon counts: a
        paid round is answered all the same, with the noise of an empty sample where no row can be
        read, and the site stops itself. One row takes no other with it: each is tried by itself.
        """
        try:
            return compute(self.site.rows(self.task), self.site.device)
        except Exception as error:
            if self.event is None:  # nothing was paid for: the owner trusts the coordinator
                raise
            self.site.on_fault(error)
        device = torch.device("cpu")  # a GPU is of no use after an index out of range
        with suppress(Exception):
            rows = self.site.rows(self.task)
            return compute(rows_taken(self.model(), rows, loss_of(self.task, self.plan)), device)
        return compute(none_of(self.task), device)


def answer(site: Site, content: RecordDict) -> RecordDict:
    """The reply to a TRAIN request; whatever goes wrong leaves as a code, never as a text."""
    begun = begin(site, content)
    return finish(begun, begun.train) if isinstance(begun, Begun) else begun


def received(site: Site, content: RecordDict) -> RecordDict:
    """Take the released model that a coordinator hands out; nothing is computed from rows."""
    request_fields = fields_of(content)
    with Coded(site, request_fields) as coded:
        request = read_round_request(site, request_fields)
        learning = check_permitted(site, request, handed_out=True)
        weights, _ = read_weights(content, learning, request.plan.seed)
        site.on_model(request.plan, request.run, request.round, weights)
        return RecordDict({REPLY: ConfigRecord(about(site, request_fields, "received", ""))})
    return coded.reply()


def begin(site: Site, content: RecordDict) -> Begun | RecordDict:
    """Check, judge and spend; a reply at once where it is refused, or was given before."""
    request_fields = fields_of(content)
    with Coded(site, request_fields) as coded:
        return _begin(site, content, request_fields)
    return coded.reply()


def finish(begun: Begun, training: Callable[[], Trained]) -> RecordDict:
    """Train, and release what was paid for."""
    with Coded(begun.site, begun.request_fields) as coded:
        return _finish_secure(begun) if begun.plan.is_secure else _finish(begun, training())
    return coded.reply()


def _begin(
    site: Site, content: RecordDict, request_fields: Mapping[str, Any]
) -> Begun | RecordDict:
    request = read_round_request(site, request_fields)
    run, number, plan = request.run, request.round, request.plan
    learning = check_permitted(site, request)
    trains = plan.per_example and learning.statistics is None
    if trains and (why := model_refusal(learning, plan.seed)):
        site.on_event("model_refused", message=why)
        raise Refused("model-refused")
    weights, known = read_weights(content, learning, plan.seed)
    key = f"{run}/{number}/{known}"
    if request.choice is not None:
        key += f".{request.choice}"
    stored_reply = site.replies.get(key) if not plan.is_secure else None
    if stored_reply is not None:
        site.on_event("reply_resent", run=run, round=number)
        return _reply(site, unpacked(stored_reply), request_fields)
    if (
        plan.noised_at_site
        and request_fields.get("head") is not None
        and not site.follows(request_fields["head"])
    ):
        raise Refused("ledger-untrusted")
    agreed = secure_round.agreed_for(site, request) if plan.is_secure else None
    followed, stage_round = request.stage()
    events = accepted(site, plan, run, number)
    entries = _spend(site, plan, events, run, number)
    event, began = (events[0] if events else None), time.perf_counter()
    return Begun(
        *(site, request_fields, run, number, followed, learning, weights, event, entries, key),
        began,
        stage_round,
        agreed,
    )


def _finish(begun: Begun, trained: Trained) -> RecordDict:
    site, plan, entries = begun.site, begun.plan, begun.entries
    counted = begun.task.statistics is not None  # its weights predict, and stay as they are
    update = {name: trained.update[name] for name in ((SUMS,) if counted else begun.weights)}
    fields = _fields(begun, update, trained.steps)
    if plan.metrics and len(entries) > 1:  # only what was paid for
        sums = begun.on_rows(
            lambda rows, device: paid_metrics(begun.model(), rows, begun.task, plan, device=device)
        )
        drawn = replace(entries[1].event, sigma=plan.metrics_sigma or 0.0)
        fields["metrics"] = Paid(json.dumps(sums), drawn, entries[1])
    if begun.event is not None:
        fields["sigma"] = Public(float(begun.event.sigma))
    with site.ledger.snapshot() if site.ledger is not None else nullcontext():
        trusted = site.policy.trust_coordinator
        values = release(fields, ledger=site.ledger, trust_coordinator=trusted)
        if plan.noised_at_site:  # un-noised replies are never kept on disk
            _keep(site, begun.key, values)
        reply = _reply(site, values, begun.request_fields)
    _log_trained(begun, trained.steps)
    return reply


def _log_trained(begun: Begun, steps: int) -> None:
    seconds = round(time.perf_counter() - begun.began, 3)
    begun.site.on_event("trained", run=begun.run, round=begun.number, steps=steps, seconds=seconds)


def _finish_secure(begun: Begun) -> RecordDict:
    """One clipped sum with this site's share of the noise, masked; no copy of it stays."""
    site, plan, event = begun.site, begun.plan, begun.event
    if event is None:
        raise Refused("bad-request")

    def sums(rows: Rows, device: torch.device) -> Sums:
        model, expected = begun.model(), largest_batch(plan)
        if plan.per_example:
            return clipped_sum(
                *(model, rows, begun.task, plan), event=event, expected=expected, device=device
            )
        about_run: Any = {"site": site.name, "round": begun.stage_round, "device": device}
        trained = train(model, rows, begun.task, plan, event=None, **about_run)
        return secure_round.clipped_update(trained.update, plan)

    words = secure_round.masked(site, plan, begun.agreed, begun.on_rows(sums))
    fields = {
        "update": Paid(words.tobytes(), event, begun.entries[0]),
        "sigma": Public(float(event.sigma)),
    }
    with site.ledger.snapshot() if site.ledger is not None else nullcontext():
        values = release(fields, ledger=site.ledger, trust_coordinator=False)
        reply = _reply(site, values, begun.request_fields, secure_round.WORDS)
    _log_trained(begun, plan.steps)
    return reply


def _keep(site: Site, key: str, values: Mapping[str, Any]) -> None:
    try:
        site.replies.put(key, packed(values))
    except OSError as error:  # it is paid for, and leaves; asked again, it must be paid again
        site.on_event("reply_not_kept", error=error.strerror)


def _spend(
    site: Site, plan: Plan, events: tuple[Event, ...], run: str, number: int
) -> tuple[Entry, ...]:
    """Everything that the round pays for, on disk before a row is looked at."""
    if not events or site.ledger is None:
        return ()
    try:
        return site.ledger.spend_all(
            events,
            site.policy.budget,
            run=run,
            round=number,
            plan=plan.digest,
            records=site.policy.records_per_subject,
            coordinator=site.coordinator,
            alone=site.policy.budget_alone if plan.is_secure else None,
        )
    except Exhausted:
        raise Refused("budget-exhausted") from None
    except LedgerError as error:
        site.on_event("ledger_error", message=str(error))
        full = isinstance(error, LedgerNotWritten)
        raise Refused("ledger-not-written" if full else "ledger-untrusted") from None


def _fields(begun: Begun, update: Arrays, steps: int) -> dict[str, Field]:
    """The update, paid for by the entry of what was trained: the accepted event, `steps` taken."""
    plan, request_fields = begun.plan, begun.request_fields
    if begun.event is not None:
        drawn = replace(begun.event, steps=steps)
        return {"update": Paid(encode(update, plan.wire), drawn, begun.entries[0])}
    if plan.unit == "none":
        return {"update": Trusted(encode(update, plan.wire))}
    clip = request_fields.get("clip")
    if not isinstance(clip, float) or not 0 < clip < MOST_NORM:
        raise Refused("bad-request")
    clipped, norm = noise.clip(list(update.values()), clip)
    update = dict(zip(update, clipped, strict=True))
    below = 0.5 if norm <= clip else -0.5
    return {"update": Trusted(encode(update, plan.wire)), "below": Trusted(below)}


def _reply(
    site: Site, values: Mapping[str, Any], request_fields: Mapping[str, Any], stype: str = STYPE
) -> RecordDict:
    update = values["update"]
    others = {name: value for name, value in values.items() if name != "update"}
    fields = about(site, request_fields, "trained", "") | others
    return RecordDict({ARRAYS: carried("update", update, stype), REPLY: ConfigRecord(fields)})
