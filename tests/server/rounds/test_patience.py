"""A run that stops by itself: by which round, with which model, at which price."""

import json
from pathlib import Path

import numpy as np
import pytest

from privacy.contract.forecast import fewest_rounds
from privacy.contract.plan import Plan, PlanError
from privacy.contract.plan_file import load_plan
from privacy.contract.rules.table import warnings
from privacy.ledger.ledger import verify
from privacy.report.bundle.write import file_report
from server.rounds.history import Patience
from server.rounds.run_folder import RunFolder
from simulations.display import sentence
from simulations.run import simulate


def plan(*overrides: str) -> Plan:
    return load_plan(
        "digits", ["rounds=60", "sites=2", "rows=700", "lr=20", "average=false", *overrides]
    )


def line(number: int, **metrics: float) -> dict[str, object]:
    return {"round": number, "metrics": metrics}


def test_rounds_in_vain_are_counted_from_the_best_one() -> None:
    patience = Patience.of(plan("operation.patience=2"), ())
    assert patience is not None
    values = (3.0, 2.0, 2.5, 1.9, 1.9, 2.0)
    improved = [patience.improved(line(i, loss=v)) for i, v in enumerate(values, 1)]
    assert improved == [True, True, False, True, False, False]
    assert (patience.best, patience.spent(5), patience.spent(6)) == (4, False, True)
    assert not patience.improved(line(7, accuracy=1.0))


def test_accuracy_is_better_when_it_is_larger_and_a_gain_may_be_asked() -> None:
    options = ("operation.stop_metric=accuracy", "operation.stop_gain=0.1")
    patience = Patience.of(plan("operation.patience=3", *options), ())
    assert patience is not None
    values = (0.2, 0.25, 0.31, 0.35)
    improved = [patience.improved(line(i, accuracy=v)) for i, v in enumerate(values, 1)]
    assert improved == [True, False, True, False]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    result = simulate(plan("operation.patience=4"), folder)
    assert result.outcome.reason == "done"
    assert "stopped by itself" in sentence(result.summary)
    return folder


def test_the_best_rounds_model_is_released_and_later_rounds_are_not_paid(stopped: Path) -> None:
    history = RunFolder.open(stopped).history()
    closing, asked = history[-1], history[:-1]
    assert closing["sites"] == {} and len(asked) < 60
    losses = [one["metrics"]["loss"] for one in asked]
    best = int(np.argmin(losses)) + 1
    assert len(asked) - best == 4
    assert closing["metrics"] == asked[best - 1]["metrics"]
    assert closing["epsilon"] == asked[-1]["epsilon"]
    checkpoints = stopped / "checkpoints"
    from server.rounds import checkpoint

    released, _ = checkpoint.read(checkpoint.path_of(checkpoints, closing["round"]))
    there, _ = checkpoint.read(checkpoint.path_of(checkpoints, best))
    names = [name for name in there if not name.startswith("server/")]
    assert all((released[name] == there[name]).all() for name in names)
    for ledger in (stopped / "ledgers").glob("*.jsonl"):
        assert len(verify(ledger).events) == len(asked)


def test_it_stays_stopped_when_it_is_resumed_before_its_summary(stopped: Path) -> None:
    before = (stopped / "history.jsonl").read_bytes()
    summary = stopped / "summary.json"
    kept = summary.read_bytes()
    summary.unlink()
    again = simulate(plan("operation.patience=4"), stopped, resume=True)
    assert again.outcome.reason == "done" and "stopped by itself" in again.outcome.detail
    assert (stopped / "history.jsonl").read_bytes() == before
    assert json.loads(kept)["detail"] == again.outcome.detail


def test_the_report_is_sound_and_says_by_what_it_stopped(stopped: Path, tmp_path: Path) -> None:
    report, _, _ = file_report([stopped], tmp_path / "report")
    assert report.sound, report.problems
    (run,) = report.content["runs"]
    (early,) = [one for one in run["unprotected"] if one["quantity"] == "Early stopping"]
    assert early["status"] == "public" and "ε of all rounds" in early["how"]


def test_nothing_is_asked_where_there_is_nothing_to_stop_by(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="metrics must list"):
        plan("operation.patience=4", "operation.stop_metric=site_loss")
    text = warnings(plan("operation.patience=60"))
    assert text == ("operation.patience = 60 stops nothing: there are 60 rounds",)


def test_the_forecast_shows_both_ends_and_the_digest_is_the_same() -> None:
    assert fewest_rounds(plan("operation.patience=4")) == 5
    assert fewest_rounds(plan()) == 60
    assert plan("operation.patience=4").digest == plan().digest
