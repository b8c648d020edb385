"""What a reply may hold: the fields that tell nothing of any record, and who pays for the rest."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from privacy.accounting.events import Event
from privacy.contract.plan import Plan

PUBLIC: Final[Mapping[str, str]] = {
    "run": "the coordinator's own id of the run",
    "round": "the coordinator's own number of the round",
    "site": "the site's name, known since enrolment",
    "status": "what was done: decided from plan, policy and ledger before training",
    "reason": "a code from a fixed list",
    "events": "this run's events: they follow from the plan",
    "sigma": "the noise multiplier used: the plan's, or the policy's where that is more",
    "head": "the ledger's length and salted digests: how often was spent, never on what",
    "message": "secure aggregation: fresh keys, encrypted shares of them, signatures; no data",
}
"""The fields of a round's reply that tell nothing of any record, each with the reason why."""

PROPOSAL: Final[Mapping[str, str]] = {
    "rounds": "how many more rounds of a proposed plan fit: from plan, policy and ledger",
    "ledger": "which of the site's ledgers pays: a random id, the same for its life",
}
"""The further fields of an answer to a proposal, which is given before anything is spent."""

REASONS: Final = frozenset(
    {
        "",
        "budget-exhausted",
        "plan-not-approved",
        "plan-denied",
        "noise-too-low",
        "rate-too-high",
        "too-many-steps",
        "too-many-rounds-today",
        "too-few-rows",
        "task-not-allowed",
        "task-not-approved",
        "schema-differs",
        "no-subjects",
        "unit-not-allowed",
        "output-not-allowed",
        "coordinator-not-trusted",
        "ledger-untrusted",
        "ledger-not-written",
        "model-refused",
        "bad-weights",
        "bad-request",
        "paused",
        "failed",
        "secure-not-allowed",
        "too-few-parties",
        "too-many-colluding",
        "parties-not-known",
        "bad-keys",
        "wrong-party-list",
        "bad-shares",
        "wrong-survivors",
        "out-of-order",
    }
)
"""The only reasons that can leave: codes, never data."""


@dataclass(frozen=True, slots=True)
class Output:
    """A field of a reply: paid by `event`; or `protected` since it is public; or bare."""

    name: str
    event: Event | None
    protected: bool
    why: str


def outputs(plan: Plan, events: tuple[Event, ...]) -> tuple[Output, ...]:
    """Everything that one round of `plan` sends from a site which spends `events`."""
    if plan.noised_at_site:
        what = "the noisy sum of clipped gradients"
        if plan.statistics is not None:
            what = "noisy sums: every count and moment that [statistics] names, in one release"
        if plan.is_secure:
            what = "masked: only the sum over all parties shows, with the noise of all"
        paid = [Output("update", events[0], True, what)]
        if plan.metrics:
            names = ", ".join(plan.metrics)
            if plan.metrics_every > 1:
                names += f"; in each round whose number {plan.metrics_every} divides"
            paid.append(Output("metrics", events[1], True, f"noisy clipped sums: {names}"))
    else:
        why = (
            "clipped at the site; the coordinator adds the noise before it publishes"
            if plan.noised_centrally
            else "without any noise"
        )
        paid = [Output("update", None, False, f"shown to the coordinator {why}")]
        if plan.clip_sigma is not None:
            paid.append(Output("below", None, False, "whether the norm was below the clip"))
    public = {n: why for n, why in PUBLIC.items() if n != "message" or plan.is_secure}
    return (*paid, *(Output(name, None, True, why) for name, why in public.items()))
