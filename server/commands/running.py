"""`serve`, `run`, `doctor`: the coordinator at work."""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Final

import typer

from privacy.audit_trail import record
from privacy.commands.exit_codes import started
from privacy.contract.forecast import check_numbers
from privacy.contract.plan import Plan, PlanError
from privacy.contract.plan_file import load_plan
from privacy.contract.rules.table import warnings
from server.commands.options import (
    HERE,
    AskEvery,
    Dir,
    Json,
    Listen,
    Metrics,
    MetricsFile,
    MinSites,
    PublicData,
    RunName,
    SetOption,
)
from server.commands.tasks import TaskPackage, add_package
from server.commands.view import View
from server.registry.hosts import split_host
from server.registry.relays import check_not_relay
from server.registry.roster import with_roster
from server.registry.sites import Home, MembersError

if TYPE_CHECKING:
    from server.fleet.grid import LinkGrid
    from server.model_process import Child
    from server.rounds.site_grid import SiteGrid

EXIT: Final = {"done": 0, "stopped": 0, "paused": 0, "failed": 1, "budget": 3}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("serve")(serve)
    app.command("run")(run)
    app.command("doctor")(doctor)


def serve(
    listen: Listen,
    directory: Dir = HERE,
    ask_every: AskEvery = 15.0,
    metrics: Metrics = None,
    metrics_file: MetricsFile = None,
    as_json: Json = False,
) -> None:
    """Stay open for the sites and play the queue's runs, one after another, until stopped."""
    home = check_not_relay(Home(directory).check())
    where = split_host(listen)
    check_certificate(home)
    view = View(as_json=as_json)
    with link(home, where, view) as (grid, stop):
        from privacy.metrics import exported
        from server.service.coordinator_metrics import CoordinatorMetrics
        from server.service.queue import Queue
        from server.service.service import Service
        from server.service.status import StatusBoard

        queue, address = Queue(home.folder), "{}:{}".format(*grid.address)
        record(home.folder, "serve", address)
        board = StatusBoard(home.folder, listen=address, presence=grid.presence)
        coordinator_metrics = CoordinatorMetrics(home, queue, board.snapshot, view.log)
        with exported(coordinator_metrics, where=metrics, file=metrics_file) as page, board:
            view.log("listening", where=address, **({"metrics": page} if page else {}))
            service = Service(home, grid, queue, board, view.log, stop.event, ask_every)
            service.on_round = coordinator_metrics.on_round
            with started(service.asked.is_set):
                service.serve()
            going = next((one.name for one in queue.runs() if one.state == "running"), None)
            board.stop(stop.signal, going)
            view.log("stopped", by=stop.signal, **({"run": going} if going else {}))


def run(
    listen: Listen,
    plan: Annotated[
        str | None,
        typer.Argument(help="A shipped plan's name, or the path of a TOML file; none to resume."),
    ] = None,
    directory: Dir = HERE,
    set_: SetOption = None,
    name: RunName = None,
    min_sites: MinSites = None,
    round_timeout: Annotated[
        float | None, typer.Option(min=0.1, help="Seconds after which a round goes on without.")
    ] = None,
    data: PublicData = None,
    task: TaskPackage = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run --name.")] = False,
    ask_every: AskEvery = 15.0,
    as_json: Json = False,
) -> None:
    """Play one run in the foreground; exit 0 done, 1 failed, 3 budgets spent."""
    home = check_not_relay(Home(directory).check())
    where = split_host(listen)
    if resume and name is None:
        raise MembersError("--resume needs --name NAME beside it")
    if plan is None and not resume:
        raise MembersError("a plan must be named, unless --resume --name NAME takes the run's own")
    if data is not None and not data.exists():
        raise MembersError(f"--data must be a file or folder of public rows, got {data}")
    if task is not None:
        add_package(home, task)
    draft = planned(home, plan, list(set_ or []), min_sites, name if resume else None)
    if round_timeout is not None:
        draft = replace(draft, operation=replace(draft.operation, round_timeout=round_timeout))
    label = labelled(name, draft)
    check_certificate(home)
    from server.model_process import Child

    view = View(as_json=as_json)
    with Child(draft, data, home.tasks) as child:
        chosen = draft if resume else with_roster(resolved(draft, child), home.members())
        with link(home, where, view) as (grid, stop):
            listening = "{}:{}".format(*grid.address)
            record(home.folder, "run", label, fingerprint=chosen.digest)
            state = play(
                grid, listening, home, chosen, label, view, child, resume, stop, interval=ask_every
            )
        if state == "running":
            again = f"--resume --name {label}"
            view.log("stopped", by=stop.signal, run=label, next=f"tacit-server run {again}")
            raise typer.Exit(stop.code)
        raise typer.Exit(EXIT[state])


