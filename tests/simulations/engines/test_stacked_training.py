"""Training together is training one by one; what is drawn for all is each one's own."""

from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from client.dpsgd.per_sample import ModelError
from client.dpsgd.training import TrainingError, train
from client.tasks.digits import task as digits
from client.tasks.losses import cross_entropy, squared_error
from client.tasks.rows import Rows
from privacy.accounting.events import Event
from privacy.contract.plan import Plan, PlanError
from privacy.contract.plan_file import load_plan
from privacy.mechanism import noise
from privacy.mechanism.sensitivity import noise_std, slack
from simulations.engines.stacked_models import Stack
from simulations.engines.stacked_training import Batches, Member, noisy_means, train_together

SHARED = nn.Linear(4, 4)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), (4,)),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)), (4,)),
        (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), (4,)),
        (nn.Sequential(SHARED, nn.Tanh(), SHARED), (4,)),
        (nn.Sequential(nn.Flatten(0), nn.Linear(4, 4)), (2, 2)),
        (nn.Linear(4, 4), (3, 4)),
        (nn.Linear(4, 4).requires_grad_(False), (4,)),
        (nn.Linear(4, 4).double(), (4,)),
        (nn.Sequential(nn.Tanh()), (4,)),
        (nn.Embedding(4, 4), (4,)),
    ],
    ids=lambda value: str(value).replace("\n", ""),
)
def test_only_linear_layers_on_vectors_are_stacked(model: nn.Module, shape: Any) -> None:
    with pytest.raises(ModelError, match="model: expected"):
        Stack(model, shape)


ACTIVATIONS = [nn.Tanh, nn.ReLU, nn.Sigmoid, nn.GELU, nn.Softplus]


@st.composite
def models(draw: st.DrawFn) -> tuple[Callable[[int], nn.Module], tuple[int, ...]]:
    shape = draw(st.sampled_from([(3,), (1,), (2, 2), (1, 2, 3)]))
    widths = draw(st.lists(st.integers(1, 5), max_size=2))
    activation = draw(st.sampled_from(ACTIVATIONS))
    bias = draw(st.booleans())

    def build(seed: int) -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()] if len(shape) > 1 else []
        before = int(np.prod(shape))
        for width in widths:
            layers += [nn.Linear(before, width, bias=bias), activation()]
            before = width
        return nn.Sequential(*layers, nn.Linear(before, 2))

    return build, shape


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    prox = draw(st.booleans())
    return Plan(
        task="digits",
        rounds=draw(st.integers(1, 3)),
        rate=draw(st.sampled_from([0.05, 0.3, 1.0])),
        rows=draw(st.integers(1, 20)),
        steps=draw(st.integers(1, 3)),
        lr=draw(st.sampled_from([0.01, 0.3])),
        clip=draw(st.sampled_from([0.01, 1.0, 100.0])),
        optimizer=draw(st.sampled_from(["sgd", "momentum", "adam"])),
        schedule=draw(st.sampled_from(["constant", "cosine"])),
        l2=draw(st.sampled_from([0.0, 0.1])),
        aggregation="fedprox" if prox else "fedavg",
        mu=1.0 if prox else 0.0,
        delta=1e-5,
        sigma=1.0,
        sites=1,
    )


@settings(max_examples=60, deadline=None)
@given(
    models(),
    plans(),
    st.lists(st.integers(0, 9), min_size=1, max_size=5),
    st.sampled_from([0.0, 0.7, None]),
    st.sampled_from([None, np.nan, np.inf, 1e30]),
    st.integers(0, 2**32 - 1),
)
def test_training_together_is_training_one_by_one(
    shaped: Any, plan: Plan, sizes: list[int], sigma: float | None, odd: float | None, seed: int
) -> None:
    build, shape = shaped
    draws = np.random.default_rng(seed)
    task = replace(digits(), model=build, shape=shape, loss=cross_entropy, classes=("a", "b"))
    stack = Stack(build(0), shape)
    members, alone = [], []
    for i, size in enumerate(sizes):
        x = draws.normal(size=(size, *shape)).astype(np.float32)
        if odd is not None and sigma is not None and size:
            x[draws.integers(size)].flat[0] = odd
        rows = Rows(torch.from_numpy(x), torch.from_numpy(draws.integers(0, 2, size)))
        model = build(0)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.from_numpy(draws.normal(size=p.shape)))
        weights = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
        event = None if sigma is None else Event("record", sigma, plan.rate, plan.steps)
        with noise.insecure(i):
            trained = train(model, rows, task, plan, site=f"s{i}", event=event, round=plan.rounds)
        alone.append(trained.update)
        over = plan.denominator(f"s{i}")
        std = noise_std(sigma or 0.0, plan.clip or 0.0, stack.numbers, slack(over))
        members.append(Member(rows, weights, over, std, drawing(i)))
    together = train_together(
        stack,
        members,
        task,
        plan,
        rate=plan.rate,
        steps=plan.steps,
        round=plan.rounds,
        private=sigma is not None,
    )
    scale = max(1.0, *(float(np.abs(a).max()) for update in alone for a in update.values()))
    for one, other in zip(alone, together, strict=True):
        assert other.steps == plan.steps
        for name, array in one.items():
            assert np.isfinite(array).all()
            assert other.update[name] == pytest.approx(array, abs=1e-5 * scale, rel=1e-4), name


