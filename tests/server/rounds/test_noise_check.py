"""A site whose update has too little noise, or too much signal, is named and does not count."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import client.app
from client.dpsgd.training import Trained
from privacy.accounting.events import Event
from privacy.contract.plan import Plan
from privacy.contract.plan_file import load_plan
from server.rounds.messages import Answer, ReplyError
from server.rounds.noise_check import check_noise, honest_update
from simulations.run import simulate

PLAIN = ("rate=0.5", "rows=200", "sites=3", "lr=2.0", "clip=0.5", "sigma=4.0")


def law(*overrides: str, number: int = 1) -> Any:
    plan = load_plan("digits", [*PLAIN, *overrides])
    event = plan.events_of_round("site-0")[0]
    return honest_update(plan, "site-0", event, event.sigma, number, chance=1e-8)


def test_one_step_moves_by_its_noise_over_the_public_denominator() -> None:
    one = law()
    assert one.last == pytest.approx(2.0 * 4.0 * 0.5 / 100)
    assert one.noise == pytest.approx(one.last, rel=0.01)
    # twice the rows, all in one batch but for chance, each with the clip
    assert 2.0 * 0.5 * 2 < one.signal < 2.0 * 0.5 * 4


def test_many_steps_add_their_noise_and_only_the_last_cannot_be_undone() -> None:
    one, nine = law(), law("steps=9")
    assert nine.last == pytest.approx(one.last)
    assert nine.noise == pytest.approx(3 * one.noise)
    assert nine.signal > 8 * one.signal / 2


def test_momentum_repeats_a_step_in_all_later_ones() -> None:
    two = law("optimizer=momentum", "momentum=0.5", "steps=2")
    unit = 2.0 * 4.0 * 0.5 / 100
    assert two.last == pytest.approx(unit)
    assert two.noise == pytest.approx(math.sqrt(1.5**2 + 1) * unit, rel=0.01)


def test_the_schedules_rate_of_the_round_is_taken() -> None:
    first, last = (law("schedule=cosine", "rounds=10", number=n) for n in (1, 10))
    assert first.last == pytest.approx(law().last)
    assert last.last == pytest.approx(law().last * 0.5 * (1 + math.cos(0.9 * math.pi)))


def test_what_weight_decay_or_a_pull_adds_has_no_bound() -> None:
    for keys in (("l2=0.1",), ("aggregation=fedprox", "mu=0.1")):
        assert law(*keys).signal is None
        assert law(*keys).last == pytest.approx(law().last)


def answer(update: np.ndarray, sigma: float | None = None) -> Answer:
    return Answer("site-0", "trained", None, arrays={"w": update.astype(np.float32)}, sigma=sigma)


def check(one: Answer, plan: Plan) -> None:
    check_noise(one, plan, 1, largest=1.0, sites=3)


def test_a_site_that_says_it_adds_more_noise_must_show_it() -> None:
    plan = load_plan("digits", [*PLAIN])
    noise = np.random.default_rng(0).normal(0, 0.04, 2000)
    check(answer(noise), plan)
    with pytest.raises(ReplyError, match="too-quiet"):
        check(answer(noise, sigma=8.0), plan)
    check(answer(2 * noise, sigma=8.0), plan)


def test_without_a_known_law_nothing_is_judged() -> None:
    zeros = answer(np.zeros(2000))
    for keys in (("optimizer=adam",), ("unit=client",)):
        check(zeros, load_plan("digits", [*PLAIN, *keys]))
    check(zeros, load_plan("digits", ["unit=none", "rows=200"]))


@pytest.mark.parametrize("wire", ["float32", "bfloat16", "int8"])
def test_a_wires_rounding_is_not_taken_for_missing_noise(wire: str, tmp_path: Path) -> None:
    plan = load_plan("digits", [f"wire={wire}", "rounds=2", "sites=2"])
    lines = simulate(plan, tmp_path / "run").outcome.history
    assert {e["status"] for line in lines for e in line["sites"].values()} == {"trained"}


Change = Callable[[Trained], Trained]


def _quiet(trained: Trained) -> Trained:
    return trained


def _scaled(factor: float) -> Change:
    def change(trained: Trained) -> Trained:
        return replace(trained, update={n: factor * a for n, a in trained.update.items()})

    return change


def _constant(trained: Trained) -> Trained:
    return replace(trained, update={n: np.full_like(a, 0.01) for n, a in trained.update.items()})


def hostile(monkeypatch: pytest.MonkeyPatch, change: Change, noise: float = 1.0) -> None:
    """Let site-0 train with so much of its noise, then change its update."""
    train = client.app.train

    def changed(*args: Any, site: str, event: Event, **rest: Any) -> Trained:
        if site != "site-0":
            return train(*args, site=site, event=event, **rest)
        event = replace(event, sigma=noise * event.sigma)
        return change(train(*args, site=site, event=event, **rest))

    monkeypatch.setattr(client.app, "train", changed)


@pytest.mark.parametrize(
    ("change", "noise", "reason"),
    [(_quiet, 0.5, "too-quiet"), (_scaled(-10), 1.0, "too-loud"), (_constant, 1.0, "too-quiet")],
)
def test_a_hostile_site_is_named_in_the_first_round_and_the_others_count(
    change: Change,
    noise: float,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hostile(monkeypatch, change, noise)
    plan = load_plan("digits", ["sites=10", "operation.stop_after=1", "operation.min_sites=9"])
    simulate(plan, tmp_path / "run")
    (line,) = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    sites = json.loads(line)["sites"]
    assert sites["site-0"]["status"] == "failed"
    assert sites["site-0"]["reason"] == reason
    assert sites["site-0"]["epsilon"] > 0  # it paid all the same
    assert {sites[f"site-{i}"]["status"] for i in range(1, 10)} == {"trained"}


def test_checks_can_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile(monkeypatch, _scaled(-10))
    keys = ["sites=3", "rounds=1", "operation.check_noise=false"]
    lines = simulate(load_plan("digits", keys), tmp_path / "run").outcome.history
    assert lines[0]["sites"]["site-0"]["status"] == "trained"
