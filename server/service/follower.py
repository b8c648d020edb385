"""The Listener of a run that the coordinator plays: it waits for people, and serves operators."""

import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from server.rounds.job import Interrupted
from server.rounds.messages import Answer
from server.rounds.site_grid import SiteGrid
from server.service.attendance import AWAY, Attendance
from server.service.proposals import Proposals
from server.service.queue import Queue, SiteAnswer, Submission
from server.service.status import StatusBoard

WAITING: Final = "waiting"
INTERRUPTED: Final = "interrupted"
_LOOK_SECONDS: Final = 0.5

Log = Callable[..., None]


@dataclass(slots=True)
class Follower:
    """Follows one run.

    `stop` is set when the coordinator ends, `attendance(number)` says who can take part in a round,
    `give_way()` says whether another run could be played while this one waits for people,
    `between_rounds()` is called when no site owes a reply, `on_request()` before sites are asked to
    train, and to pay.
    """

    queue: Queue
    submission: Submission
    proposals: Proposals
    board: StatusBoard
    log: Log
    stop: threading.Event
    attendance: Callable[[int], Attendance]
    run_id: str
    give_way: Callable[[], bool] = lambda: False
    between_rounds: Callable[[], object] = lambda: None
    on_line: Callable[[Mapping[str, Any]], None] = lambda line: None
    on_request: Callable[[], object] = lambda: None
    _outcomes: dict[str, str] = field(default_factory=dict)
    _absent: dict[str, Answer] = field(default_factory=dict)
    _next_look: float = 0.0

    def ready(
        self, grid: SiteGrid, number: int, declined: Mapping[str, Answer]
    ) -> Collection[str] | None:
        """Wait until enough sites can take part; a run that never can again ends."""
        plan, least = self.submission.plan, self.submission.plan.least_sites
        logged = ""
        self.between_rounds()
        while True:
            self._serve(pause_too=True)
            self.proposals.refresh(grid, plan, run=self.run_id, number=number, waiting=self.waiting)
            turnout = self.attendance(number)
            if len(turnout.able) >= least:
                self.board.set(run_state="running", waiting=None)
                self._absent = self._explained(turnout)
                self.on_request()
                return turnout.able
            if not turnout.reachable(least):
                raise Interrupted(*turnout.unreachable(least))
            if str(turnout) != logged:
                logged = str(turnout)
                self.log("run_waiting", run=self.submission.name, needed=least, sites=logged)
                self.board.set(run_state="waiting", waiting=logged)
            if self.give_way():
                raise Interrupted(WAITING, logged)
            grid.wait(_LOOK_SECONDS)
            self.stop.wait(0.05)

    def _explained(self, turnout: Attendance) -> dict[str, Answer]:
        """Why the sites that gave an answer cannot take part."""
        answers = self.queue.answers(self.submission.plan.digest)
        absent = {**turnout.waiting, **turnout.refused}
        return {
            site: Answer(site, "failed" if answers[site].status == "failed" else "declined", reason)
            for site, reason in absent.items()
            if site in answers and reason != AWAY
        }

    def absent(self) -> Mapping[str, Answer]:
        """Why connected sites are not asked in this round."""
        return self._absent

    def waiting(self) -> None:
        """While replies are awaited: `stop` and the end of the coordinator do not wait for them."""
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _LOOK_SECONDS
            self._serve(pause_too=False)

    def _serve(self, *, pause_too: bool) -> None:
        if self.stop.is_set():
            raise Interrupted(INTERRUPTED, "the coordinator ends")
        request = self.queue.find(self.submission.name).request
        if request == "stop":
            raise Interrupted("stopped", "by the operator")
        if request == "pause" and pause_too:
            raise Interrupted("paused", "by the operator")

    def on_answer(self, number: int, answer: Answer) -> None:
        """Store a refusal; log an answer that is not the site's last one."""
        outcome = answer.reason or answer.status
        plan = self.submission.plan
        if answer.status == "declined":
            ledger = self.queue.ledger_of(plan.digest, answer.site)
            reason, now = answer.reason or "", time.time()
            refusal = SiteAnswer(answer.site, "declined", reason, number, 0, now, ledger)
            self.proposals.refused(plan, answer.site, refusal)
        elif answer.status == "trained":
            self.proposals.trained(plan, answer.site)
        if answer.status != "trained" and self._outcomes.get(answer.site) != outcome:
            self.log("site_answer", round=number, site=answer.site, answer=outcome)
        self._outcomes[answer.site] = outcome

    def on_round(self, line: Mapping[str, Any]) -> None:
        """A complete round."""
        self.board.set(round=line["round"], epsilon=line["epsilon"])
        self.queue.note(self.submission.name, "round_complete", _brief(line))
        self.on_line(line)


def _brief(line: Mapping[str, Any]) -> dict[str, Any]:
    sites = {site: one["reason"] or one["status"] for site, one in line["sites"].items()}
    keys = ("round", "epsilon", "seconds", "metrics")
    return {key: line[key] for key in keys} | {"sites": sites}
