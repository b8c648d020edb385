"""`run`, `status`, `doctor`: the coordinator at work."""

import contextlib
import json
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from privacy.contract.plan import Plan, PlanError
from privacy.contract.plan_file import load_plan
from privacy.event_log import EventLog
from privacy.files import remove_stale
from server.registry.sites import Home, MembersError, split_host

if TYPE_CHECKING:
    from server.fleet.grid import LinkGrid
    from server.flower.grid import RegisteredGrid
    from server.model_process import Child
    from server.rounds.loop import Outcome
    from server.rounds.run_folder import RunFolder
    from server.rounds.site_grid import SiteGrid

EXIT: Final = {"done": 0, "stopped": 0, "failed": 1, "budget": 3}
Dir = Annotated[Path, typer.Option("--dir", help="The coordinator's folder.")]
Json = Annotated[bool, typer.Option("--json", help="JSON and nothing else on stdout.")]
HERE = Path()


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("run")(run)
    app.command("status")(status)
    app.command("doctor")(doctor)


def run(
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="The one open port.")],
    plan: Annotated[
        str | None,
        typer.Argument(help="A shipped plan's name, or the path of a TOML file; none to resume."),
    ] = None,
    directory: Dir = HERE,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the plan (repeatable)."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The run's name.")] = None,
    min_sites: Annotated[int | None, typer.Option(help="Sites that a round needs.")] = None,
    round_timeout: Annotated[
        float | None, typer.Option(min=0.1, help="Seconds after which a round goes on without.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="PUBLIC test rows, for metrics.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run --name.")] = False,
    as_json: Json = False,
) -> None:
    """Wait for the sites, train, checkpoint; exit 0 done, 1 failed, 3 budgets spent."""
    home = Home(directory).check()
    where = split_host(listen)
    if resume and name is None:
        raise MembersError("--resume needs --name NAME beside it")
    if plan is None and not resume:
        raise MembersError("a plan must be named, unless --resume --name NAME takes the run's own")
    if data is not None and not data.exists():
        raise MembersError(f"--data {data}: expected a file or folder of public rows, found none")
    asked = planned(home, plan, list(set_ or []), min_sites, name if resume else None)
    label = labelled(name, asked)
    _check_certificate(home)
    from server.model_process import Child

    with Child(asked, data) as child:
        chosen = asked if resume else resolved(asked, child)
        raise typer.Exit(_serve(home, where, chosen, label, round_timeout, child, resume, as_json))


def labelled(name: str | None, plan: Plan | None) -> str:
    """The run's name: the one given, or the task and the time; it becomes a folder."""
    task = "run" if plan is None else plan.task
    label = name if name is not None else f"{task}-{time.strftime('%Y%m%d-%H%M%S')}"
    if not label or label.startswith(".") or "/" in label or not label.isprintable():
        raise MembersError(f"--name: expected a plain file name, got {label!r:.80}")
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
    """The plan with `--set` and `--min-sites`."""
    plan = load_plan(source, overrides)
    if min_sites is not None:
        if min_sites < 1:
            raise PlanError(f"--min-sites must be at least 1, got {min_sites}")
        sites = plan.sites if plan.sites is None else max(plan.sites, min_sites)
        if plan.cohort is not None and min_sites > plan.cohort:
            raise PlanError(f"--min-sites must be at most cohort = {plan.cohort}, got {min_sites}")
        operation = replace(plan.operation, min_sites=min_sites)
        plan = replace(plan, operation=operation, sites=sites)
    return plan


def resolved(plan: Plan, child: "Child") -> Plan:
    """The plan with a number for "actual" rows: an embedded task's train rows a site."""
    if plan.rows != "actual":
        return plan
    total = child.rows()
    if total is None:
        raise PlanError(
            'rows must be a public number of rows a site, got "actual", which only a '
            "simulation or an embedded task can count (--set rows=N)"
        )
    return replace(plan, rows=total // plan.operation.min_sites)


def _serve(
    home: Home,
    where: tuple[str, int],
    plan: Plan,
    label: str,
    timeout: float | None,
    child: "Child",
    resume: bool,
    as_json: bool,
) -> int:
    from server.fleet.grid import serve

    remove_stale(home.folder, home.runs)
    view = View(home, as_json=as_json)
    with serve(home.folder, where, log=view.log) as grid:
        listen = "{}:{}".format(*grid.address)
        return EXIT[play(grid, listen, home, plan, label, view, timeout, child, resume).reason]


def play(
    grid: "LinkGrid | RegisteredGrid",
    listen: str,
    home: Home,
    plan: Plan,
    label: str,
    view: "View",
    timeout: float | None,
    child: "Child",
    resume: bool,
    *,
    hand_out: float = 30.0,
) -> "Outcome":
    """Make or open the run's folder and play the plan with the sites of `grid`, for all to see."""
    from privacy.files import write_atomic
    from privacy.identity.keys import sign, signing_public
    from server.app import ATTEMPTS, coordinate
    from server.registry.signing import PUBLIC, signer
    from server.rounds.run_folder import RunFolder

    path = home.runs / label
    home.runs.mkdir(mode=0o700, exist_ok=True)
    folder = (
        RunFolder.open(path, plan) if resume else RunFolder.create(path, plan, kind="federation")
    )
    write_atomic(path / PUBLIC, signing_public(home.signing_key.read_bytes()).encode() + b"\n")
    view.begin(folder, plan, listen)
    wait = timeout if timeout is not None else plan.operation.round_timeout
    outcome, summary = coordinate(
        grid,
        plan,
        folder,
        home=home.folder,
        sign=lambda payload: sign(home.signing_key, payload),
        sign_model=signer(home.signing_key),
        child=child,
        listener=view,
        attempts=replace(ATTEMPTS, round_timeout=wait, hand_out=hand_out),
    )
    view.end(summary, path)
    return outcome


class View:
    """What the operator sees, and `status.json` for who asks from elsewhere."""

    def __init__(self, home: Home, *, as_json: bool) -> None:
        self._json, self._file = as_json, home.folder / "status.json"
        self._now: dict[str, Any] = {}
        self._least = 1
        self.log = EventLog(as_json=as_json, stream=sys.stderr)

    def begin(self, folder: "RunFolder", plan: Plan, listen: str) -> None:
        self._least = plan.operation.min_sites
        self._tell(run=folder.path.name, listen=listen, planned=plan.rounds, round=0)
        self.log("listening", where=listen, run=folder.path.name, plan=plan.digest[:16])

    def ready(
        self, grid: "SiteGrid", number: int, declined: Mapping[str, Any]
    ) -> Collection[str] | None:
        """Wait until enough sites are connected; logs who is missing every 10 s."""
        from server.rounds.messages import FINAL_REFUSALS

        logged = 0.0
        while len(connected := sorted(grid.names().values())) < self._least:
            if time.monotonic() > logged + 10:
                logged = time.monotonic()
                missing = ",".join(connected) or "nobody"
                self.log("run_waiting", sites=missing, needed=self._least)
                self._tell(connected=connected)
            grid.wait(0.2)
            time.sleep(0.05)
        self._tell(connected=connected)
        refused = {site for site, answer in declined.items() if answer.reason in FINAL_REFUSALS}
        return set(connected) - refused

    def waiting(self) -> None:
        """Nothing ends a wait for replies."""

    def on_answer(self, number: int, answer: Any) -> None:
        if answer.status != "trained":
            self.log(
                "site_answer", round=number, site=answer.site, answer=answer.reason or answer.status
            )

    def on_round(self, line: Any) -> None:
        self._tell(round=line["round"], epsilon=line["epsilon"])
        if self._json:
            print(json.dumps(line), flush=True)
            return
        epsilons = " ".join(
            f"{site}={'-' if said['epsilon'] is None else format(said['epsilon'], '.3f')}"
            for site, said in line["sites"].items()
        )
        metrics = " ".join(f"{name}={value:.4f}" for name, value in line["metrics"].items())
        print(f"round {line['round']}  {metrics}  epsilon {epsilons}", flush=True)

    def end(self, summary: dict[str, Any], path: Path) -> None:
        self._tell(reason=summary["reason"])
        if self._json:
            print(json.dumps({**summary, "run": str(path)}), flush=True)
            return
        detail = f": {summary['detail']}" if summary["detail"] else ""
        print(f"{summary['reason']}{detail} after {summary['rounds']} rounds; kept in {path}")

    def _tell(self, **facts: Any) -> None:
        from privacy.files import FileError, write_atomic

        self._now |= facts | {"time": time.time()}
        with contextlib.suppress(FileError):  # nor does this: a full disk stops checkpoints
            write_atomic(self._file, json.dumps(self._now).encode() + b"\n")


def _check_certificate(home: Home) -> None:
    import datetime

    from privacy.identity.certificates import Certificate

    for path in (home.ca, home.certificate):
        found = Certificate.read(path.read_bytes())
        age = found.age(datetime.datetime.now(datetime.UTC))
        if age == "expired":
            raise MembersError(f"{path}: expired on {found.ends:%Y-%m-%d} (tacit-server renew)")
        if age == "soon":
            print(f"tacit-server: {path} expires on {found.ends:%Y-%m-%d}", file=sys.stderr)


def status(directory: Dir = HERE, as_json: Json = False) -> None:
    """The sites, the runs, and what the coordinator does now."""
    from server.commands.membership import facts

    home = Home(directory).check()
    now = _read(home.folder / "status.json")
    runs = [
        {"run": path.name, **{key: summary.get(key) for key in ("reason", "rounds", "epsilon")}}
        for path in sorted(home.runs.glob("*"))
        if (summary := _read(path / "summary.json")) or path.is_dir()
    ]
    sites = [facts(one) for one in home.members().sites.values()]
    found = {"hosts": home.hosts(), "now": now, "sites": sites, "runs": runs}
    if as_json:
        typer.echo(json.dumps(found))
        return
    typer.echo(f"coordinator for {', '.join(home.hosts())}")
    for one in sites:
        here = "connected" if one["site"] in now.get("connected", []) else ""
        typer.echo(f"  {one['site']:<20} {one['state']:<8} {here}")
    for each in runs:
        typer.echo(f"  run {each['run']}: {each['reason'] or 'open'}, {each['rounds']} rounds")


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def doctor(
    directory: Dir = HERE,
    listen: Annotated[str, typer.Option(metavar="HOST:PORT")] = "",
    as_json: Json = False,
) -> None:
    """Check everything that `run` needs, each with its next step; exit 1 on a fault."""
    from server.doctor import examine

    found = examine(directory, listen)
    if as_json:
        typer.echo(json.dumps({"checks": found}))
    else:
        for one in found:
            typer.echo(f"{one['state']:<5} {one['what']}: {one['said']}")
            if one["then"]:
                typer.echo(f"      -> {one['then']}")
    raise typer.Exit(int(any(one["state"] == "FAULT" for one in found)))
