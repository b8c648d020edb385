"""Every epsilon is recounted from ledgers or heads, and what does not fit is said."""

import json
from pathlib import Path
from typing import Any

import dp_accounting
import pytest
from dp_accounting import pld
from hypothesis import given
from hypothesis import strategies as st

from privacy.accounting.attacker import best_success, curve, profile, total_variation
from privacy.accounting.events import Event
from privacy.ledger.ledger import Ledger
from privacy.report.report import Report, build
from privacy.report.sources import ReportError, read
from tests.support.run_folders import edited, make_plan, run_folder, with_heads


def filed(*folders: Path) -> Report:
    return build([read(folder) for folder in folders], {"at": "2026-01-02T03:04:05+00:00"})


def codes(report: Report) -> set[str]:
    return {problem.code for problem in report.problems}


def test_a_run_that_fits_together_is_sound(tmp_path: Path) -> None:
    report = filed(run_folder(tmp_path / "run", absent={"site-2": [3, 4]}))
    assert report.sound
    (run,) = report.content["runs"]
    spent = {a["name"]: a["epsilon"] for a in run["guarantee"]["accounts"]}
    assert spent["site-0"] == spent["site-1"] > spent["site-2"] > 0
    assert run["guarantee"]["federation"]["epsilon"] == spent["site-0"]
    assert run["guarantee"]["federation"]["epsilon_if_shared"] > spent["site-0"]
    assert run["policy"]["refusals"] == [
        {"site": "site-2", "reason": "declined: budget-exhausted", "rounds": [3, 4]}
    ]


