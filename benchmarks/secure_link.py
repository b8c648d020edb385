"""What a secure round costs over a plain one, with sites that have a large model, over real TLS.

All parties run in this process on loopback: python benchmarks/secure_link.py
"""

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from client.agent.credentials import Enrolled
from client.app import make_app
from client.site import Site
from client.tasks.registry import task_of
from client.tasks.rows import Rows
from client.tasks.task import Task
from privacy.contract.plan import Plan
from privacy.contract.plan_file import load_plan
from privacy.contract.policy import Policy
from privacy.identity.keys import sign
from privacy.ledger.ledger import Ledger
from server.registry.roster import with_roster
from server.registry.sites import Home
from server.rounds.job import Attempts, Job, Model
from server.rounds.loop import federate
from server.rounds.run_folder import RunFolder
from tests.support.federation import coordinator, linked, running

POLICY = Policy(
    epsilon=1e5, delta=1e-3, min_sigma=0.0, approve="within-limits", epsilon_alone=1e5,
    parties=("*",),
)  # fmt: skip


def network(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
                         nn.Linear(width, 10))  # fmt: skip


def main() -> None:
    """Print the seconds of each kind of round, and their CPU seconds in all parties together."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=10)
    parser.add_argument("--width", type=int, default=960, help="960: a million weights")
    parser.add_argument("--rounds", type=int, default=4)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    names = [f"site-{i:02d}" for i in range(chosen.sites)]
    weights = {n: p.detach().numpy() for n, p in network(chosen.width).named_parameters()}
    print(f"{chosen.sites} sites, {sum(w.size for w in weights.values()):,} weights")
    common = (
        *(f"sites={chosen.sites}", "rows=64", f"rounds={chosen.rounds}", "rate=1.0", "sigma=3.0"),
        *("delta=1e-3", "average=false", "lr=0.01", "weights=rows"),
    )
    kinds = {
        "plain": (),
        "secure": ("aggregation=secure", "secure.dropouts=1", "secure.colluding=1"),
    }
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        home, folders = coordinator(folder, *names)
        grid = stack.enter_context(linked(home))
        for site in names:
            one = the_site(folders[site], site, names.index(site), chosen.width)
            app = make_app(lambda context, content, one=one: one)
            stack.enter_context(running(folders[site], grid.address, app))
        while len(grid.names()) < len(names):
            grid.wait(0.1)
        for kind, keys in kinds.items():
            plan: Plan = load_plan("digits", [*common, *keys])
            if kind == "secure":
                plan = with_roster(plan, Home(home).members())
            run = RunFolder.create(folder / kind, plan, kind="federation")
            job = Job(plan, run, grid, Model(lambda: dict(weights)), attempts=Attempts(most=3))
            busy = time.process_time()
            outcome = federate(job)
            busy = (time.process_time() - busy) / chosen.rounds
            seconds = [line["seconds"] for line in outcome.history]
            print(f"{kind:<8} {outcome.reason}: {np.median(seconds):.2f} s a round "
                  f"(first {seconds[0]:.2f}), {busy:.2f} CPU s in all parties")  # fmt: skip


def the_site(folder: Path, name: str, number: int, width: int) -> Site:
    """A site with 64 rows of digits, its own ledger and a task with the large model."""
    here = Enrolled(folder)

    def rows(learning: Task) -> Rows:
        return learning.load(None, "train").take(range(64 * number, 64 * number + 64))

    def tasks(plan: Plan) -> Task:
        return replace(task_of(plan), model=lambda seed: network(width))

    return Site(
        name, POLICY, Ledger.create(folder / "people.jsonl", population=name), rows,
        check_head=lambda head: True, sign=lambda payload: sign(here.signing_key, payload),
        tasks=tasks,
    )  # fmt: skip


if __name__ == "__main__":
    main()
