"""The library door: a researcher's own model and arrays, without files; a sweep; nothing global."""

import csv
import gc
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import polars
import pytest
import torch
from torch import nn

from client.tasks.registry import task as find_task
from client.tasks.rows import TaskError
from privacy.contract.plan import PlanError
from simulations import OwnCodeError, OwnData, Plan, Simulation, load_plan, simulate, sweep
from simulations.__main__ import main

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(300, 5)).astype(np.float32)
Y = (X @ np.array([1.0, -2.0, 0.5, 0.0, 1.0]) > 0).astype(np.int64)


def plan(**changes: Any) -> Plan:
    keys: dict[str, Any] = {
        "task": "own",
        "rounds": 3,
        "rate": 1.0,
        "rows": "actual",
        "lr": 2.0,
        "sites": 2,
        "clip": 1.0,
        "epsilon": 3.0,
        "delta": 1e-4,
    }
    return Plan(**(keys | changes))


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))


def test_twelve_lines_train_an_own_model_on_own_arrays() -> None:
    model = network()
    first = {name: p.detach().clone() for name, p in model.named_parameters()}
    result = simulate(plan(rounds=6), task=model, data=(X, Y))
    assert result.outcome.reason == "done"
    assert result.folder is None
    assert result.epsilon is not None and 2.9 < result.epsilon <= 3.0
    assert result.metrics["accuracy"] > 0.75
    assert isinstance(result.model, nn.Sequential) and not result.model.training
    with torch.inference_mode():
        found = result.model(torch.from_numpy(X)).argmax(1).numpy()
    assert (found == Y).mean() > 0.75
    for name, p in model.named_parameters():  # the researcher's own object is untouched
        assert torch.equal(p, first[name])
    assert [line["round"] for line in result.history] == [1, 2, 3, 4, 5, 6]
    assert result.plot().startswith("<svg")
    assert "accuracy" in result.plot()._repr_svg_()
    assert "6 of 6 rounds" in str(result)
    with pytest.raises(TaskError):
        find_task(result.plan.task)


@pytest.mark.parametrize("engine", ["serial", "processes", "vector"])
def test_every_engine_that_shares_this_process_trains_own_models(engine: Any) -> None:
    chosen = plan(rounds=2, simulation=Simulation(engine=engine))
    result = simulate(chosen, task=network, data=(X, Y))
    assert (result.outcome.reason, result.summary["rounds"]) == ("done", 2)


class Pairs(torch.utils.data.Dataset[tuple[Any, Any]]):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return X[index], int(Y[index])


def columns() -> dict[str, Any]:
    return {f"c{i}": X[:, i] for i in range(5)} | {"sick": Y}


@pytest.mark.parametrize(
    ("data", "label"),
    [
        ((torch.from_numpy(X), torch.from_numpy(Y)), None),
        ((X.tolist(), Y.tolist()), None),
        ((X, np.where(Y, "yes", "no")), None),
        (Pairs(), None),
        (pandas.DataFrame(columns()), "sick"),
        (polars.DataFrame(columns()), "sick"),
        (OwnData(X, Y, subject=np.arange(300) // 3, test=(X[:50], Y[:50])), None),
    ],
    ids=["torch", "lists", "texts", "Dataset", "pandas", "polars", "subjects"],
)
def test_arrays_come_as_researchers_have_them(data: Any, label: str | None) -> None:
    result = simulate(plan(rounds=1), task=lambda: nn.Linear(5, 2), data=data, label=label)
    assert result.outcome.reason == "done"
    assert set(result.metrics) >= {"accuracy", "balanced_accuracy", "loss"}
    assert ("records_per_person" in result.summary) == (isinstance(data, OwnData))


def test_a_number_is_learnt_within_its_public_bounds() -> None:
    y = (X @ np.array([1.0, -2.0, 0.5, 0.0, 1.0])).astype(np.float32)
    chosen = plan(rounds=8, lr=0.5, epsilon=20.0)
    result = simulate(chosen, task=lambda: nn.Linear(5, 1), data=OwnData(X, y, bounds=(-8, 8)))
    assert result.metrics["r2"] > 0.3
    with pytest.raises(TaskError, match="bounds must be"):
        simulate(chosen, task=lambda: nn.Linear(5, 1), data=(X, y))


class Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.inner(x)
        return result


class Mixes(nn.Module):
    """Takes the batch's mean away: no example has a gradient of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.inner(x - x.mean(0))
        return result


def test_an_own_model_that_mixes_examples_is_refused_in_one_line_before_anything_is_paid() -> None:
    with pytest.raises(OwnCodeError) as error:
        simulate(plan(), task=Mixes, data=(X, Y))
    assert "\n" not in str(error.value)
    assert simulate(plan(unit="none", epsilon=None, clip=None, delta=None), task=Mixes, data=(X, Y))


class FailsLater(nn.Module):
    """Fails on so many rows that neither the first try nor the examination sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 110:
            raise ValueError("too many rows for me")
        result: torch.Tensor = self.inner(x)
        return result


def test_own_code_that_fails_is_said_with_type_message_file_and_line(tmp_path: Path) -> None:
    for build, words in ((Broken, "RuntimeError: "), (FailsLater, "ValueError: too many rows")):
        with pytest.raises(OwnCodeError) as error:
            simulate(plan(), tmp_path / build.__name__, task=build, data=(X, Y))
        assert words in str(error.value)
        assert "test_library.py:" in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (X, "data must be a pair"),
        ((X, Y[:10]), "expected 300 values"),
        ((X[:, 0], Y), "x must have the shape"),
        ((X, np.zeros(300, np.int64)), "between 2 and"),
        ((np.full_like(X, np.nan), Y), "x must be finite"),
        (pandas.DataFrame(columns()), "label must be one of"),
    ],
    ids=["one array", "lengths", "flat", "one class", "nan", "no label"],
)
def test_arrays_that_do_not_fit_are_one_line_and_nothing_is_paid(data: Any, words: str) -> None:
    with pytest.raises(TaskError, match=words):
        simulate(plan(), task=lambda: nn.Linear(5, 2), data=data)


