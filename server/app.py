"""The ServerApp: the composition root, where values, files and Flower meet.

`client` is imported in server/evaluation.py alone, lazily: for the first weights and for evaluation
on public data.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from privacy.contract.plan import Plan
from privacy.ledger.ledger import Ledger
from server.model_process import Child
from server.registry.heads import HeadBook
from server.rounds.job import Attempts, Job, Listener
from server.rounds.loop import Outcome, federate
from server.rounds.run_folder import RunFolder
from server.rounds.site_grid import SiteGrid
from server.rounds.summary import summarise

ATTEMPTS: Final = Attempts(most=3, pause=2.0, hand_out=30.0)


def make_app(play: Callable[[Grid], object]) -> ServerApp:
    """The ServerApp that plays one run with the Grid that it is given."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        play(grid)

    return app


def coordinate(
    grid: SiteGrid,
    plan: Plan,
    run: RunFolder,
    *,
    home: Path,
    sign: Callable[[bytes], bytes],
    child: Child,
    listener: Listener,
    sign_model: Callable[[Path], None] | None = None,
    attempts: Attempts = ATTEMPTS,
) -> tuple[Outcome, dict[str, Any]]:
    """Play a plan with the sites of `grid` and write the run folder; this process stays lean.

    `home` is the coordinator's folder (heads, its own ledger), `sign` its Ed25519 signature;
    `child` knows torch.
    """
    began = time.perf_counter()
    ledger = None
    if plan.unit == "client":
        ledger = _coordinator_ledger(home / "ledgers" / "coordinator.jsonl")
    child.ready()
    run = replace(run, sign=sign_model)
    heads = HeadBook(home / "heads", run.id, run.path / "heads", sign)
    job = Job(plan, run, grid, child, heads, listener, ledger, attempts)
    outcomes: list[Outcome] = []
    context = Context(
        run_id=grid.run.run_id, node_id=0, node_config={}, state=RecordDict(), run_config={}
    )
    make_app(lambda _: outcomes.append(federate(job)))(grid=grid, context=context)
    (outcome,) = outcomes
    summary = summarise(plan, outcome, time.perf_counter() - began)
    run.write_summary(summary)
    return outcome, summary


def _coordinator_ledger(path: Path) -> Ledger:
    """The coordinator's own ledger, which pays where it adds the noise (unit "client")."""
    if path.exists():
        return Ledger.open(path)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Ledger.create(path, population="the sites of this coordinator")
