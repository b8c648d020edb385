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
from tests.support.public_kinds import HEART, HEART_MANIFEST
from tests.support.task_packages import package


@pytest.mark.skipif("TACIT_DATA" not in os.environ, reason="needs the published files")
@pytest.mark.slow
def test_heart_disease_as_a_package_gives_the_built_ins_numbers(tmp_path: Path) -> None:
    data = Path(os.environ["TACIT_DATA"]) / "heart_disease"
    folder = tmp_path / "task"
    found = package(folder, HEART, HEART_MANIFEST)
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
