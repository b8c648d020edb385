"""A federation that searches: its rounds, its choice, its ledgers, and what a site refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from privacy.accounting.epsilon import spent
from privacy.contract.forecast import forecast
from privacy.contract.pilots import chosen
from privacy.contract.plan import Plan
from privacy.contract.plan_file import load_plan
from privacy.ledger.ledger import verify
from privacy.report.bundle.write import file_report
from server.rounds.checkpoint import path_of, read
from server.rounds.run_folder import RunFolder
from simulations.own_task import OwnData
from simulations.run import simulate

CHANGES = [
    *("sites=2", "rows=700", "rounds=9", "average=false", "epsilon=8"),
    *("tune.epsilon=2", "tune.rounds=2", "tune.lr_times=[0.01, 1.0, 300.0]"),
]


def plan(*changes: str) -> Plan:
    return load_plan("digits", [*CHANGES, *changes])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "searched"
    assert simulate(plan(), folder).outcome.reason == "done"
    return folder


def test_the_pilots_come_first_and_the_best_one_says_how_the_run_goes_on(run: Path) -> None:
    history = RunFolder.open(run).history()
    assert [line.get("pilot") for line in history] == [0, 0, 1, 1, 2, 2, None, None, None]
    best = chosen(plan(), history)
    assert best == 1
    assert [line.get("choice") for line in history] == [None] * 6 + [1] * 3
    assert history[-1]["metrics"]["accuracy"] > 0.6


def test_each_pilot_and_the_run_begin_with_the_first_weights(run: Path) -> None:
    norms = {}
    for number in (1, 3):
        arrays, _ = read(path_of(run / "checkpoints", number))
        model = [a for name, a in arrays.items() if not name.startswith("server/")]
        norms[number] = float(np.sqrt(sum((a**2).sum() for a in model)))
    assert norms[1] * 20 < norms[3]  # each is one step of its learning rate from zero
    assert plan().stage(3)[0].lr / plan().stage(1)[0].lr == pytest.approx(100)
    history = RunFolder.open(run).history()
    assert history[6]["metrics"]["loss"] < history[5]["metrics"]["loss"]


def test_the_ledgers_hold_what_the_forecast_said_and_the_report_agrees(run: Path) -> None:
    one = RunFolder.open(run).plan()
    outlook = forecast(one, "site-0")
    entries = verify(run / "ledgers" / "site-0.jsonl").entries
    assert [e.event.sigma for e in entries[:6]] == [outlook.course.pilot[0].sigma] * 6
    assert [e.event.sigma for e in entries[6:]] == [outlook.events[0].sigma] * 3
    delta = one.required_delta
    paid = spent([e.event for e in entries], delta)
    assert paid == pytest.approx(one.epsilon_after("site-0", 9), abs=1e-9)
    assert 7.9 < paid <= 8.0
    report, _, _ = file_report([run], run.parent / "report")
    assert report.sound, report.problems
    (content,) = report.content["runs"]
    assert "among 3 candidates" in content["tuning"]["tuning"]


def test_a_run_that_was_cut_in_a_pilot_goes_on_to_the_same_end(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    simulate(plan(), whole, insecure=True)
    simulate(plan("operation.stop_after=3"), cut, insecure=True)
    assert simulate(plan(), cut, insecure=True, resume=True).outcome.reason == "done"

    def kept(folder: Path) -> list[Any]:
        lines = RunFolder.open(folder).history()
        return [(line["round"], line.get("pilot"), line.get("choice")) for line in lines]

    assert [one[:2] for one in kept(whole)] == [one[:2] for one in kept(cut)]
    choice = chosen(plan(), RunFolder.open(cut).history())
    assert {one[2] for one in kept(cut)} == {None, choice}


def test_without_public_rows_or_a_paid_metric_nothing_is_spent(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    data = OwnData(x, x[:, 0], bounds=(-4.0, 4.0))  # numbers have no accuracy
    model = torch.nn.Linear(3, 1)
    changes = ("rows=24", "delta=1e-3", "tune.metric=accuracy")
    result = simulate(plan(*changes), tmp_path / "run", task=model, data=data)
    assert result.outcome.reason == "failed"
    assert "tune.metric needs accuracy" in result.outcome.detail
    ledger = tmp_path / "run" / "ledgers" / "site-0.jsonl"
    assert not ledger.exists() or not ledger.read_text()


def test_patience_counts_from_the_end_of_the_pilots() -> None:
    result = simulate(plan("rounds=16", "operation.patience=3", "operation.stop_gain=100"))
    assert result.outcome.reason == "done"
    assert "stopped by itself after round 11" in result.outcome.detail
    assert "the model of round 8" in result.outcome.detail


def test_paid_metrics_choose_as_well() -> None:
    changes = ("tune.metric=site_loss", 'metrics=["loss"]', "metrics_sigma=40", "rounds=8")
    result = simulate(plan(*changes))
    assert result.outcome.reason == "done"
    assert result.epsilon is not None
    assert 7.9 < result.epsilon <= 8.0
    lines = [json.loads(json.dumps(line)) for line in result.history]
    assert lines[-1]["choice"] == chosen(plan(*changes), lines)


def test_a_learning_rate_by_the_rule_is_the_run_folders_as_well(tmp_path: Path) -> None:
    one = load_plan("digits", ["lr=auto", "sites=2", "rounds=3", "epsilon=8"])
    result = simulate(one, tmp_path / "run")
    assert result.outcome.reason == "done"
    kept = RunFolder.open(tmp_path / "run").plan()
    assert kept.lr == "auto"
    assert 1 < kept.learning_rate < 60
    assert f"# lr, by the rule for auto: {kept.learning_rate!r}" in kept.to_toml()
    assert result.history[-1]["metrics"]["accuracy"] > 0.6
