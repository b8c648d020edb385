"""A relay: for its coordinator a party, for its sites a coordinator that asks and judges as any.

A round's request is passed down as it came: run, round, plan, weights. The sites' replies are
judged by the coordinator's own code, and their sum goes up with each site's facts. Nothing of a
round is kept in the process alone: where it is asked again, after a kill, the sites answer from
their storage, and nothing is paid twice.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Event as Flag
from typing import Any, Final

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from privacy.arrays import encode
from privacy.contract.plan import Plan
from privacy.identity.keys import sign
from server.registry.heads import HeadBook, last_head
from server.registry.sites import Home
from server.relay.message import (
    FIELD,
    JSON,
    RELAYED,
    SITES,
    SUM,
    Directions,
    Leaf,
    ProposalAnswer,
    encode_leaves,
    encode_proposed,
)
from server.relay.relay_heads import RelayHeads
from server.relay.request import (
    Refusal,
    RoundRequest,
    read_request,
    read_weights,
    request_fields,
)
from server.rounds.aggregation import State, Totals, added
from server.rounds.collection import hand_out, updates_of
from server.rounds.history import RoundRecord
from server.rounds.job import Attempts, Interrupted, Job, Model
from server.rounds.messages import ARRAYS, REPLY, Answer, ReplyError, Request, carried, packed
from server.rounds.run_folder import FolderError, RunFolder
from server.rounds.site_grid import SiteGrid
from server.service.attendance import AWAY, NOT_ASKED, turnout
from server.service.follower import Follower
from server.service.proposals import Proposals
from server.service.queue import Queue, QueueError, SiteAnswer
from server.service.status import StatusBoard

_HAND_OUT_SECONDS: Final = 20.0
_LOOK_SECONDS: Final = 0.1
_RETURN_SECONDS: Final = 15.0
"""How long after its own start a relay waits for the sites that a round asks: they dial again with
pauses of at most 10 s, and may have paid for this very round."""

Log = Callable[..., None]


@dataclass(slots=True)
class Relay:
    """What a relay holds: its folder, its name at its coordinator, its sites' Grid and answers."""

    home: Home
    name: str
    grid: SiteGrid
    queue: Queue
    board: StatusBoard
    log: Log
    proposals: Proposals
    _overdue: dict[str, Request] = field(default_factory=dict)
    _run: str = ""
    _start: float = field(default_factory=time.monotonic)

    @classmethod
    def over(
        cls,
        home: Home,
        name: str,
        grid: SiteGrid,
        board: StatusBoard,
        log: Log,
        interval: float,
        seconds: float,
    ) -> "Relay":
        """A relay with its folder's queue; sites that wait are asked again every `interval`
        seconds, and have so many `seconds` to answer a proposal."""
        queue, heads = Queue(home.folder), home.folder / "heads"
        last = partial(last_head, heads)
        proposals = Proposals(queue, log, interval, seconds, last)
        return cls(home, name, grid, queue, board, log, proposals)

    def app(self) -> ClientApp:
        """What answers the coordinator."""
        app = ClientApp()

        @app.train()
        def on_train(message: Message, context: Context) -> Message:
            return Message(self._answered(message.content, self.trained), reply_to=message)

        @app.evaluate()
        def on_release(message: Message, context: Context) -> Message:
            return Message(self._answered(message.content, self.handed_out), reply_to=message)

        @app.query("propose")
        def on_proposal(message: Message, context: Context) -> Message:
            return Message(self._answered(message.content, self.proposed), reply_to=message)

        @app.query()
        def on_query(message: Message, context: Context) -> Message:
            return Message(self._answered(message.content, _refused), reply_to=message)

        return app

    def _answered(
        self, content: RecordDict, answer: Callable[[RecordDict], RecordDict]
    ) -> RecordDict:
        try:
            return answer(content)
        except Refusal as error:
            self.log("request_declined", reason=error.code)
            return self._reply(content, error.status, error.code)

    def _reply(
        self, content: RecordDict, status: str, reason: str, arrays: ArrayRecord | None = None
    ) -> RecordDict:
        fields = request_fields(content)
        run, number = fields.get("run"), fields.get("round")
        reply: dict[str, Any] = {
            "run": run if isinstance(run, str) else "",
            "round": number if isinstance(number, int) else 0,
            "site": self.name,
            "status": status,
            "reason": reason,
        }
        records: dict[str, Any] = {REPLY: ConfigRecord(reply)}
        return RecordDict(records | ({} if arrays is None else {ARRAYS: arrays}))

    def trained(self, content: RecordDict) -> RecordDict:
        """One round with this relay's sites: the sum of their updates, and each one's answer."""
        request = read_request(content, self.name)
        try:
            directions = Directions.from_text(request_fields(content).get(FIELD))
        except ReplyError:
            raise Refusal("bad-request", status="failed") from None
        operation = replace(
            request.plan.operation,
            late_rounds=directions.late_rounds,
            check_noise=directions.check_noise,
        )
        plan = replace(request.plan, operation=operation)
        weights = read_weights(content)
        folder = self._folder(request)
        book = HeadBook(
            self.home.folder / "heads",
            request.run,
            folder.path / "heads",
            lambda payload: sign(self.home.signing_key, payload),
            lambda site: self.queue.ledger_of(plan.digest, site),
        )
        heads = RelayHeads(book, directions.known())
        follower = self._follower(request)
        try:
            self._wait_for(directions, follower)
            self._refresh(request, follower)
            able = self.able(plan, request.round) & directions.heads.keys()
            job = Job(
                *(plan, folder, self.grid, Model(lambda: weights), heads, follower),
                attempts=Attempts(round_timeout=directions.seconds),
                base=request.base,
            )
            record, total = self._summed(job, State(request.round - 1, weights), able)
        except Interrupted as error:
            self.queue.move(request.run, error.reason, str(error))
            raise Refusal("paused") from None
        finally:
            heads.flush()
        leaves = [_leaf(made, one, heads) for made, one in _answers(record, request.round)]
        count = sum(leaf.status == "trained" for leaf in leaves)
        self.queue.move(request.run, "waiting", f"round {request.round}: {count} of {len(leaves)}")
        self.board.set(run=request.run, run_state="waiting", round=request.round)
        self.log(
            "round_passed_on", run=request.run, round=request.round, sites=count, of=len(leaves)
        )
        arrays = {SITES: packed(encode_leaves(leaves), JSON)}
        if total:
            arrays[SUM] = packed(encode(total))
        return self._reply(content, RELAYED, "", carried(**arrays))

    def _summed(self, job: Job, state: State, able: frozenset[str]) -> tuple[RoundRecord, Totals]:
        """The round's record and the weighted sum, which is empty where no site trained."""
        number = state.round + 1
        same = self._overdue if self._run == job.folder.id else {}
        older = {m: r for m, r in same.items() if r.round < number and r.site in able}
        record, total = RoundRecord(overdue=older), Totals()
        self._run, self._overdue = job.folder.id, {}
        self.board.set(run=job.folder.id, run_state="running", round=state.round)
        for update in updates_of(job, state, able, record):
            added(total, update, state, job.plan)
            del update  # else it would stay in memory while the next one unfolds
        self._overdue = record.overdue
        return record, total

    def handed_out(self, content: RecordDict) -> RecordDict:
        """Give the released model to the sites; the run is over."""
        request = read_request(content, self.name)
        folder = self._folder(request)
        attempts = Attempts(hand_out=_HAND_OUT_SECONDS)
        weights = read_weights(content)
        job = Job(
            *(request.plan, folder, self.grid, Model(lambda: weights)),
            attempts=attempts,
            base=request.base,
        )
        hand_out(job, request.round, weights)
        self.queue.move(request.run, "done")
        self.board.set(run=None, run_state=None, round=None)
        return self._reply(content, "received", "")

    def proposed(self, content: RecordDict) -> RecordDict:
        """What each site says to a plan: of all that are enrolled here, connected or not."""
        request = read_request(content, self.name, proposal=True)
        self.proposals.refresh(self.grid, request.plan, run=request.run, number=request.round)
        answers = self.queue.answers(request.plan.digest)
        connected = set(self.grid.names().values())
        site_answers = [
            _proposed(site, answers.get(site), site in connected, request.round)
            for site in (member.name for member in self.home.members().enrolled)
        ]
        if self._state(request.run) in ("paused", "stopped"):
            site_answers = [
                replace(one, status="declined", reason="paused") for one in site_answers
            ]
        fields: dict[str, Any] = {"run": request.run, "round": request.round, "site": self.name}
        return RecordDict({REPLY: ConfigRecord(fields | {SITES: encode_proposed(site_answers)})})

    def able(self, plan: Plan, number: int) -> frozenset[str]:
        """Who can take part, as far as is known."""
        return turnout(self.home, self.grid, self.queue, plan, number).able

    def _wait_for(self, directions: Directions, follower: Follower) -> None:
        """Soon after a start: until the round's sites are connected again."""
        end = min(self._start + _RETURN_SECONDS, time.monotonic() + (directions.seconds or 1e9) / 2)
        sites = directions.heads.keys()
        while time.monotonic() < end and sites - set(self.grid.names().values()):
            follower.waiting()
            time.sleep(_LOOK_SECONDS)

    def _refresh(self, request: RoundRequest, follower: Follower) -> None:
        self.proposals.refresh(
            self.grid, request.plan, run=request.run, number=request.round, waiting=follower.waiting
        )

    def _folder(self, request: RoundRequest) -> RunFolder:
        """The run's folder and its line in the queue, by which an operator pauses or stops it."""
        state = self._state(request.run)
        if state in ("paused", "stopped"):
            raise Refusal("paused")
        path = self.home.runs / request.run
        self.home.runs.mkdir(mode=0o700, exist_ok=True)
        try:
            if path.exists():
                folder = RunFolder.open(path, request.plan)
            else:
                folder = RunFolder.create(path, request.plan, run_id=request.run, kind="relay")
        except FolderError as error:
            self.log("run_refused", run=request.run, why=str(error))
            raise Refusal("bad-request", status="failed") from None
        if not state:
            self.queue.add(request.run, request.plan, state="running")
        return folder

    def _state(self, run: str) -> str:
        """A run's state here, an operator's request to pause or stop it served; "" without one."""
        try:
            found = self.queue.find(run)
        except QueueError:
            return ""
        if found.request in ("pause", "stop"):
            self.queue.move(run, "paused" if found.request == "pause" else "stopped")
            return self.queue.find(run).state
        return found.state

    def _follower(self, request: RoundRequest) -> Follower:
        self.queue.move(request.run, "running")
        return Follower(
            self.queue,
            self.queue.find(request.run),
            self.proposals,
            self.board,
            self.log,
            Flag(),  # a round that was begun is finished: it is paid for
            partial(turnout, self.home, self.grid, self.queue, request.plan),
            request.run,
        )


