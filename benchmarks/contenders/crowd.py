"""A crowd: so many registered clients of 100 rows each, so many a round, a model of 650 numbers.

python benchmarks/contenders/crowd.py REGISTERED COHORT ENGINE ROUNDS
"""

import sys
import tempfile
from pathlib import Path

import torch
import workload as w
from product import register
from torch import nn
from turns import Turns

from privacy.contract.plan import Plan, Simulation
from simulations.run import simulate

ROWS, PIXELS, BATCH, STEPS = 100, 64, 20, 2


def model(seed: int) -> nn.Module:
    """Softmax regression of 64 bytes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(w.Scaled(PIXELS), nn.Linear(PIXELS, 10))


def data(part: str) -> w.Data:
    """Random bytes: 100 rows for each registered client."""
    draw = torch.Generator().manual_seed(len(part))
    count = int(sys.argv[1]) * ROWS if part == "train" else 1000
    x = torch.randint(0, 256, (count, PIXELS), generator=draw, dtype=torch.uint8)
    return w.Data(x, torch.randint(0, 10, (count,), generator=draw))


def main() -> None:
    """One simulation, a turn a round."""
    registered, cohort, rounds = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[4])
    turns = Turns()
    torch.set_num_threads(1)
    plan = Plan(
        task=register("peers-crowd", model, data, PIXELS),
        rounds=rounds,
        rate=BATCH / ROWS,
        rows=ROWS,
        lr=0.1,
        sites=registered,
        cohort=cohort,
        steps=STEPS,
        clip=1.0,
        sigma=8.0,
        delta=1e-3,
        simulation=Simulation(sys.argv[3], workers=2),
    )
    with tempfile.TemporaryDirectory() as folder:
        simulate(
            plan,
            Path(folder) / "run",
            on_start=lambda plan, done: turns.begin(),
            on_round=lambda line: turns.end(),
        )


if __name__ == "__main__":
    main()
