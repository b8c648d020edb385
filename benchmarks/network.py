"""What a round costs the coordinator: overhead, a hundred sites, a model of 100 MB.

The coordinator is `tacit-server run` itself, in its own process: mutual TLS 1.3 on 127.0.0.1, node
authentication, ledgers' heads checked and counter-signed, accounting, a durable checkpoint a round,
its evaluating child. Each site is a process too, with the product's `client.agent.connection`, its
own certificate and a durable ledger; but it does not train: its update lies ready, so that a round
is the coordinator's and the wire's. All share the machine's cores, so the sites' share of the work
(TLS, hashing, decoding) is in the seconds as well. Linux alone: it reads /proc.

    python benchmarks/network.py [--cases idle,many,large,...] [--rounds N]
"""

import argparse
import contextlib
import datetime
import itertools
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from table import quartiles, save, show, versions

from client.agent.connection import Agent
from client.agent.credentials import Enrolled, enroll, join
from client.agent.route import Route
from privacy.arrays import decode, encode, memory
from privacy.contract.plan_file import from_json
from privacy.identity.certificates import read_request
from privacy.ledger.heads import Head
from privacy.ledger.ledger import Ledger
from server.registry import sites as members

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
SMALL, LARGE = (500, 500), (4096, 4096, 2048)
SCHEMA = """label = "y"
hidden = [{hidden}]
[columns.x]
type = "number"
min = 0
max = 1
[columns.y]
type = "category"
values = ["a", "b"]
"""
PLAN = """task = "table"
schema = "schema.toml"
purpose = "A benchmark."
sites = {sites}
min_sites = {sites}
rounds = {rounds}
rate = 0.01
rows = 10000
lr = 1.0
clip = 1.0
sigma = 4.0
delta = 1e-5
wire = "{wire}"
"""


@dataclass(frozen=True)
class Case:
    what: str
    sites: int
    hidden: tuple[int, ...]
    rounds: int
    most_seconds: float | None
    most_memory: int | None = 1000
    wire: str = "float32"
    more: str = ""


CASES = {
    "idle": Case("1 MB, 2 idle sites", 2, SMALL, 20, 0.5),
    "ten": Case("1 MB, 10 sites", 10, SMALL, 10, None),
    "thirty": Case("1 MB, 30 sites", 30, SMALL, 8, None),
    "many": Case("1 MB, 100 sites", 100, SMALL, 6, 10),
    "large": Case("100 MB, 2 sites", 2, LARGE, 5, 20),
    "large-bfloat16": Case("100 MB, 2 sites, bfloat16 up", 2, LARGE, 5, 20, wire="bfloat16"),
    "large-int8": Case("100 MB, 2 sites, int8 up", 2, LARGE, 5, 20, wire="int8"),
    "large-state": Case(
        *("100 MB, 2 sites, momentum and mean", 2, LARGE, 5, 20),
        more="server_momentum = 0.9\naverage = true\n",
    ),
}


