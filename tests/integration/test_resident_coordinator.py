"""The resident coordinator with real processes: proposals, a queue, kills, a true status."""

import datetime
import json
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privacy.arrays import Arrays
from server.rounds.aggregation import State
from server.rounds.run_folder import RunFolder
from tests.support.patience import patience
from tests.support.processes import World, told

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
SMALL = ("--set", "rows=400", "--set", "rounds=3", "--set", "steps=2", "--set", "sigma=20")
LONG = ("--set", "steps=300", "--set", "sigma=100")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def runs(world: World) -> dict[str, dict[str, Any]]:
    found = json.loads(world.order("runs", "--json"))["runs"]
    return {one["run"]: one for one in found}


def answers(world: World, run: str) -> dict[str, str]:
    return {
        one["site"]: one["answer"]
        for one in json.loads(world.order("show", run, "--json"))["sites"]
    }


def test_a_proposed_plan_is_answered_waits_for_its_last_site_and_starts_by_itself(
    world: World,
) -> None:
    with told(world):
        world.site("north", "policy", "new", "--epsilon", "8", "--delta", "1e-3")
        world.serve()
        clients = [world.client(number) for number in range(3)]
        world.order("propose", "digits", *SMALL, "--min-sites", 3, "--name", "first")
        world.until(
            lambda: (
                answers(world, "first")
                == {"north": "plan-not-approved", "south": "approved", "east": "approved"}
            )
        )
        (asked,) = json.loads(world.site("north", "plans", "--json"))["plans"]
        assert asked["asks"] > 0, "the owner sees the price before anything runs"
        world.order("submit", "first")
        world.order(
            "submit", "digits", *SMALL, "--min-sites", 2, "--name", "second", "--after", "first"
        )
        world.until(lambda: runs(world)["first"]["state"] == "waiting")
        time.sleep(2)
        assert [world.paid(number) for number in range(3)] == [[], [], []]
        assert runs(world)["second"]["state"] == "queued"
        world.site("north", "approve", asked["plan"][:16])
        world.until(lambda: runs(world)["second"]["state"] == "done")
        assert runs(world)["first"]["state"] == "done"
        assert len(world.history("first")) == len(world.history("second")) == 3
        assert world.statuses("north", "first") == ["trained"] * 3
        assert world.statuses("north", "second") == ["trained"] * 3, "it is the same plan"
        assert world.paid(1) == [1, 2, 3, 1, 2, 3]
        lines = world.log("server").splitlines()
        waiting = [line for line in lines if " run_waiting " in line and "run=first" in line]
        assert 1 <= len(waiting) <= 4, waiting
        assert all(
            world.log("server").count(f" connected site={site}") == 1 for site in world.sites
        )
        assert all(client.poll() is None for client in clients)


def test_a_denial_is_no_failed_attempt_and_a_run_that_cannot_be_reached_ends(world: World) -> None:
    with told(world):
        world.site("north", "policy", "new", "--epsilon", "8", "--delta", "1e-3")
        world.serve()
        for number in range(3):
            world.client(number)
        world.order("propose", "digits", *SMALL, "--min-sites", 3, "--name", "first")
        world.until(lambda: answers(world, "first").get("north") == "plan-not-approved")
        world.site(
            "north",
            "deny",
            json.loads(world.site("north", "plans", "--json"))["plans"][0]["plan"][:16],
        )
        world.until(lambda: answers(world, "first")["north"] == "plan-denied")
        world.order("submit", "first")
        world.until(lambda: runs(world)["first"]["state"] == "failed")
        assert "north: plan-denied" in runs(world)["first"]["detail"]
        assert [world.paid(number) for number in range(3)] == [[], [], []]
        world.order("resume", "first", "--min-sites", 2)
        world.until(lambda: runs(world)["first"]["state"] == "done")
        assert [len(world.paid(number)) for number in range(3)] == [0, 3, 3]
        denied = [
            line
            for line in world.log("server").splitlines()
            if "plan-denied" in line and " site_answer " in line
        ]
        assert len(denied) <= 1, "a site that denied is not asked again every round"


