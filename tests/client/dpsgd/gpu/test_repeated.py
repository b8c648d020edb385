"""Recorded steps: the same rounds as without, new noise in each, and a fall-back that is said."""

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from client.dpsgd import clipped_sum, clipping, matrix_products, training
from client.dpsgd.gpu import repeated
from client.dpsgd.gpu.stream import CudaStream
from client.tasks.rows import Rows
from privacy.accounting.events import Event
from privacy.contract.plan import Plan
from privacy.mechanism import device, noise
from tests.support.device_source import compiled
from tests.support.recorded import AsC, recorder

ROWS, STEPS = 60, 5


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> AsC:
    return AsC(compiled(tmp_path_factory.mktemp("repeated")))


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACIT_CUDA_GRAPHS", "1")
    for module in (clipped_sum, clipping, matrix_products):
        monkeypatch.setattr(module, "on_host", lambda _: False)
    monkeypatch.setattr(clipped_sum, "lookups", lambda *_: None)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.head = nn.Embedding(9, 6), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.table(x)).mean(1))


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 20), nn.ReLU(inplace=True), nn.Linear(20, 3))


def _loss(out: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(out, y, reduction="none")


def _round(
    monkeypatch: pytest.MonkeyPatch,
    kernels: AsC,
    record: Callable[..., Any] | None,
    *,
    build: Callable[[], nn.Module] = _mlp,
    sigma: float = 1.0,
    rows: int = ROWS,
    broken: bool = False,
    **keys: Any,
) -> Tensor:
    """The weights after a round; `record` None: steps that cannot be recorded."""

    def refused(step: Any, on: torch.device) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(repeated, "cuda_graph", refused if record is None else record)
    monkeypatch.setattr(
        training, "stream_on", lambda on, count: CudaStream(kernels, on, device.room(count))
    )
    torch.manual_seed(0)
    model = build()
    tokens = isinstance(model, Tokens)
    x = torch.randint(9, (rows, 5)) if tokens else torch.randn(rows, 7)
    if broken:
        x[::3] = torch.nan
    data = Rows(x, torch.randint(3, (rows,)))
    plan = Plan(
        *("x",), sites=1, rounds=1, rate=0.4, rows=rows, lr=0.5, steps=STEPS, clip=1.0,
        sigma=sigma, delta=1e-5, **keys,
    )  # fmt: skip
    task: Any = SimpleNamespace(loss=_loss, classes=("a", "b", "c"))
    event = Event("record", sigma, 0.4, STEPS)
    with noise.insecure("repeated"):
        training.train(model, data, task, plan, site="s", event=event, round=1)
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def _recorded(kernels: AsC) -> Callable[..., Any]:
    record = recorder(kernels)
    return lambda step, on: record(step)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"build": Tokens},
        {"optimizer": "momentum", "momentum": 0.9, "l2": 0.01},
        {"aggregation": "fedprox", "mu": 0.1},
        {"rows": 900},  # sums in two blocks
        {"rows": 2000},  # sums in float64
        {"broken": True},
    ],
    ids=str,
)
def test_a_recorded_round_is_the_same_to_the_last_bit(
    monkeypatch: pytest.MonkeyPatch, kernels: AsC, keys: dict[str, Any], caplog: Any
) -> None:
    with caplog.at_level(logging.WARNING, "client.dpsgd.gpu"):
        recorded = _round(monkeypatch, kernels, _recorded(kernels), **keys)
    assert "recorded" not in caplog.text
    plain = _round(monkeypatch, kernels, None, **keys)
    assert torch.equal(recorded, plain)
    assert "the step cannot be recorded and runs as it is" in caplog.text


def test_recorded_steps_are_those_of_the_host_but_for_the_noise(
    monkeypatch: pytest.MonkeyPatch, kernels: AsC
) -> None:
    """Almost without noise: the rows drawn are given to the host's own way."""
    recorded = _round(monkeypatch, kernels, _recorded(kernels), sigma=1e-6)
    drawn = []
    key = noise._Seeded("repeated").key()
    for step in range(STEPS):
        threshold = noise.threshold_of(0.4)
        words = noise.chacha20(key, 0, 2 * ROWS * STEPS, turn=1, purpose=device.ROWS)
        below = words.view(np.uint16).reshape(STEPS, ROWS)[step] < threshold[0]
        drawn.append(np.flatnonzero(below))
    monkeypatch.undo()
    monkeypatch.setattr(noise, "batches", lambda *_: iter(drawn))
    host = _round_on_the_host()
    torch.testing.assert_close(recorded, host, rtol=1e-4, atol=1e-5)


