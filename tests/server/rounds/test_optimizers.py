"""The coordinator's optimizers: arithmetic by hand, memory over checkpoints, digests that stay."""

import numpy as np
import pytest

from privacy.contract.plan import Plan, PlanError
from privacy.contract.plan_file import load_plan
from server.rounds.aggregation import State, Update, combine, server_rate, shrunk, start


def plan_with(*sets: str) -> Plan:
    return load_plan("digits", ["rounds=10", "rows=100", *sets])


def rounds(plan: Plan, *updates: float) -> State:
    state = start({"w": np.zeros(2, np.float32)}, plan)
    for value in updates:
        arrays = {"w": np.array([value, -value], np.float32)}
        state = combine(state, [Update("site-0", arrays)], plan)
    return state


@pytest.mark.parametrize(
    ("name", "second"),
    [
        # m = .9 m + .1 g over 1 - .9^t; v = .99 v + .01 g^2 over 1 - .99^t
        ("adam", (0.9 * 0.2 + 0.1) / 0.19 / np.sqrt((0.99 * 0.04 + 0.01) / 0.0199)),
        # v - .01 g^2 sign(v - g^2): 0.04 - 0.01 sign(0.04 - 1) = 0.05
        ("yogi", (0.9 * 0.2 + 0.1) / 0.19 / np.sqrt((0.04 + 0.01) / 0.0199)),
        ("rmsprop", 1 / np.sqrt((0.99 * 0.04 + 0.01) / 0.0199)),
    ],
)
def test_two_rounds_of_a_server_optimizer_by_hand(name: str, second: float) -> None:
    plan = plan_with(f"server_optimizer={name}", "server_tau=1e-9", "average=false")
    # the first step is the update over its own root: 2 / 2 = 1
    assert rounds(plan, 2.0).weights["w"].tolist() == pytest.approx([1, -1], rel=1e-5)
    assert rounds(plan, 2.0, 1.0).weights["w"].tolist() == pytest.approx(
        [1 + second, -1 - second], rel=1e-5
    )


@pytest.mark.parametrize("name", ["adam", "yogi", "rmsprop"])
def test_a_run_that_goes_on_from_a_checkpoint_is_the_run_that_never_stopped(name: str) -> None:
    plan = plan_with(f"server_optimizer={name}")
    first = rounds(plan, 2.0, -1.0)
    again = State.from_arrays(first.to_arrays(), first.round)
    update = Update("site-0", {"w": np.array([0.5, 3.0], np.float32)})
    there, here = combine(first, [update], plan), combine(again, [update], plan)
    for name_, array in there.to_arrays().items():
        assert np.array_equal(here.to_arrays()[name_], array)


def test_the_rate_warms_up_and_follows_a_cosine_to_nothing() -> None:
    plan = plan_with("server_lr=3", "warmup=2", "server_schedule=cosine")
    rates = [server_rate(plan, done) for done in range(10)]
    assert rates[:3] == pytest.approx([1.0, 2.0, 3.0])
    assert rates[6] == pytest.approx(1.5)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert [server_rate(plan_with("server_lr=3"), done) for done in (0, 9)] == [3.0, 3.0]


def test_an_l1_penalty_zeroes_what_is_small() -> None:
    values = shrunk(np.array([0.5, -0.05, -2.0]), np.float32(0.1))
    assert values.tolist() == pytest.approx([0.4, 0, -1.9])
    plan = plan_with("l1=0.25", "server_lr=2", "average=false")
    assert rounds(plan, 0.2).weights["w"].tolist() == [0, 0]
    assert rounds(plan, 1.0).weights["w"].tolist() == pytest.approx([1.5, -1.5])


def test_what_does_not_fit_is_refused_and_older_plans_keep_their_digests() -> None:
    with pytest.raises(PlanError, match="server_momentum must be 0 unless"):
        plan_with("server_optimizer=adam", "server_momentum=0.9")
    with pytest.raises(PlanError, match="warmup must be below rounds = 10, got 10"):
        plan_with("warmup=10")
    assert "warmup" not in plan_with().to_json() and "l1" not in plan_with().to_json()
    assert plan_with().digest != plan_with("server_tau=0.5").digest
