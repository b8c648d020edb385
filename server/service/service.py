"""The resident coordinator: one port, one queue; it plays the runs whose sites can take part."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from privacy.arrays import Arrays
from privacy.contract.plan import Plan
from privacy.files import DocumentError, FileError, read_bounded, write_atomic
from privacy.identity.keys import sign, signing_public
from privacy.task_package.archive import MOST_SHOWN, SUFFIX
from server.app import ATTEMPTS, coordinate
from server.model_process import Child, ChildError
from server.registry.heads import last_head
from server.registry.relays import relays_of
from server.registry.signing import PUBLIC, signer
from server.registry.sites import Home
from server.rounds import checkpoint
from server.rounds.aggregation import State
from server.rounds.checkpoint import CheckpointError
from server.rounds.loop import Outcome
from server.rounds.run_folder import FolderError, RunFolder
from server.rounds.site_grid import SiteGrid
from server.service.attendance import Attendance, turnout
from server.service.follower import INTERRUPTED, WAITING, Follower
from server.service.proposals import Proposals
from server.service.queue import DUE, Queue, Submission
from server.service.status import StatusBoard

ENDED: Final = frozenset({"done", "budget", "failed", "stopped"})
_LOOK_SECONDS: Final = 0.5
_RETRY_SECONDS: Final = 60.0

Log = Callable[..., None]
Lines = Callable[[Mapping[str, Any]], None]


@dataclass(slots=True)
class Service:
    """The coordinator while its port is open. `log(event, **facts)` writes one line.

    It is `alone` with one run where that run is played in the foreground. `asked` is set once sites
    are asked to train: from then on something may have been paid.
    """

    home: Home
    grid: SiteGrid
    queue: Queue
    board: StatusBoard
    log: Log
    stop: threading.Event
    interval: float = 15.0
    answer_seconds: float = 20.0
    hand_out: float = 30.0
    on_line: Lines | None = None
    on_round: Lines = lambda line: None
    alone: bool = False
    proposals: Proposals = field(init=False)
    playing: str | None = None
    asked: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        heads = self.home.folder / "heads"
        self.proposals = Proposals(
            self.queue,
            self.log,
            self.interval,
            self.answer_seconds,
            lambda site, ledger: last_head(heads, site, ledger),
            self.relays,
            self._package,
        )

    def _package(self, plan: Plan) -> bytes:
        """The bytes of a plan's task package; none where they are too many for a message."""
        path = self.home.tasks / f"{(plan.code or '').removeprefix('sha256:')}{SUFFIX}"
        try:
            return read_bounded(path, MOST_SHOWN)
        except (OSError, DocumentError):
            return b""

    def serve(self) -> None:
        """Play what is due until `stop` is set."""
        while not self.stop.is_set():
            due = self.next_due()
            if due is None:
                self.board.set(run=None, run_state=None, round=None, planned=None, epsilon=None)
                self.grid.wait(_LOOK_SECONDS)
                self.stop.wait(0.05)
            else:
                self.play(due)

    def next_due(self, *, but: str = "") -> Submission | None:
        """The first run in the queue that can be played now; shows every plan to the sites."""
        runs = self.queue.runs()
        states = {run.name: run.state for run in runs}
        first: Submission | None = None
        order = {state: place for place, state in enumerate(DUE)}
        pending = [run for run in runs if run.state in order or run.state == "proposed"]
        for run in sorted(pending, key=lambda one: (order.get(one.state, 9), one.number)):
            if run.name == but or self.stop.is_set():
                continue
            if run.state == "proposed":
                self.proposals.refresh(self.grid, run.plan)
                continue
            if run.at > time.time() or (run.after and states.get(run.after) != "done"):
                self.proposals.refresh(self.grid, run.plan)
            elif self._able(run) and first is None:
                first = run
        return first

    def _able(self, run: Submission) -> bool:
        """Whether enough sites can take part; a run that they never can ends."""
        done, run_id = _progress(self.home.runs / run.name)
        if done >= run.plan.rounds:
            return True  # only its end is left to be written
        self.proposals.refresh(self.grid, run.plan, run=run_id, number=done + 1)
        turnout = self.attendance(run.plan, done + 1)
        least = run.plan.least_sites
        if len(turnout.able) >= least:
            return True
        if not turnout.reachable(least):
            state, detail = turnout.unreachable(least)
            self.queue.move(run.name, state, detail)
            self._log("run_ended", run.name, state=state, detail=detail)
        elif (run.state, run.detail) != (WAITING, str(turnout)):
            self.queue.move(run.name, WAITING, str(turnout))
            self._log("run_waiting", run.name, needed=least, sites=str(turnout))
        return False

    def attendance(self, plan: Plan, number: int) -> Attendance:
        """Who can take part in a round of a plan, as far as is known now."""
        return turnout(self.home, self.grid, self.queue, plan, number)

    def relays(self) -> frozenset[str]:
        """The enrolled relays."""
        return relays_of(self.home.members())

    def _log(self, event: str, run: str, **facts: Any) -> None:
        self.log(event, run=run, **facts)
        self.queue.note(run, event, facts)

    def _complete(self, line: Mapping[str, Any]) -> None:
        """A complete round: to the metrics, and to the log or to who plays one run."""
        self.on_round(line)
        if self.on_line is not None:
            self.on_line(line)
            return
        facts = {key: line[key] for key in ("round", "epsilon", "seconds")}
        self.log("round_complete", run=self.playing, **facts)

    def play(self, run: Submission, *, child: Child | None = None) -> str:
        """Play a run until it ends or has to wait; returns the state that it is left in."""
        self.playing = run.name
        self.queue.move(run.name, "running")
        self.board.set(run=run.name, run_state="running", planned=run.plan.rounds, round=0)
        self._log("run_started", run.name, plan=run.plan.digest[:16], rounds=run.plan.rounds)
        try:
            outcome = self._play(run, child)
        except (OSError, FileError, CheckpointError, RuntimeError) as error:
            # A full disk or a child that was killed: what is on disk stands, and it goes on.
            if child is not None:
                self.queue.move(run.name, "failed", str(error))
                raise
            self.queue.move(run.name, "queued", str(error))
            self._log("run_failed", run.name, detail=str(error), retry_in=_RETRY_SECONDS)
            self.stop.wait(_RETRY_SECONDS)
            return "queued"
        except (FolderError, ChildError) as error:
            self.queue.move(run.name, "failed", str(error))
            self._log("run_ended", run.name, state="failed", detail=str(error))
            if child is not None:
                raise
            return "failed"
        finally:
            self.playing = None
        if outcome.reason == INTERRUPTED:
            self._log("run_interrupted", run.name, rounds=len(outcome.history))
            return "running"
        self.queue.move(run.name, outcome.reason, outcome.detail)
        facts: dict[str, Any] = {"state": outcome.reason, "rounds": len(outcome.history)}
        if outcome.detail:
            facts["detail"] = outcome.detail
        self._log("run_ended" if outcome.reason in ENDED else "run_left", run.name, **facts)
        return outcome.reason

    def _play(self, run: Submission, child: Child | None) -> Outcome:
        if child is not None:
            return self._with_child(run, child)
        data = Path(run.data) if run.data else None
        with Child(run.plan, data, self.home.tasks) as model_process:
            return self._with_child(run, model_process)

    def _with_child(self, run: Submission, child: Child) -> Outcome:
        plan, path = run.plan, self.home.runs / run.name
        folder = open_folder(self.home, run)
        key = signing_public(self.home.signing_key.read_bytes()).encode() + b"\n"
        write_atomic(path / PUBLIC, key)
        follower = Follower(
            self.queue,
            run,
            self.proposals,
            self.board,
            self.log,
            self.stop,
            lambda number: self.attendance(plan, number),
            folder.id,
            give_way=lambda: not self.alone and self.next_due(but=run.name) is not None,
            between_rounds=lambda: None if self.alone else self.next_due(but=run.name),
            on_line=self._complete,
            on_request=self.asked.set,
        )
        outcome, _ = coordinate(
            self.grid,
            plan,
            folder,
            home=self.home.folder,
            sign=lambda payload: sign(self.home.signing_key, payload),
            sign_model=signer(self.home.signing_key),
            child=child,
            listener=follower,
            first=_parent_model(self.home, run.parent),
            ledger_of=lambda site: self.queue.ledger_of(plan.digest, site),
            relays=self.relays,
            attempts=replace(
                ATTEMPTS, round_timeout=plan.operation.round_timeout, hand_out=self.hand_out
            ),
        )
        return outcome


def open_folder(home: Home, run: Submission) -> RunFolder:
    """The run's folder: made where there is none yet, else opened to go on."""
    path = home.runs / run.name
    home.runs.mkdir(mode=0o700, exist_ok=True)
    if path.exists():
        return RunFolder.open(path, run.plan)
    more = {} if run.parent is None else {"parent": run.parent}
    return RunFolder.create(path, run.plan, kind="federation", **more)


def _progress(path: Path) -> tuple[int, str]:
    """How many rounds of a run are complete, and its id; (0, "") before it has a folder."""
    try:
        folder = RunFolder.open(path)
    except FolderError:
        return 0, ""
    return max(checkpoint.numbers(folder.checkpoints), default=0), folder.id


def _parent_model(home: Home, parent: str | None) -> Arrays | None:
    """The last released model of the run that this one starts from; FolderError."""
    if parent is None:
        return None
    last = RunFolder.open(home.runs / parent).resume()
    if last is None:
        raise FolderError(f"--from {parent}: has no complete round yet")
    return State.from_arrays(*last).released()
