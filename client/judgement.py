"""The policy's verdict on one round of a plan, by what the ledger says of now."""

from datetime import UTC, datetime

from client.site import Site
from privacy.contract.decision import Accepted, Refusal, judge
from privacy.contract.plan import Plan
from privacy.ledger.ledger import LedgerMissing, SpendingState


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
