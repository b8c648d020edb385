"""Many sites' rounds in one computation are what each would have been by itself."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

import simulations.engines.vector
from client.tasks.digits import task as digits
from client.tasks.task import Task
from privacy.contract.plan import PlanError
from privacy.contract.plan_file import load_plan
from privacy.ledger.ledger import Ledger
from server.rounds.checkpoint import latest, read
from simulations.engines.stacked_models import Stack
from simulations.engines.stacked_training import Member, train_together
from simulations.run import simulate

TABLE = """
kind = "{kind}"
label = "price"
hidden = [5, 3]
test = "later.csv"
[columns.price]
{label}
[columns.rooms]
type = "number"
min = 0
max = 10
[columns.garden]
type = "number"
min = 0
max = 500
"""
LABELS = {
    "regression": 'type = "number"\nmin = 0\nmax = 200',
    "classification": 'type = "category"\nvalues = ["low", "middle", "high"]',
}


def played(folder: Path, engine: str, plan: str, sets: list[str], **keys: Any) -> dict[str, Any]:
    """Everything that a reproducible run comes to: weights, metrics, answers, events spent."""
    chosen = load_plan(plan, [*sets, f"simulation.engine={engine}"])
    result = simulate(chosen, folder, insecure=True, **keys)
    last = latest(folder / "checkpoints")
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return {
        "reason": result.outcome.reason,
        "weights": read(last)[0] if last is not None else {},
        "metrics": [line["metrics"] for line in lines],
        "sites": [line["sites"] for line in lines],
        "events": {
            path.name: [
                [entry[key] for key in ("round", "event")]
                for entry in map(json.loads, path.read_text().splitlines())
            ]
            for path in sorted((folder / "ledgers").glob("*.jsonl"))
        },
    }


def same(
    tmp_path: Path, plan: str, sets: list[str], *, within: float = 1e-5, **keys: Any
) -> dict[str, Any]:
    serial = played(tmp_path / "serial", "serial", plan, sets, **keys)
    vector = played(tmp_path / "vector", "vector", plan, sets, **keys)
    for key in ("reason", "sites", "events"):
        assert vector[key] == serial[key], key
    for name, array in serial["weights"].items():
        assert vector["weights"][name] == pytest.approx(array, abs=within), name
    for one, other in zip(serial["metrics"], vector["metrics"], strict=True):
        assert one == pytest.approx(other, abs=10 * within)
    return vector


# So little noise that a rounding to its grid, which may turn either way, is below the tolerance.
FEW = ["rounds=3", "sites=6", "sigma=0.01", "rate=0.1"]


@pytest.mark.parametrize(
    "sets",
    [
        ["steps=4", "schedule=cosine"],
        ["steps=3", "optimizer=momentum", "l2=0.1", "split=dirichlet:0.3", "weights=rows"],
        ["steps=3", "optimizer=adam", "lr=0.05", "aggregation=fedprox", "mu=0.5"],
        ["rate=0.001", "steps=2"],
        ["rate=1.0", "micro_batch=7"],
        ["steps=2", "metrics=['loss', 'accuracy', 'rows']", "metrics_sigma=3.0"],
        ["simulation.dropout=0.3", "simulation.slow=0.3"],
    ],
    ids=lambda sets: " ".join(sets),
)
def test_a_run_has_the_numbers_and_the_ledgers_of_serial(sets: list[str], tmp_path: Path) -> None:
    result = same(tmp_path, "digits", [*FEW, *sets])
    assert result["reason"] == "done"
    assert all(result["events"].values())


@pytest.mark.slow
def test_sites_of_different_epsilon_train_beside_each_other(tmp_path: Path) -> None:
    sets = ["site.site-1.epsilon=5", "site.site-4.epsilon=9", "delta=1e-3", "wire=bfloat16"]
    result = same(tmp_path, "digits", [*FEW, *sets], within=1e-3)
    noises = {entries[0][1]["sigma"] for entries in result["events"].values()}
    assert len(noises) == 3


@pytest.mark.parametrize("unit", ["none", "client"])
def test_units_without_noise_at_the_sites_are_the_same_too(unit: str, tmp_path: Path) -> None:
    sets = [s for s in FEW if unit != "none" or not s.startswith("sigma")]
    adaptive = ["clip_quantile=0.5", "clip_sigma=5"] if unit == "client" else []
    result = same(tmp_path, "digits", [*sets, f"unit={unit}", "steps=3", *adaptive])
    assert result["reason"] == "done"
    assert len(result["events"]) == (1 if unit == "client" else 0)


@pytest.mark.parametrize("kind", sorted(LABELS))
def test_hidden_layers_learn_a_table_as_in_serial(kind: str, tmp_path: Path) -> None:
    (tmp_path / "schema.toml").write_text(TABLE.format(kind=kind, label=LABELS[kind]))
    draws = np.random.default_rng(0)
    for name in ("first.csv", "later.csv"):
        rooms, garden = draws.integers(0, 10, 60), draws.integers(0, 500, 60)
        prices = (10 * rooms + garden / 10).round(1)
        words = np.array(["low", "middle", "high"])[np.digitize(prices, [50, 90])]
        given_ = words if kind == "classification" else prices
        rows = [f"{a},{b},{c}" for a, b, c in zip(rooms, garden, given_, strict=True)]
        (tmp_path / name).write_text("\n".join(["rooms,garden,price", *rows]) + "\n")
    (tmp_path / "plan.toml").write_text(
        'task = "table"\nschema = "schema.toml"\nrounds = 3\nsites = 7\nrate = 0.3\nsteps = 3\n'
        'rows = "actual"\nlr = 0.5\nclip = 0.7\nsigma = 0.8\ndelta = 1e-3\n'
    )
    same(tmp_path, str(tmp_path / "plan.toml"), [], data=tmp_path / "first.csv")


def test_a_spent_site_declines_and_the_others_go_on(tmp_path: Path) -> None:
    sets = ["sites=6", "sigma=2", "rate=0.1", "delta=1e-3", "site.site-2.limit=0.2", "rounds=4"]
    result = same(tmp_path, "digits", sets, within=1e-3)
    reasons = [line["site-2"]["reason"] for line in result["sites"]]
    assert reasons[0] is None
    assert reasons[-1] == "budget-exhausted"
    assert all(line["site-3"]["status"] == "trained" for line in result["sites"])


def test_a_bound_on_memory_parts_the_sites_and_changes_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def counting(stack: Stack, members: list[Member], *args: Any, **keys: Any) -> Any:
        sizes.append(len(members))
        return train_together(stack, members, *args, **keys)

    monkeypatch.setattr(simulations.engines.vector, "train_together", counting)
    whole = played(tmp_path / "whole", "vector", "digits", FEW)
    assert sizes == [6] * 3
    monkeypatch.setattr(simulations.engines.vector, "_MOST", 100_000)
    parted = played(tmp_path / "parted", "vector", "digits", FEW)
    assert max(sizes[3:]) < 6
    assert sum(sizes[3:]) == 18
    for name, array in whole["weights"].items():
        assert parted["weights"][name] == pytest.approx(array, abs=1e-6)
    assert parted["events"] == whole["events"]


def test_natural_sites_of_real_data_are_the_same(real_data: Path, tmp_path: Path) -> None:
    sets = ["rounds=3", "sigma=0.01", "rate=0.5", "steps=2"]
    same(tmp_path, "heart-disease", sets, data=real_data / "heart_disease")


def test_a_model_that_cannot_be_stacked_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conv = replace(digits(), model=lambda seed: nn.Conv1d(1, 1, 1))
    monkeypatch.setattr(simulations.engines.vector, "task_of", lambda plan: conv)
    with pytest.raises(PlanError, match=r'simulation.engine: .* use "serial" .*Conv1d'):
        simulate(load_plan("digits", ["simulation.engine=vector"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_rows_that_cannot_be_trained_fail_as_a_code_and_stay_paid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paid: list[int] = []
    spend_all = Ledger.spend_all

    def spending(self: Ledger, *words: Any, **more: Any) -> Any:
        entries = spend_all(self, *words, **more)
        paid.append(len(entries))
        return entries

    def broken(outputs: Tensor, y: Tensor) -> Tensor:
        if paid:  # what is tried before has no row in it
            raise ValueError("secret patient value")
        return digits().loss(outputs, y)

    wrong: Task = replace(digits(), loss=broken)
    monkeypatch.setattr(Ledger, "spend_all", spending)
    monkeypatch.setattr("client.tasks.registry._shipped", lambda name, schema: wrong)
    run = played(tmp_path / "run", "vector", "digits", FEW)
    assert run["reason"] == "failed"
    assert [len(entries) for entries in run["events"].values()] == [1] * 6
    files = [p for p in (tmp_path / "run").rglob("*") if p.is_file()]
    assert not any(b"secret" in p.read_bytes() for p in files)
