"""simulate(...) -> Result: a whole federation in one process; only the Grid is not production's."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, RecordDict

from client.tasks.rows import Reading
from privacy.contract.plan import Plan
from privacy.mechanism import noise
from server.app import make_app
from server.evaluation import evaluate_on, initial_weights
from server.registry.signing import own_key, signer
from server.rounds.job import Job, Model, Silent
from server.rounds.loop import Outcome, federate
from server.rounds.run_folder import FolderError, RunFolder
from server.rounds.summary import summarise
from simulations.dataset import Place, World, own_ledger, prepare
from simulations.engines.pool import Processes, Serial
from simulations.engines.vector import Vector, stack_of
from simulations.grid import Engine, LocalGrid

COORDINATOR = "coordinator"


@dataclass(frozen=True, slots=True)
class Result:
    """How a simulated run ended, and where it is kept."""

    outcome: Outcome
    folder: Path
    summary: Mapping[str, Any]


def simulate(
    plan: Plan,
    folder: Path,
    *,
    data: Path | None = None,
    resume: bool = False,
    insecure: bool = False,
    on_read: Callable[[Reading], None] = lambda reading: None,
    on_start: Callable[[Plan, int], None] = lambda plan, done: None,
    on_round: Callable[[Mapping[str, Any]], None] = lambda line: None,
) -> Result:
    """Run a plan's federation in this process; bad input raises before anything is written.

    `insecure` makes noise and sampling reproducible from the seed: for debugging, never private.
    """
    began = time.perf_counter()
    plan, world = prepare(plan, data)
    if world.train.reading is not None:
        on_read(world.train.reading)
    if plan.simulation.engine == "vector":
        stack_of(plan)  # refuses a model that it cannot train
    if resume:
        run = RunFolder.open(folder, plan)
        ended = run.summary()
        if ended is not None and ended.get("reason") == "done":
            return Result(Outcome("done", []), folder, ended)
        if bool(run.facts().get("insecure")) != insecure:
            raise FolderError(f"{folder}: --insecure-reproducible: expected as the run was begun")
    else:
        run = RunFolder.create(folder, plan, kind="simulation", insecure=insecure)
    run = replace(run, durable=False, sign=signer(own_key(run.path), durable=False))
    place = Place(plan, world.train, world.parts, folder, insecure)
    ledger = own_ledger(folder, COORDINATOR) if plan.unit == "client" else None
    on_start(plan, len(run.history()))
    initial = initial_weights(plan)
    model, listener = Model(lambda: initial, _evaluator(plan, world)), Silent(on_round)
    outcomes: list[Outcome] = []
    with ExitStack() as stack:
        if insecure:
            stack.enter_context(noise.insecure(f"{plan.seed}/{COORDINATOR}/{len(run.history())}"))
        engine = _engine(place)
        stack.callback(engine.close)
        grid = _grid(plan, engine, list(world.parts))
        context = Context(
            run_id=grid.run.run_id, node_id=0, node_config={}, state=RecordDict(), run_config={}
        )
        job = Job(plan, run, grid, model, listener=listener, ledger=ledger)
        make_app(lambda _: outcomes.append(federate(job)))(grid=grid, context=context)
    (outcome,) = outcomes
    summary = summarise(plan, outcome, time.perf_counter() - began, insecure=insecure)
    run.write_summary(summary)
    return Result(outcome, folder, summary)


def _engine(place: Place) -> Engine:
    """What runs the clients, by the plan's `[simulation] engine`."""
    options = place.plan.simulation
    if options.engine == "processes":
        return Processes(place, options.workers)
    if options.engine == "ray":
        from simulations.engines.ray import RayActors

        return RayActors(place, options.workers)
    if options.engine == "vector":
        return Vector(place)
    return Serial(place)


def _grid(plan: Plan, engine: Engine, sites: Sequence[str]) -> LocalGrid:
    order = {name: i for i, name in enumerate(sites)}

    def drawn(share: float, what: int) -> Callable[[str, str], bool]:
        def draw(site: str, number: str) -> bool:
            seed = [plan.seed, what, int(number), order[site]]
            return bool(share) and bool(np.random.default_rng(seed).random() < share)

        return draw

    options = plan.simulation
    return LocalGrid(engine, sites, drops=drawn(options.dropout, 1), late=drawn(options.slow, 2))


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