@pytest.mark.long
def test_epsilons_agree_with_another_program_that_reads_the_ledgers(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    report = filed(folder)
    for account in report.content["runs"][0]["guarantee"]["accounts"]:
        accountant = pld.PLDAccountant()
        path = folder / "ledgers" / f"{account['name']}.jsonl"
        for line in path.read_text("utf-8").splitlines():
            event = json.loads(line)["event"]
            gaussian = dp_accounting.GaussianDpEvent(event["sigma"])
            accountant.compose(gaussian, event["steps"] * event["count"])
        assert account["epsilon"] == pytest.approx(accountant.get_epsilon(1e-4), abs=1e-3)
        table = next(
            t
            for t in report.content["runs"][0]["accounting"]["tables"]
            if t["account"] == account["name"]
        )
        assert table["rounds"][-1]["epsilon"] == account["epsilon"]


def test_the_text_is_canonical(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    text = filed(folder).to_json()
    assert text == filed(folder).to_json()
    assert text.endswith("}\n") and text.count("\n") == 1
    value = json.loads(text)
    again = json.dumps(value, sort_keys=True, separators=(",", ":"))
    assert text == again + "\n"


@pytest.mark.parametrize(
    ("file", "old", "new", "code"),
    [
        ("ledgers/site-1.jsonl", '"n": 2', '"n": 3', "ledger-broken"),
        ("ledgers/site-1.jsonl", '"sigma": 8.0', '"sigma": 9.0', "ledger-broken"),
        ("history.jsonl", '"epsilon": 0.', '"epsilon": 1.', "epsilon-differs"),
        ("history.jsonl", '"sigma": 8.0', '"sigma": 9.0', "event-differs"),
        ("history.jsonl", '"steps": 2', '"steps": 1', "event-differs"),
        ("history.jsonl", '"delta": 0.0001', '"delta": 0.0002', "epsilon-differs"),
        ("history.jsonl", '"round": 2', '"round": 1', "history-unreadable"),
        ("history.jsonl", '"status": "trained"', '"status": "rained"', "history-unreadable"),
        ("plan.toml", "sigma = 8.0", "sigma = 7.0", "plan-changed"),
        ("plan.toml", "sigma = 8.0", "sigma = -1", "plan-unreadable"),
        ("run.json", '"seed": 0', '"insecure": true', "noise-reproducible"),
    ],
)
def test_what_does_not_fit_is_said(
    tmp_path: Path, file: str, old: str, new: str, code: str
) -> None:
    folder = run_folder(tmp_path / "run")
    edited(folder / file, old, new)
    report = filed(folder)
    assert code in codes(report)
    assert not report.content["verdict"]["sound"]


def test_a_trained_round_without_an_entry_is_said(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    path = folder / "ledgers" / "site-0.jsonl"
    lines = path.read_text("utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:-1]), "utf-8")
    found = {problem.code: problem for problem in filed(folder).problems}
    assert "round 4" in found["entry-missing"].message
    path.unlink()
    assert {"ledger-missing", "entry-missing"} <= codes(filed(folder))


def test_rounds_paid_for_and_lost_count_and_are_no_fault(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    ledger = Ledger.open(folder / "ledgers" / "site-0.jsonl", durable=False)
    plan = make_plan()
    ledger.spend_all(
        plan.events_of_round("site-0"), None, run="0123456789abcdef", round=4, plan=plan.digest
    )
    report = filed(folder)
    assert report.sound
    accounts = report.content["runs"][0]["guarantee"]["accounts"]
    assert accounts[0]["epsilon"] > accounts[1]["epsilon"]
    assert any("never completed" in note for note in report.content["runs"][0]["notes"])


def test_a_limit_that_was_passed_is_said(tmp_path: Path) -> None:
    assert "limit-passed" in codes(filed(run_folder(tmp_path / "run", make_plan(limit=0.5))))
    assert filed(run_folder(tmp_path / "other", make_plan(limit=5.0))).sound


def test_without_noise_nothing_is_promised(tmp_path: Path) -> None:
    plan = make_plan(unit="none", clip=None, sigma=None, delta=None)
    report = filed(run_folder(tmp_path / "run", plan))
    assert report.sound
    assert report.content["runs"][0]["guarantee"] is None
    assert report.content["plain"]["without_any_guarantee"] == ["run"]
    assert report.content["plain"]["epsilon"] is None


def test_the_client_unit_stands_as_open_to_the_coordinator(tmp_path: Path) -> None:
    report = filed(run_folder(tmp_path / "run", make_plan(unit="client", rows=300)))
    assert report.sound, report.problems
    assert report.content["plain"]["open_to_the_coordinator"] == ["run"]
    (account,) = report.content["runs"][0]["guarantee"]["accounts"]
    assert account["name"] == "coordinator" and len(account["covers"]) == 3
    assert "NOT hold against the coordinator" in report.content["runs"][0]["trust"]["holds"]


def federation(path: Path) -> Path:
    """A coordinator's run: heads in place of ledgers."""
    return with_heads(run_folder(path))


def test_a_coordinators_run_is_recounted_from_the_heads(tmp_path: Path) -> None:
    folder = federation(tmp_path / "runs" / "run")
    report = filed(folder)
    assert report.sound, report.problems
    assert "not re-derived from the sites' own ledgers" in report.content["view_words"]
    accounts = report.content["runs"][0]["guarantee"]["accounts"]
    assert {a["derived_from"] for a in accounts} == {"plan and counter-signed heads"}
    edited(folder / "heads" / "site-0.jsonl", '"round": 2', '"round": 9')
    assert "entry-missing" in codes(filed(folder))


def test_a_head_with_less_noise_than_the_plans_is_said(tmp_path: Path) -> None:
    folder = federation(tmp_path / "runs" / "run")
    text = (folder / "heads" / "site-0.jsonl").read_text("utf-8")
    (folder / "heads" / "site-0.jsonl").write_text(text.replace("8.0", "4.0"), "utf-8")
    assert "event-differs" in codes(filed(folder))


def site(path: Path) -> Path:
    """A site's folder: a policy, a ledger of two runs, and the plan of one."""
    plan = make_plan()
    (path / "plans").mkdir(parents=True)
    (path / "plans" / f"{plan.digest}.json").write_text(plan.to_json(), "utf-8")
    (path / "policy.toml").write_text("epsilon = 4.0\ndelta = 1e-4\n", "utf-8")
    ledger = Ledger.create(path / "people.jsonl", population="people", durable=False)
    kept = [{"name": "people", "ledger": str(path / "people.jsonl"), "data": None}]
    (path / "populations.json").write_text(json.dumps(kept), "utf-8")
    for run, digest in (("first", plan.digest), ("second", "f" * 64)):
        for number in (1, 2, 3):
            ledger.spend(Event("record", 8.0, 1.0, 2), None, run=run, round=number, plan=digest)
    return path


def test_a_sites_report_tells_the_life_of_its_budget(tmp_path: Path) -> None:
    from privacy.report.bundle.evidence import collect

    collect(site(tmp_path / "site"), tmp_path / "evidence")
    report = filed(tmp_path / "evidence")
    assert report.sound, report.problems
    (book,) = report.content["life"]
    assert [run["run"] for run in book["runs"]] == ["first", "second"]
    assert book["epsilon"] == report.content["plain"]["epsilon"]
    assert book["left"] == pytest.approx(4.0 - book["epsilon"])
    assert book["runs"][0]["epsilon_added"] > book["runs"][1]["epsilon_added"]
    kept = (tmp_path / "evidence").rglob("*.json*")
    assert not any("salt" in path.read_text("utf-8") for path in kept)


def test_several_runs_on_one_data_set_add_up(tmp_path: Path) -> None:
    one = run_folder(tmp_path / "one", run="a" * 16)
    two = run_folder(tmp_path / "two", run="b" * 16)
    alone = filed(one).content["plain"]["epsilon"]
    both = filed(one, two).content
    assert both["plain"]["epsilon"] > alone
    assert len(both["life"][0]["runs"]) == 2


def test_views_of_different_readers_do_not_mix(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="stays at the site"):
        filed(run_folder(tmp_path / "run"), site(tmp_path / "site"))


def audit(**changes: Any) -> dict[str, Any]:
    bound = {"name": "f-DP", "epsilon": 3.3, "confidence": 0.95, "p": 0.4}
    check = {"name": "noise is fresh", "statistic": 1.0, "p": 0.5, "detail": "", "passed": True}
    base = {"claimed": 4.0, "delta": 1e-5, "verdict": "no violation found"}
    return base | {"bounds": [bound | changes], "checks": [check]}


def test_a_lower_bound_above_its_claim_is_said(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    assert filed(folder).content["checks"][0]["said"] == "no audit on file"
    (folder / "audit.json").write_text(json.dumps(audit()), "utf-8")
    assert filed(folder).sound
    (folder / "audit.json").write_text(json.dumps(audit(epsilon=4.5)), "utf-8")
    assert codes(filed(folder)) == {"bound-exceeds-claim"}


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="expected a run folder"):
        read(tmp_path)


@given(st.floats(0, 20), st.floats(0, 0.5))
def test_success_lies_between_guessing_and_certainty(epsilon: float, delta: float) -> None:
    assert 0.5 <= best_success(epsilon, delta) <= 1
    assert best_success(epsilon, delta) <= best_success(epsilon + 0.1, delta)


def test_the_exact_reach_is_the_gaussians_total_variation() -> None:
    # Two normals a distance 1/sigma apart: TV = 2 Phi(1 / (2 sigma)) - 1.
    events = (Event("record", 2.0, 1.0, 1),)
    assert total_variation(events) == pytest.approx(0.1974, abs=2e-3)
    points = curve(profile(events))
    assert points[0][0] == 0 and points[0][1] == pytest.approx(1.0, abs=1e-6)
    assert points[-1] == (1.0, 0.0)
    assert all(a + b <= 1 + 1e-12 for a, b in points)
    half = next(b for a, b in points if a >= 0.25)
    assert half == pytest.approx(0.57, abs=0.02)  # Phi(Phi^-1(0.75) - 1/2)
