"""A whole federation in one process; only the Grid is not production's."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from flwr.app import Context, RecordDict
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from client.inference.evaluation import auroc
from client.tasks.registry import provided, task_of
from client.tasks.rows import Reading
from privacy.accounting.epsilon import spent
from privacy.arrays import Arrays
from privacy.contract.forecast import check_numbers
from privacy.contract.plan import Plan, PlanError
from privacy.mechanism import noise
from server.app import fitting, make_app
from server.evaluation import (
    evaluate_on,
    frozen_base,
    initial_weights,
    outputs_on,
    public_columns,
)
from server.registry.signing import own_key, signer
from server.rounds.aggregation import State
from server.rounds.job import Interrupted, Job, Model, Silent
from server.rounds.loop import Outcome, federate
from server.rounds.messages import Answer
from server.rounds.run_folder import FolderError, RunFolder
from server.rounds.site_grid import SiteGrid
from server.rounds.summary import summarise
from server.statistics_files import write_results
from simulations.dataset import (
    FAULT,
    Data,
    Place,
    World,
    chosen_device,
    own_ledger,
    prepare,
    signing_keys,
)
from simulations.display import RunView
from simulations.engines.errors import OwnCodeError
from simulations.engines.pool import Processes, Serial
from simulations.engines.vector import Vector, stack_of
from simulations.grid import Engine, LocalGrid
from simulations.own_task import own_data, own_task, packaged
from simulations.result import History, Result

COORDINATOR = "coordinator"


@dataclass(frozen=True, slots=True)
class Rounds(Silent):
    """A Listener that is told of each round, and ends the run after one when it is asked to."""

    stop: Callable[[], bool] = lambda: False

    def ready(
        self, grid: SiteGrid, number: int, declined: Mapping[str, Answer]
    ) -> Collection[str] | None:
        if self.stop():
            raise Interrupted("stopped", f"interrupted after round {number - 1}")
        return Silent.ready(self, grid, number, declined)


def simulate(
    plan: Plan,
    folder: Path | str | None = None,
    *,
    task: nn.Module | Callable[[], nn.Module] | Path | str | None = None,
    data: Any = None,
    label: str | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    first: Path | str | None = None,
    resume: bool = False,
    insecure: bool = False,
    on_read: Callable[[Reading], None] = lambda reading: None,
    progress: bool = False,
    on_start: Callable[[Plan, int], None] = lambda plan, done: None,
    on_round: Callable[[Mapping[str, Any]], None] = lambda line: None,
    stop: Callable[[], bool] = lambda: False,
) -> Result:
    """Run a plan's federation in this process; bad input raises before anything is written.

    * `folder` keeps the run, so that it can be resumed; without one nothing stays on disk;
    * `task` is an own model: a module with its first weights, or a function that builds one. Then
      `data` are arrays: (x, y), a Dataset, a DataFrame with `label`, or an `OwnData`, and `loss`
      gives a loss per row (simulations/own_task.py). The plan's `task` is then a name of its own;
    * `task` may be the path of a task package instead, a folder or a packed file; the plan's `code`
      is then its digest, and `data` the path of its files;
    * otherwise `data` is the path of the task's files, or None for an embedded task;
    * `first` is the folder of a run whose model is the first one, or that statistics are of;
    * `insecure` makes noise and sampling reproducible from the seed: to debug, never private;
    * `progress` shows the rounds as they end, in a terminal or a notebook;
    * once `stop()` is true the run ends after the round that is under way.

    OwnCodeError where the own model or loss fails; TaskError, PlanError and FolderError for bad
    input. Nothing global changes: no logging, no garbage collector, no random generator.
    """
    with ExitStack() as stack:
        if isinstance(task, Path | str):
            plan = stack.enter_context(packaged(plan, Path(task)))
        elif task is not None:
            if plan.simulation.engine == "ray" or resume:
                raise PlanError("an own task must be run in one go, and not by the engine ray")
            learning, *rows = own_task(
                task,
                own_data(data, label),
                loss=loss,
                seed=plan.seed,
                per_example=plan.noised_at_site,
            )
            stack.enter_context(provided(learning))
            plan, data = replace(plan, task=learning.name), tuple(rows)
        if progress:
            view = stack.enter_context(RunView(Console()))
            on_start, on_round = view.start, view.round
        run_path = None if folder is None else Path(folder)
        if run_path is None:
            run_path = Path(stack.enter_context(TemporaryDirectory(prefix="tacit-"))) / "run"
        plan, outcome, summary = _play(
            plan,
            run_path,
            data,
            resume,
            insecure,
            first=None if first is None else Path(first),
            on_read=on_read,
            on_start=on_start,
            on_round=on_round,
            stop=stop,
        )
        fault = _fault(run_path)
        if fault is not None and task is not None and outcome.reason == "failed":
            raise OwnCodeError(fault)
        run = RunFolder.open(run_path)
        last = run.resume()
        return Result(
            outcome,
            None if folder is None else run_path,
            summary,
            plan,
            task_of(plan),
            History(run.history()),
            None if last is None else State.from_arrays(*last).released(),
        )


def _play(
    plan: Plan,
    folder: Path,
    data: Data,
    resume: bool,
    insecure: bool,
    *,
    first: Path | None,
    on_read: Callable[[Reading], None],
    on_start: Callable[[Plan, int], None],
    on_round: Callable[[Mapping[str, Any]], None],
    stop: Callable[[], bool],
) -> tuple[Plan, Outcome, dict[str, Any]]:
    began = time.perf_counter()
    chosen_device()  # refuses one that is not there
    plan, world = prepare(plan, data)
    if world.train.reading is not None:
        on_read(world.train.reading)
    check_numbers(plan)
    evaluate = _evaluator(plan, world)  # refuses rows of which none is held out
    if plan.simulation.engine == "vector":
        stack_of(plan)  # refuses a model that it cannot train
    connected = False
    if plan.simulation.engine == "ray":
        from simulations.engines.ray import connect

        connected = connect(plan.simulation.workers)  # refuses a cluster that is not there
    if resume:
        run_folder = RunFolder.open(folder, plan)
        ended = run_folder.summary()
        if ended is not None and ended.get("reason") == "done":
            return plan, Outcome("done", []), ended
        if bool(run_folder.facts().get("insecure")) != insecure:
            raise FolderError(f"{folder}: --insecure-reproducible must be as the run was begun")
    else:
        run_folder = RunFolder.create(folder, plan, kind="simulation", insecure=insecure)
    run_folder = replace(
        run_folder, durable=False, sign=signer(own_key(run_folder.path), durable=False)
    )
    keys = signing_keys(plan, world.parts)
    place = Place(plan, world.train, world.parts, folder, insecure, keys)
    ledger = own_ledger(folder, COORDINATOR) if plan.noised_centrally else None
    on_start(plan, len(run_folder.history()))
    initial: Callable[[], Arrays] = partial(initial_weights, plan)  # drawn anew: no copy is kept
    if first is not None or (plan.statistics is not None and plan.statistics.groups):
        weights = fitting(plan, _released(first), initial())()
        initial = partial(dict, weights)
    model, listener = Model(initial, evaluate), Rounds(on_round, stop)
    outcomes: list[Outcome] = []
    with ExitStack() as stack:
        if insecure:
            stack.enter_context(
                noise.insecure(f"{plan.seed}/{COORDINATOR}/{len(run_folder.history())}")
            )
        engine = _engine(place, connected)
        stack.callback(engine.close)
        grid = _grid(plan, engine, list(world.parts))
        context = Context(
            run_id=grid.run.run_id, node_id=0, node_config={}, state=RecordDict(), run_config={}
        )
        job = Job(
            plan,
            run_folder,
            grid,
            model,
            listener=listener,
            ledger=ledger,
            base=frozen_base(plan),
            records_per_person=world.records_per_person() if plan.unit == "record" else {},
            roster=place.roster,
            masks=plan.simulation.masks,
        )
        make_app(lambda _: outcomes.append(federate(job)))(grid=grid, context=context)
    (outcome,) = outcomes
    if outcome.reason == "failed" and (fault := _fault(folder)) is not None:
        outcome = replace(outcome, detail=f"{outcome.detail}: {fault}")
    if plan.private and (resume or plan.simulation.slow or outcome.reason != "done"):
        outcome = replace(outcome, epsilons=_ledger_epsilons(plan, run_folder, list(world.parts)))
    summary = summarise(plan, outcome, time.perf_counter() - began, insecure=insecure)
    summary |= {"baseline": _baseline(plan, world), "auc": _auc(plan, world, run_folder)}
    run_folder.write_summary(summary)
    if plan.statistics is not None:
        write_results(run_folder, public_columns(plan))
    return plan, outcome, summary


def _released(folder: Path | None) -> Arrays | None:
    """The model that a run has released so far; FolderError where there is none."""
    if folder is None:
        return None
    last = RunFolder.open(folder).resume()
    if last is None:
        raise FolderError(f"{folder}: has no complete round yet")
    return State.from_arrays(*last).released()


def _fault(folder: Path) -> str | None:
    """What failed at a simulated site in this run, if anything did."""
    try:
        return (folder / FAULT).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None


def _ledger_epsilons(plan: Plan, run: RunFolder, sites: Sequence[str]) -> dict[str, float]:
    """What the ledgers say that each site paid in this run, replies that never came included."""
    paid = {}
    for site in sites:
        name = COORDINATOR if plan.noised_centrally else site
        if (run.path / "ledgers" / f"{name}.jsonl").exists():
            events = own_ledger(run.path, name).events(run.id)
            paid[site] = spent(events, plan.required_delta)
    return paid


def _baseline(plan: Plan, world: World) -> dict[str, Any] | None:
    """The answer that needs no data: the most frequent held-out class, and its accuracy.

    Averaged over the sites where the metrics are.
    """
    learning, y = task_of(plan), world.test.y.numpy()
    classes = learning.classes
    if learning.kind != "classification" or not classes or not len(y):
        return None
    groups = _groups(plan, world)
    answer = int(np.bincount(y, minlength=len(classes)).argmax())
    shares = [float((y[group] == answer).mean()) for group in groups]
    accuracy = float(np.mean(shares))
    return {"class": classes[answer], "classes": len(classes), "accuracy": accuracy}


def _groups(plan: Plan, world: World) -> list[NDArray[Any]]:
    """The held-out rows that a metric is of: each site's where a split is natural, else all."""
    if plan.split != "natural" or world.test.site is None:
        return [np.arange(len(world.test))]
    owners = np.asarray(world.test.site)
    return [np.flatnonzero(owners == name) for name in sorted(set(world.test.site))]


