"""Which run is due: by its time, by the run that it waits for, and by who can take part."""

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from privacy.arrays import Arrays
from privacy.commands.exit_codes import StartedError
from privacy.contract.plan import Plan
from privacy.contract.plan_file import load_plan
from server.commands.running import Stop, play
from server.commands.view import View
from server.registry.sites import Home
from server.rounds.run_folder import FolderError, RunFolder
from server.service.queue import Queue
from server.service.service import Service, _parent_model
from server.service.status import StatusBoard
from simulations.grid import LocalGrid
from tests.support.desk import WEIGHTS, Desk
from tests.support.federation import Events, coordinator
from tests.support.relays import relay_member
from tests.support.run_folders import run_folder

TUNED = ["epsilon=10", "tune.epsilon=2", "tune.rounds=1", "tune.lr_times=[0.5, 1.0]"]
TUNED += ["tune.metric=loss", "rounds=4"]
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


class Direct:
    """The desk's engine, which no relay's request may reach."""

    def __init__(self, desk: Desk) -> None:
        self.engine, self.asked = desk.grid._engine, set[str]()

    def submit(self, number: str, site: str, message: Message) -> None:
        self.asked.add(site)
        self.engine.submit(number, site, message)

    def collect(self) -> tuple[str, Message] | None:
        return self.engine.collect()

    def close(self) -> None: ...


class Weights:
    """A model's process with a public loss."""

    def ready(self) -> bool:
        return True

    def base(self) -> str:
        return ""

    def initial(self) -> Arrays:
        return WEIGHTS

    def evaluate(self, weights: Arrays) -> Mapping[str, float]:
        return {"loss": float(np.abs(weights["weight"]).sum())}


@pytest.mark.parametrize("what", [[*TUNED], ["combine=median", "rounds=2", "sigma=4.0"]])
def test_a_relay_that_is_enrolled_in_mid_run_ends_no_run_that_needs_single_replies(
    what: list[str], tmp_path: Path
) -> None:
    plan = load_plan("digits", ["rate=1.0", "rows=300", "delta=1e-4", *what])
    held, child = service(tmp_path), Weights()
    (tmp_path / "again").mkdir()
    desk_engine = Direct(Desk(tmp_path / "again"))
    held.grid = LocalGrid(desk_engine, ["north"])
    relay_enrolled = threading.Event()

    def after_the_first(line: Mapping[str, Any]) -> None:
        if not relay_enrolled.is_set():
            relay_member(held.home.folder, tmp_path / "late", "late")
            relay_enrolled.set()
            held.grid = LocalGrid(desk_engine, ["north", "late"])
            held.stop.set()  # and the coordinator ends: the run goes on at its next start

    held.on_round = after_the_first
    add(held, "run", plan)
    run = held.next_due()
    assert run is not None
    assert held.play(run, child=child) == "running"  # type: ignore[arg-type]
    held.stop.clear()
    run = held.next_due()
    assert run is not None, held.queue.find("run")
    assert held.play(run, child=child) == "done", held.queue.find("run")  # type: ignore[arg-type]
    history = RunFolder.open(held.home.runs / "run").history()
    assert [set(line["sites"]) for line in history] == [{"north"}] * plan.rounds
    assert desk_engine.asked == {"north"}
    assert isinstance(held.log, Events)
    left_out = [line for line in held.log.lines if line["event"] == "relay_left_out"]
    assert [line["site"] for line in left_out] == ["late"]
