"""The agent's side of `latest`: every released model that arrives is kept, with what it cost."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.models.trusted_keys import receive
from privacy.contract.plan import Plan
from privacy.ledger.ledger import Ledger

Weights = Mapping[str, NDArray[np.float32]]


def keeper(
    directory: Path, site: str, ledger: Ledger | None
) -> Callable[[Plan, str, int, Weights], None]:
    """What a site does with round `round`'s released model, before it takes part in the next.

    Round 0 is no release but public starting weights. The events are this site's own, from its
    ledger; epsilon is computed when somebody reads the card.
    """

    def on_model(plan: Plan, run: str, round: int, weights: Weights) -> None:
        if round >= 1:
            receive(directory, plan, run, round, weights, _history(plan, site, ledger, run, round))

    return on_model


def _history(plan: Plan, site: str, ledger: Ledger | None, run: str, round: int) -> dict[str, Any]:
    if not plan.private:
        return {"round": round, "epsilon": None, "sites": {}}
    if plan.noised_at_site and ledger is not None:
        events = [event.to_dict() for event in ledger.events(run)]
    else:
        events = [event.to_dict() | {"count": round} for event in plan.events_of_round(site)]
    return {"round": round, "sites": {site: {"delta": plan.required_delta, "events": events}}}
