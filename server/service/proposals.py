"""Proposals: a plan is shown to the sites before it runs, and their answers are kept.

A proposal costs no epsilon and a few hundred bytes. It is sent only between rounds, since a new
message to a site replaces one that the site has not answered yet.
"""

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from flwr.app import Message

from privacy.contract.plan import Plan
from server.registry.relays import behind, needs_single_replies, party_of, relays_for
from server.relay.message import read_relay_proposal
from server.rounds.collection import replies
from server.rounds.messages import FINAL_REFUSALS, ReplyError, Request, propose, read_proposal
from server.rounds.site_grid import SiteGrid
from server.service.attendance import AWAY
from server.service.queue import Queue, SiteAnswer

_FAILED_FACTOR: Final = 4
_FINAL_FACTOR: Final = 40

Log = Callable[..., None]


class Proposals:
    """Asks the sites, no more often than needed.

    A site that waits for its owner is asked again every `interval` seconds; one that refused for
    good every 40 intervals, in case its owner changed the policy. `seconds` is how long a site has
    to answer, `head(site, ledger)` that ledger's last counter-signed head. A relay answers for its
    sites, and is asked again every `interval` seconds, since these come and go. `package(plan)` are
    the bytes of a plan's task package, which a site that has not approved it, and is not behind a
    relay, is sent once, to be read.
    """

    def __init__(
        self,
        queue: Queue,
        log: Log,
        interval: float,
        seconds: float,
        head: Callable[[str, str], Mapping[str, Any] | None] = lambda site, ledger: None,
        relays: Callable[[], Collection[str]] = frozenset,
        package: Callable[[Plan], bytes] = lambda plan: b"",
    ) -> None:
        self._queue, self._log, self._interval, self._seconds = queue, log, interval, seconds
        self._head, self._relays, self._package = head, relays, package
        self._shown: set[tuple[str | None, str]] = set()
        self._times: dict[tuple[str, str], float] = {}
        self._refusals: dict[tuple[str, str], int] = {}
        self._absent: set[tuple[str, str]] = set()

    def refresh(
        self,
        grid: SiteGrid,
        plan: Plan,
        *,
        run: str = "",
        number: int = 1,
        waiting: Callable[[], None] = lambda: None,
    ) -> None:
        """Ask every connected site whose answer to `plan` is missing or old."""
        answers, now = self._queue.answers(plan.digest), time.monotonic()
        sites = {
            site
            for site in set(grid.names().values()) - self._left_out(plan)
            if now >= self._due(plan.digest, site, answers.get(site), number)
        }
        if sites:
            self._ask(grid, plan, sites, run, number, waiting)

    def _left_out(self, plan: Plan) -> set[str]:
        """The relays that take no part in this plan's runs; each is logged once."""
        relays = set(self._relays())
        absent = relays - relays_for(plan, relays)
        for relay in absent - {relay for digest, relay in self._absent if digest == plan.digest}:
            self._absent.add((plan.digest, relay))
            why = needs_single_replies(plan)
            self._log("relay_left_out", site=relay, plan=plan.digest[:16], why=why)
        return absent

    def _due(self, digest: str, site: str, answer: SiteAnswer | None, number: int) -> float:
        """When, by the monotonic clock, the site is to be asked again."""
        last_request = self._times.get((digest, site))
        if last_request is None or answer is None:
            return 0.0 if last_request is None else last_request + self._interval
        if answer.status == "approved":
            spent = number >= answer.round + answer.rounds
            return last_request + self._interval * _FINAL_FACTOR if spent else float("inf")
        if answer.reason in FINAL_REFUSALS:
            return last_request + self._interval * _FINAL_FACTOR
        patience: float = 2.0 ** self._refusals.get((digest, site), 0)
        if answer.status == "failed":
            patience *= _FAILED_FACTOR
        return last_request + self._interval * min(patience, float(_FINAL_FACTOR))

    def trained(self, plan: Plan, site: str) -> None:
        """The site took part in a round."""
        self._refusals.pop((plan.digest, site), None)

    def refused(self, plan: Plan, site: str, answer: SiteAnswer) -> None:
        """The site refused a round: it is asked again later, each time after twice as long."""
        key = (plan.digest, site)
        self._times[key], self._refusals[key] = time.monotonic(), self._refusals.get(key, -1) + 1
        self._queue.answer(plan.digest, answer)

    def _ask(
        self,
        grid: SiteGrid,
        plan: Plan,
        sites: Collection[str],
        run: str,
        number: int,
        waiting: Callable[[], None],
    ) -> None:
        messages, requests = [], []
        answers = self._queue.answers(plan.digest)
        text = plan.to_json()
        for node, site in grid.names().items():
            if site in sites:
                ledger = answers[site].ledger if site in answers else ""
                request = Request(run, number, site, text, head=self._head(site, ledger))
                requests.append(request)
                messages.append(
                    propose(grid, node, request, self._to_show(plan, answers.get(site)))
                )
                self._times[plan.digest, site] = time.monotonic()
        pending = dict(zip(grid.push_messages(messages), requests, strict=True))
        unanswered = set(sites)
        relays = self._relays()
        for request, message in replies(grid, pending, self._seconds, waiting):
            if request.site in relays:
                unanswered.discard(request.site)
                self._store_behind(plan, request, message)
                continue
            try:
                status, reason, rounds, ledger = read_proposal(message, request, plan.rounds)
            except ReplyError as error:
                status, reason, rounds, ledger = "failed", str(error), 0, ""
            unanswered.discard(request.site)
            now, site = time.time(), request.site
            self._store(plan, SiteAnswer(site, status, reason, number, rounds, now, ledger))
        for site in unanswered - set(relays):
            self._store(plan, SiteAnswer(site, "failed", "no-answer", number, 0, time.time()))
            self._times[plan.digest, site] = time.monotonic()

    def _store_behind(self, plan: Plan, request: Request, message: Message) -> None:
        """The answers of a relay's sites; a site that it no longer names has left it."""
        try:
            proposed = read_relay_proposal(message, request)
        except ReplyError as error:
            self._log("relay_not_heard", site=request.site, why=str(error))
            return
        relay, number, now = request.site, request.round, time.time()
        most = plan.rounds - number + 1
        answers = {behind(relay, one.site): one for one in proposed}
        for site, one in answers.items():
            rounds = min(one.rounds, most)
            answer = SiteAnswer(site, one.status, one.reason, number, rounds, now, one.ledger)
            self._store(plan, answer)
        for site in self._queue.answers(plan.digest):
            if party_of(site) == relay != site and site not in answers:
                self._store(plan, SiteAnswer(site, "failed", AWAY, number, 0, now))

    def _to_show(self, plan: Plan, answer: SiteAnswer | None) -> bytes:
        """The plan's package, for a site that has not approved it and was not sent it before."""
        if plan.code is None or answer is None or answer.reason != "task-not-approved":
            return b""
        if (plan.code, answer.site) in self._shown:
            return b""
        self._shown.add((plan.code, answer.site))
        content = self._package(plan)
        if content:
            self._log("package_shown", site=answer.site, plan=plan.digest[:16], bytes=len(content))
        return content

    def _store(self, plan: Plan, answer: SiteAnswer) -> None:
        if self._queue.answer(plan.digest, answer):
            self._log(
                "proposal_answered",
                site=answer.site,
                plan=plan.digest[:16],
                answer=answer.reason or answer.status,
                rounds=f"{answer.rounds} of {plan.rounds - answer.round + 1}",
            )
