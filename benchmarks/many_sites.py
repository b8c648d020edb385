"""What a round costs the coordinator for each of many light sites, all of them in one process.

As benchmarks/network.py, but the sites are threads of one process, with the product's agent, a
certificate and a ledger each, which are not fsynced, and a model of 4 numbers: what is measured is
a site's share of the coordinator's work. `--cores 1` holds coordinator and sites to one core.

    python benchmarks/many_sites.py [--sites 50,100] [--rounds N] [--cores N]
"""

import argparse
import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from network import Case, measure
from table import quartiles, save, show, versions

from client.agent.connection import Agent
from client.agent.credentials import Enrolled
from client.agent.route import Route
from tests.support.light_sites import LightSite


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", default="50,100")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds")
    parser.add_argument("--cores", type=int, help="hold everybody to so many cores")
    asked = parser.parse_args()
    if asked.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: asked.cores])
    many_light([int(one) for one in asked.sites.split(",")], asked.rounds, asked.cores)


def many_light(counts: list[int], rounds: int, cores: int | None) -> None:
    """The table of light sites."""
    result: dict[str, Any] = {"versions": versions("flwr", "numpy", "h11"), "cores": cores}
    lines = []
    for count in counts:
        case = Case(f"{count} light sites", count, (), rounds, 20)
        found = measure(case, rounds, light)
        result[str(count)] = found
        low, middle, high = quartiles(found["seconds"])
        lines.append(
            [
                case.what,
                f"{found['first']:.1f}",
                f"{middle:.2f} ({low:.2f}-{high:.2f})",
                f"{1e3 * found['cpu'] / count:.2f}",
                f"{found['memory']:.0f}",
                f"{sum(found['lost'].values())}",
            ]
        )
    show(
        "A round of a federation of light sites, in one process",
        ["sites", "s to first round's end", "s a round", "CPU ms a site", "peak MB", "lost"],
        lines,
        "medians (quartiles) after one unmeasured round; CPU and memory are the coordinator's; "
        f"targets 20 s and 2 ms; lost: connections that broke; {cores or 'all'} cores",
    )
    print(save("many-sites", result))


@contextmanager
def light(sites: list[Path], where: str) -> Iterator[None]:
    """All sites in one process, forked from this one."""
    process = multiprocessing.get_context("fork").Process(target=crowd, args=(sites, where))
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def crowd(sites: list[Path], where: str) -> None:
    """The process of light sites: a thread for each, and its heartbeat's."""
    lost = (sites[0].parent / "lost").open("a", buffering=1)
    connected = set[str]()

    def run(folder: Path) -> None:
        def log(event: str, **facts: object) -> None:
            if event == "connected":
                connected.add(folder.name)
            elif folder.name in connected and event == "disconnected":  # not: who waits for a start
                lost.write(f"{facts['why']}\n")

        site = Enrolled(folder).joined()
        app = LightSite(folder, folder.name).app()
        Agent(app, site, Route([where], "none"), log=log, stop=threading.Event()).run()

    threading.stack_size(1 << 20)
    threads = [threading.Thread(target=run, args=(folder,), daemon=True) for folder in sites]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
