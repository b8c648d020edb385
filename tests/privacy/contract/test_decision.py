"""The policy: a plan is a request, judged without the data; and its cost, before it runs."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accounting.epsilon import spent
from privacy.accounting.events import Event
from privacy.accounting.segments import Budget
from privacy.contract.decision import Accepted, Refusal, judge, with_records
from privacy.contract.forecast import (
    EVERY,
    Course,
    epsilons,
    forecast,
    last_true,
    rounds_that_fit,
    sites_of,
)
from privacy.contract.outputs import PUBLIC, REASONS, outputs
from privacy.contract.plan import Plan, SitePlan
from privacy.contract.plan_file import parse
from privacy.contract.policy import Policy, PolicyError, load_policy, parse_policy
from privacy.ledger.ledger import Exhausted, Ledger


def plan(**changes: Any) -> Plan:
    table: dict[str, Any] = {
        "task": "digits",
        "sites": 3,
        "rounds": 10,
        "steps": 2,
        "rate": 0.2,
        "rows": 300,
        "lr": 1.0,
        "clip": 1.0,
        "sigma": 2.0,
        "delta": 1e-5,
    }
    table |= changes
    return parse({key: value for key, value in table.items() if value is not None})


def metered() -> Plan:
    return plan(metrics=["loss", "accuracy"], metrics_sigma=20.0)


def policy(**changes: Any) -> Policy:
    return replace(Policy(epsilon=5.0, delta=1e-5, approve="within-limits"), **changes)


def accepted(verdict: Accepted | Refusal) -> Accepted:
    assert isinstance(verdict, Accepted), verdict
    return verdict


def test_a_plan_within_the_limits_is_accepted_with_its_own_events() -> None:
    verdict = accepted(judge(plan(), policy(), (), site="site-0"))
    assert verdict.events == plan().events_of_round("site-0")
    assert verdict.event == Event("record", 2.0, 0.2, 2)
    assert verdict.sigma == 2.0


@pytest.mark.parametrize(
    ("asked", "rules", "code"),
    [
        (plan(), policy(epsilon=0.01), "budget-exhausted"),
        (plan(), policy(approve="list"), "plan-not-approved"),
        (plan(), policy(denied=(plan().digest,)), "plan-denied"),
        (
            plan(),
            policy(approve="list", plans=(plan().digest,), denied=(plan().digest,)),
            "plan-denied",
        ),
        (plan(), policy(min_sigma=2.1), "noise-too-low"),
        (
            metered(),
            policy(min_sigma=20.1, outputs=("update", "loss", "accuracy")),
            "noise-too-low",
        ),
        (plan(), policy(max_rate=0.1), "rate-too-high"),
        (plan(), policy(max_steps=1), "too-many-steps"),
        (plan(), policy(tasks=("adult",)), "task-not-allowed"),
        (plan(), policy(tasks=()), "task-not-allowed"),
        (metered(), policy(outputs=("update", "loss")), "output-not-allowed"),
        (plan(), policy(outputs=()), "output-not-allowed"),
        (plan(limit=0.01), policy(), "budget-exhausted"),
        (plan(unit="client"), policy(), "coordinator-not-trusted"),
        (
            plan(unit="none", clip=None, sigma=None, delta=None),
            policy(),
            "coordinator-not-trusted",
        ),
        pytest.param(
            plan(sigma=1.0),
            policy(records_per_subject=2, epsilon=3.0),
            "budget-exhausted",
            marks=pytest.mark.slow,
        ),
        (plan(), policy(max_rounds_per_day=3), "too-many-rounds-today"),
    ],
)
def test_each_limit_refuses_with_its_own_code(asked: Plan, rules: Policy, code: str) -> None:
    verdict = judge(asked, rules, (), site="site-0", rounds_today=3)
    assert isinstance(verdict, Refusal)
    assert verdict.code == code
    assert verdict.code in REASONS
    assert "\n" not in verdict.message


def test_an_approved_plan_is_accepted_by_its_hash_alone() -> None:
    rules = policy(approve="list", plans=(plan().digest,))
    accepted(judge(plan(), rules, (), site="site-0"))
    assert isinstance(judge(plan(lr=1.1), rules, (), site="site-0"), Refusal)


@pytest.mark.parametrize("unit", ["client", "none"])
def test_a_trusted_coordinator_may_see_what_is_not_noised_and_the_site_spends_nothing(
    unit: str,
) -> None:
    private: dict[str, Any] = {} if unit == "client" else dict.fromkeys(("clip", "sigma", "delta"))
    verdict = judge(plan(unit=unit, **private), policy(trust_coordinator=True), (), site="site-0")
    assert accepted(verdict).events == ()
    assert accepted(verdict).event is None


def test_a_ledger_of_another_unit_is_not_gone_on_with() -> None:
    verdict = judge(plan(), policy(), (Event("client", 2.0, 1.0, 1),), site="site-0")
    assert isinstance(verdict, Refusal)
    assert verdict.code == "ledger-untrusted"


def test_the_plans_own_limit_counts_this_run_alone() -> None:
    event = plan().events_of_round("site-0")[0]
    past = (replace(event, count=3),)
    limited = plan(limit=spent([replace(event, count=3)], 1e-5) + 1e-6)
    accepted(judge(limited, policy(), past, site="site-0", run=(replace(event, count=2),)))
    assert isinstance(judge(limited, policy(), past, site="site-0", run=past), Refusal)


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(
    epsilon=st.floats(0.2, 6.0),
    rounds=st.integers(1, 12),
    sigma=st.floats(1.0, 5.0),
    past=st.integers(0, 5),
)
def test_what_is_accepted_can_be_spent_and_what_is_refused_cannot(
    tmp_path_factory: pytest.TempPathFactory, epsilon: float, rounds: int, sigma: float, past: int
) -> None:
    ledger = Ledger.create(
        tmp_path_factory.mktemp("ledger") / "l.jsonl", population="p", durable=False
    )
    asked, rules = plan(rounds=rounds, sigma=sigma), policy(epsilon=epsilon)
    event = asked.events_of_round("site-0")[0]
    for number in range(past):
        ledger.spend(event, None, run="before", round=number, plan="p")
    verdict = judge(asked, rules, ledger.merged(), site="site-0")
    if isinstance(verdict, Accepted):
        ledger.spend_all(verdict.events, rules.budget, run="r", round=1, plan="p")
        assert ledger.spent(1e-5) <= epsilon
    else:
        with pytest.raises(Exhausted):
            ledger.spend(event, rules.budget, run="r", round=1, plan="p")


@pytest.mark.slow
def test_with_more_noise_a_smaller_budget_lasts_for_every_round() -> None:
    asked = plan(rounds=12)
    rules = policy(epsilon=spent([replace(asked.events_of_round("s")[0], count=5)], 1e-5))
    rules = replace(rules, more_noise=True)
    past: list[Event] = []
    for number in range(1, asked.rounds + 1):
        past += accepted(judge(asked, rules, past, site="s", round=number)).events
    assert len({event.sigma for event in past}) == 1
    assert past[0].sigma > 2.0
    assert 0.99 * rules.epsilon < spent(past, 1e-5) <= rules.epsilon
    late = judge(asked, rules, past, site="s", round=asked.rounds)
    assert isinstance(late, Refusal)
    assert late.code == "budget-exhausted"


def test_with_more_noise_the_least_sigma_is_answered_rather_than_refused() -> None:
    verdict = judge(plan(), policy(min_sigma=3.0, more_noise=True), (), site="site-0")
    assert accepted(verdict).sigma == 3.0


def test_more_noise_is_never_less_than_the_plans() -> None:
    past = (Event("record", 1.0, 0.2, 2),)
    rules = policy(epsilon=100.0, more_noise=True)
    assert accepted(judge(plan(), rules, past, site="site-0")).sigma == 2.0


def test_a_policy_file_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    rules = policy(tasks=("digits", 'a "b" \\ \n ü'), plans=("0" * 64,), max_rate=0.25)
    path = tmp_path / "policy.toml"
    path.write_text(rules.to_toml(), encoding="utf-8")
    assert load_policy(path) == rules
    for item in fields(Policy):
        assert f"\n{item.name} = " in rules.to_toml()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("delta = 1e-5", "epsilon"),
        ("epsilon = 1.0", "delta"),
        ("epsilon = 1.0\ndelta = 1e-5\nepsilom = 2", "epsilom"),
        ("epsilon = -1\ndelta = 1e-5", "epsilon"),
        ("epsilon = inf\ndelta = 1e-5", "epsilon"),
        ("epsilon = nan\ndelta = 1e-5", "epsilon"),
        ("epsilon = true\ndelta = 1e-5", "epsilon"),
        ("epsilon = 1\ndelta = 0", "delta"),
        ("epsilon = 1\ndelta = 1", "delta"),
        ("epsilon = 1\ndelta = 1e-5\nmax_rate = 0", "max_rate"),
        ("epsilon = 1\ndelta = 1e-5\nmax_rate = 1.5", "max_rate"),
        ("epsilon = 1\ndelta = 1e-5\nmin_sigma = nan", "min_sigma"),
        ("epsilon = 1\ndelta = 1e-5\nmax_steps = 0.5", "max_steps"),
        ('epsilon = 1\ndelta = 1e-5\napprove = "all"', "approve"),
        ('epsilon = 1\ndelta = 1e-5\ntasks = "digits"', "tasks"),
        ("epsilon = 1\ndelta = 1e-5\nplans = [1]", "plans"),
        ("epsilon = 1\ndelta = 1e-5\ntrust_coordinator = 1", "trust_coordinator"),
        ("epsilon = 1\ndelta = 1e-5\nrecords_per_subject = 0", "records_per_subject"),
        ("epsilon = ", "TOML"),
    ],
)
def test_a_policy_that_is_not_clear_is_refused_by_name(
    tmp_path: Path, text: str, named: str
) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(PolicyError, match=named) as error:
        load_policy(path)
    assert str(path) in str(error.value)


def test_a_policy_that_is_not_there_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="policy new"):
        load_policy(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(PolicyError, match=r"binary\.toml"):
        load_policy(tmp_path / "binary.toml")


def test_a_simulated_site_allows_its_plan_up_to_its_limit() -> None:
    asked = metered()
    event = asked.events_of_round("site-0")
    free = Policy.simulated(asked, None)
    assert free.budget is None
    assert accepted(judge(asked, free, (), site="site-0")).events == event
    bound = Policy.simulated(asked, Budget(0.01, 1e-5))
    assert isinstance(judge(asked, bound, (), site="site-0"), Refusal)


# The forecast


@pytest.mark.long
@pytest.mark.parametrize(
    "asked",
    [
        plan(),
        metered(),
        plan(rate=1.0, sigma=None, epsilon=2.0),
        pytest.param(plan(sigma=None, epsilon=2.0), marks=pytest.mark.slow),
    ],
)
def test_the_forecast_agrees_with_the_ledger_of_the_run(tmp_path: Path, asked: Plan) -> None:
    rules = policy(epsilon=1.5, outputs=("update", "loss", "accuracy"))
    found = forecast(asked, "site-0", rules)
    foretold = dict(epsilons(found, asked.required_delta, range(1, asked.rounds + 1)))
    ledger = Ledger.create(tmp_path / "l.jsonl", population="p", durable=False)
    for number in range(1, asked.rounds + 1):
        verdict = judge(asked, rules, ledger.merged(), site="site-0", round=number)
        if isinstance(verdict, Refusal):
            assert found.refused == number
            assert found.refusal is not None
            assert found.refusal.code == verdict.code == "budget-exhausted"
            break
        ledger.spend_all(verdict.events, rules.budget, run="r", round=number, plan=asked.digest)
        assert abs(ledger.spent(asked.required_delta) - foretold[number]) < 1e-9
    else:
        assert found.refused is None


@pytest.mark.long
def test_the_forecast_goes_on_from_what_was_spent() -> None:
    event = plan().events_of_round("site-0")[0]
    rules = policy(epsilon=spent([replace(event, count=7)], 1e-5))
    assert forecast(plan(), "site-0", rules).refused == 8
    assert forecast(plan(), "site-0", rules, [replace(event, count=4)]).refused == 4
    assert forecast(plan(), "site-0", rules, [replace(event, count=7)]).refused == 1


def test_a_plan_that_waits_for_approval_is_still_counted() -> None:
    found = forecast(plan(), "site-0", policy(approve="list"))
    assert found.refused == 1
    assert found.refusal is not None
    assert found.refusal.code == "plan-not-approved"
    assert dict(epsilons(found, 1e-5, [10]))[10] == plan().epsilon_after("site-0", 10)


def test_the_sites_of_a_plan_are_known_by_number_or_by_name() -> None:
    assert sites_of(plan()) == ("site-0", "site-1", "site-2")
    assert sites_of(plan(sites=None, split="natural")) == (EVERY,)
    assert sites_of(plan(sites=None, split="natural", site={"b": {}, "a": {"rows": 9}})) == (
        "a",
        "b",
    )
    assert plan(site={"site-1": {"limit": 1.0}}).site_overrides("site-1") == SitePlan(limit=1.0)


@settings(max_examples=200, deadline=None)
@given(most=st.integers(0, 5000), last=st.integers(0, 6000))
def test_the_last_round_that_holds_is_found(most: int, last: int) -> None:
    calls: list[int] = []

    def holds(n: int) -> bool:
        calls.append(n)
        return n <= last

    assert last_true(holds, most) == min(most, last)
    assert len(calls) < 30


@pytest.mark.long
@pytest.mark.parametrize(
    "asked", [plan(rate=1.0, sigma=10.0), pytest.param(plan(), marks=pytest.mark.slow)]
)
def test_the_rounds_that_fit_fit_and_one_more_does_not(asked: Plan) -> None:
    events = asked.events_of_round("site-0")
    limit = Budget(3.0, 1e-5)
    fits = rounds_that_fit((), Course(events), limit)
    assert spent([replace(e, count=fits) for e in events], 1e-5) <= 3.0
    assert spent([replace(e, count=fits + 1) for e in events], 1e-5) > 3.0


UNPRIVATE = plan(unit="none", clip=None, sigma=None, delta=None)


@pytest.mark.parametrize(
    ("asked", "bare"),
    [
        (lambda: plan(), set()),
        (metered, set()),
        (lambda: plan(unit="client"), {"update"}),
        (lambda: UNPRIVATE, {"update"}),
    ],
)
def test_every_field_that_leaves_is_paid_public_or_named_as_bare(
    asked: Callable[[], Plan], bare: set[str]
) -> None:
    chosen = asked()
    fields_ = outputs(chosen, chosen.events_of_round("site-0"))
    assert {one.name for one in fields_ if not one.protected} == bare
    for one in fields_:
        assert one.protected == (one.event is not None or one.name in PUBLIC)
        assert one.why


def test_a_policy_is_a_value() -> None:
    assert parse_policy(policy().to_toml()) == policy()
    assert hash(policy()) == hash(policy())
    json.dumps(policy().tasks)


@pytest.mark.parametrize("unit", ["record", "subject"])
def test_a_policy_can_demand_whom_a_plan_protects(unit: str) -> None:
    by_record = Plan(
        task="digits", rounds=2, rate=0.1, rows=100, lr=1, sites=1, clip=1, sigma=1, delta=1e-4
    )
    by_person = replace(by_record, unit="subject", rows=None, subjects=100)
    policy = Policy(epsilon=9.0, delta=1e-4, approve="within-limits", unit=unit)  # type: ignore[arg-type]
    for plan in (by_record, by_person):
        verdict = judge(plan, policy, (), site="a")
        if plan.unit == unit:
            assert isinstance(verdict, Accepted)
        else:
            assert isinstance(verdict, Refusal)
            assert verdict.code == "unit-not-allowed"
    for plan in (by_record, by_person):
        assert isinstance(judge(plan, replace(policy, unit="any"), (), site="a"), Accepted)


def test_a_cap_prices_records_and_never_people() -> None:
    policy = Policy(epsilon=9.0, delta=1e-4, approve="within-limits", records_per_subject=3)
    record, person = Event("record", 1.0, 0.1, 1), Event("subject", 1.0, 0.1, 1)
    assert [e.records for e in with_records([record, person], policy)] == [3, 1]
