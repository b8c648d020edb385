"""The queue from the command line while no coordinator runs: written, shown, refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from privacy.audit_trail import read
from server.__main__ import app
from server.registry import sites as members
from server.service.queue import Queue, SiteAnswer
from server.service.status import StatusBoard, exclusive
from tests.support.federation import coordinator, now
from tests.support.run_folders import run_folder
from tests.support.task_packages import package

SMALL = ("--set", "rounds=5", "--set", "rows=400", "--min-sites", "2")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return coordinator(tmp_path, "north", "south", "west")[0]


def ran(home: Path, *words: object) -> str:
    result = CliRunner().invoke(app, [*map(str, words), "--dir", str(home)])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def facts(home: Path, *words: object) -> Any:
    return json.loads(ran(home, *words, "--json"))


def refused(home: Path, *words: object) -> str:
    result = CliRunner().invoke(app, [*map(str, words), "--dir", str(home)])
    assert isinstance(result.exception, ValueError), result.output
    return str(result.exception)


def test_a_run_is_queued_with_its_conditions_and_shown_again(home: Path, tmp_path: Path) -> None:
    told = ran(home, "submit", "digits", *SMALL, "--name", "first")
    assert told.startswith("first: queued; plan ")
    assert "no coordinator runs here yet" in told
    rows = tmp_path / "public.csv"
    rows.write_text("")
    later = ("--after", "first", "--at", "2026-12-01T08:00", "--data", rows)
    second = facts(home, "submit", "digits", *SMALL, "--name", "second", *later)
    assert (second["state"], second["after"], second["serving"]) == ("queued", "first", False)
    assert second["at"] > 1.7e9
    assert Queue(home).find("second").data == str(rows)
    listed = facts(home, "runs")["runs"]
    assert [(one["run"], one["rounds"], one["planned"]) for one in listed] == [
        ("first", 0, 5),
        ("second", 0, 5),
    ]
    assert [line.split()[:2] for line in ran(home, "runs").splitlines()] == [
        ["first", "queued"],
        ["second", "queued"],
    ]
    done = [act.object for act in read(home) if act.command == "submit"]
    assert done == ["first", "second"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--at", "tomorrow"), "--at must be a time such as"),
        (("--data", "nowhere.csv"), "--data must be a file or folder"),
        (("--after", "nobody"), "nobody: must be a run"),
        (("--set", "epsilonn=1"), "did you mean epsilon"),
    ],
)
def test_a_run_that_cannot_be_is_not_queued(home: Path, words: tuple[str, ...], why: str) -> None:
    assert why in refused(home, "submit", "digits", *SMALL, *words)
    assert Queue(home).runs() == []


def test_a_proposal_is_answered_by_the_sites_and_then_submitted_as_it_is(home: Path) -> None:
    ran(home, "propose", "digits", *SMALL, "--name", "idea")
    queue = Queue(home)
    digest = queue.find("idea").plan.digest
    queue.answer(digest, SiteAnswer("north", "approved", "", 1, 3, 10.0))
    queue.answer(digest, SiteAnswer("south", "declined", "plan-denied", 1, 0, 10.0))
    members.revoke(home, "west", now())
    shown = facts(home, "show", "idea")
    assert (shown["state"], shown["plan"], shown["unit"]) == ("proposed", digest, "record")
    answers = {one["site"]: one for one in shown["sites"]}
    assert (answers["north"]["answer"], answers["north"]["rounds"]) == ("approved", 3)
    assert answers["south"]["answer"] == "plan-denied"
    assert answers["west"] == {"site": "west", "answer": "revoked", "rounds": None}
    text = ran(home, "show", "idea")
    assert "a round needs 2 sites" in text
    assert "can pay for 3 of 5 rounds" in text
    assert "idea is a proposal" in refused(home, "submit", "idea", "--min-sites", "3")
    assert ran(home, "submit", "idea").startswith("idea: queued")
    assert queue.find("idea").plan.digest == digest


def test_a_run_is_paused_changed_resumed_and_stopped(home: Path) -> None:
    ran(home, "submit", "digits", *SMALL, "--name", "one")
    assert ran(home, "pause", "one", "--reason", "night") == "one: paused\n"
    again = ran(home, "resume", "one", "--min-sites", "1", "--set", "operation.keep=2")
    assert again.splitlines()[0] == "one: queued"
    assert "no coordinator runs here" in again
    operation = Queue(home).find("one").plan.operation
    assert (operation.min_sites, operation.keep) == (1, 2)
    assert ran(home, "stop", "one") == "one: stopped\n"
    assert "must be a run" in refused(home, "pause", "other")
    reasons = {act.command: act.reason for act in read(home)}
    assert reasons["pause"] == "night"
    assert reasons["resume"] == "operation.keep=2 operation.min_sites=1"


def test_the_log_of_a_run_is_told_in_order(home: Path) -> None:
    ran(home, "submit", "digits", *SMALL, "--name", "one")
    queue = Queue(home)
    queue.note("one", "round", {"number": 1, "loss": 0.123456, "sites": {"north": 1.5}})
    queue.note("one", "done", {})
    lines = ran(home, "log", "one").splitlines()
    assert lines[-2].endswith("round number=1 loss=0.1235 sites=north:1.5")
    assert lines[-1].endswith(" done")
    told = [json.loads(line) for line in ran(home, "log", "one", "--json").splitlines()]
    assert [one["event"] for one in told][-2:] == ["round", "done"]
    queue.move("one", "done")
    assert ran(home, "log", "one", "--follow").splitlines() == lines


def test_a_run_of_before_there_was_a_queue_is_listed_first(home: Path) -> None:
    (home / "runs").mkdir(exist_ok=True)
    run_folder(home / "runs" / "old", federation=True)
    (home / "runs" / "broken").mkdir()
    (home / "runs" / "broken" / "run.json").write_text("{")
    ran(home, "submit", "digits", *SMALL, "--name", "new")
    first, second = facts(home, "runs")["runs"]
    assert (first["run"], first["rounds"], first["planned"]) == ("old", 4, 4)
    assert second["run"] == "new"
    assert "a run of this name exists" in refused(home, "submit", "digits", *SMALL, "--name", "old")


def test_the_state_of_a_coordinator_from_never_started_to_stopped(home: Path) -> None:
    assert "never started" in ran(home, "status")
    ran(home, "submit", "digits", *SMALL, "--name", "one")
    presence = {"north": (True, 3.0), "south": (False, None)}
    here = StatusBoard(home, listen="127.0.0.1:8443", presence=lambda: presence)
    with exclusive(home), here as board:
        board.set(run="one", round=2, planned=5, waiting="for south")
        board.write()
        running = ran(home, "status").splitlines()
        assert "running at 127.0.0.1:8443" in running[0]
        assert "run one, round 2 of 5 done, waiting: for south" in running[0]
        (north,) = [line for line in running if line.strip().startswith("north")]
        assert north.split()[2:] == ["connected", "seen", "3", "s", "ago"]
        (south,) = [line for line in running if line.strip().startswith("south")]
        assert south.split()[2:] == ["away"]
        assert running[-1] == "  run one: queued, 0 of 5 rounds"
        found = facts(home, "status")
        assert found["now"]["state"] == "running" and len(found["sites"]) == 3
        board.set(run=None)
        board.write()
        assert "no run is due" in ran(home, "status")
    assert ran(home, "status").splitlines()[0].split(": ")[1].startswith("not running; last seen")
    board.stop("SIGTERM", "one")
    assert "by SIGTERM; run one goes on at the next start" in ran(home, "status")


def test_a_task_package_is_kept_for_the_plans_that_name_it(home: Path, tmp_path: Path) -> None:
    found = package(tmp_path / "mine")
    told = ran(home, "task", "add", tmp_path / "mine")
    assert told == f'task = "mine"\ncode = "{found.code}"\n'
    assert facts(home, "task", "add", tmp_path / "mine") == {"name": "mine", "code": found.code}
    (kept,) = (home / "tasks").iterdir()
    assert kept.read_bytes() == found.content
