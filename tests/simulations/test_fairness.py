"""A model's rates in groups, counted at the sites in one paid release: against direct counting."""

import json
from pathlib import Path

import numpy as np
import pytest

from client.dpsgd.weights import trained_of
from client.tasks.registry import task_of
from privacy.contract.plan import Plan
from privacy.contract.plan_file import parse
from privacy.ledger.ledger import verify
from privacy.report.bundle.write import file_report
from server.rounds import checkpoint
from server.rounds.run_folder import FolderError
from simulations.run import simulate

SCHEMA = """
label = "ill"
test = 0.2
[columns.age]
type = "number"
min = 20
max = 80
[columns.dose]
type = "number"
min = 0
max = 1
[columns.sex]
type = "category"
values = ["f", "m", "x"]
[columns.ill]
type = "category"
values = ["no", "yes"]
"""
COMMON = {"schema": SCHEMA, "sites": 3, "rows": 1000, "delta": 1e-5, "split": "iid"}


def training() -> Plan:
    more = {"task": "table", "rounds": 8, "rate": 1.0, "lr": 2.0, "clip": 1.0, "sigma": 4.0}
    return parse({**COMMON, **more})


def groups(**more: object) -> Plan:
    asked = {"of": "table", "groups": ["sex"], "label": "ill", "columns": {"sex": ["missing"]}}
    return parse({**COMMON, "task": "statistics", "epsilon": 1.0, "statistics": asked, **more})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = np.random.default_rng(5)
    path = tmp_path_factory.mktemp("data") / "rows.csv"
    lines = ["age,dose,sex,ill"]
    for _ in range(4000):
        sex = source.choice(["f", "m", "x", "?"], p=[0.55, 0.43, 0.005, 0.015])
        age, dose = source.uniform(20, 80), source.uniform(0, 1)
        chance = 1 / (1 + np.exp(-(age - 50) / 8 - (1.5 if sex == "m" else 0)))
        ill = "yes" if source.random() < chance else "no"
        lines.append(f"{age:.1f},{dose:.2f},{sex},{ill}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    simulate(training(), folder / "model", data=data)
    result = simulate(groups(), folder / "fair", data=data, first=folder / "model")
    assert result.outcome.reason == "done", result.outcome.detail
    return folder / "model", folder / "fair"


def counted(model_run: Path, data: Path) -> dict[str, dict[str, float]]:
    """The same rates by direct counting, without noise."""
    learning = task_of(training())
    rows = learning.load(data, "all")
    arrays, _ = checkpoint.read(checkpoint.latest(model_run / "checkpoints"))  # type: ignore[arg-type]
    model = learning.model(0).eval()
    for name, parameter in trained_of(model).items():
        parameter.data.copy_(parameter.data.new_tensor(arrays[name]))
    chances = learning.decode(model(rows.x)).detach().numpy()
    place = learning.features.index("sex")
    found = {}
    for offset, name in enumerate(["f", "m"]):
        held = rows.x[:, place + offset].numpy() == 1
        y, p = rows.y.numpy()[held], chances[held]
        guess = p.argmax(1)
        found[name] = {
            "rows": float(held.sum()),
            "accuracy": float((guess == y).mean()),
            "recall": float(guess[y == 1].mean()),
            "selection": float(guess.mean()),
            "calibration": float(y.mean() - p[:, 1].mean()),
        }
    return found


def test_the_rates_hold_against_direct_counting_within_their_error_bars(
    runs: tuple[Path, Path], data: Path
) -> None:
    model, fair = runs
    (shown,) = json.loads((fair / "fairness.json").read_text())["fairness"]
    assert shown["selected"] == "yes" and "x" in shown["suppressed"]
    true, misses = counted(model, data), 0
    for group in shown["groups"]:
        if group["group"] not in true:
            continue
        for name, value in true[group["group"]].items():
            interval = group[name]
            width = (interval["high"] - interval["low"]) / 2
            assert abs(interval["value"] - value) < 2.5 * width + 1e-9, (group, name, value)
            misses += not interval["low"] <= value <= interval["high"]
    assert misses <= 3  # of ten, each in one of 20 releases
    assert shown["gaps"]["selection"]["value"] > 0.03
    assert "The model in groups of sex" in (fair / "statistics.html").read_text()


def test_it_is_one_more_expense_of_the_same_sort(runs: tuple[Path, Path]) -> None:
    _, fair = runs
    (event,) = verify(fair / "ledgers" / "site-0.jsonl").events
    assert (event.rate, event.steps, event.count) == (1.0, 1, 1)
    assert event.sigma == groups().nominal_sigma()


def test_the_report_shows_the_groups_with_their_error_bars(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    report, out, _ = file_report([runs[1]], tmp_path / "fair")
    assert report.sound, report.problems
    fairness = report.content["runs"][0]["utility"]["fairness"]
    names = [one["group"] for one in fairness["groups"]]
    assert {"f", "m"} <= set(names) and "to" in fairness["groups"][0]["accuracy"]
    assert "sex: x" in fairness["words"]
    assert "calibration" in (out / "report.html").read_text()
    other, _, _ = file_report([runs[0]], tmp_path / "model")
    assert "no group metrics on file" in other.content["runs"][0]["utility"]["fairness"]["words"]


def test_groups_need_a_model(tmp_path: Path, data: Path) -> None:
    with pytest.raises(FolderError, match="--from RUN must name"):
        simulate(groups(), tmp_path / "fair", data=data)
