"""The audit's own account of an optimizer is that of torch, and its settings visit every level."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from client.audit import setting_checks
from client.audit.audit import settings_of
from client.audit.reference import change, gain, rate, spread
from client.audit.settings import ROUNDS, Drawn, Setting, draw, of_plan
from client.dpsgd import training
from client.dpsgd.training import optimizer_of, proximal
from privacy.contract.plan_file import load_plan

kinds = st.sampled_from(["sgd", "momentum", "adam"])


def by_torch(setting: Setting, start: np.ndarray, means: np.ndarray) -> np.ndarray:
    p = nn.Parameter(torch.tensor(start))
    optimizer = optimizer_of([p], setting.plan)
    pull = proximal([p], setting.mu)
    for step, g in enumerate(means):
        for group in optimizer.param_groups:
            first = (setting.round - 1) * setting.steps
            group["lr"] = setting.plan.lr_at(first + step, ROUNDS * setting.steps)
        p.grad = torch.tensor(g)
        pull()
        optimizer.step()
    return p.detach().numpy() - start


@settings(max_examples=40, deadline=None)
@given(
    kinds,
    st.sampled_from(["constant", "cosine"]),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from([0.0, 0.3]),
    st.integers(1, 5),
    st.sampled_from([1, 5, ROUNDS // 2]),
)
def test_the_reference_is_torchs_optimizer(kind, schedule, l2, mu, steps, round_):
    setting = Setting(
        1.0,
        lr=0.2,
        optimizer=kind,
        momentum=0.6 if kind == "momentum" else 0.0,
        schedule=schedule,
        l2=l2,
        mu=mu,
        steps=steps,
        round=round_,
    )
    source = np.random.default_rng(steps)
    start, means = source.normal(size=7), source.normal(size=(steps, 7))
    if kind == "adam":
        setting = Setting(**{**{f: getattr(setting, f) for f in setting.__slots__}, "mu": 0.0})
    expected = by_torch(setting, start, means)
    assert np.allclose(change(setting, start, means), expected, rtol=1e-6, atol=1e-9)


def test_the_noise_of_plain_steps_adds_up_by_hand():
    plain = Setting(1.0, steps=4, lr=0.5)
    assert gain(plain) == pytest.approx(-2.0)
    assert spread(plain) == pytest.approx(0.5 * 4**0.5)
    momentum = Setting(1.0, steps=2, lr=1.0, optimizer="momentum", momentum=0.5)
    assert gain(momentum) == pytest.approx(-(1 + 0.5 + 1))
    assert spread(momentum) == pytest.approx((1.5**2 + 1) ** 0.5)


def test_the_rate_falls_over_all_rounds():
    setting = Setting(1.0, schedule="cosine", round=ROUNDS // 2 + 1, lr=3.0)
    assert rate(setting, 0) == pytest.approx(1.5)


@pytest.mark.parametrize("seed", range(5))
def test_every_audit_visits_every_level(seed):
    drawn = draw(np.random.default_rng(seed), 16)
    assert {one.setting.optimizer for one in drawn} == {"sgd", "momentum", "adam"}
    assert {one.setting.micro_batch for one in drawn} == {None, 1, 7, 32}
    assert {one.setting.precision for one in drawn} == {"float32", "bfloat16"}
    assert {one.setting.threads for one in drawn} == {1, 2}
    assert {one.setting.steps for one in drawn} == {1, 2, 3, 8}
    assert max(one.size for one in drawn) == 2**20
    assert max(one.rows for one in drawn) == 100_000
    assert len({one.setting.clip for one in drawn}) == 16


def test_a_seed_draws_the_same_settings_and_a_plan_adds_its_own():
    assert settings_of(5) == settings_of(5) != settings_of(6)
    plan = load_plan("digits")
    more = settings_of(5, plan)
    assert more[: len(settings_of(5))] == settings_of(5)
    assert {one.setting for one in more[len(settings_of(5)) :]} == {of_plan(plan, "audit")}


@pytest.mark.parametrize("name", ["movielens", "shakespeare"])
def test_where_a_plan_protects_people_its_settings_draw_people(name, monkeypatch):
    setting = of_plan(load_plan(name), "audit")
    assert setting.unit == setting.event.unit == "subject"
    units, train = [], training.train

    def seen(model, rows, task, plan, **words):
        units.append((plan.unit, words["event"].unit, rows.subject is not None))
        return train(model, rows, task, plan, **words)

    monkeypatch.setattr(training, "train", seen)
    found = setting_checks.noise_under_every_setting([Drawn(setting, 512, 40)], "cpu")
    assert found.passed
    assert set(units) == {("subject", "subject", True)}


def test_a_plan_whose_sites_add_no_noise_is_refused_in_one_line():
    plan = load_plan("digits", ["unit=client", "sigma=2.0"])
    with pytest.raises(ValueError, match="unit must be one whose sites add the noise, got client"):
        settings_of(5, plan)
