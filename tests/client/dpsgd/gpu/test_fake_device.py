"""Whole rounds on tensors without numbers, on the device "meta": torch runs the shapes of a step.

No number of such a tensor can be asked for, so all for which the host would have to wait fails; and
so do operations on tensors of two devices, copies between them, and tensors made on the host.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from opacus.layers import DPLSTM, DPMultiheadAttention
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from client.dpsgd import clipping, training
from client.tasks.rows import Rows
from privacy.accounting.events import Event
from privacy.contract.plan import Plan

ROWS = 40


class Done(Exception):
    """All steps of a round have been taken."""


class Elsewhere(Exception):
    """An operation that does not stay on the device."""


class OneDevice(TorchDispatchMode):
    """While every operation stays on the device: what it reads and what it makes."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        every = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        if any(x.device.type == "cpu" and x.dim() for x in every):
            raise Elsewhere(f"{func} of {[(str(x.device), tuple(x.shape)) for x in every]}")
        return out


class FakeStream:
    """A stream that touches nothing; what it is given must lie on its device."""

    device = torch.device("meta")

    def __init__(self) -> None:
        self.steps = 0

    def start(self, key: bytes) -> None:
        assert len(key) == 32

    def size(self, sums: Tensor) -> int:
        return sums.numel()

    def add_noise(self, sums: Tensor, std: float, step: float, over: float, more: Any) -> None:
        for given in (sums, more):
            assert given is None or (given.device == self.device and given.is_contiguous())

    def settle(self, sums: Tensor, std: float, step: float, over: float) -> None:
        self.steps += 1

    def failed(self) -> bool:
        raise Done


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = DPLSTM(6, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(30, 8, padding_idx=0), nn.LayerNorm(8)
        self.attention, self.head = DPMultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.table(x))
        return self.head(self.attention(h, h, h, need_weights=False)[0].mean(1))


def _images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, stride=2, groups=2), nn.Dropout(0.1), nn.Flatten(), nn.Linear(72, 3),
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(12, 900), nn.ReLU(), nn.Linear(900, 3)), (12,), 0,
    ),
    "images": (_images, (3, 8, 8), 0),
    "lstm": (Recurrent, (7, 6), 0),
    "attention": (Attention, (9,), 30),
    "wide": (lambda: nn.Sequential(nn.Conv2d(3, 700, 8, 8), nn.Flatten(), nn.Linear(2800, 3)),
             (3, 16, 16), 0),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _without_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "examine", lambda *_: None)
    monkeypatch.setattr(clipping.torch, "autocast", lambda *_: nullcontext())


def _loss(out: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(out, y, reduction="none")


def _train(
    monkeypatch: pytest.MonkeyPatch, name: str, drawn: int = 20, loss: Any = _loss, **keys: Any
) -> FakeStream:
    build, shape, tokens = MODELS[name]
    stream = FakeStream()

    def batches_on(_: Any, n: int, rate: float, steps: int) -> Iterator[Tensor]:
        with OneDevice():
            for _ in range(steps):
                yield torch.arange(drawn, device=stream.device)

    monkeypatch.setattr(training, "stream_on", lambda on, count: stream)
    monkeypatch.setattr(training, "batches_on", batches_on)
    plan = Plan(
        *("x",), sites=1, rounds=1, rate=0.5, rows=ROWS, lr=0.5, steps=3, clip=1.0, sigma=1.0,
        delta=1e-5, **keys,
    )  # fmt: skip
    task: Any = SimpleNamespace(loss=loss, classes=("a", "b", "c"))
    x = torch.randint(tokens, (ROWS, *shape)) if tokens else torch.randn(ROWS, *shape)
    rows, model, event = Rows(x, torch.randint(3, (ROWS,))), build(), Event("record", 1.0, 0.5, 3)
    if plan.class_weights:  # whose table is copied to a device once
        on = {"device": "meta"}
        training.loss_of(task, plan)(torch.zeros(1, 3, **on), torch.zeros(1, **on).long())
    with pytest.raises(Done):
        training.train(
            model, rows, task, plan, site="s", event=event, round=1, device="meta", start={}
        )
    assert all(p.device == stream.device for p in model.parameters())
    return stream


@pytest.mark.parametrize("name", MODELS)
def test_no_step_waits_for_the_device_or_leaves_it(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for drawn in (20, 0):
        assert _train(monkeypatch, name, drawn).steps == 3


@pytest.mark.parametrize(
    "keys",
    [
        {"precision": "bfloat16"},
        {"optimizer": "momentum", "momentum": 0.9, "l2": 0.01},
        {"optimizer": "adam"},
        {"aggregation": "fedprox", "mu": 0.1},
        {"micro_batch": 7},
        {"class_weights": {"a": 0.5}},
        {"schedule": "cosine"},
    ],
    ids=str,
)
def test_nothing_that_a_plan_asks_for_waits(
    monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any]
) -> None:
    assert _train(monkeypatch, "images", **keys).steps == 3


def test_a_step_that_waits_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def waiting(out: Tensor, y: Tensor) -> Tensor:
        return _loss(out, y) * (1.0 if bool(out.isfinite().all()) else 0.0)

    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        _train(monkeypatch, "mlp", loss=waiting)


def test_a_step_on_two_devices_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((Elsewhere, RuntimeError), match=r"device|cpu"):
        _train(
            monkeypatch,
            "mlp",
            loss=lambda out, y: _loss(out, y) + torch.zeros(len(y), device="cpu"),
        )
