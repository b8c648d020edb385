"""Training, predictions, the audit and many clients on a GPU against the same on the CPU."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from client.audit.audit import settings_of
from client.audit.conformance import TRAINER_CHECKS
from client.audit.setting_checks import SETTING_CHECKS
from client.dpsgd import training
from client.inference.predictor import predictor
from client.tasks.rows import Rows
from privacy.accounting.events import Event
from privacy.contract.plan import Plan
from simulations.engines.stacked_models import Stack
from simulations.engines.stacked_training import Member, train_together

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here"),
]
GPU = "cuda:0"
ROWS = 48


class Lora(nn.Module):
    """A frozen Linear and a trained change of rank 2."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(12, 12).requires_grad_(False)
        self.down, self.up = nn.Linear(12, 2, bias=False), nn.Linear(2, 12, bias=False)
        self.head = nn.Linear(12, 3).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.frozen(x) + self.up(self.down(x))).tanh())


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.head = nn.Embedding(20, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.table(x)).tanh().mean(1))


def _images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2), nn.Flatten(), nn.Linear(72, 3),
    )  # fmt: skip


MODELS: dict[str, tuple[Any, Any]] = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(12, 30), nn.Tanh(), nn.Linear(30, 3)),
        lambda n: torch.randn(n, 12),
    ),
    "images": (_images, lambda n: torch.randn(n, 3, 8, 8)),
    "words": (Words, lambda n: torch.randint(20, (n, 6))),
    "lora": (Lora, lambda n: torch.randn(n, 12)),
}


def _loss(out: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(out, y, reduction="none")


def _update(name: str, where: str, rows: int = ROWS, **keys: Any) -> np.ndarray[Any, Any]:
    build, made = MODELS[name]
    torch.manual_seed(0)
    model, x = build(), made(rows)
    plan = Plan(
        *("x",), sites=1, rounds=1, rate=1.0, rows=rows, lr=0.1, steps=4, clip=1.0, sigma=1e-6,
        delta=1e-5, **keys,
    )  # fmt: skip
    task: Any = SimpleNamespace(loss=_loss, classes=("a", "b", "c"))
    event, at = Event("record", 1e-6, 1.0, 4), {"site": "s", "round": 1, "device": where}
    done = training.train(model, Rows(x, torch.randint(3, (rows,))), task, plan, event=event, **at)
    return np.concatenate([u.ravel() for u in done.update.values()]).astype(float)


def _apart(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(one))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("recorded", [False, True])
def test_a_round_is_the_cpus(name: str, recorded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if recorded:
        monkeypatch.setenv("TACIT_CUDA_GRAPHS", "1")
    within = 1e-3 if name == "images" else 1e-4  # convolutions may round to TF32
    for rows in (ROWS, 400):
        assert _apart(_update(name, "cpu", rows), _update(name, GPU, rows)) < within


@pytest.mark.parametrize(
    "keys",
    [
        {"optimizer": "adam"},
        {"optimizer": "momentum", "momentum": 0.9},
        {"aggregation": "fedprox", "mu": 0.1},
        {"micro_batch": 7},
        {"class_weights": {"a": 0.5}},
    ],
    ids=str,
)
def test_what_a_plan_asks_for_is_the_cpus(keys: dict[str, Any]) -> None:
    assert _apart(_update("mlp", "cpu", **keys), _update("mlp", GPU, **keys)) < 1e-3


@pytest.mark.parametrize("name", ["mlp", "images", "words"])
def test_bfloat16_is_close_to_the_cpus_float32(name: str) -> None:
    half = _update(name, GPU, precision="bfloat16")
    assert _apart(_update(name, "cpu"), half) < 0.05


def test_a_record_that_is_not_finite_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    build, made = MODELS["mlp"]

    def broken(n: int) -> Tensor:
        x = made(n)
        x[::5] = torch.nan
        return x

    monkeypatch.setitem(MODELS, "mlp", (build, broken))
    there = _update("mlp", GPU)
    assert np.isfinite(there).all()
    assert _apart(_update("mlp", "cpu"), there) < 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_predictions_are_the_cpus(name: str) -> None:
    build, made = MODELS[name]
    torch.manual_seed(0)
    model: Any = SimpleNamespace(network=build().eval(), graph=None, path="model")
    x = made(32)
    expected = predictor(model, "cpu").outputs(x).numpy()
    there = predictor(model, GPU).outputs(x).numpy()
    assert _apart(expected, there) < (1e-3 if name == "images" else 1e-5)


@pytest.mark.parametrize("check", TRAINER_CHECKS, ids=lambda check: check.__name__)
def test_the_trainer_passes_its_audit(check: Any) -> None:
    done = check(GPU)
    assert done.passed, done.detail


@pytest.mark.parametrize("check", SETTING_CHECKS, ids=lambda check: check.__name__)
def test_the_trainer_passes_its_audit_under_drawn_settings(check: Any) -> None:
    done = check(settings_of(0)[:4], GPU)
    assert done.passed, done.detail


def test_many_clients_together_learn_what_they_do_on_the_cpu() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 3))
    weights = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    rows = [Rows(torch.randn(20, 12), torch.randint(3, (20,))) for _ in range(200)]
    members = [Member(some, weights, 20.0, 1e-6 * (1 + i % 2)) for i, some in enumerate(rows)]
    plan = Plan(
        *("x",), sites=1, rounds=1, rate=1.0, rows=20, lr=0.1, steps=3, clip=1.0, sigma=1.0,
        delta=1e-5,
    )  # fmt: skip
    task: Any = SimpleNamespace(loss=_loss, classes=("a", "b", "c"))
    keys: Any = {"rate": 1.0, "steps": 3, "round": 1, "private": True}
    updates = []
    for where in ("cpu", GPU):
        stack = Stack(model, (12,))
        stack.to(torch.device(where))
        done = train_together(stack, members, task, plan, **keys, device=torch.device(where))
        every = [np.concatenate([u.ravel() for u in one.update.values()]) for one in done]
        updates.append(np.stack(every).astype(float))
    assert _apart(*updates) < 1e-4
