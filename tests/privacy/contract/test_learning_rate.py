"""`lr = "auto"`: one number, from the plan alone, the same for whoever has the plan."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from privacy.commands.plans import register
from privacy.contract.forecast import check_numbers
from privacy.contract.learning_rate import LOGIT_NOISE, shape, whole_steps
from privacy.contract.plan import Plan, PlanError
from privacy.contract.plan_file import from_json, load_plan, with_counts
from privacy.report.text import tuning
from server.rounds.aggregation import server_rate

SCHEMA = """schema='''
label = "kind"
%s
[columns."gene_*"]
type = "number"
min = 0
max = 1
to = 8
[columns.sex]
type = "category"
values = ["f", "m"]
[columns.kind]
type = "category"
values = ["a", "b"]
'''"""


def plan(*changes: str) -> Plan:
    return load_plan("adult", ["lr=auto", *changes])


def full(*changes: str) -> Plan:
    """With full batches, whose epsilon is cheap to compute."""
    return load_plan("digits", ["lr=auto", "rows=287", *changes])


def table(top: str = "", *changes: str) -> Plan:
    return plan("task=table", SCHEMA % top, *changes)


def test_the_rule_by_hand() -> None:
    one = plan("sigma=40")
    noise = math.sqrt(5) * 40 / (0.25 * 6500) / 5  # the mean of five sites' noisy mean gradients
    length = math.sqrt(12 + 1)  # columns and the bias
    assert one.learning_rate == pytest.approx(LOGIT_NOISE / (length * 10 * noise), rel=5e-3)


@settings(deadline=None, max_examples=20)
@given(rounds=st.integers(1, 500), steps=st.integers(1, 4), m=st.floats(0, 0.95))
def test_the_noise_of_all_steps_moves_a_logit_by_so_much(rounds: int, steps: int, m: float) -> None:
    changes = ("sigma=60", f"rounds={rounds}", f"steps={steps}", f"server_momentum={m}")
    one = plan(*changes, "server_lr=0.5")
    each = 60 / (0.25 * 6500) / math.sqrt(5)
    moved = one.learning_rate * 0.5 / (1 - m) * each * math.sqrt(rounds * steps)
    assert moved * math.sqrt(13) == pytest.approx(LOGIT_NOISE, rel=6e-3)


def test_local_momentum_and_a_cosine_count_as_the_training_loop_applies_them() -> None:
    one = plan("sigma=60", "steps=5", "rounds=40", "optimizer=momentum", "momentum=0.8")
    rng, width = np.random.default_rng(0), 20_000
    for schedule in ("constant", "cosine"):
        this = replace(one, schedule=schedule)
        each = 60 / (0.25 * 6500) / math.sqrt(5)
        at = np.zeros(width)
        for round in range(40):
            velocity = np.zeros(width)
            for step in range(5):
                velocity = 0.8 * velocity + rng.normal(size=width) * each
                at -= this.lr_at(round * 5 + step, 200) * velocity
        # the mean of how often each gradient counts stands for the root of the mean square
        assert at.std() * math.sqrt(13) == pytest.approx(LOGIT_NOISE, rel=0.15)


@settings(deadline=None, max_examples=30)
@given(
    rounds=st.integers(2, 60),
    steps=st.integers(1, 3),
    warmup=st.integers(0, 59),
    schedules=st.tuples(*[st.sampled_from(["constant", "cosine"])] * 2),
)
def test_steps_count_by_the_squares_of_the_rates_that_site_and_coordinator_have(
    rounds: int, steps: int, warmup: int, schedules: tuple[str, str]
) -> None:
    warmup = min(warmup, rounds - 1)
    changes = (f"rounds={rounds}", f"steps={steps}", f"warmup={warmup}", "server_lr=0.5")
    local, central = (
        f"{k}={v}" for k, v in zip(("schedule", "server_schedule"), schedules, strict=True)
    )
    one = plan("sigma=600", *changes, local, central)
    squares = sum(
        (server_rate(one, done) * one.lr_at(done * steps + step, rounds * steps)) ** 2
        for done in range(rounds)
        for step in range(steps)
    )
    moved = 600 / (0.25 * 6500) / math.sqrt(5) * math.sqrt(squares)
    assert moved * math.sqrt(13) == pytest.approx(LOGIT_NOISE, rel=6e-3)


def test_a_long_run_is_looked_at_in_part_and_whole_without_a_schedule() -> None:
    assert whole_steps(plan("steps=700"), 100_000) == 700 * 100_000
    long = whole_steps(plan("steps=100", "schedule=cosine", "warmup=0"), 100_000)
    assert long == pytest.approx(3 / 8 * 100 * 100_000, rel=1e-3)
    both = whole_steps(plan("schedule=cosine", "server_schedule=cosine"), 50_000)
    assert both == pytest.approx(35 / 128 * 50_000, rel=1e-3)
    warm = whole_steps(replace(plan("rounds=90000"), warmup=60_000), 90_000)
    assert warm == pytest.approx(30_000 + 60_000 / 3, rel=1e-3)


def test_sites_are_weighed_as_the_coordinator_weighs_them() -> None:
    few, many = plan("rows=100", "sigma=20"), plan("rows=100", "sigma=20", "site.big.rows=9000")
    assert plan("rows=100", "sigma=20", "weights=rows").learning_rate == few.learning_rate
    noise = [1 / 100] * 4 + [1 / 9000]
    ratio = (math.sqrt(5) / 100) / math.hypot(*noise)
    assert many.learning_rate / few.learning_rate == pytest.approx(ratio, rel=1e-2)
    by_rows = replace(many, weights="rows")  # 9,400 rows, and the noise of five sites
    expected = (9400 / math.sqrt(5)) / (500 / math.sqrt(5))
    assert by_rows.learning_rate / few.learning_rate == pytest.approx(expected, rel=1e-2)


def test_a_cohort_has_the_noise_of_those_who_are_asked() -> None:
    every, some = plan("sigma=60", "sites=20"), plan("sigma=60", "sites=20", "cohort=5")
    assert every.learning_rate / some.learning_rate == pytest.approx(2, rel=1e-2)


def test_with_little_noise_no_step_moves_a_logit_by_more_than_its_bound() -> None:
    quiet = plan("sigma=0.01")
    assert quiet.learning_rate == pytest.approx(150 / math.sqrt(13), rel=5e-3)
    assert plan("sigma=0.01", "clip=0.1").learning_rate == pytest.approx(
        1500 / math.sqrt(13), rel=5e-3
    )


def test_whoever_has_the_text_has_the_number_and_only_the_text_is_hashed() -> None:
    one = full()
    there = from_json(one.to_json())
    assert there.digest == one.digest
    assert there.learning_rate == one.learning_rate
    assert '"lr":"auto"' in one.to_json()
    assert f"# lr, by the rule for auto: {one.learning_rate!r}" in one.to_toml()
    assert load_plan("digits").learning_rate == 2.5
    changed = replace(one, operation=replace(one.operation, min_sites=3))
    assert changed.learning_rate == one.learning_rate


@pytest.mark.parametrize(
    ("top", "changes", "length", "layers"),
    [
        ("", (), 3.0, 1),  # 8 numbers and a category
        ("norm = 2.5", (), 2.5, 1),
        ("random = 64", (), 2.0, 1),
        ("hidden = [16, 16]", (), 3.0, 3),
        ("", ("model.name=linear", "model.norm=4.0"), 4.0, 1),
        ("", ("model.name=mlp", "model.random=64", "model.depth=1"), 2.0, 2),
    ],
)
def test_the_length_of_a_row_is_read_from_the_schema(
    top: str, changes: tuple[str, ...], length: float, layers: int
) -> None:
    assert shape(table(top, *changes)) == (math.hypot(length, 1), layers)


@pytest.mark.parametrize(
    "changes",
    [
        ("unit=client",),
        ("unit=none",),
        ("optimizer=adam", "steps=2"),
        ("server_optimizer=yogi",),
        ("combine=median",),
        ("task=fashion-scattering",),
        ("task=table", SCHEMA % "", "model.name=cnn"),
        ("task=table", (SCHEMA % 'kind = "regression"')),
        ("code=sha256:" + "0" * 64,),
    ],
)
def test_where_the_rule_does_not_hold_a_number_is_asked_for_and_the_reason_given(
    changes: tuple[str, ...],
) -> None:
    with pytest.raises(PlanError, match="lr must be a number") as error:
        plan(*changes)
    assert "\n" not in str(error.value)
    assert ":" in str(error.value) or "unless classes are learnt" in str(error.value)


def test_statistics_have_no_learning_rate() -> None:
    changes = ("task=statistics", "statistics.of=adult", "rate=1", "rounds=1", "average=false")
    with pytest.raises(PlanError, match="lr must be 1, or left out, for statistics, got auto"):
        plan(*changes)


def test_the_rule_waits_until_rows_and_sites_are_counted() -> None:
    one = load_plan("heart-disease", ["lr=auto"])
    check_numbers(one)
    with pytest.raises(PlanError, match="sites must be the number of sites"):
        float(one.learning_rate)
    counted = with_counts(one, {"a": 100, "b": 300})
    assert 0.1 < counted.learning_rate < 5
    with pytest.raises(PlanError, match="rows must be an integer"):
        float(load_plan("digits", ["lr=auto"]).learning_rate)
    with pytest.raises(PlanError, match="sites must be the number of sites"):
        check_numbers(load_plan("heart-disease", ["lr=auto", "rows=100"]))


def test_a_search_takes_it_for_its_middle() -> None:
    one = full("rounds=60", "tune.epsilon=0.1")
    run = replace(one, tune=None, rounds=30, epsilon=None, sigma=one.nominal_sigma())
    assert one.learning_rate == run.learning_rate
    assert one.stage(31, 4)[0].lr == pytest.approx(one.learning_rate * 10)


def test_forecast_and_report_show_the_number() -> None:
    app = typer.Typer()
    register(app)
    app.callback()(lambda: None)
    said = CliRunner().invoke(
        app, ["plan", "digits", "--set", "lr=auto", "--set", "rows=287", "--json"]
    )
    assert json.loads(said.stdout)["lr"] == full().learning_rate
    text = CliRunner().invoke(app, ["plan", "digits", "--set", "lr=auto"]).stdout
    assert "lr: known once sites and their units are counted" in text
    assert f"is {full().learning_rate:g}, by the rule for lr = auto" in tuning(full())["tuning"]
    assert "rule" not in tuning(load_plan("digits"))["tuning"]


@pytest.mark.parametrize(
    ("name", "sigma"), [("adult", 9.48), ("fashion-mnist", 1.94), ("digits", 6.16)]
)
def test_the_plans_that_were_tuned_by_hand_are_within_the_rules_reach(
    name: str, sigma: float
) -> None:
    """Accuracy hardly changes over a factor of three or more; sigma is the plan's own, rounded."""
    by_hand = load_plan(
        name, [f"sigma={sigma}", "rows=287"] if name == "digits" else [f"sigma={sigma}"]
    )
    by_rule = replace(by_hand, lr="auto")
    assert 1 / 3.5 < by_rule.learning_rate / by_hand.learning_rate < 3.5


def test_adapters_have_no_rule() -> None:
    with pytest.raises(PlanError, match="lr must be a number where a column has adapted layers"):
        load_plan("sms-lora", ["lr=auto"])
