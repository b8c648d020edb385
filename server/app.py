"""The ServerApp: the composition root, where values, files and Flower meet.

`client` is imported in server/evaluation.py alone, lazily: for the first weights and for evaluation
on public data.
"""

import time
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from privacy.arrays import Arrays
from privacy.contract.plan import Plan
from privacy.ledger.ledger import Ledger
from privacy.statistics.release import MODEL, SUMS
from server.model_process import Child
from server.registry.heads import HeadBook
from server.rounds.checkpoint import Sign
from server.rounds.job import Attempts, Evaluator, Job, Listener, Model
from server.rounds.loop import Outcome, federate
from server.rounds.run_folder import FolderError, RunFolder
from server.rounds.site_grid import SiteGrid
from server.rounds.summary import summarise
from server.statistics_files import write_results

UNFINISHED: Final = frozenset({"waiting", "interrupted"})
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
    sign_model: Sign | None = None,
    first: Arrays | None = None,
    ledger_of: Callable[[str], str] = lambda site: "",
    attempts: Attempts = ATTEMPTS,
    relays: Callable[[], Collection[str]] = frozenset,
) -> tuple[Outcome, dict[str, Any]]:
    """Play a plan with the sites of `grid` and write the run folder; this process stays lean.

    `home` is the coordinator's folder (heads, its own ledger), `sign` its Ed25519 signature;
    `child` knows torch; `first` are the weights to start from, where they are not the task's;
    `ledger_of(site)` tells which of a site's ledgers pays; `relays()` are the parties that are
    relays.
    An outcome of "waiting" or "interrupted" is no end: the summary is left as it was.
    """
    began = time.perf_counter()
    ledger = None
    if plan.noised_centrally:
        ledger = _coordinator_ledger(home / "ledgers" / "coordinator.jsonl")
    child.ready()
    run = replace(run, sign=sign_model)
    heads = HeadBook(home / "heads", run.id, run.path / "heads", sign, ledger_of)
    model: Evaluator = child
    if first is not None or (plan.statistics is not None and plan.statistics.groups):
        model = Model(fitting(plan, first, child.initial()), child.evaluate)
    job = Job(
        *(plan, run, grid, model, heads, listener, ledger, attempts),
        base=child.base(),
        relays=relays,
    )
    outcomes: list[Outcome] = []
    context = Context(
        run_id=grid.run.run_id, node_id=0, node_config={}, state=RecordDict(), run_config={}
    )
    make_app(lambda _: outcomes.append(federate(job)))(grid=grid, context=context)
    (outcome,) = outcomes
    summary = summarise(plan, outcome, time.perf_counter() - began)
    if outcome.reason not in UNFINISHED:
        run.write_summary(summary)
        if plan.statistics is not None:
            write_results(run, child.columns())
    return outcome, summary


def fitting(plan: Plan, first: Arrays | None, model_arrays: Arrays) -> Callable[[], Arrays]:
    """The weights of another run, if they are of this plan's model; FolderError.

    A plan of statistics takes them to predict with, and cannot do without where it has groups.
    """
    if first is None:
        raise FolderError("--from RUN must name the run whose model's predictions are counted")
    below = f"{MODEL}." if plan.statistics is not None else ""
    shapes = {n.removeprefix(below): a.shape for n, a in model_arrays.items() if n != SUMS}
    if {name: array.shape for name, array in first.items()} != shapes:
        raise FolderError("--from: its model must have the layers and shapes of this plan's model")
    arrays = {**model_arrays, **{f"{below}{name}": array for name, array in first.items()}}
    return lambda: arrays


def _coordinator_ledger(path: Path) -> Ledger:
    """The coordinator's own ledger, which pays where it adds the noise (unit "client")."""
    if path.exists():
        return Ledger.open(path)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Ledger.create(path, population="the sites of this coordinator")
