"""A round of ten clients against plain SGD: 600 rows each, one epoch in batches of 32.

    python benchmarks/cohort.py [--models mlp,cnn] [--rounds 10] [--profile]

CPU seconds of a round of the serial engine (messages, ledgers, accounting, training, evaluation,
checkpoint; 100 clients, 10 a round, as in `peers.py`) against those of the same clients' plain SGD
steps, taken in turns in one process with one thread.
"""

import argparse
import cProfile
import pstats
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent / "contenders"))  # they import each other

from privacy.runtime import prepare

prepare()

import torch
import turns
import workload
from contenders.product import plan_of, register
from table import quartiles, save, show, versions
from torch.nn import functional

from privacy.contract.plan import Simulation
from simulations.run import simulate


def main() -> None:
    """Measure each model and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="mlp")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--profile", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    lines, result = [], {}
    for name in chosen.models.split(","):
        rounds, plains = measure(name, chosen.rounds, profile=chosen.profile)
        ratios = quartiles([a / b for a, b in zip(rounds, plains, strict=True)])
        middle = [quartiles(each)[1] for each in (rounds, plains)]
        text = f"{ratios[1]:.2f} ({ratios[0]:.2f}-{ratios[2]:.2f})"
        lines.append([name, *(f"{seconds:.3f}" for seconds in middle), text])
        result[name] = {"rounds": rounds, "plain": plains, "ratio": ratios[1]}
    columns = ("model", "CPU s a round", "plain SGD", "ratio (quartiles)")
    show("A round of ten clients", columns, lines, "medians of rounds in turns, one process")
    save("cohort", {"models": result, "versions": versions("torch", "numpy")})


def measure(name: str, rounds: int, *, profile: bool) -> tuple[list[float], list[float]]:
    """CPU seconds of each round, and of the plain steps after it; the first two are left out."""
    plan = plan_of(
        register(f"cohort-{name}", partial(workload.model, name), workload.data),
        rounds + 2,
        simulation=Simulation("serial"),
    )
    epoch, ours, theirs = plain(name), list[float](), list[float]()
    profiler = cProfile.Profile()
    began = 0.0

    def on_round(_: Any) -> None:
        nonlocal began
        profiler.disable()
        ours.append(time.process_time() - began)
        begin = time.process_time()
        for client in range(turns.COHORT):
            epoch(client)
        began = time.process_time()
        theirs.append(began - begin)
        if profile and len(ours) >= 2:
            profiler.enable()

    with tempfile.TemporaryDirectory() as folder:
        simulate(plan, Path(folder) / "run", on_round=on_round)
    profiler.disable()
    if profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(45)
    return ours[2:], theirs[2:]


def plain(name: str) -> Callable[[int], None]:
    """One client's epoch of plain SGD."""
    model, rows = workload.model(name), workload.data("train")
    optimizer = torch.optim.SGD(model.parameters(), lr=turns.LR)

    def epoch(client: int) -> None:
        x, y = rows.part(client)
        order = torch.randperm(len(x))
        for at in order.split(turns.BATCH):
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(model(x[at]), y[at]).backward()
            optimizer.step()

    epoch(0)
    return epoch


if __name__ == "__main__":
    main()
