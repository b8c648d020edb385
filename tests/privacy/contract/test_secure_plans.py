"""Plans of secure aggregation: what they must say together, and the two numbers that they cost."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from privacy.accounting.epsilon import spent
from privacy.accounting.events import Event, EventError
from privacy.accounting.segments import Budget
from privacy.contract.decision import Refusal, alone, judge
from privacy.contract.forecast import epsilons, forecast
from privacy.contract.outputs import outputs
from privacy.contract.plan import Plan, PlanError
from privacy.contract.plan_file import from_json, load_plan
from privacy.contract.policy import Policy, parse_policy
from privacy.ledger.ledger import Exhausted, Ledger, verify

BASE = (
    *("sites=10", "rows=144", "rounds=30", "rate=1.0", "epsilon=1", "delta=1e-4"),
    *("aggregation=secure", "weights=rows", "secure.dropouts=1", "secure.colluding=1"),
)
OPEN = Policy(epsilon=50.0, delta=1e-4, approve="within-limits", epsilon_alone=50.0, parties=("*",))


def secure(*more: str) -> Plan:
    return load_plan("digits", [*BASE, *more])


def test_the_terms_are_part_of_the_digest_and_of_nothing_else_s() -> None:
    plain = load_plan("digits", ["sites=10", "rows=144"])
    assert "secure" not in plain.to_json()
    assert from_json(secure().to_json()) == replace(secure(), simulation=plain.simulation)
    digests = {
        secure(f"secure.dropouts={d}", f"secure.colluding={c}").digest
        for d, c in ((1, 1), (0, 1), (1, 2))
    }
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["secure.dropouts=4"], "secure.dropouts must be >= 0 and <= 3 of 10 parties"),
        (["secure.colluding=4"], "secure.colluding must be >= 0 and <= 3 of 10 parties"),
        (["sites=2"], "secure.parties must be >= 3"),
        (["steps=2"], "steps must be 1 where aggregation"),
        (["optimizer=adam"], 'optimizer must be "sgd"'),
        (["weights=equal"], 'weights must be "rows"'),
        (["cohort=5"], "cohort must be left out"),
        (["wire=int8"], "wire must be float32"),
        (['metrics=["loss"]', "metrics_sigma=5"], "metrics must be left out"),
        (["site.a.epsilon=2"], "site must set no epsilon"),
        (["simulation.engine=vector"], "simulation.engine must be serial or processes"),
        ([f"site.a.key={'0' * 64}"], "the keys of all 10 parties or of none, got 1"),
        (["site.a.key=x"], "a verifying key of 64 hexadecimal digits"),
        (["aggregation=fedavg"], "secure must be left out unless"),
    ],
)
def test_what_a_masked_sum_cannot_hold_is_refused_with_the_reason(
    more: list[str], why: str
) -> None:
    with pytest.raises(PlanError, match=why):
        secure(*more)


def test_a_site_pays_for_the_sum_and_knows_what_its_own_share_gives() -> None:
    """8 of 10 shares: alone sigma is 1 / sqrt(8) of the sum's. Hand-computed by the exact formula:
    30 steps at rate 1 of sigma s are one Gaussian of s / sqrt(30)."""
    event = secure().event("site-0")
    assert event is not None
    assert event.shares == 8
    assert event.alone() == Event("record", event.sigma / math.sqrt(8), 1.0, 1)
    rounds = replace(event, count=30)
    assert spent([rounds], 1e-4) == pytest.approx(1.0, abs=2e-3)
    gaussian = Event("record", event.sigma / math.sqrt(8) / math.sqrt(30), 1.0, 1)
    assert spent([rounds.alone()], 1e-4) == pytest.approx(spent([gaussian], 1e-4), rel=1e-6)
    assert spent([rounds.alone()], 1e-4) > 3


def test_the_forecast_has_both_numbers_and_ends_where_the_second_limit_does() -> None:
    outlook = forecast(secure(), "site-0", OPEN)
    assert outlook.fits == 30
    (_, both), (_, against_all) = (
        *epsilons(outlook, 1e-4, [30]),
        *epsilons(outlook, 1e-4, [30], colluding=True),
    )
    assert 0.99 < both <= 1.0 < 3 < against_all
    strict = replace(OPEN, epsilon_alone=against_all / 2)
    shorter = forecast(secure(), "site-0", strict)
    assert 0 < shorter.fits < 30
    assert shorter.refusal is not None and shorter.refusal.code == "budget-exhausted"
    assert "if all other parties collude" in shorter.refusal.message


def test_unless_its_owner_says_otherwise_a_site_takes_no_secure_plan() -> None:
    default = Policy(epsilon=50.0, delta=1e-4, approve="within-limits")
    for policy, code in (
        (default, "secure-not-allowed"),
        (replace(OPEN, min_parties=11), "too-few-parties"),
        (replace(OPEN, max_colluding=2), "too-many-colluding"),
        (replace(OPEN, parties=()), "parties-not-known"),
    ):
        verdict = judge(secure(), policy, (), site="site-0")
        assert isinstance(verdict, Refusal)
        assert verdict.code == code


def test_the_parties_of_an_approved_plan_are_known_with_it() -> None:
    keys = [f"site.site-{i}.key={i:064x}" for i in range(10)]
    plan = secure(*keys)
    assert len(plan.roster) == 10
    nobody = replace(OPEN, parties=())
    assert isinstance(judge(plan, nobody, (), site="site-0"), Refusal)
    listed = replace(nobody, approve="list", plans=(plan.digest,))
    assert not isinstance(judge(plan, listed, (), site="site-0"), Refusal)
    named = replace(nobody, parties=tuple(plan.roster.values()))
    assert not isinstance(judge(plan, named, (), site="site-0"), Refusal)


def test_a_policy_of_before_is_read_and_refuses_secure_aggregation() -> None:
    policy = parse_policy("epsilon = 1.0\ndelta = 1e-5\n")
    assert policy.epsilon_alone == 0
    assert parse_policy(policy.to_toml()) == policy


def test_the_ledger_holds_the_shares_and_both_limits_bind(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "l.jsonl", population="p", durable=False)
    event = Event("record", 8.0, 1.0, 1, shares=8)
    ledger.spend_all([Event("record", 8.0, 1.0, 1)], None, run="r", round=1, plan="p")
    ledger.spend_all([event], None, run="r", round=2, plan="p")
    lines = (tmp_path / "l.jsonl").read_text().splitlines()
    assert '"shares"' not in lines[0]
    assert '"shares": 8' in lines[1]
    assert [one.shares for one in verify(tmp_path / "l.jsonl").events] == [1, 8]
    assert [one.shares for one in Ledger.open(tmp_path / "l.jsonl").merged()] == [1, 8]
    past = spent(alone(ledger.merged()), 1e-5)
    before = (tmp_path / "l.jsonl").read_bytes()
    with pytest.raises(Exhausted, match="if all other parties collude"):
        ledger.spend_all([event], None, run="r", round=3, plan="p", alone=Budget(past + 0.01, 1e-5))
    assert (tmp_path / "l.jsonl").read_bytes() == before


def test_an_event_has_one_spelling() -> None:
    event = Event("record", 8.0, 1.0, 1, shares=8)
    assert Event.from_dict(event.to_dict()) == event
    with pytest.raises(EventError, match="shares must be left out where it is 1"):
        Event.from_dict(event.to_dict() | {"shares": 1})
    with pytest.raises(EventError, match="shares must be an integer"):
        Event("record", 8.0, 1.0, 1, shares=0)


def test_only_a_secure_plan_says_that_messages_of_the_protocol_leave() -> None:
    plain = load_plan("digits", ["sites=10", "rows=144"])
    for plan, leaves in ((plain, False), (secure(), True)):
        fields = {one.name for one in outputs(plan, plan.events_of_round("site-0"))}
        assert ("message" in fields) is leaves
