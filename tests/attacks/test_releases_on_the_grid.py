"""`privatise` alone adds noise: of all four releases every number lies on the public grid.

A sum of floats and float noise has low bits that betray it (Mironov 2012). Numbers on a grid that
depends on public values alone have none.
"""

import ast
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import privacy
from client.dpsgd.private_metrics import paid_metrics
from client.dpsgd.training import train
from client.tasks.rows import Rows
from privacy.accounting.events import Event
from privacy.contract.plan import Plan
from privacy.mechanism import noise
from privacy.mechanism.sensitivity import noise_std, slack
from server.rounds.aggregation import Update, combine, start

ROOT = Path(privacy.__file__).parent.parent
PRODUCT = ("privacy", "client", "server", "simulations")


def steps_of(values: np.ndarray, grid: float) -> np.ndarray:
    """How many grid steps the values are, which must be whole up to their own rounding."""
    parts = values.astype(np.float64) / grid
    assert np.abs(parts - np.rint(parts)).max() < 1e-6 * max(1.0, float(np.abs(parts).max()))
    return np.rint(parts)


@pytest.mark.parametrize("rows", [3, 50, 400])
def test_every_step_of_an_update(rows: int) -> None:
    model, seen = nn.Linear(3, 2), list[np.ndarray]()
    data = Rows(torch.randn(rows, 3), torch.randn(rows, 2))
    plan = Plan(
        task="x",
        sites=1,
        rounds=1,
        rate=1.0,
        rows=100,
        lr=0.1,
        steps=3,
        clip=0.9,
        sigma=0.7,
        delta=1e-5,
    )
    task: Any = SimpleNamespace(loss=lambda out, y: (out - y).square().sum(1))
    keep = lambda *_: seen.append(  # noqa: E731
        np.concatenate([p.grad.numpy().ravel() for p in model.parameters()])
    )
    event = Event("record", 0.7, 1.0, 3)
    train(model, data, task, plan, site="s", event=event, round=1, on_step=keep)
    std = noise_std(0.7, 0.9, 8, slack(100.0))
    for mean in seen:
        assert len(np.unique(steps_of(mean, noise.grid(std) / 100))) > 6


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), 2)


@pytest.mark.parametrize("sigma", [0.5, 3.0, 20.0])
def test_paid_metrics(sigma: float) -> None:
    learning: Any = SimpleNamespace(
        kind="classification",
        classes=("a", "b"),
        loss=lambda out, y: y * 0.3 + 0.1,
    )
    kinds = ("loss", "accuracy", "rows", "classes")
    plan: Any = SimpleNamespace(unit="record", metrics=kinds, metrics_sigma=sigma, metrics_clip=5.0)
    rows = Rows(torch.zeros(7, 3), torch.tensor([0, 1, 1, 0, 0, 0, 1]))
    std = noise_std(sigma, 2.0, 5)
    for _ in range(200):
        sums = paid_metrics(Constant(), rows, learning, plan, device=torch.device("cpu"))
        sums = json.loads(json.dumps(sums))
        assert set(sums) == {"loss", "accuracy", "rows", "class a", "class b"}
        for name, value in sums.items():
            part = value / noise.grid(std) / (5.0 if name == "loss" else 1.0)
            assert part == round(part), name


def client_plan(**keys: Any) -> Plan:
    known = {
        "task": "x", "sites": 1, "rounds": 9, "rate": 1.0, "rows": 1, "lr": 1.0, "clip": 1.0,
        "sigma": 1.3, "delta": 1e-5, "unit": "client",
    }  # fmt: skip
    return Plan(**(known | keys))


@pytest.mark.parametrize("present", [0, 1, 3])
def test_the_noise_of_the_client_unit(present: int) -> None:
    plan = client_plan()
    zero = {"w": np.zeros(500, np.float32), "b": np.zeros(3, np.float32)}
    updates = [
        Update(f"s{i}", {"w": np.full(500, 0.02, np.float32), "b": np.ones(3, np.float32)})
        for i in range(present)
    ]
    released = combine(start(zero, plan), updates, plan, sites=10).weights
    std = noise_std(1.3, 1.0, 503)
    for array in released.values():
        steps_of(array, noise.grid(std) / 10)
        assert array.dtype == np.float32


@pytest.mark.parametrize("strength", [0.5, 5.0])
def test_the_adaptive_clip(strength: float) -> None:
    plan = client_plan(clip_quantile=0.5, clip_sigma=strength)
    zero = {"w": np.zeros(4, np.float32)}
    found = []
    for _ in range(100):
        updates = [Update(f"s{i}", zero, 0.5 if i < 3 else -0.5) for i in range(10)]
        clip = combine(start(zero, plan), updates, plan, sites=10).clip
        assert clip is not None
        count = ((plan.clip_quantile or 0) - np.log(clip) / plan.clip_lr - 0.5) * 10
        part = count / noise.grid(noise_std(strength, 0.5, 1))
        assert abs(part - round(part)) < 1e-6
        found.append(round(part))
    assert len(set(found)) > 50


Modules = list[tuple[Path, list[ast.AST]]]


@pytest.fixture(scope="module")
def modules() -> Modules:
    """Every module of the product with the nodes of its syntax tree."""
    paths = [p for folder in PRODUCT for p in sorted((ROOT / folder).rglob("*.py"))]
    return [(path, list(ast.walk(ast.parse(path.read_text())))) for path in paths]


def test_the_sampler_is_the_mechanisms_own(modules: Modules) -> None:
    """Nobody outside privacy/mechanism can draw noise but by `privatise`."""
    inside = ROOT / "privacy" / "mechanism"
    for path, nodes in modules:
        if path.is_relative_to(inside):
            continue
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and node.module == "privacy.mechanism.gaussian":
                assert {name.name for name in node.names} <= {"Sums"}, path
            if isinstance(node, ast.ImportFrom) and node.module == "privacy.mechanism":
                assert "gaussian" not in {name.name for name in node.names}, path
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "noise":
                assert not node.attr.startswith("_"), f"{path}: noise.{node.attr}"
                assert hasattr(noise, node.attr), f"{path}: noise.{node.attr}"


def test_no_other_generator_makes_noise(modules: Modules) -> None:
    """numpy's and torch's normal draws stand nowhere in the product but where they are public."""
    public = {
        "privacy/mechanism/native.py",  # made-up sums that compare the kernel with numpy
        "simulations/audit.py",  # the canaries' directions
        "simulations/templates/cohort.py",  # made-up patients
        "simulations/templates/regions.py",  # made-up patients
        "simulations/templates/drives.py",  # made-up roads and drives
        "simulations/templates/windows.py",  # made-up movements
        "simulations/new_task.py",  # the made-up rows of a new task package
        "client/tasks/features/public_layers.py",  # projections of a constant seed
        "client/audit/setting_checks.py",  # what releases are compared with
    }
    for path, nodes in modules:
        name = path.relative_to(ROOT).as_posix()
        for node in nodes:
            if isinstance(node, ast.Attribute) and node.attr in ("normal", "standard_normal"):
                assert name in public, f"{name}:{node.lineno} draws normal numbers"


def test_the_paths_that_release_call_privatise(modules: Modules) -> None:
    calls = {
        path.relative_to(ROOT).as_posix()
        for path, nodes in modules
        for node in nodes
        if isinstance(node, ast.Attribute) and node.attr == "privatise"
    }
    assert {
        "client/dpsgd/training.py",
        "client/dpsgd/private_metrics.py",
        "server/rounds/aggregation.py",
        "simulations/engines/stacked_training.py",
    } <= calls
