"""A round takes exactly the noisy steps that were paid for, and says what it changed."""

import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

from client.dpsgd.per_sample import ModelError
from client.dpsgd.training import TrainingError, optimizer_of, train
from client.tasks.digits import task as digits
from client.tasks.rows import Rows
from client.tasks.task import Task
from privacy.accounting.events import Event
from privacy.contract.plan import Plan
from privacy.mechanism import noise


def squared(out: Tensor, y: Tensor) -> Tensor:
    return ((out - y) ** 2).sum(1) / 2


def a_task(loss: Callable[[Tensor, Tensor], Tensor] = squared) -> Task:
    return replace(digits(), loss=loss)


QUIET = 1e-6
"""The least noise that a plan can name; the events of these tests then have none."""


def a_plan(**keys: Any) -> Plan:
    known = {
        "task": "digits", "rounds": 1, "rate": 1.0, "rows": 4, "lr": 0.1, "clip": 1.0,
        "sites": 1, "sigma": QUIET, "delta": 1e-5,
    }  # fmt: skip
    return Plan(**(known | keys))


def run(model: nn.Module, rows: Rows, plan: Plan, task: Task | None = None, **keys: Any) -> Any:
    event = keys.pop("event", Event("record", _sigma(plan), plan.rate, plan.steps))
    known = {"site": "a", "event": event, "round": 1}
    return train(model, rows, task or a_task(), plan, **(known | keys))


def _sigma(plan: Plan) -> float:
    return 0.0 if plan.sigma in (None, QUIET) else plan.sigma or 0.0


def linear(*weights: float) -> nn.Linear:
    model = nn.Linear(len(weights), 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([weights]))
    return model


EMPTY = Rows(torch.zeros(0, 2), torch.zeros(0, 1))


def test_one_step_by_hand() -> None:
    # From (1, 2) with rate 0.1 and gradient (-1, 2) one step gives (1.1, 1.8).
    model = linear(1.0, 2.0)
    rows = Rows(torch.tensor([[-1.0, 2.0]]), torch.tensor([[2.0]]))
    result = run(model, rows, a_plan(rows=1, clip=100.0))
    assert model.weight.tolist()[0] == pytest.approx([1.1, 1.8])
    assert result.update["weight"].tolist()[0] == pytest.approx([0.1, -0.2])
    assert result.steps == 1


def test_a_gradient_is_clipped_and_divided_by_the_public_count() -> None:
    rows = Rows(torch.tensor([[3.0, 4.0]] * 2), torch.full((2, 1), -100.0))
    model = linear(0.0, 0.0)
    run(model, rows, a_plan(clip=0.5, rows=10, lr=1.0))
    assert model.weight.tolist()[0] == pytest.approx([-0.06, -0.08], rel=1e-5)


@pytest.mark.parametrize("size", [0, 3])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_exactly_the_steps_are_taken_with_empty_batches_too(size: int, steps: int) -> None:
    rows = Rows(torch.randn(size, 2), torch.randn(size, 1))
    seen: list[int] = []
    model = linear(0.0, 0.0)
    plan = a_plan(rate=0.01, steps=steps, sigma=1.0)
    before = noise.privatise
    result = run(model, rows, plan, on_step=lambda step, drawn, optimizer: seen.append(step))
    assert seen == list(range(steps))
    assert result.steps == steps
    assert model.weight.any()
    assert noise.privatise is before


def test_the_paid_event_decides_not_the_plan() -> None:
    steps: list[Any] = []
    plan = a_plan(steps=9, rate=0.9)
    event = Event("record", 2.0, 0.5, 3)
    run(linear(0.0, 0.0), EMPTY, plan, event=event, on_step=lambda *seen: steps.append(seen))
    assert len(steps) == 3
    optimizer = steps[0][2]
    assert optimizer.noise_multiplier == 2.0
    assert optimizer.expected_batch_size == 0.5 * 4


