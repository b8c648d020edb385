"""Tacit: `simulations.run.simulate` with everything on: ledgers, accounting, checkpoints, history.

python benchmarks/contenders/tacit.py MODEL ENGINE ROUNDS
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

from privacy.runtime import loading, prepare

prepare()
with loading():  # as the command does
    import torch
    import turns
    import workload as w
    from product import plan_of, register

    from privacy.contract.plan import Simulation
    from simulations.run import simulate

for known in w.MODELS:  # here, so that a process that imports this file anew knows them too
    register(f"peers-{known}", partial(w.model, known), w.data)


def main() -> None:
    """One simulation, a turn a round."""
    name, engine, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
    talk = turns.Turns()
    torch.set_num_threads(1)
    plan = plan_of(f"peers-{name}", rounds, simulation=Simulation(engine, workers=2))
    with tempfile.TemporaryDirectory() as folder:
        simulate(
            plan,
            Path(folder) / "run",
            on_start=lambda plan, done: talk.begin(),
            on_round=lambda line: talk.end(line["metrics"]["accuracy"]),
        )


if __name__ == "__main__":
    main()
