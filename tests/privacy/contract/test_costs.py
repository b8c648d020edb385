"""What a plan costs is never more than it says, and each limit binds everything it is about."""

from dataclasses import replace

import pytest

from privacy.contract.decision import Refusal, judge
from privacy.contract.plan_file import parse
from privacy.contract.policy import Policy

BASE = {
    "task": "digits",
    "rounds": 50,
    "sites": 2,
    "rate": 0.05,
    "rows": 300,
    "lr": 1.0,
    "clip": 1.0,
    "delta": 1e-5,
    "metrics": ["loss", "accuracy"],
    "metrics_sigma": 20.0,
}


@pytest.mark.parametrize("rate", [1.0, pytest.param(BASE["rate"], marks=pytest.mark.slow)])
def test_epsilon_covers_the_metrics_of_every_round(rate: float) -> None:
    plan = parse(BASE | {"epsilon": 3.0, "rate": rate})
    cost = plan.epsilon_after("site-0", plan.rounds)
    assert cost is not None
    assert 2.9 < cost <= 3.0


@pytest.mark.parametrize("quieter", ["training", "metrics"])
def test_the_least_noise_binds_the_quietest_release(quieter: str) -> None:
    training, metrics = (2.0, 20.0) if quieter == "training" else (20.0, 2.0)
    plan = parse(BASE | {"sigma": training, "metrics_sigma": metrics})
    policy = Policy(
        epsilon=100.0,
        delta=1e-5,
        approve="within-limits",
        outputs=("update", "loss", "accuracy"),
    )
    refused = judge(plan, replace(policy, min_sigma=5.0), (), site="site-0")
    assert isinstance(refused, Refusal)
    assert refused.code == "noise-too-low"
    assert not isinstance(judge(plan, replace(policy, min_sigma=2.0), (), site="site-0"), Refusal)
