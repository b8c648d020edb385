"""One record moves the paid sums by at most what their noise pays for, whatever its loss is."""

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from client.dpsgd import private_metrics
from client.tasks.rows import Rows
from privacy.contract.plan_file import load_plan

KINDS = ("accuracy", "classes", "loss", "rows")
SUBSETS = [s for k in range(1, 5) for s in itertools.combinations(KINDS, k)]
LOSSES = [0.0, 1.0, 4.9, 5.0, 7.0, 1e30, math.inf, -math.inf, -3.0, math.nan]
SIGMA = 3.0


@pytest.fixture
def sums(monkeypatch):
    """What is noised, without its noise: the sums, and the noise in units of sigma."""
    seen = {}

    def silent(values, std, *, over=1.0):
        seen.update(values=np.array(values, dtype=np.float64) / over, unit=std / over / SIGMA)

    monkeypatch.setattr(private_metrics.noise, "privatise", silent)
    return seen


def noised(sums, losses, kinds):
    """The vector of sums over records of these losses, in units of its own sensitivity."""
    n = len(losses)
    task = SimpleNamespace(
        kind="classification",
        classes=("a", "b"),
        loss=lambda out, y: torch.tensor([losses[int(i)] for i in out[:, 2]], dtype=torch.float32),
    )
    x = torch.zeros(n, 3)
    x[:, 2] = torch.arange(n)
    rows = Rows(x, torch.arange(n) % 2)
    plan = load_plan("digits", [f"metrics={list(kinds)!r}", f"metrics_sigma={SIGMA}"])
    device = torch.device("cpu")
    private_metrics.paid_metrics(nn.Identity(), rows, task, plan, device=device)
    return sums["values"] / sums["unit"]


@pytest.mark.parametrize("kinds", SUBSETS, ids="+".join)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_record_moves_what_is_noised_by_at_most_one(sums, kinds, loss):
    base = [0.5, 2.0, 1.0, 3.0]
    moved = noised(sums, [*base, loss], kinds) - noised(sums, base, kinds)
    assert np.isfinite(moved).all()
    assert np.linalg.norm(moved) <= 1 + 1e-3


def test_a_worst_record_uses_the_whole_sensitivity(sums):
    base, kinds = [0.5, 2.0], ("classes", "loss", "rows")
    moved = noised(sums, [*base, 9.0], kinds) - noised(sums, base, kinds)
    assert np.linalg.norm(moved) == pytest.approx(1, rel=2e-3)


def test_the_released_values_are_the_plain_ones_by_hand(monkeypatch):
    monkeypatch.setattr(private_metrics.noise, "privatise", lambda values, std, *, over=1.0: None)
    losses = [1.0, 2.0, 50.0]
    task = SimpleNamespace(
        kind="classification",
        classes=("a", "b"),
        loss=lambda out, y: torch.tensor(losses),
    )
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    rows = Rows(x, torch.tensor([0, 1, 1]))
    plan = load_plan("digits", [f"metrics={list(KINDS)!r}", "metrics_sigma=3", "metrics_clip=5"])
    device = torch.device("cpu")
    found = private_metrics.paid_metrics(nn.Identity(), rows, task, plan, device=device)
    expected = {"accuracy": 2, "class a": 1, "class b": 2, "rows": 3, "loss": 8.0}
    assert found == pytest.approx(expected, rel=1e-5)


class Modal(nn.Module):
    """Says in which mode it is asked: a hit in evaluation, a miss in training."""

    def forward(self, x):
        hit = torch.tensor([1.0, 0.0] if not self.training else [0.0, 1.0])
        return hit.expand(len(x), 2)


@pytest.mark.parametrize("kinds", SUBSETS, ids="+".join)
def test_only_what_the_plan_names_is_measured_and_without_dropout(monkeypatch, kinds):
    monkeypatch.setattr(private_metrics.noise, "privatise", lambda values, std, *, over=1.0: None)
    task = SimpleNamespace(
        kind="classification", classes=("a", "b"), loss=lambda out, y: torch.ones(len(out))
    )
    plan = load_plan("digits", [f"metrics={list(kinds)!r}", "metrics_sigma=3"])
    rows = Rows(torch.zeros(3, 1), torch.zeros(3, dtype=torch.long))
    device = torch.device("cpu")
    found = private_metrics.paid_metrics(Modal().train(), rows, task, plan, device=device)
    every = {"accuracy": 3.0, "loss": 3.0, "rows": 3.0, "class a": 3.0, "class b": 0.0}
    named = {name for name in every if name.split()[0].replace("class", "classes") in kinds}
    named |= {"accuracy"} & set(kinds)
    assert found == pytest.approx({name: every[name] for name in named}, rel=1e-5)


