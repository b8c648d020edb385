"""The policy's verdict on one round of a plan, by what the ledger says of now."""

from datetime import UTC, datetime

from client.round_request import Refused
from client.site import Site
from privacy.accounting.events import Event
from privacy.contract.decision import Accepted, Refusal, judge
from privacy.contract.plan import Plan
from privacy.ledger.ledger import LedgerError, LedgerMissing, SpendingState


def judged(
    site: Site, plan: Plan, run: str, number: int
) -> tuple[SpendingState, Accepted | Refusal]:
    """What was spent before, and the verdict; LedgerError where no ledger can be relied on."""
    state = SpendingState()
    if site.ledger is not None:
        day = datetime.now(UTC).strftime("%Y-%m-%d")
        state = site.ledger.spending_state(run, day, coordinator=site.coordinator)
    elif plan.noised_at_site:
        raise LedgerMissing(site.name, "a plan that spends needs a ledger")
    verdict = judge(
        plan,
        site.policy,
        state.spent,
        site=site.name,
        round=number,
        run=state.run,
        rounds_today=state.rounds_today,
    )
    return state, verdict


def accepted(site: Site, plan: Plan, run: str, number: int) -> tuple[Event, ...]:
    """The events that the site accepts for the round, maybe with more noise than asked; Refused."""
    try:
        _, verdict = judged(site, plan, run, number)
    except LedgerError as error:
        site.on_event("ledger_error", message=str(error))
        raise Refused("ledger-untrusted") from None
    if isinstance(verdict, Refusal):
        site.on_event("plan_refused", code=verdict.code, message=verdict.message)
        raise Refused(verdict.code)
    return verdict.events