def main() -> None:
    """Measure the cases asked for and print their table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, help="timed rounds a case")
    asked = parser.parse_args()
    about = versions("flwr", "numpy", "h11")
    result: dict[str, Any] = {"versions": about, "cases": {}}
    lines = []
    for name in asked.cases.split(","):
        case = CASES[name]
        found = measure(case, asked.rounds or case.rounds, running)
        result["cases"][name] = found
        low, middle, high = quartiles(found["seconds"])
        lines.append(
            [
                case.what,
                f"{middle:.2f} ({low:.2f}-{high:.2f})",
                "-" if case.most_seconds is None else f"< {case.most_seconds:g}",
                f"{found['cpu']:.2f}",
                f"{found['memory']:.0f}",
                "-" if case.most_memory is None else f"< {case.most_memory}",
                f"{found['child_memory']:.0f}",
            ]
        )
    show(
        "A round of a federation whose sites do not train",
        ["model and sites", "s a round", "target", "CPU s", "peak MB", "target", "its child MB"],
        lines,
        "medians (quartiles) after one unmeasured round; CPU and memory are the coordinator's; "
        f"{about}",
    )
    print(save("network", result))


def measure(
    case: Case, rounds: int, crowd: Callable[[list[Path], str], AbstractContextManager[None]]
) -> dict[str, Any]:
    """Seconds of each timed round, the coordinator's CPU seconds a round and its peak memory.

    `crowd` runs the sites while its block lasts; a file `lost` says whose connection broke.
    """
    with tempfile.TemporaryDirectory(prefix="tacit-network-") as folder:
        home, plan, sites = prepared(Path(folder), case, rounds + 1)
        where = f"127.0.0.1:{free_port()}"
        log, began = (Path(folder) / "log").open("wb"), time.perf_counter()
        lost = Path(folder) / "lost"
        lost.touch()
        with contextlib.closing(log), crowd(sites, where):
            command = [sys.executable, "-m", "server", "run", plan, "--dir", home, "--json"]
            server = subprocess.Popen(
                [*command, "--listen", where, "--name", "run"],
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
            )
            try:
                found = watched(server, rounds + 1, lost)
                if server.wait(120) or found["trained"] != case.sites:
                    raise SystemExit((Path(folder) / "log").read_text()[-2000:])
            finally:
                server.kill()
                server.wait()
    return found | {"first": found["ends"][0] - began}


def watched(server: subprocess.Popen[bytes], rounds: int, lost: Path) -> dict[str, Any]:
    """Follow the coordinator's lines, a line a round: what came between two of them is a round."""
    ends, used, trained = [], [], 10**9
    found: dict[str, Any] = {"memory": 0.0, "child_memory": 0.0}
    for text in server.stdout or ():
        line = json.loads(text)
        if "sites" not in line or "round" not in line:
            continue
        ends.append(time.perf_counter())
        used.append(cpu_seconds(server.pid))
        trained = min(trained, sum(s["status"] == "trained" for s in line["sites"].values()))
        found["memory"] = peak_megabytes(server.pid)
        for child in children(server.pid):
            found["child_memory"] = max(found["child_memory"], peak_megabytes(child))
        if len(ends) == rounds:
            break
    found["lost"] = dict(Counter(lost.read_text().splitlines()))  # at its end it loses all
    for _ in server.stdout or ():
        continue
    if len(ends) < rounds:
        trained = 0
    found["ends"] = ends
    found["seconds"] = [b - a for a, b in itertools.pairwise(ends)]
    found["cpu"] = statistics.fmean([b - a for a, b in itertools.pairwise(used)] or [0.0])
    return found | {"trained": trained}


def prepared(folder: Path, case: Case, rounds: int) -> tuple[Path, Path, list[Path]]:
    """A coordinator's folder, a plan, and the folders of enrolled sites."""
    now = datetime.datetime.now(datetime.UTC)
    home = folder / "coordinator"
    members.create(home, ["127.0.0.1"], now)
    sites = [folder / f"site-{number:03d}" for number in range(case.sites)]
    requests = [read_request(enroll(where, where.name)[0].read_bytes()) for where in sites]
    at = members.Home(home)
    with members.changing(at) as content:  # `sign` reads and writes the list for each site
        authority = members.signing_authority(at)
        certificates = [authority.issue(wish, now, 30).decode() for wish in requests]
        for wish, pem in zip(requests, certificates, strict=True):
            content["sites"][wish.site] = {"certificate": pem, "revoked": None}
    for where, pem in zip(sites, certificates, strict=True):
        bundle = where / "bundle"
        bundle.write_bytes(members._bundle(at, where.name, pem))
        join(where, bundle, now)
    hidden = ", ".join(map(str, case.hidden))
    (folder / "schema.toml").write_text(SCHEMA.format(hidden=hidden))
    plan = folder / "plan.toml"
    text = PLAN.format(sites=case.sites, rounds=rounds, wire=case.wire)
    plan.write_text(text + case.more)
    return home, plan, sites


