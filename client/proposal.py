"""A proposal: the coordinator shows a plan before it runs, and the site says what it would do.

Nothing is spent and no row is read: the answer follows from the plan, the owner's policy and the
ledger. The owner finds the plan, with its price, in `tacit-client plans`.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from client.judgement import judged
from client.release import Public, release
from client.round_request import is_run_id
from client.site import Site
from client.tasks.rows import TaskError
from privacy.contract.decision import (
    EXHAUSTED,
    TOO_MANY_TODAY,
    Accepted,
    Refusal,
    alone,
    with_records,
)
from privacy.contract.forecast import Course, rounds_that_fit
from privacy.contract.plan import Plan, PlanError
from privacy.contract.plan_file import from_json
from privacy.ledger.ledger import LedgerError, SpendingState
from privacy.task_package.archive import MOST_SHOWN, Package, PackageError, unpack

REQUEST = "request"
REPLY = "reply"
ACTION = "propose"


@dataclass(frozen=True, slots=True)
class ProposalAnswer:
    """What a site would do: `rounds` is how many more rounds of the plan its budgets hold."""

    status: str
    reason: str
    rounds: int


class _BadProposal(Exception):
    """A request that is no proposal to this site."""


def answer_proposal(site: Site, content: RecordDict) -> RecordDict:
    """The reply to a proposal; whatever goes wrong leaves as a code, never as a text."""
    record = content.get(REQUEST)
    request = record if isinstance(record, ConfigRecord) else {}
    try:
        plan, run, number = _read(site, request)
        if (content_shown := request.get("package")) is not None:
            site.on_package(plan, _package(plan, content_shown))
        answer = _considered(site, plan, run, number)
        head = request.get("head")
        headed = plan.noised_at_site and head is not None and site.is_addressed_by(head)
        if answer.status == "approved" and headed and not site.follows(head):
            answer = ProposalAnswer("declined", "ledger-untrusted", answer.rounds)
    except _BadProposal:
        answer = ProposalAnswer("failed", "bad-request", 0)
    except Exception as error:  # noqa: BLE001 - an exception's text may hold data: none leaves
        site.on_event("failed", error=type(error).__name__, where="proposal")
        answer = ProposalAnswer("failed", "failed", 0)
    run_id = request.get("run")
    fields = {
        "run": run_id if is_run_id(run_id) else "",
        "round": request.get("round") if isinstance(request.get("round"), int) else 0,
        "site": site.name,
        "status": answer.status,
        "reason": answer.reason,
        "rounds": answer.rounds,
        "ledger": site.ledger_id,
    }
    values = release(
        {name: Public(value) for name, value in fields.items()},
        ledger=site.ledger,
        trust_coordinator=False,
    )
    return RecordDict({REPLY: ConfigRecord(values)})


def _read(site: Site, request: Mapping[str, Any]) -> tuple[Plan, str, int]:
    """The plan, the run's id ("" before there is one) and the next round; _BadProposal."""
    run, number, text = request.get("run"), request.get("round"), request.get("plan")
    if request.get("site") != site.name or not isinstance(text, str):
        raise _BadProposal
    if run != "" and not is_run_id(run):
        raise _BadProposal
    try:
        plan = from_json(text)
    except PlanError:
        raise _BadProposal from None
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= plan.rounds:
        raise _BadProposal
    return plan, run, number


def _package(plan: Plan, content: object) -> Package:
    """The package that came with a plan, and is the one it names; _BadProposal. None of it runs."""
    if not isinstance(content, bytes) or len(content) > MOST_SHOWN:
        raise _BadProposal
    if hashlib.sha256(content).hexdigest() != (plan.code or "").removeprefix("sha256:"):
        raise _BadProposal
    try:
        return unpack(content)
    except PackageError:
        raise _BadProposal from None


def _considered(site: Site, plan: Plan, run: str, number: int) -> ProposalAnswer:
    site.on_plan(plan)
    try:
        learning = site.tasks(plan)
    except TaskError:
        code = "task-not-approved" if plan.code else "task-not-allowed"
        return ProposalAnswer("declined", code, 0)
    if site.policy.needs_subjects(plan) and not learning.subjects:
        return ProposalAnswer("declined", "no-subjects", 0)
    try:
        standing, verdict = judged(site, plan, run, number)
    except LedgerError:
        return ProposalAnswer("declined", "ledger-untrusted", 0)
    most = plan.rounds - number + 1
    has_reply = plan.noised_at_site and site.replies.holds(f"{run}/{number}")
    if has_reply and isinstance(verdict, Refusal) and verdict.code in (EXHAUSTED, TOO_MANY_TODAY):
        once = 1 if site.policy.forecast else most
        if site.paused():
            return ProposalAnswer("declined", "paused", once)
        return ProposalAnswer("approved", "", once)
    rounds = most
    if site.policy.forecast:
        rounds = has_reply + _rounds_left(site, plan, standing, verdict, most - has_reply)
    if isinstance(verdict, Refusal):
        return ProposalAnswer("declined", verdict.code, rounds)
    if site.paused():
        return ProposalAnswer("declined", "paused", rounds)
    if not site.accepts(plan):
        return ProposalAnswer("declined", "schema-differs", 0)
    return ProposalAnswer("approved", "", rounds)


def _rounds_left(
    site: Site, plan: Plan, standing: SpendingState, verdict: Accepted | Refusal, most: int
) -> int:
    """How many unpaid rounds from now on the site's and the plan's budgets hold, at most `most`."""
    if isinstance(verdict, Refusal) and verdict.code == EXHAUSTED:
        return 0
    if not plan.noised_at_site:
        return most
    events = with_records(plan.events_of_round(site.name), site.policy)
    if isinstance(verdict, Accepted):
        events = verdict.events
    course = Course.of(plan, site.name, site.policy, events, plan.rounds - most + 1)
    budgets = (
        (standing.spent, site.policy.budget, None),
        (standing.run, plan.limit_of(site.name), 1),
    )
    for past, limit, records in budgets:
        if limit is not None and most > 0:
            most = rounds_that_fit(past, course, limit, records=records, most=most)
    limit = site.policy.budget_alone
    if plan.is_secure and limit is not None and most > 0:
        most = rounds_that_fit(alone(standing.spent), Course(alone(events)), limit, most=most)
    return most
