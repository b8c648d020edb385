"""Kills, lost budgets and older ledgers, with real processes on 127.0.0.1."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from privacy.ledger import Ledger
from tests.federation_of import coordinator

BIN = Path(sys.executable).parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


class World:
    """One coordinator's folder and three sites', and the processes between them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home, self.sites = coordinator(folder, "north", "south", "east")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.open: list[subprocess.Popen[bytes]] = []

    def start(self, log: str, *words: object) -> subprocess.Popen[bytes]:
        with (self.folder / log).open("ab") as file:
            found = subprocess.Popen(
                [str(word) for word in words],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        self.open.append(found)
        return found

    def client(self, number: int) -> subprocess.Popen[bytes]:
        site, data = list(self.sites)[number], f"builtin:{number}/3"
        where = f"127.0.0.1:{self.port}"
        words = ("run", "--dir", self.sites[site], "--server", where, "--data", data)
        return self.start(f"{site}.log", BIN / "tacit-client", *words)

    def server(self, *more: object) -> subprocess.Popen[bytes]:
        listen = ("--dir", self.home, "--listen", f"127.0.0.1:{self.port}", "--name", "one")
        return self.start("server.log", BIN / "tacit-server", "run", "digits", *listen, *more)

    def history(self, run: str = "one") -> list[dict[str, Any]]:
        path = self.home / "runs" / run / "history.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def ledger(self, number: int) -> Ledger:
        site = list(self.sites)[number]
        return Ledger.open(self.sites[site] / "ledgers" / f"builtin-{number}-3.jsonl")

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    found = World(tmp_path)
    try:
        yield found
    finally:
        for process in found.open:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait(20)


def wait_for(true: Callable[[], object], seconds: float = 400) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


@contextmanager
def told(world: World) -> Iterator[None]:
    """Show the logs of everybody when something fails."""
    try:
        yield
    except BaseException:
        for name in ("server", *world.sites):
            print(f"--- {name}\n{world.log(name)}")
        raise


def test_killed_clients_and_a_killed_coordinator_come_back(world: World) -> None:
    args = ("--min-sites", 2, "--set", "rounds=40", "--round-timeout", 60)
    with told(world):
        clients = [world.client(number) for number in range(3)]
        server = world.server(*args)
        wait_for(lambda: len(world.history()) >= 3)
        clients[0].send_signal(signal.SIGKILL)
        clients[0].wait()
        clients[0] = world.client(0)
        before = len(world.history())
        wait_for(lambda: len(world.history()) >= before + 2)
        server.send_signal(signal.SIGKILL)
        server.wait()
        kept = world.history()
        server = world.server(*args, "--resume")
        assert server.wait(500) == 0
    history = world.history()
    assert [line["round"] for line in history] == list(range(1, 41))
    assert history[: len(kept)] == kept
    assert history[-1]["sites"]["north"]["status"] == "trained"
    for number, site in enumerate(world.sites):
        answered = sum(line["sites"].get(site, {}).get("status") == "trained" for line in history)
        assert world.ledger(number).head.n >= answered


def test_when_all_budgets_are_spent_the_run_stops_with_3(world: World) -> None:
    with told(world):
        for number in range(3):
            world.client(number)
        server = world.server("--min-sites", 3, "--set", "rounds=30", "--set", "limit=1.0")
        assert server.wait(500) == 3
    summary = json.loads((world.home / "runs" / "one" / "summary.json").read_text())
    assert summary["reason"] == "budget"
    assert 0 < summary["epsilon"] <= 1.0
    assert "budget" in world.log("server")


def test_an_older_copy_of_a_ledger_is_refused_until_it_is_acknowledged(world: World) -> None:
    args = ("--min-sites", 2, "--round-timeout", 60)
    with told(world):
        clients = [world.client(number) for number in range(3)]
        path = world.sites["north"] / "ledgers"
        server = world.server(*args, "--set", "rounds=12")
        wait_for(lambda: len(world.history()) >= 2)
        shutil.copytree(path, world.folder / "copy")
        assert server.wait(500) == 0
        clients[0].terminate()
        assert clients[0].wait(60) == 0
        shutil.rmtree(path)
        shutil.copytree(world.folder / "copy", path)
        shutil.rmtree(world.sites["north"] / "replies")
        clients[0] = world.client(0)
        again = (*args, "--set", "rounds=3", "--name", "two", "--min-sites", 3)
        assert world.server(*again).wait(500) == 1
        assert "ledger-untrusted" in world.log("server")
        acknowledge = ("ledger", "acknowledge", "--dir", world.sites["north"])
        assert world.start("north.log", BIN / "tacit-client", *acknowledge).wait(60) == 0
        again = (*args, "--set", "rounds=3", "--name", "three", "--min-sites", 3)
        assert world.server(*again).wait(500) == 0
    assert len(world.history("three")) == 3


def test_a_client_without_a_policy_refuses_and_says_how(world: World, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    north, where = world.sites["north"], f"127.0.0.1:{world.port}"
    words = ("run", "--dir", north, "--server", where, "--data", tmp_path / "rows.csv")
    assert world.start("north.log", BIN / "tacit-client", *words).wait(60) == 2
    assert "tacit-client policy new" in world.log("north")