class Stop:
    """Set by SIGTERM or SIGINT; `signal` is its name, `code` the exit code that it stands for."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.signal, self.code = "", 0

    def __call__(self, number: int, frame: object = None) -> None:
        self.signal, self.code = signal.Signals(number).name, 128 + number
        self.event.set()


@contextmanager
def link(home: Home, where: tuple[str, int], view: View) -> Iterator[tuple["LinkGrid", Stop]]:
    """The folder is held, the port is open, and signals end the work in an orderly way."""
    from privacy.files import remove_stale
    from server.fleet.grid import serve as open_port
    from server.service.status import exclusive

    stop = Stop()
    remove_stale(home.folder, home.runs)
    with exclusive(home.folder), open_port(home.folder, where, log=view.log) as grid:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        yield grid, stop


def labelled(name: str | None, plan: Plan | None) -> str:
    """The run's name: the one given, or the task and the time; it becomes a folder."""
    task = "run" if plan is None else plan.task
    label = name if name is not None else f"{task}-{time.strftime('%Y%m%d-%H%M%S')}"
    if not label or label.startswith(".") or "/" in label or not label.isprintable():
        raise MembersError(f"--name must be a plain file name, got {label!r:.80}")
    return label


def planned(
    home: Home, source: str | None, overrides: list[str], min_sites: int | None, resumed: str | None
) -> Plan:
    """The plan of a new run, or of the run `resumed`, whose folder holds it."""
    if resumed is None:
        return requested(source or "", overrides, min_sites)
    from server.rounds.run_folder import resumed_plan

    least = [] if min_sites is None else [f"operation.min_sites={min_sites}"]
    return resumed_plan(home.runs / labelled(resumed, None), source, [*overrides, *least])


def requested(source: str, overrides: list[str], min_sites: int | None) -> Plan:
    """The plan with `--set` and `--min-sites`; prints what it says and does not do."""
    plan = load_plan(source, overrides)
    if min_sites is not None:
        if min_sites < 1:
            raise PlanError(f"--min-sites must be at least 1, got {min_sites}")
        sites = plan.sites if plan.sites is None else max(plan.sites, min_sites)
        if plan.cohort is not None and min_sites > plan.cohort:
            raise PlanError(f"--min-sites must be at most cohort = {plan.cohort}, got {min_sites}")
        operation = replace(plan.operation, min_sites=min_sites)
        plan = replace(plan, operation=operation, sites=sites)
    check_numbers(plan)
    for text in warnings(plan):
        print(f"tacit-server: warning: {text}", file=sys.stderr)
    return plan


def resolved(plan: Plan, child: "Child") -> Plan:
    """The plan with a number for "actual" rows: an embedded task's train rows a site."""
    if plan.nominal_units != "actual":
        return plan
    key, total = plan.units_key, child.rows() if plan.unit != "subject" else None
    if total is None:
        raise PlanError(
            f'{key} must be a public number of {key} a site, got "actual", which only a '
            f"simulation or an embedded task can count (--set {key}=N)"
        )
    counted = plan.with_units(total // plan.operation.min_sites)
    check_numbers(counted)
    return counted


def play(
    grid: "SiteGrid",
    listen: str,
    home: Home,
    plan: Plan,
    label: str,
    view: View,
    child: "Child",
    resume: bool,
    stop: Stop,
    *,
    interval: float = 15.0,
    answer_seconds: float = 20.0,
    hand_out: float = 30.0,
) -> str:
    """Play one run with the sites of `grid`; the state that it is left in ("running": stopped)."""
    from server.rounds.run_folder import RunFolder
    from server.service.queue import Queue
    from server.service.service import Service
    from server.service.status import StatusBoard

    queue = Queue(home.folder)
    one = queue.take(label, plan, exists=(home.runs / label).exists(), resume=resume)
    presence = getattr(grid, "presence", dict)
    with StatusBoard(home.folder, listen=listen, presence=presence) as board:
        view.log("listening", where=listen, run=label, plan=plan.digest[:16])
        service = Service(
            home,
            grid,
            queue,
            board,
            view.log,
            stop.event,
            interval,
            answer_seconds,
            hand_out,
            on_line=view.on_round,
            alone=True,
        )
        with started(service.asked.is_set):
            state = service.play(one, child=child)
            board.stop(stop.signal or state, label if state == "running" else None)
            folder = home.runs / label
            if state != "running" and (summary := RunFolder.open(folder).summary()) is not None:
                view.end(summary, folder)
    return state


def check_certificate(home: Home) -> None:
    import datetime

    from privacy.identity.certificates import Certificate

    for path in (home.ca, home.certificate):
        certificate = Certificate.read(path.read_bytes())
        age = certificate.age(datetime.datetime.now(datetime.UTC))
        if age == "expired":
            raise MembersError(
                f"{path}: expired on {certificate.ends:%Y-%m-%d} (tacit-server renew)"
            )
        if age == "soon":
            print(f"tacit-server: {path} expires on {certificate.ends:%Y-%m-%d}", file=sys.stderr)


def doctor(
    directory: Dir = HERE,
    listen: Annotated[str, typer.Option(metavar="HOST:PORT")] = "",
    as_json: Json = False,
) -> None:
    """Check everything that `serve` needs, each with its next step; exit 1 on a fault."""
    from privacy.commands.checks import show
    from server.doctor import examine

    show(examine(directory, listen), as_json=as_json)
