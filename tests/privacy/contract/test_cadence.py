"""Paid metrics every k rounds: which rounds, at what price, and how early a run may stop."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accounting.epsilon import spent
from privacy.contract.cadence import fewest_rounds
from privacy.contract.decision import Accepted, Refusal, judge
from privacy.contract.forecast import Course, epsilons, forecast
from privacy.contract.outputs import outputs
from privacy.contract.plan import Plan, PlanError
from privacy.contract.plan_file import load_plan
from privacy.contract.policy import Policy
from privacy.contract.rules.table import warnings

METRICS = ('metrics=["loss", "accuracy"]', "metrics_sigma=30.0")


def plan(*changes: str) -> Plan:
    return load_plan("digits", ["rows=300", "rounds=20", *METRICS, *changes])


@settings(max_examples=60, deadline=None)
@given(
    every=st.integers(1, 9),
    length=st.integers(1, 7),
    last=st.integers(0, 60),
    search=st.booleans(),
)
def test_the_number_of_metric_rounds_is_a_count_of_them(
    every: int, length: int, last: int, search: bool
) -> None:
    tune = ("tune.epsilon=0.1", f"tune.rounds={length}", "tune.lr_times=[0.5, 1.0]")
    one = plan("rounds=60", f"metrics_every={every}", *(tune if search else ()))
    pilots = 2 * length if search else 0
    asked = 0
    for number in range(1, last + 1):
        own = (number - 1) % length + 1 if number <= pilots else number - pilots
        expected = own % every == 0 or (number <= pilots and own == length)
        assert one.asks_metrics(number) == expected
        asked += expected
    assert one.metric_rounds(last) == asked
    assert not plan("metrics=[]", "rounds=60").metric_rounds(last)


def test_a_rounds_events_follow_from_its_number_alone() -> None:
    one = plan("metrics_every=5")
    update, metrics = one.events_of_round("site-0")
    assert one.events_of_round("site-0", 4) == (update,)
    assert one.events_of_round("site-0", 5) == (update, metrics)
    assert metrics.sigma == 30.0
    client = load_plan(
        "digits", ["unit=client", "sites=5", "clip_quantile=0.5", "clip_sigma=20", "rows=300"]
    )
    assert len(client.events_of_round("site-0", 1)) == 2  # the clip's count is no metric


def test_fewer_metric_rounds_leave_less_noise_and_the_whole_stays_inside_epsilon() -> None:
    every, fifth = plan(), plan("metrics_every=5")
    first, second = every.nominal_sigma(), fifth.nominal_sigma()
    assert first is not None and second is not None and second < first
    for one in (every, fifth):
        whole = [e for n in range(1, 21) for e in one.events_of_round("site-0", n)]
        assert 2.9 < spent(whole, one.required_delta) <= 3.0


def test_the_forecast_is_the_sum_of_the_rounds() -> None:
    one = plan("metrics_every=5")
    outlook = forecast(one, "site-0")
    assert outlook.refusal is None and outlook.fits == 20
    for number, epsilon in epsilons(outlook, one.required_delta, [4, 5, 12, 20]):
        whole = [e for n in range(1, number + 1) for e in one.events_of_round("site-0", n)]
        assert epsilon == pytest.approx(spent(whole, one.required_delta), abs=1e-9)
        assert epsilon == one.epsilon_after("site-0", number)
    policy = Policy.simulated(one, one.limit_of("site-0"))
    course = Course.of(one, "site-0", policy, one.events_of_round("site-0", 8), 8)
    rest = [e for n in range(8, 21) for e in one.events_of_round("site-0", n)]
    taken = spent(course.taken(13), one.required_delta)
    assert taken == pytest.approx(spent(rest, one.required_delta), abs=1e-9)


def test_a_site_refuses_the_first_round_where_its_policy_would_refuse_the_fifth() -> None:
    one = plan("metrics_every=5")
    policy = replace(Policy.simulated(one, None), min_sigma=30.5)
    quiet = replace(one, sigma=40.0, epsilon=None)
    verdict = judge(quiet, policy, (), site="site-0", round=1)
    assert isinstance(verdict, Refusal) and verdict.code == "noise-too-low"


def test_more_noise_where_a_budget_needs_it_counts_the_metrics_that_are_left() -> None:
    one = plan("metrics_every=5", "epsilon=3.0")
    policy = replace(Policy.simulated(one, one.limit_of("site-0")), epsilon=1.0, more_noise=True)
    past: list[object] = []
    for number in range(1, 21):
        verdict = judge(one, policy, past, site="site-0", round=number, run=past)  # type: ignore[arg-type]
        assert isinstance(verdict, Accepted)
        assert len(verdict.events) == (2 if number % 5 == 0 else 1)
        past += verdict.events
    assert 0.9 < spent(past, policy.delta) <= 1.0  # type: ignore[arg-type]


def test_the_digest_of_plans_without_the_key_is_as_it_was() -> None:
    assert plan().digest == plan("metrics_every=1").digest
    assert plan().digest != plan("metrics_every=2").digest
    assert "metrics_every" not in plan().to_json()


def test_what_cannot_be_meant_is_said() -> None:
    with pytest.raises(PlanError, match="metrics_every must be at most the run's rounds, 20"):
        plan("metrics_every=21")
    assert warnings(load_plan("digits", ["metrics_every=3"])) == (
        "metrics_every has no effect: the plan asks for no metrics",
    )
    with pytest.raises(PlanError, match='metrics must list "loss" or "accuracy"'):
        load_plan("digits", ["operation.patience=3", "operation.stop_metric=site"])
    fields = outputs(plan("metrics_every=5"), plan().events_of_round("site-0"))
    assert any("whose number 5 divides" in one.why for one in fields)


def test_the_earliest_end_counts_looks() -> None:
    patience = ("operation.patience=4",)
    assert fewest_rounds(plan()) == 20
    assert fewest_rounds(plan(*patience)) == 6  # the first mean of 2 looks, and 4 in vain
    assert fewest_rounds(plan(*patience, "operation.stop_metric=site")) == 7
    slow = ("rounds=60", "metrics_every=5", "operation.stop_metric=site_loss", *patience)
    assert fewest_rounds(plan(*slow)) == 30
    short = plan("metrics_every=5", "operation.stop_metric=site", *patience)
    assert warnings(short) == ("operation.patience = 4 stops nothing: there are 20 rounds",)