def _refused(content: RecordDict) -> RecordDict:
    raise Refusal("bad-request", status="failed")


def _answers(record: RoundRecord, number: int) -> list[tuple[int, Answer]]:
    """Every answer with the round that it was made in, in the order in which heads go on."""
    return [*record.late, *((number, answer) for answer in record.answers.values())]


def _leaf(made: int, answer: Answer, heads: RelayHeads) -> Leaf:
    return Leaf(
        answer.site,
        made,
        answer.status,  # type: ignore[arg-type]
        answer.reason or "",
        tuple(event.to_dict() for event in answer.events),
        answer.sigma,
        None if answer.metrics is None else dict(answer.metrics),
        heads.proofs.get((answer.site, made)),
    )


def _proposed(site: str, answer: SiteAnswer | None, here: bool, number: int) -> ProposalAnswer:
    if not here:
        return ProposalAnswer(site, "failed", AWAY, 0, "" if answer is None else answer.ledger)
    if answer is None:
        return ProposalAnswer(site, "failed", NOT_ASKED, 0, "")
    left = max(0, answer.round + answer.rounds - number)
    if answer.status == "approved" and not left:
        return ProposalAnswer(site, "declined", "budget-exhausted", 0, answer.ledger)
    return ProposalAnswer(site, answer.status, answer.reason, left, answer.ledger)  # type: ignore[arg-type]
