"""Many clients' rounds on a GPU: the device's noise for each, and nothing left on the host."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from client.dpsgd.gpu.stream import CudaStream
from client.tasks.digits import task as digits
from client.tasks.rows import Rows
from privacy.contract.plan import PlanError
from privacy.contract.plan_file import load_plan
from privacy.mechanism import device, noise
from simulations.dataset import chosen_device
from simulations.engines import stacked_training
from simulations.engines.stacked_models import Stack
from simulations.engines.stacked_training import Member, noisy_means_on, train_together
from simulations.run import simulate
from tests.support.device_source import compiled
from tests.support.recorded import AsC

KEYS: dict[str, Any] = {"rate": 1.0, "steps": 3, "round": 1, "private": True}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> AsC:
    return AsC(compiled(tmp_path_factory.mktemp("vector")))


def members_of(sizes: list[int], std: list[float]) -> list[Member]:
    torch.manual_seed(0)
    weights = {"weight": np.zeros((9, 2), np.float32), "bias": np.zeros(9, np.float32)}
    return [
        Member(Rows(torch.randn(size, 2), torch.randint(9, (size,))), weights, 4.0, one)
        for size, one in zip(sizes, std, strict=True)
    ]


@pytest.mark.parametrize("std", [[2.0] * 4, [2.0, 0.5, 2.0, 7.0]])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_every_member_has_noise_of_its_own_size(
    kernels: AsC, std: list[float], kind: torch.dtype
) -> None:
    stream = CudaStream(kernels, torch.device("cpu"), 1024)
    noise.start_on(stream)
    sums = torch.zeros(4, 1550, dtype=kind)
    made = noisy_means_on(stream, sums, members_of([0] * 4, std)).double().numpy() * 4
    for one, row in zip(std, made, strict=True):
        assert np.array_equal(row, np.rint(row / noise.grid(one)) * noise.grid(one))
        assert stats.kstest(row / one, "norm").pvalue > 1e-6
    assert np.abs(np.corrcoef(made) - np.eye(4)).max() < 0.15
    assert not stream.failed()


def test_members_learn_the_same_with_the_devices_noise(
    kernels: AsC, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack, std = Stack(nn.Linear(2, 9), (2,)), [1e-7, 1e-7, 2e-7]
    plan = load_plan("digits", ["lr=1", "clip=1", "sigma=1", "rows=4", "steps=3"])

    def learned() -> list[Any]:
        done = train_together(stack, members_of([5, 0, 700], std), digits(), plan, **KEYS)
        return [np.concatenate([u.ravel() for u in one.update.values()]) for one in done]

    host, streams = learned(), []

    def on_device(on: torch.device, count: int) -> CudaStream:
        streams.append(CudaStream(kernels, on, device.room(count)))
        return streams[-1]

    monkeypatch.setattr(stacked_training, "stream_on", on_device)
    for one, other in zip(host, learned(), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5)
    assert len(streams) == 1


class Done(Exception):
    """All steps have been taken."""


class OnMeta:
    """A stream that touches nothing; its sums have no numbers that could be asked for."""

    def __init__(self) -> None:
        self.given: list[tuple[int, ...]] = []

    def start(self, key: bytes) -> None:
        pass

    def size(self, sums: Tensor) -> int:
        return sums.numel()

    def add_noise(self, sums: Tensor, std: float, step: float, over: float, more: Any) -> None:
        assert sums.is_meta
        assert sums.is_contiguous()
        self.given.append(tuple(sums.shape))

    def settle(self, sums: Tensor, std: float, step: float, over: float) -> None:
        pass

    def failed(self) -> bool:
        raise Done


@pytest.mark.parametrize(("rows", "keys"), [(6, []), (900, []), (6, ["optimizer=adam"])])
def test_no_step_asks_the_device_for_a_number(
    monkeypatch: pytest.MonkeyPatch, rows: int, keys: list[str]
) -> None:
    stream, on = OnMeta(), torch.device("meta")
    monkeypatch.setattr(stacked_training, "stream_on", lambda *_: stream)
    plan = load_plan("digits", ["lr=1", "clip=1", "sigma=1", "rows=4", "steps=3", *keys])
    stack = Stack(nn.Linear(2, 9), (2,))
    stack.to(on)
    with pytest.raises(Done):
        train_together(stack, members_of([rows, 3], [1.0, 1.0]), digits(), plan, **KEYS, device=on)
    assert stream.given == [(2, 27)] * 3


def test_a_gpu_that_is_not_there_is_refused_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("cuda:99", "cuda", "gpu", "cuda:-1", "", "meta"):
        monkeypatch.setenv("TACIT_DEVICE", name)
        with pytest.raises(PlanError, match="TACIT_DEVICE must be cpu or cuda:N"):
            chosen_device()
    with pytest.raises(PlanError, match="TACIT_DEVICE"):
        simulate(load_plan("digits", ["rounds=1"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("TACIT_DEVICE", "cpu")
    assert chosen_device() == torch.device("cpu")
