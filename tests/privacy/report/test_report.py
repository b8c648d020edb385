"""The report: every figure recomputed, every changed digit named, every misfit said in red."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from privacy.accounting.epsilon import spent
from privacy.ledger.ledger import verify as verify_ledger
from privacy.report.bundle.verify import verify
from privacy.report.bundle.write import file_report
from tests.support.run_folders import edited, make_plan, run_folder


@pytest.fixture(scope="module")
def filed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on a sound run."""
    home = tmp_path_factory.mktemp("filed")
    file_report([run_folder(home / "run")], home / "report")
    return home / "report"


def content(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


def codes(folder: Path) -> set[str]:
    return {problem.code for problem in verify(folder).differences}


def problems_of(run: Path) -> list[dict[str, Any]]:
    report, _, _ = file_report([run], run.parent / "report")
    found: list[dict[str, Any]] = report.content["verdict"]["problems"]
    assert bool(found) != report.sound
    return found


def test_a_report_of_a_sound_run_is_sound_and_verifies(filed: Path) -> None:
    found = verify(filed)
    assert found.sound
    assert found.figures > 100
    assert "self-signed" in found.origin


def test_its_epsilon_is_what_its_own_evidence_costs(filed: Path) -> None:
    (ledger,) = filed.glob("evidence/*/ledgers/site-0.jsonl")
    epsilon = spent(verify_ledger(ledger).events, 1e-4)
    text = (filed / "report.json").read_text()
    stated = [float(n) for n in re.findall(r'"epsilon":([0-9.]+)', text)]
    assert any(abs(one - epsilon) < 1e-9 for one in stated)


def test_the_same_evidence_gives_the_same_bytes(filed: Path) -> None:
    text = (filed / "report.json").read_text()
    canonical = json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert text.rstrip("\n") == canonical or json.loads(text) == json.loads(canonical)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 10**9))
def test_one_digit_changed_in_the_report_is_named(filed: Path, where: int) -> None:
    original = (filed / "report.json").read_text()
    digits = [m.start() for m in re.finditer(r"[0-9]", original)]
    at = digits[where % len(digits)]
    changed = original[:at] + str((int(original[at]) + 1) % 10) + original[at + 1 :]
    copy = filed.parent / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(filed, copy)
    (copy / "report.json").write_text(changed)
    found = verify(copy)
    assert not found.sound
    assert any("report.json" in problem.where for problem in found.differences)


@pytest.mark.parametrize("name", ["ledgers/site-1.jsonl", "history.jsonl", "plan.toml"])
def test_one_digit_changed_in_the_evidence_is_named(filed: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(filed, tmp_path / "copy")
    (file,) = (tmp_path / "copy").glob(f"evidence/*/{name}")
    text = file.read_text()
    at = re.search(r"[0-9]", text[len(text) // 2 :])
    assert at is not None
    place = len(text) // 2 + at.start()
    file.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])
    found = verify(tmp_path / "copy")
    assert not found.sound
    assert any(Path(name).name in problem.where for problem in found.differences)


def test_a_forged_signature_is_named(filed: Path, tmp_path: Path) -> None:
    shutil.copytree(filed, tmp_path / "copy")
    seal = tmp_path / "copy" / "report.sig"
    value = json.loads(seal.read_text())
    text = json.dumps(value)
    hexes = re.findall(r"[0-9a-f]{128}", text)
    assert hexes
    seal.write_text(text.replace(hexes[0], "0" * 128))
    assert not verify(tmp_path / "copy").sound


def test_a_changed_ledger_is_red(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    edited(run / "ledgers" / "site-1.jsonl", '"steps": 2', '"steps": 1')
    assert problems_of(run)


def test_a_history_that_claims_less_than_was_spent_is_red(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    lines = (run / "history.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    last["sites"]["site-0"]["epsilon"] -= 0.01
    (run / "history.jsonl").write_text("\n".join([*lines[:-1], json.dumps(last)]) + "\n")
    assert problems_of(run)


def test_a_trained_round_without_an_entry_is_red(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", absent={"site-2": [3]})
    lines = (run / "history.jsonl").read_text().splitlines()
    third = json.loads(lines[2])
    third["sites"]["site-2"] |= {"status": "trained", "reason": None, "steps": 2}
    (run / "history.jsonl").write_text("\n".join([*lines[:2], json.dumps(third), lines[3]]) + "\n")
    assert problems_of(run)


@pytest.mark.parametrize(("bound", "sound"), [(1.7, False), (0.7, True)])
def test_a_lower_bound_above_the_claim_is_red(tmp_path: Path, bound: float, sound: bool) -> None:
    run = run_folder(tmp_path / "run")
    audit = {
        "claimed": 1.0,
        "delta": 1e-5,
        "bounds": [{"name": "f-DP", "epsilon": bound, "confidence": 0.95}],
        "checks": [],
        "verdict": "no violation found",
    }
    (run / "audit.json").write_text(json.dumps(audit))
    assert (not problems_of(run)) == sound


def test_without_an_audit_it_says_so(filed: Path) -> None:
    assert "no audit on file" in json.dumps(content(filed))


@pytest.mark.parametrize("unit", ["none", "client"])
def test_what_is_not_protected_from_the_coordinator_is_said(tmp_path: Path, unit: str) -> None:
    changes: dict[str, Any] = {"unit": unit}
    if unit == "none":
        changes |= {"clip": None, "sigma": None, "delta": None}
    report, _, _ = file_report(
        [run_folder(tmp_path / "run", make_plan(**changes))], tmp_path / "report"
    )
    text = json.dumps(report.content).lower()
    assert "coordinator" in text
    assert "not protected" in text or "un-noised" in text or "without" in text


def test_the_page_needs_no_network_and_no_script(filed: Path) -> None:
    page = (filed / "report.html").read_text()
    assert "<svg" in page
    assert "<script" not in page
    assert not re.search(r'(?:src|href)="https?:', page)
    assert "50 %" in page
