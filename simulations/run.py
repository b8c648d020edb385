"""simulate(...) -> Result: a whole federation in one process; only the Grid is not production's."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, RecordDict

from client.app import make_app as client_app
from client.site import Site
from client.tasks import Rows, Task, task
from privacy import noise
from privacy.ledger import Ledger
from privacy.loading import with_rows
from privacy.plan import Plan, PlanError
from privacy.policy import Policy
from server.app import evaluate_on, initial_weights
from server.app import make_app as server_app
from server.federation import Job, Outcome
from server.folder import FolderError, RunFolder
from server.summary import summarise
from simulations.grid import LocalGrid
from simulations.split import split

COORDINATOR = "coordinator"


@dataclass(frozen=True, slots=True)
class Result:
    """How a simulated run ended, and where it is kept."""

    outcome: Outcome
    folder: Path
    summary: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class World:
    """The data of a simulated federation: loaded once, and who holds which rows."""

    task: Task
    train: Rows
    test: Rows
    parts: Mapping[str, np.ndarray[Any, np.dtype[np.int64]]]

    def rows(self, site: str) -> Rows:
        """One site's rows, taken out of the whole when they are needed."""
        return self.train.take(self.parts[site])


def prepare(plan: Plan, data: Path | None) -> tuple[Plan, World]:
    """Load the data, split it, write the sites' row counts into the plan; TaskError, PlanError."""
    learning = task(plan.task, plan.schema)
    train, test = learning.load(data, "train"), learning.load(data, "test")
    sites = plan.sites
    if plan.split == "natural":
        sites = sites or len(set(train.site or ()))
    parts = split(plan.split, train.y.numpy(), train.site, sites or 1, plan.seed)
    unknown = sorted(set(plan.site) - set(parts))
    if unknown:
        raise PlanError(f"site.{unknown[0]}: expected one of {', '.join(parts)}")
    counts = {name: len(rows) for name, rows in parts.items()}
    if plan.rows == "actual":
        plan = with_rows(plan, counts)
    return replace(plan, sites=sites), World(learning, train, test, parts)


def simulate(
    plan: Plan,
    folder: Path,
    *,
    data: Path | None = None,
    resume: bool = False,
    insecure: bool = False,
    on_start: Callable[[Plan, int], None] = lambda plan, done: None,
    on_round: Callable[[Mapping[str, Any]], None] = lambda line: None,
) -> Result:
    """Run a plan's federation in this process; bad input raises before anything is written.

    `insecure` makes noise and sampling reproducible from the seed: for debugging, never private.
    """
    began = time.perf_counter()
    plan, world = prepare(plan, data)
    if resume:
        run = RunFolder.open(folder, plan)
        ended = run.summary()
        if ended is not None and ended.get("reason") == "done":
            return Result(Outcome("done", []), folder, ended)
        if bool(run.facts().get("insecure")) != insecure:
            raise FolderError(f"{folder}: --insecure-reproducible: expected as the run was begun")
    else:
        run = RunFolder.create(folder, plan, kind="simulation", insecure=insecure)
    run = replace(run, durable=False)
    sites = {name: _site(plan, world, folder, name) for name in world.parts}
    ledger = _ledger(folder, COORDINATOR) if plan.unit == "client" else None
    on_start(plan, len(run.history()))
    job = Job(
        plan,
        run,
        initial_weights(plan),
        evaluate=_evaluator(plan, world),
        ledger=ledger,
        on_round=on_round,
    )
    outcomes: list[Outcome] = []
    with ExitStack() as stack:
        if insecure:
            stack.enter_context(noise.insecure(f"{plan.seed}/{len(run.history())}"))
        grid = _grid(plan, sites)
        context = Context(
            run_id=grid.run.run_id, node_id=0, node_config={}, state=RecordDict(), run_config={}
        )
        server_app(job, outcomes.append)(grid=grid, context=context)
    (outcome,) = outcomes
    summary = summarise(plan, outcome, time.perf_counter() - began, insecure=insecure)
    run.write_summary(summary)
    return Result(outcome, folder, summary)


def _site(plan: Plan, world: World, folder: Path, name: str) -> Site:
    """A simulated site: a ledger that starts fresh with the run, and the plan's limit as policy."""
    policy = Policy.simulated(plan, plan.limit_of(name))
    ledger = _ledger(folder, name) if plan.unit == "record" else None
    return Site(name, policy, ledger, rows=lambda _: world.rows(name))


def _ledger(folder: Path, name: str) -> Ledger:
    path = folder / "ledgers" / f"{name}.jsonl"
    if path.exists():
        return Ledger.open(path, durable=False)
    path.parent.mkdir(exist_ok=True)
    return Ledger.create(path, population=f"simulated {name}", durable=False)


def _grid(plan: Plan, sites: Mapping[str, Site]) -> LocalGrid:
    def drawn(share: float, what: int) -> Callable[[str, str], bool]:
        order = {name: i for i, name in enumerate(sites)}

        def draw(site: str, number: str) -> bool:
            seed = [plan.seed, what, int(number), order[site]]
            return bool(share) and bool(np.random.default_rng(seed).random() < share)

        return draw

    app = client_app(lambda context: sites[str(context.node_config["site"])])
    options = plan.simulation
    return LocalGrid(app, list(sites), drops=drawn(options.dropout, 1), late=drawn(options.slow, 2))


def _evaluator(plan: Plan, world: World) -> Callable[[Any], Mapping[str, float]]:
    """Metrics on the held-out rows; of natural sites the mean, so that each counts the same."""
    pooled = evaluate_on(plan, world.test)
    if plan.split != "natural" or world.test.site is None:
        return pooled
    owners = np.asarray(world.test.site)
    parts = [
        evaluate_on(plan, world.test.take(np.flatnonzero(owners == name)))
        for name in sorted(set(world.test.site))
    ]

    def evaluate(weights: Any) -> Mapping[str, float]:
        found: Sequence[Mapping[str, float]] = [part(weights) for part in parts]
        mean = {k: float(np.mean([one[k] for one in found if k in one])) for k in found[0]}
        return mean | {f"pooled_{k}": v for k, v in pooled(weights).items() if k == "accuracy"}

    return evaluate
