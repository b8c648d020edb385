"""A run under kill -9 of a random process every few seconds: coordinator and sites over real TLS.

The coordinator and the sites are the product's own commands, `tacit-server serve` and `tacit-client
run`, with real folders, in processes forked from one that has imported everything: a start costs
tenths of a second, so that kills may come faster than a bare start allows. Only the coordinator's
model process is left out (a softmax regression has no need of one).

A round may be paid twice at a site only where a kill came between its spend and its reply. In the
end the run goes on without kills, and each process's own memory is compared at both ends.

    python benchmarks/kills.py [--rounds 200] [--every 3] [--quiet 50] [--sites 3] [--seed N]
"""

import argparse
import datetime
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from privacy.runtime import prepare

prepare()

import opacus  # noqa: F401 - imported once, for all that is forked

from client.agent import process, residents  # noqa: F401
from client.agent.connection import Agent  # noqa: F401
from client.agent.credentials import enroll, join
from client.app import make_app  # noqa: F401
from client.data.site_rows import Source
from client.site import KeptReplies
from client.tasks.registry import task
from privacy.arrays import Arrays
from privacy.contract.plan import Plan
from privacy.contract.plan_file import load_plan
from privacy.ledger.ledger import Ledger
from server.evaluation import initial_weights
from server.registry import sites as members
from server.service import service

RUN = "kills"


class Weights:
    """The coordinator's model, without the process that would evaluate it."""

    def __init__(self, plan: Plan, data: Path | None, tasks: Path | None = None) -> None:
        self._plan = plan

    def __enter__(self) -> "Weights":
        return self

    def __exit__(self, *_: object) -> None: ...

    def ready(self) -> bool:
        return False

    def base(self) -> str:
        return ""

    def initial(self) -> Arrays:
        return initial_weights(self._plan)

    def evaluate(self, weights: Arrays) -> Mapping[str, float]:
        return {}


