"""The client unit: the coordinator's noise follows the clip of the moment, its ledger the limit."""

from pathlib import Path

import numpy as np
import pytest

from privacy.accounting.epsilon import spent
from privacy.accounting.events import Event
from privacy.contract.plan_file import load_plan
from privacy.mechanism import noise
from server.rounds.aggregation import State, Update, combine
from simulations.run import simulate

UNIT = ["unit=client", "sigma=3.0", "clip=1.0", "sites=4", "delta=1e-4"]


def plan_of(*more: str):
    return load_plan("digits", [*UNIT, *more])


def noise_after(clip: float) -> float:
    plan = plan_of("clip_quantile=0.5", "clip_sigma=1.0", "server_lr=1")
    silent = {"w": np.zeros(40_000, np.float32)}
    state = State(3, silent, None, None, clip)
    after = combine(state, [Update(s, silent, 0.5) for s in "abcd"], plan, sites=4)
    return float(after.weights["w"].std()) * 4


@pytest.mark.parametrize("clip", [0.1, 1.0, 5.0])
def test_the_noise_is_sigma_times_the_clip_of_the_moment(clip: float) -> None:
    sigma = plan_of("clip_quantile=0.5", "clip_sigma=1.0").nominal_sigma()
    assert sigma is not None
    assert noise_after(clip) == pytest.approx(sigma * clip, rel=0.03)


def test_the_noise_pays_for_what_float64_adds_and_for_the_half_that_a_site_moves_the_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deviations: list[float] = []
    monkeypatch.setattr(noise, "privatise", lambda sums, std, **_: deviations.append(std))
    plan = plan_of("clip_quantile=0.5", "clip_sigma=1.5")
    sigma = plan.nominal_sigma()
    assert sigma is not None
    state = State(1, {"w": np.zeros(9, np.float32)}, None, None, 2.0)
    combine(state, [Update("a", {"w": np.ones(9, np.float32)}, 0.5)], plan, sites=1)
    of_sum, of_count = deviations
    assert 2 * sigma * (1 + 2.0**-18) <= of_sum < 2 * sigma * (1 + 2.0**-17)
    assert 1.5 / 2 <= of_count < 1.5 / 2 * (1 + 2.0**-20)


def test_no_update_moves_the_sum_by_more_than_the_clip_of_the_moment() -> None:
    plan = plan_of("clip_quantile=0.5", "clip_sigma=1.0", "sigma=1e-5", "server_lr=1")
    state = State(1, {"w": np.zeros(9, np.float32)}, None, None, 0.25)
    loud = Update("a", {"w": np.full(9, 1e6, np.float32)}, -0.5)
    after = combine(state, [loud], plan, sites=1)
    assert np.linalg.norm(after.weights["w"]) == pytest.approx(0.25, rel=1e-3)


def test_a_limit_of_the_plan_ends_the_run_before_it_is_passed(tmp_path: Path) -> None:
    three = spent([Event("client", 3.0, 1.0, 1, count=3)], 1e-4)
    plan = load_plan("digits", [*UNIT, "rounds=6", f"limit={three * 1.01}", "steps=1"])
    simulate(plan, folder=tmp_path / "run")
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert len(lines) == 3