def _auc(plan: Plan, world: World, run: RunFolder) -> float | None:
    """The area under the ROC curve of the last model on the held-out rows, of two classes alone.

    Averaged over the sites where the metrics are, those left out that hold out one class.
    """
    learning, y, last = task_of(plan), world.test.y.numpy(), run.resume()
    if learning.kind != "classification" or len(learning.classes) != 2 or last is None:
        return None
    groups = [one for one in _groups(plan, world) if len(set(y[one].tolist())) == 2]
    if not groups:
        return None
    outputs = outputs_on(plan, world.test)(State.from_arrays(*last).released())
    likely = learning.decode(outputs)[:, 1].numpy()
    if not np.isfinite(likely).all():
        return None
    return float(np.mean([auroc(likely[one], y[one] == 1) for one in groups]))


def _engine(place: Place, connected: bool) -> Engine:
    """What runs the clients, by the plan's `[simulation] engine`."""
    options = place.plan.simulation
    if options.engine == "processes":
        return Processes(place, options.workers)
    if options.engine == "ray":
        from simulations.engines.ray import RayActors

        return RayActors(place, options.workers, connected=connected)
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
    if plan.statistics is not None:
        return lambda weights: {}
    pooled = evaluate_on(plan, world.test)
    if plan.split != "natural" or world.test.site is None:
        return pooled
    owners = np.asarray(world.test.site)
    parts = [
        evaluate_on(plan, world.test.take(np.flatnonzero(owners == name)))
        for name in sorted(set(world.test.site))
    ]

    def evaluate(weights: Any) -> Mapping[str, float]:
        results: Sequence[Mapping[str, float]] = [part(weights) for part in parts]
        mean = {k: float(np.mean([one[k] for one in results if k in one])) for k in results[0]}
        return mean | {f"pooled_{k}": v for k, v in pooled(weights).items() if k == "accuracy"}

    return evaluate
