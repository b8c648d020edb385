"""A search under the budget: one contract, one price, rounds that cost what their stage says."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accounting.epsilon import spent
from privacy.contract.cadence import fewest_rounds
from privacy.contract.decision import Accepted, Refusal, judge
from privacy.contract.forecast import epsilons, forecast
from privacy.contract.pilots import candidates, chosen
from privacy.contract.plan import Plan, PlanError
from privacy.contract.plan_file import from_json, load_plan
from privacy.contract.policy import Policy
from privacy.contract.rules.table import warnings
from privacy.report.text import mechanism, tuning
from server.rounds.aggregation import server_rate


def policy(**changes: float) -> Policy:
    return replace(Policy(epsilon=5.0, delta=1e-5, approve="within-limits"), **changes)  # type: ignore[arg-type]


def plan(*changes: str) -> Plan:
    return unsaid("rounds=80", "tune.rounds=10", *changes)


def unsaid(*changes: str) -> Plan:
    """A search whose plan does not say how long a pilot is."""
    return load_plan("digits", ["rows=300", "delta=1e-5", "tune.epsilon=0.2", *changes])


def test_a_search_and_its_run_cost_the_plans_epsilon_together() -> None:
    one = plan()
    assert one.pilot_rounds == 50
    before, after = one.epsilon_after("site-0", 50), one.epsilon_after("site-0", 80)
    assert before is not None
    assert after is not None
    assert 2.99 < after <= 3.0
    assert before < 5 * 0.2  # less than the sum of its pilots' epsilons
    first = one.epsilon_after("site-0", 10)
    assert first == pytest.approx(0.2, rel=2e-3)


@pytest.mark.parametrize(
    ("rounds", "length"), [(60, 6), (200, 20), (300, 30), (209, 20), (50, 5), (26, 5)]
)
def test_a_pilot_has_a_fifth_of_the_runs_own_rounds_and_at_least_five(
    rounds: int, length: int
) -> None:
    one = unsaid(f"rounds={rounds}")
    assert one.pilot_length == length
    assert one.pilot_rounds == 5 * length
    assert rounds < 50 or 5 * length <= rounds - one.pilot_rounds < 5 * (length + 2)
    said = unsaid(f"rounds={rounds}", "tune.rounds=2")
    assert said.pilot_length == 2
    assert said.digest != one.digest


def test_a_pilots_length_follows_from_the_stored_text_alone() -> None:
    one = unsaid("rounds=60")
    assert '"rounds"' not in one.to_json().partition('"tune":{')[2].partition("}")[0]
    assert from_json(one.to_json()).pilot_length == 6
    assert from_json(one.to_json()).digest == one.digest
    before = one.to_json().replace('"tune":{', '"tune":{"rounds":10,')  # an earlier one's text
    assert from_json(before).pilot_length == 10


def test_a_run_that_pilots_leave_too_few_rounds_is_warned_of() -> None:
    (text,) = warnings(unsaid("rounds=30"))
    assert text.startswith("rounds = 30 leave 5 for the run itself after pilots of 5 each")
    assert "rounds = 50 leave it 25" in text
    assert warnings(unsaid("rounds=60")) == ()


def test_eight_pilots_at_a_tenth_leave_2_97_of_3() -> None:
    times = "tune.lr_times=[0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]"
    one = plan("rounds=110", "tune.epsilon=0.1", times)
    run = one.events_of_round("site-0")
    alone = spent([replace(event, count=30) for event in run], 1e-5)
    assert alone == pytest.approx(2.97, abs=0.006)


@settings(deadline=None, max_examples=20)
@given(number=st.integers(1, 80))
def test_a_round_follows_the_stage_that_its_number_says(number: int) -> None:
    one = plan()
    followed, at = one.stage(number, 3)
    pilot = one.pilot_of(number)
    assert (pilot is not None) == (number <= 50)
    assert at == ((number - 1) % 10 + 1 if number <= 50 else number - 50)
    assert followed.rounds == (10 if number <= 50 else 30)
    assert followed.tune is None
    (event,) = one.events_of_round("site-0", number)
    assert followed.sigma == event.sigma
    candidate = 3 if pilot is None else pilot
    if pilot is None:
        assert followed.lr == one.lr * candidates(one.tune)[candidate][0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "more", [(), ("schedule=cosine",), ("warmup=6",), ("server_schedule=cosine", "warmup=20")]
)
def test_the_noise_of_a_pilot_adds_up_to_that_of_its_run(more: tuple[str, ...]) -> None:
    one = plan("tune.clip_times=[0.5, 2.0]", "rounds=130", *more)
    for candidate in range(one.candidates):
        pilot, run = one.stage(candidate * 10 + 1)[0], one.stage(101, candidate)[0]
        assert pilot.clip == run.clip
        squares = [
            sum((server_rate(p, i) * p.lr_at(i, p.rounds)) ** 2 for i in range(p.rounds))
            for p in (pilot, run)
        ]
        noise = [
            math.sqrt(s) * (p.sigma or 0.0) for s, p in zip(squares, (pilot, run), strict=True)
        ]
        assert noise[0] == pytest.approx(noise[1])


def test_adams_pilots_keep_the_learning_rate() -> None:
    one = plan("server_optimizer=adam")
    assert one.stage(1)[0].lr == one.stage(51, 0)[0].lr


def test_the_pilot_that_ended_best_is_chosen() -> None:
    one = plan("tune.rounds=2", "rounds=40")
    losses = [2.0, 1.0, 0.5, math.nan, 0.7]
    lines = [
        {"round": 2 * i + j, "metrics": {"loss": loss if j == 2 else 0.0}}
        for i, loss in enumerate(losses)
        for j in (1, 2)
    ]
    assert chosen(one, lines) == 2
    assert chosen(one, lines[:-1]) is None
    assert chosen(replace(one, tune=None), lines) is None
    best = [{**line, "metrics": {"accuracy": line["metrics"]["loss"]}} for line in lines]
    assert chosen(plan("tune.rounds=2", "rounds=40", "tune.metric=accuracy"), best) == 0
    lines[5]["metrics"] = {}  # it diverged
    assert chosen(one, lines) == 4
    assert chosen(one, [{**line, "metrics": {}} for line in lines]) is None


def test_the_forecast_agrees_round_by_round_and_shows_both_ends() -> None:
    one = plan("operation.patience=5")
    outlook = forecast(one, "site-0")
    assert outlook.refusal is None
    numbers = [1, 10, 50, 51, 80]
    shown = dict(epsilons(outlook, 1e-5, numbers))
    assert shown == {n: one.epsilon_after("site-0", n) for n in numbers}
    assert fewest_rounds(one) == 58


def test_a_budget_that_ends_among_the_pilots_or_after_them_is_foreseen() -> None:
    one = plan()
    for epsilon, least, most in ((0.3, 11, 49), (1.5, 51, 79)):
        fits = forecast(one, "site-0", policy(epsilon=epsilon, delta=1e-5)).fits
        assert least <= fits <= most
        events = forecast(one, "site-0").course
        assert spent(events.taken(fits), 1e-5) <= epsilon < spent(events.taken(fits + 1), 1e-5)


def test_no_pilot_is_paid_for_where_the_run_would_be_refused() -> None:
    one = plan()
    run = one.events_of_round("site-0")[0].sigma
    loud = policy(epsilon=10.0, delta=1e-5, min_sigma=run * 1.1)
    refused = judge(one, loud, (), site="site-0", round=1)
    assert isinstance(refused, Refusal)
    assert refused.code == "noise-too-low"
    accepted = judge(one, policy(epsilon=10.0, delta=1e-5), (), site="site-0", round=1)
    assert isinstance(accepted, Accepted)
    assert accepted.sigma == one.events_of_round("site-0", 1)[0].sigma > 4 * run


def test_a_plan_with_a_search_travels_whole() -> None:
    one = plan("tune.clip_times=[1.0, 2.0]", "rounds=140")
    assert from_json(one.to_json()) == replace(one, operation=replace(one.operation))
    assert from_json(one.to_json()).digest == one.digest
    assert '"tune"' not in load_plan("digits").to_json()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (["rounds=50"], "rounds must be above the pilots' 5 x 10 = 50"),
        (["unit=client"], 'tune must be left out where unit = "client"'),
        (["tune.lr_times=[1.0]"], "tune must have 2 to 32 candidates"),
        (["tune.lr_times=[1.0, 1.0]"], "tune.lr_times must be a list"),
        (["tune.metric=site_loss"], 'metrics must list "loss"'),
        (
            ["tune.metric=site_loss", 'metrics=["loss"]', "metrics_sigma=40", "tune.rounds=1"],
            "tune.rounds must be at least 2",
        ),
        (["tune.rule=linear"], "unknown key tune.rule"),
    ],
)
def test_a_search_that_cannot_be_is_refused_in_one_line(changes: list[str], text: str) -> None:
    with pytest.raises(PlanError) as error:
        plan(*changes)
    assert text in str(error.value)
    assert "\n" not in str(error.value)


def test_a_plan_without_privacy_is_swept_for_nothing() -> None:
    with pytest.raises(PlanError, match='where unit = "none": use --sweep, which costs nothing'):
        load_plan("digits", ["unit=none", "rounds=80", "tune.epsilon=0.2"])


def test_pilots_that_cost_more_than_everything_are_refused() -> None:
    with pytest.raises(PlanError, match=r"tune\.epsilon must be smaller: 5 pilots cost more than"):
        plan("tune.epsilon=2.5").nominal_sigma()


def test_the_report_says_what_was_searched_and_who_paid() -> None:
    one = plan("tune.clip_times=[0.5, 1.0]", "rounds=140")
    text = tuning(one)["tuning"]
    assert "among 10 candidates, by loss on the coordinator's public rows, which is free" in text
    assert "rounds 1 to 100 of this run" in text
    bound = next(item for item in mechanism(one) if "clip" in str(item))
    assert "1 x 0.5 or 1" in str(bound)
    assert "no budget was charged" in tuning(load_plan("digits"))["tuning"]


def test_a_sites_own_epsilon_is_kept_with_the_pilots_in_it() -> None:
    one = plan("site.site-1.epsilon=1.5")
    after = one.epsilon_after("site-1", 80)
    assert after is not None
    assert 1.49 < after <= 1.5
    assert isinstance(Policy.simulated(one, one.limit_of("site-1")), Policy)
