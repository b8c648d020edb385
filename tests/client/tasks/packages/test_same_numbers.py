"""heart-disease as a package gives the built-in's numbers, and reads as a person would write it."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from client.dpsgd.training import train
from client.tasks.packages.package_task import package_task
from client.tasks.registry import task
from client.tasks.rows import Rows
from privacy.contract.plan import Plan
from privacy.contract.plan_file import load_plan
from simulations import simulate
from tests.support.task_packages import package

HEART = """
from torch import nn

BOUNDS = {
    "age": (30, 80), "sex": (0, 1), "trestbps": (90, 200), "chol": (100, 400), "fbs": (0, 1),
    "thalach": (80, 200), "exang": (0, 1), "oldpeak": (0, 4),
}
VALUES = {"cp": ("1", "2", "3", "4"), "restecg": ("0", "1", "2")}
NAMES = ("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak")


def read(path, options):
    for file in sorted(path.glob("processed.*.data")):
        hospital = file.name.split(".")[1]
        for line in file.read_text().splitlines():
            values = line.split(",")
            yield hospital, dict(zip(NAMES, values)), values[13]


def encode(record, options):
    site, row, label = record
    x = []
    for name in NAMES:
        if name in VALUES:
            text = str(int(float(row[name])))
            x += [1.0 if text == value else -1.0 for value in VALUES[name]]
        else:
            low, high = BOUNDS[name]
            x.append(2 * (min(max(float(row[name]), low), high) - low) / (high - low) - 1)
    return {"x": x, "y": int(int(label) > 0), "site": site}


def model(options):
    layer = nn.Linear(15, 2)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
"""
MANIFEST = """
name = "heart"
version = "1"
kind = "classification"
licence = "MIT"
classes = ["healthy", "disease"]
test = 0.34
[x.values]
shape = [15]
"""


@pytest.mark.skipif("TACIT_DATA" not in os.environ, reason="needs the published files")
@pytest.mark.slow
def test_heart_disease_as_a_package_gives_the_built_ins_numbers(tmp_path: Path) -> None:
    data = Path(os.environ["TACIT_DATA"]) / "heart_disease"
    folder = tmp_path / "task"
    found = package(folder, HEART, MANIFEST)
    mine = package_task(found, {}).load(data, "all")
    theirs = task("heart-disease").load(data, "all")
    mine, theirs = ordered(mine), ordered(theirs)
    assert float((theirs.x - mine.x).abs().max()) < 1e-6
    assert torch.equal(theirs.y, mine.y)
    plan = Plan(
        task="heart",
        rounds=1,
        steps=40,
        rate=1.0,
        rows=len(mine),
        lr=2.0,
        unit="none",
        sites=1,
    )
    weights = []
    for learning, rows in ((package_task(found, {}), mine), (task("heart-disease"), theirs)):
        model = learning.model(0)
        train(model, rows, learning, plan, site="s", event=None, round=1)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert float((weights[0] - weights[1]).abs().max()) < 1e-6
    assert weights[0].abs().max() > 0.1
    shipped = load_plan("heart-disease", ["rounds=6"])
    runs = [
        simulate(shipped, data=(theirs, theirs), insecure=True),
        simulate(replace(shipped, task="heart"), task=folder, data=(mine, mine), insecure=True),
    ]
    built_in, package_run = ([dict(line) for line in run.history] for run in runs)
    assert len(built_in) == 6
    for one, other in zip(built_in, package_run, strict=True):
        assert one["epsilon"] == other["epsilon"]
        assert one["metrics"] == pytest.approx(other["metrics"], abs=1e-6)
    parameters = [torch.cat([p.detach().flatten() for p in run.model.parameters()]) for run in runs]
    assert float((parameters[0] - parameters[1]).abs().max()) < 1e-6


def ordered(rows: Rows) -> Rows:
    """The same rows in an order that depends on what they are."""
    key = rows.x.double() @ torch.arange(1.0, 16).double().pow(1.5) + 1000 * rows.y
    return rows.take(torch.argsort(key))
