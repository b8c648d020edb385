"""A run that stops by itself: by which round, with which model, at which price."""

import json
from pathlib import Path

import numpy as np
import pytest

from privacy.contract.cadence import fewest_rounds
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
    return {"round": number, "metrics": metrics, "sites": {"site-0": {}}}


def of(*options: str) -> Patience:
    patience = Patience.of(plan(*options), ())
    assert patience is not None
    return patience


def test_looks_in_vain_are_counted_from_the_best_one() -> None:
    patience = of("operation.patience=2", "operation.stop_metric=loss")  # means of one look
    values = (3.0, 2.0, 2.5, 1.9, 1.9)
    improved = [patience.improved(line(i, loss=v)) for i, v in enumerate(values, 1)]
    assert improved == [True, True, False, True, False] and not patience.spent()
    assert not patience.improved(line(6, accuracy=1.0)) and not patience.spent()  # no look
    assert not patience.improved(line(7, loss=2.0)) and patience.spent()
    assert "has not become better in 2 looks: stopped by itself after round 7" in patience.words(4)


def test_accuracy_is_better_when_it_is_larger_and_a_gain_may_be_asked() -> None:
    patience = of(
        "operation.patience=2", "operation.stop_metric=accuracy", "operation.stop_gain=0.1"
    )
    values = (0.2, 0.25, 0.31, 0.35)
    improved = [patience.improved(line(i, accuracy=v)) for i, v in enumerate(values, 1)]
    assert improved == [True, False, True, False]


def test_means_are_compared_and_not_a_lucky_look() -> None:
    patience = of("operation.patience=5", "operation.stop_metric=loss")  # means of three
    values = (3.0, 3.0, 3.0, 1.0, 2.9, 2.9, 2.5)
    improved = [patience.improved(line(i, loss=v)) for i, v in enumerate(values, 1)]
    # means: -, -, 3, 2.33, 2.3, 2.27, 2.77
    assert improved == [False, False, True, True, True, True, False]


def test_a_loss_that_rises_under_noise_stops_nothing_while_accuracy_does_too() -> None:
    patience = of("operation.patience=2")
    for number in range(1, 9):
        patience.improved(line(number, loss=1.0 + number, accuracy=0.1 * number))
    assert not patience.spent() and patience.best == 8
    for number in (9, 10):
        patience.improved(line(number, loss=9.0, accuracy=0.8))
    assert patience.spent() and patience.best == 8
    assert "loss and accuracy have not" in patience.words(8)


def test_a_paid_metric_is_of_the_model_that_its_round_began_with() -> None:
    paid = ('metrics=["loss"]', "metrics_sigma=30", "operation.stop_metric=site")
    patience = of("operation.patience=1", *paid)
    assert not patience.improved(line(1, site_loss=0.1))  # nobody would release first weights
    assert patience.improved(line(2, site_loss=2.0)) and patience.best == 1
    assert not patience.improved(line(3, loss=1.0)) and not patience.spent()
    assert not patience.improved(line(4, site_loss=2.0)) and patience.spent()


def test_a_paid_metric_every_third_round_stops_a_run_and_is_paid_for_there_alone(
    tmp_path: Path,
) -> None:
    paid = ('metrics=["accuracy"]', "metrics_sigma=60", "metrics_every=3")
    soon = ("operation.patience=1", "operation.stop_gain=0.9", "rounds=30")
    one = plan("operation.stop_metric=site", *soon, *paid)
    result = simulate(one, tmp_path / "run")
    assert "site_accuracy has not become better in 1 look:" in result.outcome.detail
    history = RunFolder.open(tmp_path / "run").history()
    asked = history[:-1] if not history[-1]["sites"] else history
    assert len(asked) == 6
    with_metric = [one["round"] for one in asked if "site_accuracy" in one["metrics"]]
    assert with_metric == list(range(3, len(asked) + 1, 3))
    for name in ("site-0", "site-1"):
        entries = verify(tmp_path / "run" / "ledgers" / f"{name}.jsonl").events
        expected = [e for n in range(1, len(asked) + 1) for e in one.events_of_round(name, n)]
        assert list(entries) == expected
    report, _, _ = file_report([tmp_path / "run"], tmp_path / "report")
    assert report.sound, report.problems
    (run,) = report.content["runs"]
    (early,) = [one for one in run["unprotected"] if one["quantity"] == "Early stopping"]
    assert early["status"] == "noised" and "once in 3 rounds" in early["how"]


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
    means = {
        name: np.convolve([one["metrics"][name] for one in asked], [0.5, 0.5], "valid")
        for name in ("loss", "accuracy")
    }
    best = 2 + max(int(np.argmin(means["loss"])), int(np.argmax(means["accuracy"])))
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
    text = warnings(plan("operation.patience=40"))
    assert text == ("operation.patience = 40 stops nothing: there are 60 rounds",)


def test_the_forecast_shows_both_ends_and_the_digest_is_the_same() -> None:
    assert fewest_rounds(plan("operation.patience=4")) == 6
    assert fewest_rounds(plan()) == 60
    assert plan("operation.patience=4").digest == plan().digest
