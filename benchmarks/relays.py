"""What a round costs a coordinator of 300 sites: all its own, or 100 behind each of three relays.

Coordinator and relays are a process each, over mutual TLS on 127.0.0.1, with heads, accounting and
durable checkpoints; the sites are threads, a process for each hundred, with the product's agent and
a ledger each, but they do not train (tests/support/light_sites.py). The model has 650 numbers, so
that what is measured is a site's share of the work. CPU seconds are the process's own.

    python benchmarks/relays.py [--relays 3] [--sites 100] [--rounds 3]
"""

import argparse
import itertools
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from table import quartiles, save, show, versions

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from privacy.runtime import prepare

prepare()

from server.registry.relays import UPWARD
from tests.support.federation import linked, running
from tests.support.relays import Tree, plan_for

FORK = multiprocessing.get_context("fork")
Address = tuple[str, int]


def main() -> None:
    """One table and its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--relays", type=int, default=3)
    parser.add_argument("--sites", type=int, default=100, help="behind each relay")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds")
    chosen = parser.parse_args()
    names = [f"s{number:03d}" for number in range(chosen.sites)]
    regions = {f"r{number}": names for number in range(chosen.relays)}
    every = [f"{relay}-{name}" for relay in regions for name in names]
    result: dict[str, Any] = {"versions": versions("flwr", "numpy")}
    lines = []
    for what, relays, direct in (
        (f"{len(every)} direct sites", {}, every),
        (f"{len(regions)} relays of {len(names)} sites", regions, []),
    ):
        found = measure(relays, direct, chosen.rounds)
        result[what] = found
        middle = quartiles(found["seconds"])[1]
        lines.append(
            [
                what,
                f"{middle:.2f}",
                f"{quartiles(found['cpu'])[1]:.3f}",
                f"{quartiles(found['cpu'])[1] / len(every) * 1e3:.2f}",
                f"{found['relay cpu']:.3f}" if relays else "-",
                f"{found['relay cpu'] / len(names) * 1e3:.2f}" if relays else "-",
                f"{found['bytes up'] / 1e6:.2f}",
            ]
        )
    columns = ["sites", "s a round", "coordinator CPU s", "ms a site", "relay CPU s", "ms a site"]
    show("A round of a federation with and without relays", [*columns, "MB up"], lines, "medians")
    print(save("relays", result))


def measure(relays: dict[str, list[str]], direct: Sequence[str], rounds: int) -> dict[str, Any]:
    """Seconds and the coordinator's CPU seconds of each timed round; a relay's CPU a round."""
    with tempfile.TemporaryDirectory(prefix="tacit-relays-") as folder:
        tree = Tree(Path(folder), relays, direct)
        tree.interval = 15.0
        plan = plan_for(len(tree.sites), rounds=rounds + 1)
        processes: list[tuple[Any, Connection]] = []

        def started(target: Any, *words: Any) -> tuple[Connection, Address]:
            here, there = FORK.Pipe()
            process = FORK.Process(target=target, args=(there, tree, *words), daemon=True)
            process.start()
            processes.append((process, here))
            return here, here.recv()

        try:
            top, address = started(coordinate, plan)
            relay_pipes = []
            for relay in relays:
                pipe, where = started(pass_on, relay, address)
                relay_pipes.append(pipe)
                started(take_part, [f"{relay}:{name}" for name in relays[relay]], where)
            for place in range(0, len(direct), 100):
                started(take_part, list(direct[place : place + 100]), address)
            top.send("play")
            found: dict[str, Any] = top.recv()
            used = []
            for pipe in relay_pipes:
                pipe.send("end")
                used.append(pipe.recv())
        finally:
            for process, _ in processes:
                process.kill()
                process.join()
    found["relay cpu"] = sum(used) / len(used) / (rounds + 1) if used else 0.0
    return found


def coordinate(pipe: Connection, tree: Tree, plan: Any) -> None:
    """The coordinator's process."""
    ends: list[tuple[float, float, int]] = []

    def on_line(line: Any) -> None:
        trained = sum(one["status"] == "trained" for one in line["sites"].values())
        assert trained == len(tree.sites), line
        ends.append((time.perf_counter(), cpu(), line["bytes_up"]))

    with linked(tree.home, tree.log) as tree.grid:
        pipe.send(tree.grid.address)
        pipe.recv()
        outcome = tree.play(plan, on_line=on_line, round_timeout=None, hand_out=0.0)
    assert outcome.reason == "done", outcome
    pairs = list(itertools.pairwise(ends))
    pipe.send(
        {
            "seconds": [after[0] - before[0] for before, after in pairs],
            "cpu": [after[1] - before[1] for before, after in pairs],
            "bytes up": ends[-1][2],
        }
    )


def pass_on(pipe: Connection, tree: Tree, relay: str, address: Address) -> None:
    """A relay's process: its CPU from when it is asked for the first time to the end."""
    place, log = tree.homes[relay] / UPWARD, tree.logs[relay]
    with linked(tree.homes[relay], log) as grid:
        held = tree.relay(relay, grid)
        with running(place, address, held.app(), log):
            pipe.send(grid.address)
            log.wait("round_passed_on", 3600)
            before = cpu()
            pipe.recv()
            passed = sum(line["event"] == "round_passed_on" for line in log.lines)
            pipe.send((cpu() - before) * passed / max(1, passed - 1))


def take_part(pipe: Connection, tree: Tree, names: list[str], address: Address) -> None:
    """A hundred sites' threads."""
    with ExitStack() as stack:
        for name in names:
            site = tree.sites[name]
            stack.enter_context(running(site.folder, address, site.app()))
        pipe.send(address)
        pipe.recv()


def cpu() -> float:
    """The processor time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