def state() -> dict[str, Any]:
    """What a notebook would notice of a library that changes the whole process."""
    return {
        "gc": (gc.isenabled(), gc.get_threshold()),
        "threads": torch.get_num_threads(),
        "torch": torch.random.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),  # type: ignore[index,union-attr]
        "logging": (logging.root.manager.disable, logging.root.level, list(logging.root.handlers)),
        "dtype": torch.get_default_dtype(),
        "environ": dict(os.environ),
        "cwd": Path.cwd(),
        "gradients": torch.is_grad_enabled(),
    }


@pytest.mark.parametrize("engine", ["serial", "processes", "vector"])
@pytest.mark.parametrize("collects", [True, False])
def test_a_simulation_changes_nothing_global(engine: Any, collects: bool) -> None:
    enabled = gc.isenabled()
    try:
        (gc.enable if collects else gc.disable)()
        before, frozen = state(), gc.get_freeze_count()
        simulate(plan(rounds=1, simulation=Simulation(engine=engine)), task=network, data=(X, Y))
        assert state() == before
        # Nothing is frozen or unfrozen; some of what others have frozen may have died meanwhile.
        assert 0.9 * frozen <= gc.get_freeze_count() <= frozen
    finally:
        (gc.enable if enabled else gc.disable)()


def test_a_sweep_has_a_record_for_every_cell_and_goes_on_where_it_was(tmp_path: Path) -> None:
    seen: list[int] = []
    chosen = load_plan("digits", ["rounds=2", "sites=2", "delta=1e-4"])
    options: dict[str, Any] = {"epsilon": [1, 8], "lr": [0.5]}
    first = sweep(chosen, seeds=2, folder=tmp_path, on_cell=lambda r, n: seen.append(n), **options)
    assert seen == [4] * 4
    assert [(r["epsilon"], r["seed"]) for r in first.records] == [(1, 0), (1, 1), (8, 0), (8, 1)]
    for record in first.records:
        assert 0.95 * record["epsilon"] < record["epsilon_spent"] <= record["epsilon"]
    weak, strong = first.summary()
    values = [r["accuracy"] for r in first.records]
    assert weak["mean"] == pytest.approx((values[0] + values[1]) / 2)
    assert strong["standard_deviation"] == pytest.approx(abs(values[2] - values[3]) / 2**0.5)
    assert strong["mean"] > weak["mean"]
    ledgers = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.jsonl")}
    assert sweep(chosen, seeds=2, folder=tmp_path, **options) == first
    assert {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.jsonl")} == ledgers
    rows = list(csv.DictReader(io.StringIO(first.csv())))
    assert [float(row["accuracy"]) for row in rows] == values
    assert first.plot().startswith("<svg")
    assert len(first.frame()) == 4


def test_a_sweep_shares_its_cells_among_processes() -> None:
    chosen = plan(rounds=1)
    found = sweep(chosen, seeds=2, workers=2, task=network, data=(X, Y), optimizer=["sgd"])
    assert [(r["optimizer"], r["seed"], r["ended"]) for r in found.records] == [
        ("sgd", 0, "done"),
        ("sgd", 1, "done"),
    ]


def test_a_sweep_is_checked_whole_before_its_first_run(tmp_path: Path) -> None:
    for values in ({}, {"epsilon": []}, {"epsilon": [1, -1]}, {"nonsense": [1]}):
        with pytest.raises(PlanError):
            sweep(plan(), folder=tmp_path, task=network, data=(X, Y), **values)
    assert not list(tmp_path.iterdir())


def test_the_command_writes_a_sweeps_records_and_picture(
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = ["digits", "--set", "rounds=1", "--sites", "2", "--name", "s", "--json"]
    sys.argv = ["tacit-simulate", *base, "--sweep", "epsilon=1,8", "--repeat", "2"]
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    said = json.loads(capsys.readouterr().out)
    assert [(cell["epsilon"], cell["runs"]) for cell in said["cells"]] == [(1, 2), (8, 2)]
    assert len(Path("runs/s/sweep.csv").read_text().splitlines()) == 5
    assert Path("runs/s/sweep.svg").read_text().startswith("<svg")


def test_importing_the_door_loads_nothing_heavy() -> None:
    code = "import simulations, sys; print([m for m in ('torch', 'flwr') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
