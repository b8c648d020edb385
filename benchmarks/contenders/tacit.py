"""Tacit: `simulations.run.simulate` with everything on: ledgers, accounting, checkpoints, history.

python benchmarks/contenders/tacit.py MODEL ENGINE ROUNDS
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
import workload as w
from product import register

from privacy.plan import Plan, Simulation
from simulations.run import simulate

for known in w.MODELS:  # here, so that a process that imports this file anew knows them too
    register(f"peers-{known}", partial(w.model, known), w.data)


def main() -> None:
    """One simulation, a turn a round."""
    name, engine, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
    turns = w.Turns()
    torch.set_num_threads(1)
    plan = Plan(
        task=f"peers-{name}",
        rounds=rounds,
        rate=w.RATE,
        rows=w.ROWS,
        lr=w.LR,
        sites=w.CLIENTS,
        cohort=w.COHORT,
        steps=w.STEPS,
        clip=w.CLIP,
        sigma=w.SIGMA,
        delta=w.DELTA,
        simulation=Simulation(engine, workers=2),
    )
    with tempfile.TemporaryDirectory() as folder:
        simulate(
            plan,
            Path(folder) / "run",
            on_start=lambda plan, done: turns.begin(),
            on_round=lambda line: turns.end(line["metrics"]["accuracy"]),
        )


if __name__ == "__main__":
    main()