def drawing(seed: int) -> Context:
    """A context whose draws are those of `noise.insecure(seed)`."""
    room = copy_context()
    room.run(noise._insecure.set, noise._Seeded(seed))
    return room


# What is drawn for all at once is each one's own, of the size that it paid for.


def members_of(sizes: list[int], std: list[float]) -> list[Member]:
    """Members whose rows all hold their owner's number, from 1."""
    weights = {"weight": np.zeros((9, 1), np.float32), "bias": np.zeros(9, np.float32)}
    return [
        Member(Rows(torch.full((size, 1), float(i)), torch.full((size,), i)), weights, 1.0, one)
        for i, (size, one) in enumerate(zip(sizes, std, strict=True), 1)
    ]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=6), st.sampled_from([0.01, 0.5, 1.0]))
def test_a_member_draws_from_its_own_rows_alone(sizes: list[int], rate: float) -> None:
    batch = Batches(members_of(sizes, [1.0] * len(sizes)), rate, 1).draw()
    for i, size in enumerate(sizes):
        drawn = int(batch.real[i].sum())
        assert drawn == size if rate == 1 else drawn <= size
        assert batch.x[i][batch.real[i]].unique().tolist() == ([i + 1.0] if drawn else [])
        assert batch.y[i][batch.real[i]].unique().tolist() == ([i + 1] if drawn else [])
        assert not batch.x[i][~batch.real[i]].any()


def test_every_members_batches_are_poisson_samples() -> None:
    batches = Batches(members_of([30, 5, 0, 100], [1.0] * 4), 0.2, 2000)
    counts = np.array([batches.draw().real.sum(1).numpy() for _ in range(2000)])
    for drawn, size in zip(counts.T, [30, 5, 0, 100], strict=True):
        expected = stats.binom(size, 0.2).pmf(np.arange(size + 1)) * len(drawn)
        found = np.bincount(drawn, minlength=size + 1)
        few = expected < 5
        joined = [np.append(a[~few], a[few].sum()) for a in (found, expected)]
        assert size == 0 or stats.chisquare(*[a[joined[1] > 0] for a in joined]).pvalue > 1e-6
    assert abs(np.corrcoef(counts[:, 0], counts[:, 3])[0, 1]) < 0.12


@pytest.mark.parametrize("std", [[2.0] * 4, [2.0, 0.5, 2.0, 7.0]])
def test_every_member_has_noise_of_its_own_size(std: list[float]) -> None:
    made = np.zeros((4, 1550), dtype=np.float32)
    made = noisy_means(made, members_of([0] * 4, std))
    for one, row in zip(std, made.astype(np.float64), strict=True):
        assert np.array_equal(row, np.rint(row / noise.grid(one)) * noise.grid(one))
        assert stats.kstest(row / one, "norm").pvalue > 1e-6
        low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], row.size)
        assert low < ((row / one) ** 2).sum() < high
    assert np.abs(np.corrcoef(made) - np.eye(4)).max() < 0.15


def test_updates_of_members_without_rows_are_their_noise_on_the_public_grid() -> None:
    stack, std = Stack(nn.Linear(1, 9), (1,)), [0.7, 0.05, 3.0]
    plan = load_plan("digits", ["lr=1", "clip=1", "sigma=1", "rows=3", "steps=1"])
    keys: dict[str, Any] = {"rate": 1.0, "steps": 1, "round": 1, "private": True}
    updates = [
        [np.concatenate([a.reshape(-1) for a in trained.update.values()]) for trained in
         train_together(stack, members_of([0, 2, 0], std), digits(), plan, **keys)]
        for _ in range(300)
    ]  # fmt: skip
    for i, one in enumerate(std):
        moved = np.array([update[i] for update in updates], dtype=np.float64)
        parts = moved / noise.grid(one)
        assert np.array_equal(parts, np.rint(parts))
        if i != 1:
            assert stats.kstest(moved.ravel() / one, "norm").pvalue > 1e-6


def test_what_cannot_be_trained_together_is_refused() -> None:
    stack = Stack(nn.Linear(1, 9), (1,))
    plan = load_plan("digits", ["sigma=1", "rows=3"])
    keys: dict[str, Any] = {"rate": 1.0, "steps": 1, "round": 1, "private": True}
    with pytest.raises(TrainingError, match="no noise"):
        train_together(stack, members_of([3], [1.0]), digits(), plan, **keys | {"private": False})
    with pytest.raises(PlanError, match="clip"):  # no such plan comes so far
        replace(plan, clip=None)
    mean = replace(digits(), loss=lambda out, y: squared_error(out[:, :1], y.float()).mean())
    with pytest.raises(ModelError, match="loss"):
        train_together(stack, members_of([3], [1.0]), mean, plan, **keys)