def test_the_noise_of_every_tensor_has_the_paid_size() -> None:
    model = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 20))
    grads: dict[str, list[Tensor]] = {name: [] for name, _ in model.named_parameters()}

    def keep(step: int, drawn: np.ndarray, optimizer: Any) -> None:
        for name, p in model.named_parameters():
            grads[name].append(p.grad.clone())

    rows = Rows(torch.zeros(0, 40), torch.zeros(0, 20))
    run(model, rows, a_plan(sigma=1.5, clip=2.0, rows=10, steps=40, rate=0.5), on_step=keep)
    for name, seen in grads.items():
        z = torch.stack(seen).flatten().double().numpy() * 5 / 3
        assert stats.kstest(z, "norm").pvalue > 1e-6, name
        low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], len(z))
        assert low < (z**2).sum() < high, name
        assert all(not torch.equal(a, b) for a, b in itertools.pairwise(seen))


def test_released_sums_lie_on_the_public_grid() -> None:
    seen: list[Tensor] = []
    model = linear(0.3, 0.7)
    rows = Rows(torch.randn(5, 2), torch.randn(5, 1))
    plan = a_plan(sigma=0.7, clip=0.9, rows=4, steps=5)
    run(model, rows, plan, on_step=lambda *_: seen.append(model.weight.grad.clone()))
    sums = torch.stack(seen).double().numpy() * 4
    parts = sums / noise.grid(0.7 * 0.9)
    assert np.array_equal(parts, np.rint(parts))


@pytest.mark.parametrize("event", [None, Event("record", 1.0, 1.0, 1)])
def test_a_model_that_is_frozen_whole_is_refused(event: Event | None) -> None:
    model = linear(0.3).requires_grad_(False)
    with pytest.raises(TrainingError, match="expected parameters to train"):
        run(model, EMPTY, a_plan(sigma=1.0), event=event)


def test_batches_are_poisson_draws_of_the_secure_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, float]] = []

    def poisson(n: int, rate: float) -> np.ndarray:
        asked.append((n, rate))
        return np.array([1, 3, 6] if n == 8 else [1, 3])

    monkeypatch.setattr(noise, "poisson", poisson)
    rows = Rows(torch.tensor([[9.0], [1.0], [9.0], [2.0]]), torch.tensor([[9.0], [1], [9], [1]]))
    model = linear(0.0)
    run(model, rows, a_plan(clip=100.0, rate=0.5, lr=1.0))
    assert asked == [(4, 0.5)]
    assert model.weight.item() == pytest.approx((1 + 2) / 2)
    drawn: list[list[int]] = []
    look: Any = lambda step, rows, _: drawn.append(rows.tolist())  # noqa: E731
    run(model, rows, a_plan(rate=0.5, steps=2), on_step=look)
    assert asked[1:] == [(8, 0.5)]
    assert drawn == [[1, 3], [2]]


@pytest.mark.parametrize("most", [1, 2, 3, 5, 100])
def test_micro_batches_are_one_clipped_sum_with_one_noise(most: int) -> None:
    torch.manual_seed(0)
    rows = Rows(torch.randn(7, 3), torch.randn(7, 1))
    whole, parted = linear(1.0, 2.0, 3.0), linear(1.0, 2.0, 3.0)
    plan = a_plan(sigma=0.1, steps=3)
    with noise.insecure(1):
        run(whole, rows, plan)
    with noise.insecure(1):
        run(parted, rows, replace(plan, micro_batch=most))
    assert torch.allclose(whole.weight, parted.weight, rtol=1e-4)


def test_a_site_without_noise_trains_plainly() -> None:
    rows = Rows(torch.randn(8, 2) * 100, torch.randn(8, 1))
    model = linear(0.5, 0.5)
    expected = squared(model(rows.x), rows.y).sum()
    (gradient,) = torch.autograd.grad(expected, [model.weight])
    result = run(model, rows, a_plan(unit="none", sigma=None, delta=None, clip=None), event=None)
    assert result.update["weight"] == pytest.approx(-0.1 / 4 * gradient.numpy(), rel=1e-4)


def test_fedprox_pulls_towards_the_start_after_the_noise() -> None:
    model, free = linear(1.0, 1.0), linear(1.0, 1.0)
    rows = Rows(torch.randn(4, 2), torch.randn(4, 1))
    plan = a_plan(aggregation="fedprox", mu=5.0, steps=2, sigma=0.5)
    with noise.insecure(0):
        pulled = run(model, rows, plan).update["weight"]
    with noise.insecure(0):
        loose = run(free, rows, replace(plan, mu=0.0)).update["weight"]
    assert np.linalg.norm(pulled) != pytest.approx(np.linalg.norm(loose))
    still = a_plan(aggregation="fedprox", mu=5.0)
    assert not run(linear(1.0, 1.0), EMPTY, still).update["weight"].any()


