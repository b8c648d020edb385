"""A real federation for tests: the commands as processes on 127.0.0.1, and what they leave."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from privacy.ledger.ledger import Ledger
from tests.support.federation import coordinator
from tests.support.patience import patience

BIN = Path(sys.executable).parent
Process = subprocess.Popen[bytes]


class World:
    """One coordinator's folder and three sites', and the processes between them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home, self.sites = coordinator(folder, "north", "south", "east")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.open: list[Process] = []
        self.coordinator: Process | None = None

    def start(self, log: str, *words: object) -> Process:
        """A command whose output goes to a log."""
        with (self.folder / log).open("ab") as file:
            found = subprocess.Popen(
                [str(word) for word in words],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        self.open.append(found)
        return found

    def client(self, number: int) -> Process:
        """A site's resident client, with its part of the digits."""
        site, data = list(self.sites)[number], f"builtin:{number}/3"
        where = f"127.0.0.1:{self.port}"
        words = ("run", "--dir", self.sites[site], "--server", where, "--data", data, "--json")
        return self.start(f"{site}.log", BIN / "tacit-client", *words)

    def server(self, *more: object, plan: str = "digits") -> Process:
        """The coordinator; the run is called "one" unless told otherwise."""
        listen = ("--dir", self.home, "--listen", f"127.0.0.1:{self.port}", "--name", "one")
        words = (BIN / "tacit-server", "run", plan, *listen, *more)
        self.coordinator = self.start("server.log", *words)
        return self.coordinator

    def serve(self) -> Process:
        """The resident coordinator, which asks waiting sites again every half second."""
        listen = ("--dir", self.home, "--listen", f"127.0.0.1:{self.port}", "--ask-every", 0.5)
        self.coordinator = self.start("server.log", BIN / "tacit-server", "serve", *listen)
        return self.coordinator

    def order(self, *words: object) -> str:
        """One of the coordinator's commands, done: what it says on stdout."""
        command = [str(BIN / "tacit-server"), *(str(w) for w in words), "--dir", str(self.home)]
        return subprocess.run(
            command, capture_output=True, check=True, text=True, timeout=patience(120)
        ).stdout

    def kill(self, process: Process) -> None:
        """As the power does it."""
        process.send_signal(signal.SIGKILL)
        process.wait()
        if process is self.coordinator:
            self.coordinator = None

    def until(self, true: Callable[[], object], seconds: float = 300) -> None:
        """Wait until it is true; a failure where that takes too long, or the coordinator ends."""
        end = time.monotonic() + patience(seconds)
        while not true():
            assert time.monotonic() < end, "it did not happen in time"
            ended = self.coordinator is not None and self.coordinator.poll() is not None
            assert not ended or true(), "the coordinator has ended"
            time.sleep(0.05)

    def site(self, name: str, *words: object) -> str:
        """One of a site's commands, done: what it says on stdout."""
        command = [str(BIN / "tacit-client"), *(str(w) for w in words), "--dir", self.sites[name]]
        return subprocess.run(
            command, capture_output=True, check=True, text=True, timeout=patience(120)
        ).stdout

    def history(self, run: str = "one") -> list[dict[str, Any]]:
        """The complete rounds of a run."""
        path = self.home / "runs" / run / "history.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def statuses(self, site: str, run: str = "one") -> list[str]:
        """What became of a site in every round: trained, or the reason why not, or absent."""
        said = [line["sites"].get(site, {"status": "absent"}) for line in self.history(run)]
        return [one.get("reason") or one["status"] for one in said]

    def summary(self, run: str = "one") -> dict[str, Any]:
        """How a run ended."""
        found: dict[str, Any] = json.loads((self.home / "runs" / run / "summary.json").read_text())
        return found

    def ledger(self, number: int) -> Ledger:
        """A site's ledger, opened and verified."""
        site = list(self.sites)[number]
        return Ledger.open(self.sites[site] / "ledgers" / f"builtin-{number}-3.jsonl")

    def paid(self, number: int) -> list[int]:
        """The rounds that a site paid for, in the order of its ledger; none before it has one."""
        site = list(self.sites)[number]
        path = self.sites[site] / "ledgers" / f"builtin-{number}-3.jsonl"
        return [entry.round for entry in self.ledger(number).entries()] if path.exists() else []

    def log(self, name: str) -> str:
        """Everything that a site or the "server" has said."""
        path = self.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def said(self, site: str, event: str, **facts: Any) -> list[dict[str, Any]]:
        """A client's events of this kind."""
        lines = [line for line in self.log(site).split("\n")[:-1] if line.startswith("{")]
        events = [json.loads(line) for line in lines]
        want = {"event": event, **facts}.items()
        return [one for one in events if all(one.get(key) == value for key, value in want)]

    def close(self) -> None:
        """End every process, the stopped ones too."""
        for process in self.open:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait(patience(20))


@contextmanager
def told(world: World) -> Iterator[None]:
    """Show the logs of everybody when something fails; end every process."""
    try:
        yield
    except BaseException:
        for name in ("server", *world.sites):
            print(f"--- {name}\n{world.log(name)}")
        raise
    finally:
        world.close()