def test_killed_at_any_moment_the_run_goes_on_by_itself_and_nothing_is_paid_twice(
    world: World,
) -> None:
    with told(world):
        server = world.serve()
        for number in range(3):
            world.client(number)
        world.order(
            "submit", "digits", "--set", "rounds=6", *LONG, "--min-sites", 3, "--name", "one"
        )
        for rounds in (1, 3):
            world.until(lambda rounds=rounds: len(world.history()) >= rounds)
            world.kill(server)
            assert json.loads(world.order("status", "--json"))["now"]["state"] == "killed"
            server = world.serve()
        world.until(lambda: runs(world)["one"]["state"] == "done")
        assert [line["round"] for line in world.history()] == [1, 2, 3, 4, 5, 6]
        for number in range(3):
            assert world.paid(number) == [1, 2, 3, 4, 5, 6]


def test_pause_resume_and_stop_act_on_a_run_that_is_played(world: World) -> None:
    with told(world):
        world.serve()
        for number in range(3):
            world.client(number)
        world.order(
            "submit", "digits", "--set", "rounds=4000", *LONG, "--min-sites", 2, "--name", "one"
        )
        world.until(lambda: len(world.history()) >= 1)
        assert "pause is asked for" in world.order("pause", "one")
        world.until(lambda: runs(world)["one"]["state"] == "paused")
        done = len(world.history())
        time.sleep(2)
        assert len(world.history()) == done
        world.order("resume", "one")
        world.until(lambda: len(world.history()) > done)
        world.order("stop", "one")
        world.until(lambda: runs(world)["one"]["state"] == "stopped")
        assert "run_ended state=stopped" in world.order("log", "one")


def test_status_is_true_within_ten_seconds_and_says_what_stopped_the_coordinator(
    world: World,
) -> None:
    def now() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(world.order("status", "--json"))
        return found

    with told(world):
        server = world.serve()
        clients = [world.client(number) for number in range(3)]
        world.order(
            "submit", "digits", "--set", "rounds=4000", *LONG, "--min-sites", 2, "--name", "one"
        )
        world.until(lambda: len(world.history()) >= 2)
        found = now()
        assert found["now"]["run"] == "one"
        assert found["now"]["round"] >= 1
        assert all(site["connected"] for site in found["sites"])
        world.kill(clients[2])
        began = time.monotonic()
        world.until(lambda: not next(s for s in now()["sites"] if s["site"] == "east")["connected"])
        assert time.monotonic() - began < patience(10)
        server.send_signal(signal.SIGTERM)
        assert server.wait(patience(20)) == 0
        world.coordinator = None
        text = world.order("status")
        assert "by SIGTERM; run one goes on at the next start" in text
        assert runs(world)["one"]["state"] == "running"


def released(world: World, run: str) -> Arrays:
    """The last released model of a run."""
    last = RunFolder.open(world.home / "runs" / run).resume()
    assert last is not None
    return State.from_arrays(*last).released()


def test_a_run_starts_from_anothers_model_and_not_before_its_time(world: World) -> None:
    """The step size is next to nothing: what the second run ends with is what it began with."""
    with told(world):
        world.serve()
        for number in range(3):
            world.client(number)
        world.order("submit", "digits", *SMALL, "--min-sites", 3, "--name", "one")
        when = datetime.datetime.now() + datetime.timedelta(seconds=patience(10))
        still = ("--set", "lr=1e-6", "--set", "average=false")
        later = ("--after", "one", "--from", "one", "--at", when.isoformat(timespec="seconds"))
        world.order("submit", "digits", *SMALL, *still, *later, "--min-sites", 3, "--name", "two")
        world.until(lambda: runs(world)["one"]["state"] == "done")
        if datetime.datetime.now() < when - datetime.timedelta(seconds=2):
            assert runs(world)["two"]["state"] == "queued"
        world.until(lambda: runs(world)["two"]["state"] == "done")
        assert world.said("north", "trained")
        started = [
            line for line in world.log("server").splitlines() if "run_started run=two" in line
        ]
        assert started[0][:8] >= when.strftime("%H:%M:%S")
        models = [
            State.from_arrays(
                *(RunFolder.open(world.home / "runs" / name).resume() or pytest.fail())
            )
            for name in ("one", "two")
        ]
        (first, second) = (model.released() for model in models)
        assert all(np.allclose(first[name], second[name], atol=1e-3) for name in first)
        assert any(np.abs(first[name]).max() > 0.01 for name in first)
        about = json.loads((world.home / "runs" / "two" / "run.json").read_text())
        assert about["parent"] == "one"
