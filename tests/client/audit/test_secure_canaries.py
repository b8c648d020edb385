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


def test_few_canaries_are_scored_in_the_sums_and_in_the_masked_replies() -> None:
    chosen, (task, rows) = plan(4.0), _made_up()
    events = []
    with one_thread():
        seen, hidden = score_sums(
            *(task, rows, chosen),
            count=400,
            rounds=2,
            pay=lambda event, number: events.append((number, event)) or event,  # type: ignore[func-returns-value]
            coins=np.random.default_rng(1),
        )
    assert [number for number, _ in events] == [1, 2]
    assert events[0][1].shares == chosen.shares == 8
    assert (seen.included == hidden.included).all()

    def gap(scores: np.ndarray) -> float:
        """How far the planted ones lie above the others, in standard errors."""
        into, out = scores[seen.included], scores[~seen.included]
        return float((into.mean() - out.mean()) / np.sqrt(into.var() / 200 + out.var() / 200))

    assert gap(seen.scores) > 5
    assert abs(gap(hidden.scores)) < 5


def test_a_plan_without_noise_of_records_has_no_canaries() -> None:
    task, rows = _made_up()
    without = Plan(task="audit", sites=1, rounds=1, rate=1.0, rows=10, lr=1.0, unit="none")
    with pytest.raises(ValueError, match="unit must be record or subject"):
        score_sums(task, rows, without, count=1, rounds=1, pay=lambda event, number: event)
