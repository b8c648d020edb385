"""The auditor audited: planted bugs are found, and a correct installation is not accused."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from opacus.optimizers import DPOptimizerFastGradientClipping

from client.auditing import audit, canaries
from client.conformance import conform
from privacy import noise
from privacy.audit import ALPHA

Plant = Callable[[pytest.MonkeyPatch], None]
NORMAL, POISSON = noise.normal, noise.poisson


def halved_noise(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(noise, "normal", lambda shape, std: NORMAL(shape, std / 2))


def no_noise(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(noise, "normal", lambda shape, std: np.zeros(shape, np.float32))


def constant_seed(patch: pytest.MonkeyPatch) -> None:
    def normal(shape: Any, std: float) -> Any:
        return np.random.default_rng(0).normal(0, std, shape).astype(np.float32)

    patch.setattr(noise, "normal", normal)


def shuffled_batches(patch: pytest.MonkeyPatch) -> None:
    """Batches of a fixed size, going round a permutation, instead of Poisson samples."""
    queues: dict[int, list[int]] = {}

    def poisson(n: int, rate: float) -> Any:
        size = round(n * rate)
        queue = queues.setdefault(n, [])
        if len(queue) < size:
            queue.extend(np.random.default_rng().permutation(n).tolist())
        drawn, queues[n] = queue[:size], queue[size:]
        return np.array(sorted(drawn), np.int64)

    patch.setattr(noise, "poisson", poisson)


def everything_sampled(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(noise, "poisson", lambda n, rate: np.arange(n))


def after_pre_step(patch: pytest.MonkeyPatch, change: Callable[[Any], None]) -> None:
    """Alter `p.grad` after Opacus' optimizer has prepared the step."""
    honest = DPOptimizerFastGradientClipping.pre_step

    def pre_step(self: Any, closure: Any = None) -> Any:
        result = honest(self, closure)
        change(self)
        return result

    patch.setattr(DPOptimizerFastGradientClipping, "pre_step", pre_step)


def one_unnoised_layer(patch: pytest.MonkeyPatch) -> None:
    def change(optimizer: Any) -> None:
        first = optimizer.params[0]
        first.grad = first.summed_grad / optimizer.expected_batch_size

    after_pre_step(patch, change)


def skipped_clipping(patch: pytest.MonkeyPatch) -> None:
    def change(optimizer: Any) -> None:
        for p in optimizer.params:
            p.grad = p.grad + 3 * p.summed_grad / optimizer.expected_batch_size

    after_pre_step(patch, change)


def batch_clipping(patch: pytest.MonkeyPatch) -> None:
    """Clips the mean of the batch instead of every record."""

    def change(optimizer: Any) -> None:
        total = torch.sqrt(sum(p.summed_grad.square().sum() for p in optimizer.params))
        factor = optimizer.expected_batch_size / (total + 1e-9)
        for p in optimizer.params:
            noise_part = p.grad * optimizer.expected_batch_size - p.summed_grad
            p.grad = (p.summed_grad * factor + noise_part) / optimizer.expected_batch_size

    after_pre_step(patch, change)


def uncounted_steps(patch: pytest.MonkeyPatch) -> None:
    """Every step is taken twice, and paid for once."""
    after_pre_step(patch, lambda optimizer: optimizer.original_optimizer.step())


PLANTS: tuple[Plant, ...] = (
    halved_noise,
    no_noise,
    constant_seed,
    shuffled_batches,
    everything_sampled,
    one_unnoised_layer,
    skipped_clipping,
    batch_clipping,
    uncounted_steps,
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: str(plant.__name__))
def test_a_planted_bug_fails_a_check_of_conformance(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert any(not check.passed for check in conform())


def test_a_correct_installation_passes_every_check() -> None:
    assert [check.name for check in conform() if not check.passed] == []


def test_the_canaries_see_enough_to_find_something() -> None:
    found, _ = canaries(4.0, 20_000, "cpu")
    (curve,) = [bound for bound in found if bound.name.startswith("f-DP")]
    assert curve.epsilon >= 2.5
    assert curve.p > ALPHA


@pytest.mark.slow
@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: str(plant.__name__))
def test_the_whole_audit_finds_a_planted_bug(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    assert audit(4.0).violated


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [1.0, 4.0, 8.0])
def test_a_correct_installation_passes_twenty_audits_of_twenty(epsilon: float) -> None:
    assert [audit(epsilon).violated for _ in range(20)] == [False] * 20