def _round_on_the_host() -> Tensor:
    torch.manual_seed(0)
    model = _mlp()
    data = Rows(torch.randn(ROWS, 7), torch.randint(3, (ROWS,)))
    plan = Plan(
        *("x",), sites=1, rounds=1, rate=0.4, rows=ROWS, lr=0.5, steps=STEPS, clip=1.0,
        sigma=1e-6, delta=1e-5,
    )  # fmt: skip
    task: Any = SimpleNamespace(loss=_loss, classes=("a", "b", "c"))
    event = Event("record", 1e-6, 0.4, STEPS)
    training.train(model, data, task, plan, site="s", event=event, round=1)
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def _noise_of_steps(kernels: AsC, record: Any) -> list[Tensor]:
    stream, seen = CudaStream(kernels, torch.device("cpu"), 1024), []
    noise.start_on(stream)
    sums = torch.zeros(500)

    def step() -> None:
        sums.zero_()
        noise.privatise_on(stream, sums, 1.0)

    again = repeated.Repeated(step, record)
    for _ in range(4):
        again()
        seen.append(sums.clone())
    assert not stream.failed()
    return seen


def test_every_replay_makes_noise_of_its_own(kernels: AsC) -> None:
    seen = torch.stack(_noise_of_steps(kernels, recorder(kernels)))
    assert seen.std() > 0.9
    assert (torch.corrcoef(seen) - torch.eye(4)).abs().max() < 0.2


def test_a_replay_that_would_repeat_its_noise_is_found(kernels: AsC, tmp_path: Path) -> None:
    """Planted: the turn comes from the host, or the kernel that begins one is left out."""
    source = device.source()
    fault = ("state->turn++;", "state->turn = 1; state->done = 0;")
    assert fault[0] in source
    stuck = AsC(compiled(tmp_path, source.replace(*fault)))
    seen = torch.stack(_noise_of_steps(stuck, recorder(stuck)))
    assert torch.equal(seen[1], seen[2])  # so the test above would fail

    class WithoutABeginning(AsC):
        def launch(self, name: str, threads: int, arguments: Any) -> None:
            if name != "begin_turn" or self.launched.count("begin_turn") < 1:
                super().launch(name, threads, arguments)

    left_out = WithoutABeginning(kernels._library)
    with pytest.raises(AssertionError):
        _noise_of_steps(left_out, recorder(left_out))


def test_undetected_noise_never_leaves_a_round(
    monkeypatch: pytest.MonkeyPatch, kernels: AsC
) -> None:
    class WithoutABeginning(AsC):
        def launch(self, name: str, threads: int, arguments: Any) -> None:
            if name != "begin_turn" or self.launched.count("begin_turn") < 3:
                super().launch(name, threads, arguments)

    left_out = WithoutABeginning(kernels._library)
    with pytest.raises(noise.NoiseError, match="device"):
        _round(monkeypatch, left_out, _recorded(left_out))


def test_what_waits_for_the_device_is_not_recorded(
    monkeypatch: pytest.MonkeyPatch, kernels: AsC, caplog: Any
) -> None:
    class Waiting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (1.0 if bool(x.isfinite().all()) else 0.0)

    build = lambda: nn.Sequential(Waiting(), nn.Linear(7, 3))  # noqa: E731
    monkeypatch.setattr(training, "examine", lambda *_: None)
    with caplog.at_level(logging.WARNING, "client.dpsgd.gpu"):
        _round(monkeypatch, kernels, _recorded(kernels), build=build)
    assert "cannot be recorded" in caplog.text


@pytest.mark.parametrize(
    "keys",
    [{"schedule": "cosine"}, {"optimizer": "adam"}, {"micro_batch": 8}],
    ids=str,
)
def test_plans_whose_steps_are_not_alike_are_not_recorded(
    monkeypatch: pytest.MonkeyPatch, kernels: AsC, keys: dict[str, Any], caplog: Any
) -> None:
    def never(step: Any, on: Any) -> Any:
        pytest.fail("it was recorded")

    with caplog.at_level(logging.WARNING, "client.dpsgd.gpu"):
        _round(monkeypatch, kernels, never, **keys)
    assert "not all alike" in caplog.text


def test_nothing_is_recorded_unless_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, kernels: AsC
) -> None:
    def never(step: Any, on: Any) -> Any:
        pytest.fail("it was recorded")

    monkeypatch.delenv("TACIT_CUDA_GRAPHS")
    _round(monkeypatch, kernels, never)
