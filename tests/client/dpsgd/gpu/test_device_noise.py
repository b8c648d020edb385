"""Noise on a GPU: what the kernel is given, by its own source as C; on a GPU where there is one."""

import ctypes
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from client.dpsgd import training
from client.dpsgd.gpu import device_noise
from client.dpsgd.gpu.device_noise import CudaSums, cuda_sums
from client.dpsgd.gpu.nvrtc import KernelError, compiled
from client.tasks.rows import Rows
from privacy.accounting.events import Event
from privacy.contract.plan import Plan
from privacy.mechanism import device, noise
from tests.support.device_source import compiled as compiled_as_c

ON_A_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")


class AsC:
    """The kernel, with its own arguments, in one thread of the host."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def launch(self, threads: int, arguments: Sequence[Any]) -> None:
        sums, wide, n, key, *numbers, opened = arguments
        assert threads * device.GROUP >= n.value
        self._library.add_noise_in_groups(
            *(sums, wide, n, ctypes.byref(key), *numbers, ctypes.byref(opened))
        )


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> AsC:
    return AsC(compiled_as_c(tmp_path_factory.mktemp("noise"), device.source()))


def test_the_arguments_are_those_of_the_source(kernel: AsC, monkeypatch: Any) -> None:
    monkeypatch.setattr(device_noise, "_ROOM", 100_000)  # the comparison opens a ninth
    assert noise.agrees(lambda start: CudaSums(torch.from_numpy(start), kernel))


def test_sums_of_any_shape_get_noise_on_the_grid_in_place(kernel: AsC) -> None:
    for kind in (torch.float32, torch.float64):
        sums = torch.zeros(300, 7, dtype=kind)
        noise.privatise_on(CudaSums(sums, kernel), 3.0, over=2.0)
        steps = sums.double().numpy() / (noise.grid(3.0) / 2)
        assert np.array_equal(steps, np.rint(steps))
        assert 1.4 < float(sums.std()) < 1.6
        noise.privatise_on(CudaSums(sums, kernel), 0.0, over=2.0)
        assert 0.7 < float(sums.std()) < 0.8


def test_settled_numbers_are_written(kernel: AsC) -> None:
    sums = torch.zeros(9)
    CudaSums(sums, kernel).put(np.array([8, 1]), np.array([0.1, 3.0]))
    assert sums[[8, 1]].tolist() == [np.float32(0.1), 3.0]


def test_more_undecided_numbers_than_can_be_end_the_step(
    kernel: AsC, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_noise, "_ROOM", 1)
    with pytest.raises(noise.NoiseError, match="undecided"):
        noise.agrees(lambda start: CudaSums(torch.from_numpy(start), kernel))


def test_a_step_takes_the_noise_of_the_device_where_there_is_a_kernel(
    kernel: AsC, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole round, its sums on the host, with the kernel in place of a GPU's."""
    asked = []

    def on_device(sums: torch.Tensor) -> CudaSums:
        asked.append(sums.dtype)
        return CudaSums(sums, kernel)

    monkeypatch.setattr(training, "cuda_sums", on_device)
    for rows in (20, 3000):  # the sums of large batches are float64
        plan = Plan(
            *("x",), sites=1, rounds=1, rate=1.0, rows=rows, lr=0.5, steps=2, clip=1.0,
            sigma=1.0, delta=1e-5,
        )  # fmt: skip
        task: Any = SimpleNamespace(loss=lambda out, y: (out - y).square().sum(1))
        data, model = Rows(torch.randn(rows, 3), torch.randn(rows, 2)), torch.nn.Linear(3, 2)
        event = Event("record", 1.0, 1.0, 2)
        means: list[torch.Tensor] = []

        def keep(*_: Any, model: Any = model, means: list[torch.Tensor] = means) -> None:
            means.append(model.weight.grad.double())

        training.train(model, data, task, plan, site="s", event=event, round=1, on_step=keep)
        std = training.noise_std(1.0, 1.0, 8, training.slack(float(rows)))
        for mean in means:
            parts = mean.numpy() / (noise.grid(std) / rows)
            assert np.abs(parts - np.rint(parts)).max() < 1e-6 * np.abs(parts).max()
            assert np.abs(parts).max() > 50
        assert len(means) == 2
    assert asked[:2] == [torch.float32] * 2
    assert len(asked) == 4


def test_sums_on_a_cpu_are_left_to_the_host() -> None:
    assert cuda_sums(torch.zeros(3)) is None


def test_the_source_compiles_for_a_gpu_where_nvrtc_is() -> None:
    try:
        code = compiled(device.source(), device.FUNCTION, "sm_90")
    except KernelError as error:
        if "not found" in str(error):
            pytest.skip("no NVRTC is here (it comes with torch for CUDA)")
        raise
    assert code[:4] == b"\x7fELF"
    assert device.FUNCTION.encode() in code
    with pytest.raises(KernelError, match="NVRTC"):
        compiled("int", "x", "sm_90")


@ON_A_GPU
@pytest.mark.cuda
def test_the_kernel_is_there_and_agrees() -> None:
    assert cuda_sums(torch.zeros(3, device="cuda")) is not None


@ON_A_GPU
@pytest.mark.cuda
def test_a_round_on_a_gpu_is_the_hosts_within_its_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    def weights(where: str) -> torch.Tensor:
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(20, 50), torch.nn.Tanh(), torch.nn.Linear(50, 3)
        )
        rows = Rows(torch.randn(64, 20), torch.randint(0, 3, (64,)))
        plan = Plan(
            *("x",), sites=1, rounds=1, rate=1.0, rows=64, lr=0.5, steps=5, clip=1.0,
            sigma=1e-9, delta=1e-5,
        )  # fmt: skip
        loss = lambda out, y: torch.nn.functional.cross_entropy(out, y, reduction="none")  # noqa: E731
        task: Any = SimpleNamespace(loss=loss)
        event = Event("record", 1e-9, 1.0, 5)
        training.train(model, rows, task, plan, site="s", event=event, round=1, device=where)
        return torch.nn.utils.parameters_to_vector(model.parameters()).detach().cpu()

    torch.testing.assert_close(weights("cuda"), weights("cpu"), rtol=1e-4, atol=1e-5)


@ON_A_GPU
@pytest.mark.cuda
def test_noise_on_a_gpu_is_a_gaussian_on_the_grid() -> None:
    sums = torch.zeros(1_000_003, device="cuda")
    on_device = cuda_sums(sums)
    assert on_device is not None
    noise.privatise_on(on_device, 2.0)
    steps = sums.cpu().double().numpy() / noise.grid(2.0)
    assert np.array_equal(steps, np.rint(steps))
    assert abs(float(sums.std()) / 2 - 1) < 0.005
