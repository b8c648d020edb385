"""Canaries in a secure sum are found as the claim allows, in one reply not at all."""

import numpy as np
import pytest

from client.audit.audit import _made_up, one_thread, through_ledger
from client.audit.canary import bounds
from client.audit.secure.canaries import score_sums
from privacy.accounting.epsilon import calibrate, spent
from privacy.accounting.segments import Budget
from privacy.contract.plan import Plan, SecurePlan

DELTA = 1e-5


def plan(epsilon: float) -> Plan:
    return Plan(
        task="audit",
        sites=10,
        rounds=2,
        rate=1.0,
        rows=1000,
        lr=0.5,
        clip=1.0,
        sigma=calibrate(Budget(epsilon, DELTA), rate=1.0, steps=2),
        delta=DELTA,
        aggregation="secure",
        weights="rows",
        secure=SecurePlan(dropouts=1, colluding=1),
    )


@pytest.mark.slow
def test_the_sum_betrays_what_epsilon_4_allows_and_a_reply_nothing() -> None:
    chosen, (task, rows) = plan(4.0), _made_up()
    paid = []
    with one_thread():
        seen, hidden = score_sums(
            *(task, rows, chosen),
            count=20_000,
            rounds=2,
            pay=lambda event, number: paid.append(event) or event,  # type: ignore[func-returns-value]
            coins=np.random.default_rng(1),
        )
        _, event = through_ledger(task, rows, chosen, site="audit", count=500)
    assert event.shares == 8
    epsilon = spent([event], DELTA)
    assert epsilon == pytest.approx(4.0, abs=0.01)
    one_run, by_curve = bounds(seen, event, epsilon, DELTA)
    assert by_curve.p > 1e-4 and one_run.p > 1e-4
    assert 2.5 <= max(one_run.epsilon, by_curve.epsilon) <= 4.0
    for bound in bounds(hidden, event, epsilon, DELTA):
        assert bound.epsilon == 0
