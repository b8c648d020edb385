"""The queue: one file, whole transactions, and only the requests that a run's state allows."""

import multiprocessing
import os
import sqlite3
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from privacy.contract.plan import Plan
from privacy.contract.plan_file import load_plan
from server.service.queue import Queue, QueueError, SiteAnswer

PLAN = load_plan("digits", ["rounds=5", "rows=400", "operation.min_sites=2"])


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path)


def test_a_run_is_found_again_as_it_was_added(queue: Queue, tmp_path: Path) -> None:
    queue.add("one", PLAN)
    added = queue.add("two", PLAN, data="/data", after="one", at=12.5, parent="one")
    found = Queue(tmp_path).find("two")
    assert found == added
    assert found.plan == PLAN
    assert found.plan.operation.min_sites == 2
    assert (found.data, found.after, found.at, found.parent) == ("/data", "one", 12.5, "one")
    assert [run.name for run in queue.runs()] == ["one", "two"]


def test_the_file_is_its_owners_alone(queue: Queue) -> None:
    assert stat.S_IMODE(queue.path.stat().st_mode) == 0o600


def test_names_are_unique_and_other_runs_must_exist(queue: Queue) -> None:
    queue.add("one", PLAN)
    with pytest.raises(QueueError, match="a run of this name exists"):
        queue.add("one", PLAN)
    with pytest.raises(QueueError, match="nowhere: must be a run"):
        queue.add("two", PLAN, after="nowhere")
    with pytest.raises(QueueError, match="nowhere: must be a run"):
        queue.find("nowhere")


@pytest.mark.parametrize(
    ("state", "request_", "after", "asked"),
    [
        ("running", "pause", "running", "pause"),
        ("running", "stop", "running", "stop"),
        ("queued", "pause", "paused", ""),
        ("waiting", "stop", "stopped", ""),
        ("proposed", "stop", "stopped", ""),
        ("paused", "resume", "queued", ""),
        ("failed", "resume", "queued", ""),
    ],
)
def test_a_request_is_served_at_once_unless_the_run_is_played(
    queue: Queue, state: str, request_: str, after: str, asked: str
) -> None:
    queue.add("one", PLAN, state=state)
    found = queue.ask("one", request_)
    assert (found.state, found.request) == (after, asked)


@pytest.mark.parametrize(
    ("state", "request_"), [("done", "pause"), ("running", "resume"), ("stopped", "stop")]
)
def test_a_request_that_makes_no_sense_changes_nothing(
    queue: Queue, state: str, request_: str
) -> None:
    before = queue.add("one", PLAN, state=state)
    with pytest.raises(QueueError, match=f"one: is {state}, must be"):
        queue.ask("one", request_)
    assert queue.find("one") == before


def test_only_the_operation_of_a_run_can_change(queue: Queue) -> None:
    queue.add("one", PLAN)
    fewer = replace(PLAN, operation=replace(PLAN.operation, min_sites=1))
    queue.operate("one", fewer)
    assert queue.find("one").plan.operation.min_sites == 1
    with pytest.raises(QueueError, match="another plan"):
        queue.operate("one", replace(PLAN, seed=7))
    assert queue.find("one").plan == fewer


def test_an_answer_is_news_only_where_it_says_something_else(queue: Queue) -> None:
    first = SiteAnswer("north", "declined", "plan-not-approved", 1, 5, 1.0)
    assert queue.answer("d", first)
    assert not queue.answer("d", replace(first, time=2.0))
    assert queue.answer("d", replace(first, status="approved", reason=""))
    assert not queue.answer("d", replace(first, status="approved", reason="", round=3, rounds=3))
    assert queue.answer("d", replace(first, status="approved", reason="", round=3, rounds=2))
    assert queue.answers("d")["north"].rounds == 2
    assert queue.answers("other") == {}


def test_a_log_is_read_from_where_one_left_off(queue: Queue) -> None:
    for number in range(3):
        queue.note("one", "event", {"n": number})
    queue.note("two", "event", {"n": 9})
    lines = queue.log("one")
    assert [facts["n"] for _, _, _, facts in lines] == [0, 1, 2]
    assert [facts["n"] for _, _, _, facts in queue.log("one", lines[1][0])] == [2]


def test_a_newer_format_is_refused_in_one_line(queue: Queue, tmp_path: Path) -> None:
    with sqlite3.connect(queue.path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(QueueError, match="version must be 2, got 99"):
        Queue(tmp_path)


def test_a_queue_of_version_1_is_migrated_and_keeps_its_answers(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "queue.sqlite") as database:
        database.execute(
            "CREATE TABLE answers (digest TEXT NOT NULL, site TEXT NOT NULL, status TEXT NOT NULL,"
            " reason TEXT NOT NULL, round INTEGER NOT NULL, rounds INTEGER NOT NULL,"
            " time REAL NOT NULL, PRIMARY KEY (digest, site))"
        )
        database.execute("INSERT INTO answers VALUES ('d', 'north', 'approved', '', 1, 5, 2.0)")
        database.execute("PRAGMA user_version = 1")
    database.close()
    for queue in (Queue(tmp_path), Queue(tmp_path)):
        assert queue.answers("d") == {"north": SiteAnswer("north", "approved", "", 1, 5, 2.0)}
    queue.answer("d", SiteAnswer("south", "approved", "", 1, 5, 2.0, "ab12"))
    assert queue.answers("d")["south"].ledger == "ab12"


def _add_many(folder: Path, mark: str) -> None:
    queue = Queue(folder)
    for number in range(10):
        queue.add(f"{mark}-{number}", PLAN)


def test_processes_add_at_the_same_time_and_a_kill_leaves_whole_rows(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_add_many, args=(tmp_path, mark)) for mark in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    victim = spawn.Process(target=_add_many, args=(tmp_path, "victim"))
    victim.start()
    queue = Queue(tmp_path)
    while len(queue.runs()) < 23 and victim.is_alive():
        os.sched_yield()
    victim.kill()
    victim.join()
    found = Queue(tmp_path).runs()
    assert len([run for run in found if not run.name.startswith("victim")]) == 20
    assert all(isinstance(run.plan, Plan) and run.plan == PLAN for run in found)
    assert [run.name for run in found if run.name.startswith("victim")] == [
        f"victim-{number}" for number in range(len(found) - 20)
    ]
