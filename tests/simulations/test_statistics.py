"""A run of statistics from its plan to its pages: the path of training, with one release a site."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from privacy.accounting.events import Event
from privacy.contract.forecast import forecast
from privacy.contract.plan import Plan
from privacy.contract.plan_file import parse
from privacy.contract.policy import Policy
from privacy.ledger.ledger import verify
from privacy.report.bundle.write import file_report
from privacy.statistics.results import read_results
from server.rounds.run_folder import RunFolder
from simulations.display import sentence
from simulations.run import simulate


def plan(**more: object) -> Plan:
    table = {
        "task": "statistics",
        "rows": 500,
        "sites": 3,
        "epsilon": 2.0,
        "delta": 1e-4,
        "statistics": {
            "of": "digits",
            "columns": {"target": ["frequencies"], "pixel_3_4": ["quantiles", "moments"]},
            "whole": ["pixel_3_4"],
        },
    }
    return parse({**table, **more})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "looked"
    result = simulate(plan(), folder)
    assert result.outcome.reason == "done"
    assert "counted at epsilon 2" in sentence(result.summary)
    return folder


def test_every_site_pays_once_and_the_figures_are_near_the_truth(run: Path) -> None:
    sigma = plan().nominal_sigma()
    for ledger in (run / "ledgers").glob("*.jsonl"):
        assert verify(ledger).events == (Event("record", sigma, 1.0, 1),)
    content = json.loads((run / "statistics.json").read_text())
    assert content["all"]["rows"]["low"] <= 1437 + 60 and set(content["sites"]) == {
        "site-0",
        "site-1",
        "site-2",
    }
    target = next(one for one in content["all"]["columns"] if one["column"] == "target")
    shares = np.array([one["share"]["value"] for one in target["frequencies"][:10]])
    true = np.bincount(load_digits().target) / 1797
    assert np.abs(shares - true).max() < 0.04
    assert "digits" in (run / "statistics.html").read_text()
    assert read_results(run).to_json() == (run / "statistics.json").read_text()


def test_a_run_that_is_complete_is_not_paid_again(run: Path) -> None:
    before = (run / "statistics.json").read_bytes()
    assert simulate(plan(), run, resume=True).outcome.reason == "done"
    assert (run / "statistics.json").read_bytes() == before
    assert RunFolder.open(run).resume() is not None


def test_the_report_is_sound_and_speaks_of_counts(run: Path, tmp_path: Path) -> None:
    report, out, _ = file_report([run], tmp_path / "report")
    assert report.sound, report.problems
    (facts,) = report.content["runs"]
    words = json.dumps(facts)
    assert "noisy sums of all that was counted" in words and "DP-SGD" not in words
    assert "Column pixel_3_4" in words and "quantiles, moments" in words
    assert report.content["plain"]["epsilon"] == pytest.approx(2.0, rel=2e-3)
    page = (out / "report.html").read_text()
    assert "statistics" in page


def test_the_forecast_prices_it_and_a_policy_must_list_statistics() -> None:
    policy = Policy(epsilon=3.0, delta=1e-4, approve="within-limits", min_sigma=0.0)
    refused = forecast(plan(), "site-0", policy).refusal
    assert refused is not None and refused.code == "output-not-allowed"
    allowed = Policy(
        epsilon=3.0,
        delta=1e-4,
        approve="within-limits",
        min_sigma=0.0,
        outputs=("update", "statistics"),
    )
    outlook = forecast(plan(), "site-0", allowed)
    assert outlook.refusal is None and outlook.fits == 1
    assert "count" in outlook.leaves[0].why
    small = Policy(epsilon=1.0, delta=1e-4, approve="within-limits", outputs=("statistics",))
    exhausted = forecast(plan(), "site-0", small).refusal
    assert exhausted is not None and exhausted.code == "budget-exhausted"


def test_older_plans_keep_their_digests() -> None:
    text = plan().to_json()
    assert '"statistics":{' in text
    from privacy.contract.plan_file import from_json, load_plan

    assert from_json(text).digest == plan().digest
    assert "statistics" not in load_plan("digits").to_json()
    assert "constants_from" not in load_plan("digits").to_json()
