"""Which run is due: by its time, by the run that it waits for, and by who can take part."""

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from privacy.arrays import Arrays
from privacy.commands.exit_codes import StartedError
from privacy.contract.plan import Plan
from privacy.contract.plan_file import load_plan
from server.commands.running import Stop, play
from server.commands.view import View
from server.registry.sites import Home
from server.rounds.run_folder import FolderError
from server.service.queue import Queue
from server.service.service import Service, _parent_model
from server.service.status import StatusBoard
from tests.support.desk import WEIGHTS, Desk
from tests.support.federation import Events, coordinator
from tests.support.run_folders import run_folder

PLAN = load_plan("digits", ["sigma=2.0", "rate=0.2", "rows=300", "rounds=5"])


def service(folder: Path) -> Service:
    """A coordinator whose one site answers in this process."""
    home, _ = coordinator(folder, "north")
    desk = Desk(folder)
    board = StatusBoard(home, listen="127.0.0.1:0", presence=dict)
    return Service(
        Home(home), desk.grid, Queue(home), board, Events(), threading.Event(), interval=0.01
    )


def due(held: Service) -> str | None:
    found = held.next_due()
    return None if found is None else found.name


def add(held: Service, name: str, plan: Plan = PLAN, **more: object) -> None:
    held.queue.add(name, plan, **more)  # type: ignore[arg-type]


def test_a_run_is_not_due_before_its_time_but_its_plan_is_shown(tmp_path: Path) -> None:
    held = service(tmp_path)
    add(held, "later", at=time.time() + 3600)
    assert due(held) is None
    assert held.queue.answers(PLAN.digest)["north"].status == "approved"
    add(held, "now", at=time.time() - 1)
    assert due(held) == "now"


def test_a_run_whose_time_has_come_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = service(tmp_path)
    when = time.time() + 3600
    add(held, "later", at=when)
    assert due(held) is None
    monkeypatch.setattr("server.service.service.time.time", lambda: when + 1)
    assert due(held) == "later"


def test_a_run_waits_for_the_one_that_it_comes_after(tmp_path: Path) -> None:
    held = service(tmp_path)
    add(held, "first")
    add(held, "second", after="first")
    held.queue.move("first", "paused")
    assert due(held) is None
    held.queue.move("first", "failed")
    assert due(held) is None, "it failed: what comes after it does not start"
    held.queue.move("first", "done")
    assert due(held) == "second"


def test_a_run_whose_sites_cannot_take_part_lets_the_next_one_go_first(tmp_path: Path) -> None:
    held = service(tmp_path)
    add(held, "costly", load_plan("digits", ["sigma=0.01", "rate=0.2", "rows=300", "rounds=5"]))
    add(held, "cheap")
    assert due(held) == "cheap"
    assert held.queue.find("costly").state == "budget"


def test_the_model_of_another_run_is_its_last_complete_round(tmp_path: Path) -> None:
    held = service(tmp_path)
    assert _parent_model(held.home, None) is None
    with pytest.raises(FolderError):
        _parent_model(held.home, "absent")
    run_folder(held.home.runs / "bare")
    with pytest.raises(FolderError, match="has no complete round yet"):
        _parent_model(held.home, "bare")


class Known:
    """A model's process that knows its weights, and fails before or after a site has paid."""

    def __init__(self, fails: str, ledger: Path) -> None:
        self.fails, self.ledger = fails, ledger

    def ready(self) -> bool:
        return True

    def base(self) -> str:
        return ""

    def initial(self) -> Arrays:
        if self.fails == "before":
            raise ValueError("a value that does not fit")
        return WEIGHTS

    def evaluate(self, weights: Arrays) -> Mapping[str, float]:
        if self.ledger.read_text():
            raise ValueError("a value that does not fit")
        return {}


@pytest.mark.parametrize(("fails", "error"), [("before", ValueError), ("after", StartedError)])
def test_what_fails_after_the_first_request_is_no_bad_input(
    fails: str, error: type[Exception], tmp_path: Path
) -> None:
    held, child, stop = service(tmp_path), Known(fails, tmp_path / "people.jsonl"), Stop()
    view: Any = View(as_json=True)
    asked = (*(held.grid, "127.0.0.1:0", held.home, PLAN, "run", view), child, False, stop)
    with pytest.raises(error, match="a value that does not fit"):
        play(*asked, interval=0.01)  # type: ignore[arg-type]
    spent = (tmp_path / "people.jsonl").read_text()
    assert bool(spent) == (fails == "after")