def test_no_metric_leaves_without_noise():
    plan = load_plan("digits", ["metrics=['loss']", "metrics_sigma=3"])
    object.__setattr__(plan, "metrics_sigma", None)
    task = SimpleNamespace(kind="regression", loss=lambda out, y: torch.ones(len(out)))
    rows = Rows(torch.zeros(3, 1), torch.zeros(3))
    with pytest.raises(ValueError, match="metrics_sigma"):
        private_metrics.paid_metrics(nn.Identity(), rows, task, plan, device=torch.device("cpu"))


def test_without_a_row_the_same_sums_are_noised_and_named(sums):
    """A file without rows must not show in what a reply holds."""
    few = noised(sums, [1.0, 2.0], KINDS)
    assert noised(sums, [], KINDS).tolist() == [0.0] * len(few)


def of_people(sums, losses, subject, kinds, **more):
    """As `noised`, of people: row i has the loss losses[i] and belongs to subject[i]."""
    task = SimpleNamespace(
        kind="classification",
        classes=("a", "b"),
        loss=lambda out, y: torch.tensor([losses[int(i)] for i in out[:, 2]], dtype=torch.float32),
    )
    x = torch.zeros(len(losses), 3)
    x[:, 2] = torch.arange(len(losses))
    rows = Rows(x, torch.arange(len(losses)) % 2, subject=torch.tensor(subject, dtype=torch.int64))
    plan = replace(
        load_plan("digits", [f"metrics_sigma={SIGMA}", f"metrics={list(kinds)!r}"]),
        **{"unit": "subject", "rows": None, "subjects": 900} | more,
    )
    device = torch.device("cpu")
    private_metrics.paid_metrics(nn.Identity(), rows, task, plan, device=device)
    return sums["values"]


@pytest.mark.parametrize("kinds", SUBSETS, ids="+".join)
@pytest.mark.parametrize("most", [None, 2])
def test_a_person_with_many_rows_moves_what_is_noised_by_at_most_one(sums, kinds, most):
    base, whose = [0.5, 2.0, 1.0, 3.0], [7, 3, 7, 3]
    for losses in ([9.0] * 6, LOSSES, [math.nan, -math.inf, 1e30]):
        before = of_people(sums, base, whose, kinds, rows_per_subject=most)
        moved = of_people(
            sums, [*base, *losses], [*whose, *[5] * len(losses)], kinds, rows_per_subject=most
        )
        moved = (moved - before) / sums["unit"]
        assert np.isfinite(moved).all()
        assert np.linalg.norm(moved) <= 1 + 1e-9


def test_a_person_counts_once_with_the_mean_of_their_rows(sums, monkeypatch):
    for chunk in (4096, 2):  # a person's rows stay together however few rows go at a time
        monkeypatch.setattr(private_metrics, "_CHUNK", chunk)
        # rows 0, 2, 3 are person 4's (classes a, a, b), row 1 is person 1's (class b)
        found = of_people(sums, [1.0, 2.5, 3.0, 50.0], [4, 1, 4, 4], KINDS, metrics_clip=5.0)
        accuracy, a, b, loss, rows = found
        assert rows == 2
        assert loss == pytest.approx((1 + 3 + 5) / 3 / 5 + 2.5 / 5, abs=2**-19)
        assert (a, b) == pytest.approx((2 / 3, 1 / 3 + 1), abs=2**-19)
        assert accuracy <= 2
        first = of_people(sums, [1.0, 2.5, 3.0, 50.0], [4, 1, 4, 4], ("loss",), rows_per_subject=1)
        assert first == pytest.approx(1 / 5 + 2.5 / 5, abs=2**-19)


def test_no_people_are_noise_alone(sums):
    assert of_people(sums, [], [], KINDS).tolist() == [0] * 5
