"""`tacit-server relay` as a process: killed within a round and between rounds, and ended."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.federation import linked, running
from tests.support.patience import patience
from tests.support.relays import Tree, plan_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parent.parent.parent


class Command:
    """The relay's command, its port, and its output."""

    def __init__(self, tree: Tree, relay: str) -> None:
        self.tree, self.home = tree, tree.homes[relay]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.output = tree.folder / "relay.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = ["relay", "--dir", self.home, "--listen", f"127.0.0.1:{self.port}"]
        words += ["--server", f"127.0.0.1:{self.tree.grid.address[1]}", "--ask-every", "1"]
        with self.output.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "server", *map(str, words)],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )

    def end(self, number: int) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(patience(60))


@contextmanager
def world(folder: Path) -> Iterator[tuple[Tree, Command]]:
    """A coordinator in this process, a relay's command, and their sites in threads."""
    tree = Tree(folder, {"east": "ab"}, "e")
    with ExitStack() as stack:
        tree.grid = stack.enter_context(linked(tree.home, tree.log))
        command = Command(tree, "east")
        command.start()
        stack.callback(command.end, signal.SIGKILL)
        for name, site in tree.sites.items():
            port = command.port if ":" in name else tree.grid.address[1]
            stack.enter_context(running(site.folder, ("127.0.0.1", port), site.app()))
        yield tree, command


def test_a_relays_process_that_is_killed_goes_on_and_nothing_is_paid_twice(tmp_path: Path) -> None:
    plan = plan_for(3, rounds=3)
    with world(tmp_path) as (tree, command):
        late, quick = tree.sites["east:b"], tree.sites["east:a"]
        late.hold.clear()
        with tree.playing(plan) as play:
            assert late.asked.wait(patience(120)), command.output.read_text()
            while not quick.paid:
                tree.grid.wait(0.05)
            command.end(signal.SIGKILL)  # one site has paid and answered, the other has not
            command.start()
            late.hold.set()
            outcome = play()
        assert outcome.reason == "done", (outcome, command.output.read_text())
        for line in outcome.history:
            statuses = {name: one["status"] for name, one in line["sites"].items()}
            assert statuses == dict.fromkeys(["e", "east:a", "east:b"], "trained")
        for site in tree.sites.values():
            assert site.paid == [1, 2, 3]
            assert len(site.released) == 1
        assert quick.resent == 1
        assert command.end(signal.SIGTERM) == 0
        assert " stopped by=SIGTERM" in command.output.read_text()
