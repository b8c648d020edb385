"""A GPU's stream: what the kernels are given, by their own source as C; on a GPU where one is."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from client.dpsgd import training
from client.dpsgd.gpu.nvrtc import KernelError, compiled
from client.dpsgd.gpu.rows import batches_on, padded_on
from client.dpsgd.gpu.stream import CudaStream, stream_on, without, without_by
from client.tasks.rows import Rows
from privacy.accounting.events import Event
from privacy.contract.plan import Plan
from privacy.mechanism import device, device_check, noise
from tests.support.device_source import compiled as compiled_as_c
from tests.support.recorded import AsC

ON_A_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
HOST = torch.device("cpu")


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> AsC:
    return AsC(compiled_as_c(tmp_path_factory.mktemp("stream")))


def test_the_arguments_are_those_of_the_source(kernels: AsC) -> None:
    assert device_check.agrees(CudaStream(kernels, HOST, 1 << 15))
    assert set(kernels.launched) == set(device.KERNELS) - {"erase_rows"}


def test_kernels_without_room_for_what_is_compared_do_not_agree(kernels: AsC) -> None:
    assert not device_check.agrees(CudaStream(kernels, HOST, 100))


def test_sums_of_any_shape_get_noise_on_the_grid_in_place(kernels: AsC) -> None:
    stream = CudaStream(kernels, HOST, 1024)
    noise.start_on(stream)
    for kind in (torch.float32, torch.float64):
        sums = torch.zeros(300, 7, dtype=kind)
        noise.privatise_on(stream, sums, 3.0, over=2.0)
        steps = sums.double().numpy() / (noise.grid(3.0) / 2)
        assert np.array_equal(steps, np.rint(steps))
        assert 1.4 < float(sums.std()) < 1.6
        noise.privatise_on(stream, sums, 0.0, over=2.0)
        assert 0.7 < float(sums.std()) < 0.8
    one, other = torch.full((9,), 3.0), torch.full((9,), 5.0)
    noise.privatise_on(stream, one, 0.0, over=2.0, more=other)
    assert one.tolist() == [4.0] * 9
    noise.privatise_on(stream, one, 1e-3, more=torch.full((9,), 100.0))
    assert (one - 104).abs().max() < 0.01
    assert not stream.failed()


def test_a_start_forgets_the_turns_before_it(kernels: AsC) -> None:
    stream, made = CudaStream(kernels, HOST, 1024), []
    for _ in range(2):
        stream.start(bytes(32))
        for _ in range(2):
            sums = torch.zeros(100)
            noise.privatise_on(stream, sums, 1.0)
            made.append(sums)
    assert torch.equal(made[0], made[2])
    assert torch.equal(made[1], made[3])
    assert not torch.equal(made[0], made[1])


@pytest.mark.parametrize("width", [1, 5, 128, 700])
def test_broken_rows_are_zeros_and_nothing_else_is_touched(kernels: AsC, width: int) -> None:
    whole = torch.randn(9, width + 3)
    whole[4] = torch.nan
    broken = torch.arange(9) % 4 == 0
    expected = whole[:, :width].masked_fill(broken[:, None], 0)
    for chosen in (None, kernels):
        rows = whole.clone()
        out = without_by(chosen, rows[:, :width], broken)
        assert torch.equal(out, expected)
        assert torch.equal(rows[:, width:].isnan(), whole[:, width:].isnan())
    assert torch.equal(without(whole[:, :width], broken), expected)
    half = whole[:, :width].double()
    assert torch.equal(without_by(kernels, half, broken).float(), expected)
    assert kernels.launched[-1] == "erase_rows"


@pytest.mark.parametrize(("n", "rate", "steps"), [(57, 0.3, 5), (1, 1.0, 3), (4, 0.0, 2)])
def test_rows_are_those_that_the_stream_draws(
    kernels: AsC, n: int, rate: float, steps: int
) -> None:
    key, stream = bytes(range(32)), CudaStream(kernels, HOST, 1024)
    drawn = device_check.poisson_as_device(key, 1, n * steps, rate)
    expected = [drawn[drawn // n == step] % n for step in range(steps)]
    stream.start(key)
    for step, rows in enumerate(batches_on(stream, n, rate, steps)):
        assert np.array_equal(rows.numpy(), expected[step])
    stream.start(key)
    (padded,) = padded_on(stream, n, rate, steps)
    for step in range(steps):
        assert np.array_equal(padded.at[step][padded.real[step]].numpy(), expected[step])
        assert not padded.at[step][~padded.real[step]].any()
    assert padded.at.shape[1] % 8 == 0
    assert padded.at.shape[1] >= 2


def test_many_rows_are_drawn_in_parts(kernels: AsC, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.dpsgd.gpu.rows._AHEAD", 100)
    stream = CudaStream(kernels, HOST, 1024)
    noise.start_on(stream)
    steps = list(batches_on(stream, 30, 0.5, 7))  # three steps, three, and one
    assert len(steps) == 7
    assert len({tuple(rows.tolist()) for rows in steps}) == 7
    assert [len(part.at) for part in padded_on(stream, 30, 0.5, 7)] == [3, 3, 1]
    assert [len(rows) for rows in batches_on(stream, 0, 0.5, 2)] == [0, 0]


class Waited(Exception):
    """The host asked for a number."""


@contextmanager
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def waits(*_: Any, **__: Any) -> Any:
        raise Waited

    with monkeypatch.context() as patch:
        for name in ("item", "cpu", "numpy", "tolist", "__bool__", "__float__", "__int__"):
            patch.setattr(Tensor, name, waits)
        yield


def _round(rows: int, steps: int, sigma: float, on_step: Any = None, where: str = "cpu") -> Tensor:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 50), nn.Tanh(), nn.Linear(50, 3))
    data = Rows(torch.randn(rows, 20), torch.randint(0, 3, (rows,)))
    plan = Plan(
        *("x",), sites=1, rounds=1, rate=1.0, rows=rows, lr=0.5, steps=steps, clip=1.0,
        sigma=sigma, delta=1e-5,
    )  # fmt: skip
    task: Any = SimpleNamespace(
        loss=lambda out, y: functional.cross_entropy(out, y, reduction="none")
    )
    event, at = Event("record", sigma, 1.0, steps), {"device": where, "on_step": on_step}
    training.train(model, data, task, plan, site="s", event=event, round=1, **at)
    return nn.utils.parameters_to_vector(model.parameters()).detach().cpu()


@pytest.mark.parametrize("rows", [20, 400, 3000])  # float32, two blocks, float64
def test_a_round_is_the_hosts_and_on_the_grid(
    kernels: AsC, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    host = _round(rows, 3, 1e-6)
    streams = []

    def on_device(on: torch.device, count: int) -> CudaStream:
        streams.append(CudaStream(kernels, on, device.room(count)))
        return streams[-1]

    monkeypatch.setattr(training, "stream_on", on_device)
    torch.testing.assert_close(_round(rows, 3, 1e-6), host, rtol=1e-4, atol=1e-5)
    means: list[Tensor] = []

    def keep(step: int, drawn: Any, optimizer: Any) -> None:
        assert isinstance(drawn, np.ndarray)
        assert len(drawn) == rows
        means.append(optimizer.sums.gradient.double())

    _round(rows, 2, 1.0, keep)
    std = training.noise_std(1.0, 1.0, len(means[0]), training.slack(float(rows)))
    for mean in means:
        parts = mean.numpy() / (noise.grid(std) / rows)
        assert np.abs(parts - np.rint(parts)).max() < 1e-6 * np.abs(parts).max()
        assert np.abs(parts).max() > 1000
    assert not torch.equal(*means)
    assert len(streams) == 2  # one for each round, with a key of its own


def test_a_step_with_a_stream_asks_for_no_number(
    kernels: AsC, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = CudaStream(kernels, HOST, 1024)
    noise.start_on(stream)
    sums = torch.zeros(1000)
    with no_waiting(monkeypatch):
        noise.privatise_on(stream, sums, 1.0)
        with pytest.raises(Waited):
            stream.failed()


def test_more_undecided_numbers_than_have_room_end_the_round(
    kernels: AsC, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crowded(CudaStream):
        def settle(self, sums: Tensor, std: float, step: float, over: float) -> None:
            self._state.view(torch.int32)[12] = 2000
            self._open.zero_()
            super().settle(sums, std, step, over)

    monkeypatch.setattr(training, "stream_on", lambda on, _: Crowded(kernels, on, 10))
    with pytest.raises(noise.NoiseError, match="undecided"):
        _round(20, 1, 1.0)


def test_sums_on_a_cpu_are_left_to_the_host() -> None:
    assert stream_on(HOST, 3) is None


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_the_source_compiles_for_a_gpu_where_nvrtc_is(architecture: str) -> None:
    try:
        code = compiled(device.source(), "noise", architecture)
    except KernelError as error:
        if "not found" in str(error):
            pytest.skip("no NVRTC is here (it comes with torch for CUDA)")
        raise
    assert code[:4] == b"\x7fELF"
    assert all(name.encode() in code for name in device.KERNELS)
    with pytest.raises(KernelError, match="NVRTC"):
        compiled("int", "x", architecture)


def _on_cuda(count: int) -> CudaStream:
    stream = stream_on(torch.device("cuda", 0), count)
    assert stream is not None
    noise.start_on(stream)
    return stream


@ON_A_GPU
@pytest.mark.cuda
def test_the_kernels_are_there_and_agree() -> None:
    assert stream_on(torch.device("cuda", 0), 3) is not None


@ON_A_GPU
@pytest.mark.cuda
def test_a_round_on_a_gpu_is_the_hosts_within_its_rounding() -> None:
    for rows in (64, 400, 3000):
        host, there = _round(rows, 5, 1e-6), _round(rows, 5, 1e-6, where="cuda:0")
        torch.testing.assert_close(there, host, rtol=1e-4, atol=1e-5)


@ON_A_GPU
@pytest.mark.cuda
def test_noise_on_a_gpu_is_a_gaussian_on_the_grid() -> None:
    sums, stream = torch.zeros(1_000_003, device="cuda"), _on_cuda(1_000_003)
    noise.privatise_on(stream, sums, 2.0)
    steps = sums.cpu().double().numpy() / noise.grid(2.0)
    assert np.array_equal(steps, np.rint(steps))
    assert abs(float(sums.std()) / 2 - 1) < 0.005
    assert not stream.failed()


@ON_A_GPU
@pytest.mark.cuda
def test_rows_on_a_gpu_are_the_hosts_for_the_same_key() -> None:
    stream, key = _on_cuda(1), bytes(range(32))
    stream.start(key)
    (rows,) = batches_on(stream, 100_003, 0.01, 1)
    assert np.array_equal(rows.cpu().numpy(), device_check.poisson_as_device(key, 1, 100_003, 0.01))


@ON_A_GPU
@pytest.mark.cuda
def test_noise_and_broken_rows_on_a_gpu_wait_for_nothing() -> None:
    stream, sums = _on_cuda(5000), torch.zeros(5000, device="cuda")
    rows, broken = torch.randn(64, 999, device="cuda"), torch.arange(64, device="cuda") % 3 == 0
    torch.cuda.set_sync_debug_mode("error")
    try:
        noise.privatise_on(stream, sums, 1.0)
        without(rows, broken)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not bool(rows[::3].any())


@ON_A_GPU
@pytest.mark.cuda
def test_recorded_rounds_on_a_gpu_are_the_hosts_and_make_new_noise(
    monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setenv("TACIT_CUDA_GRAPHS", "1")
    torch.testing.assert_close(
        _round(64, 6, 1e-6, where="cuda:0"), _round(64, 6, 1e-6), rtol=1e-4, atol=1e-5
    )
    assert "cannot be recorded" not in caplog.text
    once, twice = (_round(64, 6, 1.0, where="cuda:0") for _ in range(2))
    assert not torch.equal(once, twice)


@ON_A_GPU
@pytest.mark.cuda
def test_a_recorded_graph_makes_new_noise_each_time() -> None:
    from functools import partial

    from client.dpsgd.gpu.repeated import Repeated, cuda_graph

    stream, sums, seen = _on_cuda(500), torch.zeros(500, device="cuda"), []

    def step() -> None:
        sums.zero_()
        noise.privatise_on(stream, sums, 1.0)

    again = Repeated(step, partial(cuda_graph, on=stream.device))
    for _ in range(4):
        again()
        seen.append(sums.cpu())
    assert (torch.corrcoef(torch.stack(seen)) - torch.eye(4)).abs().max() < 0.2
    assert not stream.failed()


def test_the_path_of_the_source_is_in_the_package() -> None:
    folder = Path(device.__file__).parent
    assert {path.name for path in folder.glob("*.cu")} == {"noise.cu", "exact.cu", "kernels.cu"}
