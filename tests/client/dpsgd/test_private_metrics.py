"""One record moves the paid sums by at most what their noise pays for, whatever its loss is."""

import itertools
import math
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