def test_weight_decay_momentum_and_adam_act_on_the_noisy_mean() -> None:
    decayed = linear(2.0, 2.0)
    run(decayed, EMPTY, a_plan(l2=0.5))
    assert decayed.weight.tolist()[0] == pytest.approx([1.9, 1.9])
    rows = Rows(torch.tensor([[1.0]]), torch.tensor([[100.0]]))
    heavy = linear(0.0)
    run(heavy, rows, a_plan(rows=1, steps=2, optimizer="momentum", momentum=0.5, lr=1.0))
    assert heavy.weight.item() == pytest.approx(1 + 1.5, rel=1e-4)
    adam = linear(0.0)
    run(adam, rows, a_plan(rows=1, optimizer="adam", lr=0.1))
    assert adam.weight.item() == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize(
    ("keys", "kind", "options"),
    [
        ({}, torch.optim.SGD, {}),
        ({"optimizer": "momentum"}, torch.optim.SGD, {"momentum": 0.9}),
        ({"optimizer": "adam"}, torch.optim.Adam, {}),
    ],
)
def test_the_optimizers_are_torchs_own(
    keys: dict[str, Any], kind: Any, options: dict[str, float]
) -> None:
    found = []
    for make in (
        lambda p: optimizer_of([p], a_plan(l2=0.1, **keys)),
        lambda p: kind([p], lr=0.1, weight_decay=0.1, **options),
    ):
        p = nn.Parameter(torch.arange(6.0))
        optimizer = make(p)
        for step in range(4):
            p.grad = torch.arange(6.0).sub(step)
            optimizer.step()
        assert isinstance(optimizer, kind)
        found.append(p.detach())
    assert torch.equal(*found)


LEAN = """
import sys
import torch
from client.dpsgd.training import optimizer_of
from privacy.contract.plan import Plan

for kind in ("sgd", "momentum", "adam"):
    p = torch.nn.Parameter(torch.ones(3))
    about = {"task": "digits", "rounds": 1, "rate": 0.1, "rows": 4, "lr": 0.1, "sites": 1}
    optimizer = optimizer_of([p], Plan(**about, clip=1.0,
        sigma=1.0, delta=1e-5, optimizer=kind))
    p.grad = torch.ones(3)
    optimizer.step()
print("torch._dynamo" in sys.modules)
"""


@pytest.mark.slow
def test_no_step_loads_torchs_compiler() -> None:
    command = [sys.executable, "-c", LEAN]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_cosine_schedule_falls_over_the_whole_run() -> None:
    plan = a_plan(schedule="cosine", lr=2.0)
    rates = [plan.lr_at(step, 10) for step in range(11)]
    assert rates[0] == 2.0
    assert rates[5] == pytest.approx(1.0)
    assert rates[10] == pytest.approx(0.0)
    seen: list[float] = []
    plan = a_plan(schedule="cosine", lr=2.0, rounds=5, steps=2)
    look: Any = lambda *s: seen.append(s[2].param_groups[0]["lr"])  # noqa: E731
    run(linear(0.0, 0.0), EMPTY, plan, round=3, on_step=look)
    assert seen == pytest.approx([2 * 0.5 * (1 + math.cos(math.pi * k / 10)) for k in (4, 5)])


def test_a_record_that_is_not_a_number_changes_nothing() -> None:
    rows = Rows(torch.tensor([[1.0, 2.0], [math.nan, 1.0]]), torch.zeros(2, 1))
    model, other = linear(1.0, 1.0), linear(1.0, 1.0)
    run(model, rows, a_plan())
    run(other, rows.take([0]), a_plan())
    assert torch.equal(model.weight, other.weight)


@pytest.mark.long
def test_weights_that_overflow_teach_nothing() -> None:
    # With and without the record the released update is noise of the same law.
    moved = []
    for size in (1, 0):
        rows = Rows(torch.ones(size, 2), torch.zeros(size, 1))
        updates = [
            run(linear(1e38, 1e38), rows, a_plan(sigma=1.0, lr=1e9)).update["weight"]
            for _ in range(200)
        ]
        assert np.isfinite(updates).all()
        moved.append(np.ravel(updates))
    assert stats.ks_2samp(*moved).pvalue > 1e-6