class Federation:
    """Folders, and the processes that are forked to serve them."""

    def __init__(self, folder: Path, sites: int) -> None:
        self.folder, self.home = folder, folder / "coordinator"
        self.sites = [f"site-{number}" for number in range(sites)]
        now = datetime.datetime.now(datetime.UTC)
        members.create(self.home, ["127.0.0.1"], now)
        for site in self.sites:
            csr, _ = enroll(folder / site, site)
            join(folder / site, members.sign(self.home, csr, now)[1], now)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.pids: dict[str, int] = {}
        self.excused: dict[str, Counter[int]] = {site: Counter() for site in self.sites}

    def start(self, name: str) -> None:
        """Fork a process for the coordinator or a site."""
        where = f"127.0.0.1:{self.port}"
        if name == "coordinator":
            words = ["serve", "--dir", str(self.home), "--listen", where, "--ask-every", "0.5"]
        else:
            data = f"builtin:{self.sites.index(name)}/{len(self.sites)}"
            words = ["run", "--dir", str(self.folder / name), "--server", where, "--data", data]
        pid = os.fork()
        if pid:
            self.pids[name] = pid
            return
        log = os.open(self.folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        try:
            _command(name, words)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
            os._exit(code)
        finally:
            os._exit(70)

    def kill(self, name: str) -> None:
        """kill -9, and note which round the site was in the middle of."""
        os.kill(self.pids[name], signal.SIGKILL)
        os.waitpid(self.pids.pop(name), 0)
        if name in self.sites and (paid := self.paid(name)):
            kept = KeptReplies(self.folder / name / "replies")
            last = paid[-1]
            if not kept.holds(f"{self.run_id()}/{last}"):
                self.excused[name][last] += 1

    def ended(self) -> list[str]:
        """Those that ended by themselves, which none may."""
        gone = [n for n, pid in self.pids.items() if os.waitpid(pid, os.WNOHANG) != (0, 0)]
        for name in gone:
            self.pids.pop(name)
        return gone

    def close(self) -> None:
        for pid in self.pids.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def order(self, *words: str) -> None:
        """One of the coordinator's commands."""
        command = [sys.executable, "-m", "server", *words, "--dir", str(self.home)]
        subprocess.run(command, check=True, capture_output=True)

    def rounds(self) -> list[int]:
        """The complete rounds."""
        path = self.home / "runs" / RUN / "history.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [json.loads(line)["round"] for line in lines]

    def run_id(self) -> str:
        about = json.loads((self.home / "runs" / RUN / "run.json").read_text())
        return str(about["id"])

    def paid(self, site: str) -> list[int]:
        """The rounds that a site paid for, by its verified ledger."""
        (path,) = (self.folder / site / "ledgers").glob("*.jsonl")
        return [entry.round for entry in Ledger.open(path).entries()]

    def memory(self) -> dict[str, float]:
        """Each process's own memory, in MB."""
        return {name: _own_memory(pid) for name, pid in sorted(self.pids.items())}


def _command(name: str, words: list[str]) -> None:
    """Become one of the product's commands."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.argv = ["tacit", *words]
    if name == "coordinator":
        from server.__main__ import main

        service.Child = Weights  # type: ignore[attr-defined]
        main()
    else:
        from client.__main__ import main as client_main

        client_main()


def _own_memory(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("RssAnon:")]
    return round(int(line.split()[1]) / 1000, 1)


def warm() -> None:
    """Load rows and libraries once: what is forked has them."""
    digits = task("digits")
    Source.parse("builtin:0/1").rows(digits, 1)
    initial_weights(load_plan("digits", []))


def measure(
    rounds: int, every: float, quiet: int, sites: int, seed: int, told: Callable[[str], None]
) -> dict[str, Any]:
    """The figures of one run; RuntimeError where it does not end as it must."""
    source = random.Random(seed)
    warm()
    with tempfile.TemporaryDirectory(prefix="tacit-kills-") as name:
        world = Federation(Path(name), sites)
        names = ["coordinator", *world.sites]
        try:
            for one in names:
                world.start(one)
            total = rounds + quiet
            settings = [f"rounds={total}", "rows=400", "steps=5", "sigma=100"]
            options = [word for one in settings for word in ("--set", one)]
            least = str(max(1, sites - 1))
            world.order("submit", "digits", *options, "--min-sites", least, "--name", RUN)
            began, kills = time.monotonic(), Counter[str]()
            while len(world.rounds()) < rounds:
                time.sleep(source.uniform(0.5, 1.5) * every)
                _alive(world)
                victim = source.choice(names)
                world.kill(victim)
                kills[victim] += 1
                world.start(victim)
                told(f"{len(world.rounds())} rounds, {sum(kills.values())} kills")
            seconds = time.monotonic() - began
            first = _after(world, rounds + min(10, quiet // 2))
            last = _after(world, total) if quiet else first
            return _facts(world, kills, seconds, total, first, last)
        finally:
            world.close()


def _after(world: Federation, rounds: int) -> dict[str, float]:
    """Every process's memory once so many rounds are complete."""
    while len(world.rounds()) < rounds:
        time.sleep(0.2)
        _alive(world)
    return world.memory()


def _alive(world: Federation) -> None:
    if ended := world.ended():
        text = (world.folder / f"{ended[0]}.log").read_text()[-2000:]
        raise RuntimeError(f"{ended[0]} ended by itself:\n{text}")


def _facts(
    world: Federation,
    kills: Counter[str],
    seconds: float,
    total: int,
    first: Mapping[str, float],
    last: Mapping[str, float],
) -> dict[str, Any]:
    history = world.rounds()
    twice, unexcused = 0, list[str]()
    for site in world.sites:
        for number, count in Counter(world.paid(site)).items():
            twice += count > 1
            if count > 1 + world.excused[site][number]:
                unexcused.append(f"{site} round {number} x{count}")
    return {
        "rounds": len(history),
        "whole": history == list(range(1, total + 1)),
        "kills": sum(kills.values()),
        "kills_of": dict(kills),
        "seconds": round(seconds, 1),
        "paid_twice": twice,
        "in_training_when_killed": sum(sum(one.values()) for one in world.excused.values()),
        "paid_twice_without_cause": unexcused,
        "memory_first_MB": dict(first),
        "memory_last_MB": dict(last),
    }


def main() -> int:
    """Print the figures as JSON; exit 1 where the run is not whole or paid twice without cause."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--every", type=float, default=3.0)
    parser.add_argument("--quiet", type=int, default=50)
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    options = parser.parse_args()

    def told(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    print(f"seed {options.seed}", file=sys.stderr)
    facts = measure(options.rounds, options.every, options.quiet, options.sites, options.seed, told)
    print(json.dumps(facts))
    return int(not facts["whole"] or bool(facts["paid_twice_without_cause"]))


if __name__ == "__main__":
    sys.exit(main())
