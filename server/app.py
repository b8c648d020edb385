"""The ServerApps: the composition root, where values, files and Flower meet.

`client` is imported here alone, lazily: for the first weights and for evaluation on public data.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from privacy.contract.plan import Plan
from privacy.ledger.ledger import Ledger
from server.model_process import Child
from server.registry.heads import HeadBook
from server.rounds.loop import Job, Outcome, federate
from server.rounds.run_folder import RunFolder
from server.rounds.summary import summarise

_PAUSE_SECONDS: Final = 2.0


def make_app(job: Job, done: Callable[[Outcome], None]) -> ServerApp:
    """The ServerApp that plays one job; `done` hears how it ended."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        done(federate(grid, job))

    return app


def coordinate(
    grid: Grid,
    plan: Plan,
    run: RunFolder,
    *,
    home: Path,
    sign: Callable[[bytes], bytes],
    child: Child,
    sign_model: Callable[[Path], None] | None = None,
    timeout: float | None = None,
    attempts: int = 3,
    hand_out: float = 30.0,
    gather: Callable[[], None] = lambda: None,
    on_round: Callable[[Mapping[str, Any]], None] = lambda line: None,
    on_answer: Callable[[int, Any], None] = lambda number, answer: None,
) -> tuple[Outcome, dict[str, Any]]:
    """Play a plan with the sites of `grid` and write the run folder; this process stays lean.

    `home` is the coordinator's folder (heads, its own ledger), `sign` its Ed25519 signature,
    `gather` waits until enough sites are connected; `child` knows torch.
    """
    began = time.perf_counter()
    ledger = None
    if plan.unit == "client":
        ledger = _own_ledger(home / "ledgers" / "coordinator.jsonl")
    child.ready()
    outcomes: list[Outcome] = []
    job = Job(
        plan,
        run,
        child.initial,
        evaluate=child.evaluate,
        heads=HeadBook(home / "heads", run.id, run.path / "heads", sign),
        ledger=ledger,
        sign=sign_model,
        gather=gather,
        on_round=on_round,
        on_answer=on_answer,
        timeout=timeout,
        attempts=attempts,
        pause=_PAUSE_SECONDS,
        hand_out=hand_out,
    )
    context = Context(
        run_id=grid.run.run_id, node_id=0, node_config={}, state=RecordDict(), run_config={}
    )
    make_app(job, outcomes.append)(grid=grid, context=context)
    (outcome,) = outcomes
    summary = summarise(plan, outcome, time.perf_counter() - began)
    run.write_summary(summary)
    return outcome, summary


def _own_ledger(path: Path) -> Ledger:
    """The coordinator's own ledger, which pays where it adds the noise (unit "client")."""
    if path.exists():
        return Ledger.open(path)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Ledger.create(path, population="the sites of this coordinator")