def test_only_trained_tensors_have_an_update_and_a_tied_one_has_it_once() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.frozen = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
            self.b.weight = self.a.weight
            self.frozen.requires_grad_(False)
            self.register_buffer("scale", torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.frozen(self.a(x)).tanh()) * self.scale

    model = Odd()
    rows = Rows(torch.randn(4, 2), torch.randn(4, 2))
    update = run(model, rows, a_plan(sigma=1.0)).update
    assert set(update) == {"a.weight", "a.bias", "b.bias"}, "b.weight is a.weight"
    assert all(values.any() for values in update.values())
    assert model.b.weight is model.a.weight
    assert torch.equal(model.scale, torch.ones(1))


def test_a_convolution_learns_and_its_updates_are_plain_arrays() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 1))
    rows = Rows(torch.randn(6, 1, 4, 4), torch.randn(6, 1))
    update = run(model, rows, a_plan(sigma=1.0, micro_batch=4)).update
    for name, value in model.state_dict().items():
        assert value.is_contiguous()
        assert update[name].flags.c_contiguous
        assert update[name].dtype == np.float32


def test_images_that_come_as_flat_rows_are_laid_out_for_the_convolution_too() -> None:
    seen: list[bool] = []
    convolution = nn.Conv2d(3, 4, 3)
    convolution.register_forward_hook(
        lambda _, x, out: seen.append(out.is_contiguous(memory_format=torch.channels_last))
    )
    model = nn.Sequential(nn.Unflatten(1, (3, 4, 4)), convolution, nn.Flatten(), nn.Linear(16, 1))
    run(model, Rows(torch.randn(6, 48), torch.randn(6, 1)), a_plan(sigma=1.0))
    assert seen[-1]  # the step's; those before are the examination's


@pytest.mark.long
def test_classification_learns_digits_under_privacy() -> None:
    task = digits()
    rows, test = task.load(None, "train"), task.load(None, "test")
    plan = a_plan(rate=0.25, rows=len(rows), lr=2.0, sigma=2.0, steps=60)
    model = task.model(0)
    run(model, rows, plan, task)
    assert task.metrics(model(test.x), test.y)["accuracy"] > 0.85


def test_what_cannot_be_trained_is_refused_and_leaves_the_model_whole() -> None:
    rows = Rows(torch.randn(4, 2), torch.randn(4, 1))
    with pytest.raises(TrainingError, match="unit"):
        run(linear(0.0, 0.0), rows, a_plan(), event=Event("client", 1.0, 1.0, 1))
    model = linear(0.0, 0.0)
    mean = a_task(lambda out, y: functional.mse_loss(out, y))
    with pytest.raises(ModelError, match="loss"):
        run(model, rows, a_plan(), mean)
    assert "forward" not in vars(model)
    assert model.weight.requires_grad


def test_matrix_products_are_whole_while_a_private_plan_is_trained() -> None:
    """The bound of rounding holds for float32's own products, whatever the process asked torch."""
    seen: list[str] = []

    def loss(out: Tensor, y: Tensor) -> Tensor:
        seen.append(torch.get_float32_matmul_precision())
        return squared(out, y)

    torch.set_float32_matmul_precision("medium")
    try:
        run(nn.Linear(3, 2), Rows(torch.randn(6, 3), torch.randn(6, 2)), a_plan(), a_task(loss))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert len(seen) > 2
    assert set(seen) == {"highest"}


@pytest.mark.parametrize("steps", [1, 3])
def test_weights_that_somebody_keeps_are_not_copied_and_the_update_is_the_same(steps: int) -> None:
    rows = Rows(torch.randn(6, 2), torch.randn(6, 1))
    plan = a_plan(rate=0.5, steps=steps, sigma=1.0, optimizer="momentum", momentum=0.5)
    results = []
    for start in (None, {"weight": np.array([[0.5, -2.0]], np.float32)}):
        if start is not None:
            start["weight"].flags.writeable = False
        with noise.insecure(7):
            results.append(run(linear(0.5, -2.0), rows, plan, start=start).update["weight"])
    assert np.array_equal(*results)