@contextmanager
def running(sites: list[Path], where: str) -> Iterator[None]:
    """A process for each site, forked from this one: they share what they have imported."""
    fork = multiprocessing.get_context("fork")
    processes: list[BaseProcess] = []
    try:
        for folder in sites:
            process = fork.Process(target=serve, args=(folder, where), daemon=True)
            process.start()
            processes.append(process)
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def serve(folder: Path, where: str) -> None:
    """One site's process."""
    site = Enrolled(folder).joined()
    Agent(ready(folder), site, Route([where], "none"), log=said, stop=threading.Event()).run()


def said(event: str, **facts: object) -> None:
    """A site that is refused or fails must be seen; that it waits for the coordinator need not."""
    if event not in ("connected", "disconnected"):
        print(event, facts, file=sys.stderr, flush=True)


def ready(folder: Path) -> ClientApp:
    """A site's app whose update lies ready: it reads the weights, spends, proves, and answers."""
    app, update = ClientApp(), b""
    ledger = Ledger.create(folder / "ledger.jsonl", population="nobody")

    @app.train()
    def train(message: Message, context: Context) -> Message:
        nonlocal update
        asked = message.content.config_records["request"]
        plan = from_json(str(asked["plan"]))
        weights = message.content.array_records["arrays"]["weights"].data
        name, run, number = str(asked["site"]), str(asked["run"]), int(str(asked["round"]))
        events = plan.events_of_round(name)
        if not update:
            std = plan.learning_rate * (plan.clip or 1) * events[0].sigma / plan.denominator(name)
            update = memory(encode(drawn(weights, name, std), plan.wire)).tobytes()
        ledger.spend_all(events, None, run=run, round=number, plan=plan.digest)
        last = json.loads(str(asked["head"]))
        fields = {
            "run": run,
            "round": number,
            "site": name,
            "status": "trained",
            "reason": "",
            "events": json.dumps([event.to_dict() for event in events]),
            "head": json.dumps(ledger.proof(Head(last["n"], last["digest"])).to_dict()),
        }
        array = Array(dtype="uint8", shape=(len(update),), stype="safetensors", data=update)
        content = {"arrays": ArrayRecord({"update": array}), "reply": ConfigRecord(fields)}
        return Message(RecordDict(content), reply_to=message)

    @app.query("propose")
    def propose(message: Message, context: Context) -> Message:
        asked = message.content.config_records["request"]
        left = from_json(str(asked["plan"])).rounds - int(str(asked["round"])) + 1
        fields = {key: asked[key] for key in ("run", "round", "site")}
        fields |= {"status": "approved", "reason": "", "rounds": left, "ledger": ""}
        return Message(RecordDict({"reply": ConfigRecord(fields)}), reply_to=message)

    @app.evaluate()
    def released(message: Message, context: Context) -> Message:
        content = RecordDict({"reply": ConfigRecord({"status": "received"})})
        return Message(content, reply_to=message)

    return app


def drawn(weights: bytes, seed: str, std: float) -> dict[str, Any]:
    """An update of the model's shapes, another at each site, with the noise that the plan asks."""
    from safetensors.numpy import load

    generator = np.random.default_rng(list(seed.encode()))
    shapes = {name: array.shape for name, array in load(weights).items()}
    assert decode(weights, shapes)
    return {
        name: generator.standard_normal(shape, dtype=np.float32) * np.float32(std)
        for name, shape in shapes.items()
    }


def free_port() -> int:
    """A port of 127.0.0.1 that nobody has now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def peak_megabytes(process: int) -> float:
    """The most memory that a process has had resident, in MB."""
    status = Path(f"/proc/{process}/status").read_text()
    line = next(one for one in status.splitlines() if one.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def cpu_seconds(process: int) -> float:
    """The processor time of a process."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children(process: int) -> list[int]:
    """The children of a process."""
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(one) for one in text.split()]


if __name__ == "__main__":
    main()
