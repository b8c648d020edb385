"""What a round with a model of 17 MB takes over a slow line, and after a cut: real TLS, `tc tbf`.

The coordinator's link and a site's client are the product's own, in two network namespaces joined
by a cable whose two directions are shaped to one rate. The site does not train: it sends back as
many bytes as it got, so that a round is one way down and one up. The ideal is 2 x bytes / rate.

    python benchmarks/slow_lines.py [--rates 2000,256] [--megabytes 17] [--cut]    (root; kbit/s)
"""

import argparse
import contextlib
import datetime
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from privacy.runtime import prepare

prepare()  # before Flower: its chunks are 1 MiB then

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.agent.connection import Agent
from client.agent.credentials import Enrolled, enroll, join
from client.agent.route import Route
from server.fleet.grid import LinkGrid, serve
from server.registry import sites as members

NET, HERE, THERE = "tacit-slow", "10.231.8.1", "10.231.8.2"


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


@contextmanager
def cable(rate: int) -> Iterator[None]:
    """Another host at the end of a cable of so many kbit/s in each direction."""
    run("ip", "netns", "add", NET)
    try:
        run("ip", "link", "add", "tslow0", "type", "veth", "peer", "name", "tslow1", "netns", NET)
        run("ip", "addr", "add", f"{HERE}/24", "dev", "tslow0")
        run("ip", "link", "set", "tslow0", "up")
        run("ip", "-n", NET, "addr", "add", f"{THERE}/24", "dev", "tslow1")
        run("ip", "-n", NET, "link", "set", "tslow1", "up")
        shape = ("root", "tbf", "rate", f"{rate}kbit", "burst", "16kb", "latency", "200ms")
        run("tc", "qdisc", "add", "dev", "tslow0", *shape)
        run("ip", "netns", "exec", NET, "tc", "qdisc", "add", "dev", "tslow1", *shape)
        yield
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            run("ip", "link", "del", "tslow0")
        run("ip", "netns", "del", NET)


def sent() -> int:
    """Bytes that came in over the cable."""
    return int(Path("/sys/class/net/tslow0/statistics/rx_bytes").read_text())


def site(folder: Path, server: str) -> None:
    """The site's process: it answers with other weights of the same size."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        weights = message.content.array_records["arrays"]["w"].numpy()
        return Message(content(weights + 1), reply_to=message)

    def log(event: str, **facts: Any) -> None:
        print(json.dumps({"event": event, **facts}), flush=True)

    Agent(app, Enrolled(folder), Route([server], "none"), log=log, stop=threading.Event()).run()


def content(weights: np.ndarray) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord({"w": Array(weights)})})


def one_round(grid: LinkGrid, weights: np.ndarray, cut_after: float | None) -> dict[str, float]:
    """Seconds and bytes of one round; a cut of 20 s half way up, if asked."""
    (node,) = grid.names()
    before, began = sent(), time.monotonic()
    (number,) = grid.push_messages([grid.create_message(content(weights), "train", node, "1")])
    cut = 0.0
    while not (found := list(grid.pull_messages([number]))):
        grid.wait(0.5)
        up = sent() - before
        if cut_after is not None and not cut and up > cut_after:
            run("ip", "link", "set", "tslow0", "down")
            time.sleep(20)
            run("ip", "link", "set", "tslow0", "up")
            run("ip", "addr", "replace", f"{HERE}/24", "dev", "tslow0")
            cut = 20.0
    seconds = time.monotonic() - began
    answer = found[0].content.array_records["arrays"]["w"].numpy()
    if not np.array_equal(answer, weights + 1):
        raise RuntimeError("the reply is not what was sent")
    return {"seconds": seconds, "up_MB": (sent() - before) / 1e6, "cut": cut}


def measure(rate: int, megabytes: float, *, cut: bool) -> dict[str, float]:
    """One round over a line of so many kbit/s."""
    weights = np.random.default_rng(1).normal(size=int(megabytes * 250_000)).astype(np.float32)
    ideal = 2 * weights.nbytes * 8 / (rate * 1000)
    with tempfile.TemporaryDirectory() as text, cable(rate):
        folder, now = Path(text), datetime.datetime.now(datetime.UTC)
        members.create(folder / "home", [HERE], now)
        csr, _ = enroll(folder / "far", "far")
        _, bundle = members.sign(folder / "home", csr, now)
        join(folder / "far", bundle, now)
        with serve(folder / "home", (HERE, 0), log=lambda *_, **__: None) as grid:
            words = ("--site", str(folder / "far"), "--server", f"{HERE}:{grid.address[1]}")
            client = subprocess.Popen(
                ["ip", "netns", "exec", NET, sys.executable, __file__, *words],
                stdout=subprocess.DEVNULL,
            )
            try:
                while not grid.names():
                    grid.wait(0.5)
                found = one_round(grid, weights, weights.nbytes / 2 if cut else None)
            finally:
                client.kill()
                client.wait()
    facts = {"kbit_per_s": float(rate), "MB": weights.nbytes / 1e6, "ideal_s": ideal}
    return facts | found | {"ratio": (found["seconds"] - found["cut"]) / ideal}


def main() -> None:
    """Print one JSON object for each rate."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rates", default="2000,256")
    parser.add_argument("--megabytes", type=float, default=17.0)
    parser.add_argument("--cut", action="store_true")
    parser.add_argument("--site", type=Path)
    parser.add_argument("--server", default="")
    options = parser.parse_args()
    if options.site is not None:
        site(options.site, options.server)
        return
    for rate in options.rates.split(","):
        found = measure(int(rate), options.megabytes, cut=options.cut)
        print(json.dumps({key: round(value, 2) for key, value in found.items()}), flush=True)


if __name__ == "__main__":
    main()
