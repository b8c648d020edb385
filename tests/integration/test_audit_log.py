"""Who did what, at both sides, by the commands themselves; and what a report tells of it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from client.__main__ import app as client_app
from client.agent import received_plans
from privacy.audit_trail import FILE, user
from privacy.contract.plan_file import load_plan
from privacy.report.bundle.verify import verify
from privacy.report.bundle.write import file_report
from server.__main__ import app as server_app
from server.registry.sites import Home
from tests.support.forks import fork_model_processes
from tests.support.run_folders import run_folder

SITES = ("cleveland", "hungarian", "va", "switzerland")


def client(folder: Path, *words: object) -> str:
    return _done(client_app, folder, words)


def server(folder: Path, *words: object) -> str:
    return _done(server_app, folder, words)


def _done(app: Any, folder: Path, words: tuple[object, ...]) -> str:
    done = CliRunner().invoke(app, [*map(str, words), "--dir", str(folder)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def acts(told: str) -> list[tuple[str, str]]:
    found = json.loads(told)
    assert found["sound"]
    assert all(act["user"] == user() and act["time"].endswith("+00:00") for act in found["acts"])
    return [(act["command"], act["object"]) for act in found["acts"]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Four hospitals: three approve, one denies; one is revoked, one paused."""
    folder = tmp_path_factory.mktemp("world")
    home = folder / "coordinator"
    plan = load_plan("digits")
    server(home, "init", "--host", "127.0.0.1:8443")
    for name in SITES:
        site = folder / name
        told = json.loads(client(site, "enroll", "--site", name, "--json"))
        server(home, "sign", told["request"], "--expect", told["fingerprint"])
        client(site, "join", site / f"{name}.bundle")
        client(site, "policy", "new", "--epsilon", 2, "--delta", 1e-4, "--reason", "by the board")
        received_plans.remember(site, plan)
        answer = "deny" if name == "switzerland" else "approve"
        client(site, answer, plan.digest[:12], "--reason", "ethics vote 12/26")
    client(folder / "va", "pause", "--reason", "moving")
    client(folder / "va", "data", "add", "people", "--ledger", folder / "va" / "people.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        fork_model_processes(patch)
        server(home, "submit", "digits", "--name", "first")
    server(home, "pause", "first", "--reason", "too early")
    server(home, "revoke", "switzerland", "--reason", "left the study")
    server(home, "renew")
    server(home, "backup", folder / "coordinator.backup")
    yield folder


def test_the_coordinator_tells_who_did_what(world: Path) -> None:
    found = acts(server(world / "coordinator", "audit-log", "--json"))
    assert found == [
        ("init", "127.0.0.1:8443"),
        *(("sign", name) for name in SITES),
        ("submit", "first"),
        ("pause", "first"),
        ("revoke", "switzerland"),
        ("renew", "coordinator"),
        ("backup", str(world / "coordinator.backup")),
    ]
    told = json.loads(server(world / "coordinator", "audit-log", "--json"))["acts"]
    keys = {m.name: m.fingerprint for m in Home(world / "coordinator").members().sites.values()}
    assert {a["object"]: a["fingerprint"] for a in told if a["command"] == "sign"} == keys
    assert next(a for a in told if a["command"] == "revoke")["reason"] == "left the study"


@pytest.mark.parametrize("name", SITES)
def test_each_site_tells_its_enrolment_and_its_answer_with_its_reason(
    world: Path, name: str
) -> None:
    told = json.loads(client(world / name, "audit-log", "--json"))["acts"]
    answer = "deny" if name == "switzerland" else "approve"
    commands = [act["command"] for act in told]
    assert commands[:4] == ["enroll", "join", "policy new", answer]
    assert told[3]["reason"] == "ethics vote 12/26"
    assert told[3]["fingerprint"] == load_plan("digits").digest
    assert ("pause" in commands) is (name == "va")
    assert ("data add" in commands) is (name == "va")


def test_a_backup_holds_the_trail_and_a_restore_goes_on_with_it(
    world: Path, tmp_path: Path
) -> None:
    server(tmp_path / "again", "restore", world / "coordinator.backup")
    assert [one for one, _ in acts(server(tmp_path / "again", "audit-log", "--json"))][-2:] == [
        "backup",
        "restore",
    ]


def test_a_removed_line_is_found_by_the_command_the_doctor_and_the_report(
    world: Path, tmp_path: Path
) -> None:
    site = tmp_path / "va"
    shutil.copytree(world / "va", site)
    lines = (site / FILE).read_text().splitlines(keepends=True)
    (site / FILE).write_text("".join(lines[:3] + lines[4:]))
    shown = CliRunner().invoke(client_app, ["audit-log", "--dir", str(site), "--json"])
    assert shown.exit_code == 4
    assert json.loads(shown.stdout)["sound"] is False
    checks = CliRunner().invoke(client_app, ["doctor", "--dir", str(site), "--json"])
    (found,) = [one for one in json.loads(checks.stdout)["checks"] if one["what"] == "audit log"]
    assert found["state"] == "FAULT"
    report, _, _ = file_report([site])
    assert [one.code for one in report.problems] == ["audit-log-unsound"]


def test_a_sites_report_tells_its_acts_and_verifies(world: Path, tmp_path: Path) -> None:
    site = tmp_path / "va"
    shutil.copytree(world / "va", site)
    report, filed, _ = file_report([site])
    assert report.sound
    (told,) = report.content["acts"]
    assert [act["command"] for act in told["acts"]][:2] == ["enroll", "join"]
    page = (filed / "report.html").read_text("utf-8")
    assert "Who did what" in page and "ethics vote 12/26" in page
    assert verify(filed, {}, None).sound


def test_a_coordinators_report_names_no_site(world: Path, tmp_path: Path) -> None:
    home = tmp_path / "coordinator"
    shutil.copytree(world / "coordinator", home)
    run = run_folder(home / "runs" / "first")
    (run / "heads").mkdir()
    shutil.rmtree(run / "ledgers")
    report, filed, _ = file_report([run])
    (told,) = report.content["acts"]
    assert [act["object"] for act in told["acts"]].count("first") == 2
    text = (filed / "report.html").read_text("utf-8") + (filed / "report.json").read_text("utf-8")
    assert not [name for name in SITES if f"{name}<" in text or f'"{name}"' in text]
    assert "left the study" not in text
