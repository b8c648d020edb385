"""`propose`, `submit`, `runs`, `show`, `pause`, `resume`, `stop`, `log`: the queue of runs."""

import datetime
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privacy.audit_trail import recorded
from privacy.contract.plan import Plan
from server.commands.options import (
    HERE,
    Dir,
    Json,
    MinSites,
    PlanArgument,
    PublicData,
    Reason,
    Run,
    RunName,
    SetOption,
)
from server.commands.running import labelled, requested, resolved
from server.registry.relays import check_not_relay
from server.registry.roster import with_roster
from server.registry.sites import Home, MembersError

if TYPE_CHECKING:
    from server.service.queue import Queue, Submission


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("propose")(propose)
    app.command("submit")(submit)
    app.command("runs")(runs)
    app.command("show")(show)
    app.command("pause")(pause)
    app.command("resume")(resume)
    app.command("stop")(stop)
    app.command("log")(log)


def propose(
    plan: PlanArgument,
    directory: Dir = HERE,
    set_: SetOption = None,
    name: RunName = None,
    min_sites: MinSites = None,
    as_json: Json = False,
) -> None:
    """Show a plan to the sites before it runs; their answers: tacit-server show NAME."""
    home, queue = _opened(directory)
    check_not_relay(home)
    chosen = with_roster(_resolved(plan, list(set_ or []), min_sites), home.members())
    label = _free(home, queue, labelled(name, chosen))
    with recorded(directory, "propose", label, fingerprint=chosen.digest):
        added = queue.add(label, chosen, state="proposed")
    _added(home, added, as_json)


def submit(
    plan: Annotated[
        str, typer.Argument(help="A plan's name or TOML file, or the name of a proposal.")
    ],
    directory: Dir = HERE,
    set_: SetOption = None,
    name: RunName = None,
    min_sites: MinSites = None,
    data: PublicData = None,
    after: Annotated[
        str | None, typer.Option(metavar="RUN", help="Start when this run is done.")
    ] = None,
    at: Annotated[
        str | None, typer.Option(metavar="TIME", help="Not before: 2026-12-01T08:00 (local time).")
    ] = None,
    parent: Annotated[
        str | None, typer.Option("--from", metavar="RUN", help="Start from this run's model.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Queue a run: it starts by itself when it is due and enough sites can take part."""
    home, queue = _opened(directory)
    check_not_relay(home)
    when = _time(at)
    if data is not None and not data.exists():
        raise MembersError(f"--data must be a file or folder of public rows, got {data}")
    public = str(data.absolute()) if data is not None else None
    proposed = next((one for one in queue.runs() if one.name == plan), None)
    if proposed is not None and proposed.state == "proposed":
        if set_ or min_sites is not None or name is not None:
            raise MembersError(f"{plan} is a proposal: --set, --min-sites and --name must be unset")
        with recorded(directory, "submit", plan, fingerprint=proposed.plan.digest):
            queue.submit(plan, data=public, after=after, at=when, parent=parent)
        _added(home, queue.find(plan), as_json)
        return
    chosen = with_roster(_resolved(plan, list(set_ or []), min_sites), home.members())
    label = _free(home, queue, labelled(name, chosen))
    more: dict[str, Any] = {"data": public, "after": after, "at": when, "parent": parent}
    with recorded(directory, "submit", label, fingerprint=chosen.digest):
        added = queue.add(label, chosen, **more)
    _added(home, added, as_json)


def runs(directory: Dir = HERE, as_json: Json = False) -> None:
    """Every run and proposal: its state, its rounds, and what it waits for."""
    home = Home(directory).check()
    rows = described(home)
    if as_json:
        typer.echo(json.dumps({"runs": rows}))
        return
    for one in rows:
        epsilon = "" if one["epsilon"] is None else f"  epsilon {one['epsilon']:.3f}"
        detail = f"  {one['detail']}" if one["detail"] else ""
        rounds = f"{one['rounds']} of {one['planned']} rounds"
        typer.echo(f"{one['run']:<28} {one['state']:<9} {rounds:<20}{epsilon}{detail}")


def described(home: Home) -> list[dict[str, Any]]:
    """What is known of every run, those of before there was a queue first."""
    from server.service.queue import Queue

    rows = [_facts(home, one) for one in Queue(home.folder).runs()]
    known = {one["run"] for one in rows}
    return [one for one in _older(home) if one["run"] not in known] + rows


def show(run: Run, directory: Dir = HERE, as_json: Json = False) -> None:
    """One run: its state, each site's answer, and how many rounds each can pay for."""
    home, queue = _opened(directory)
    submission = queue.find(run)
    answers = queue.answers(submission.plan.digest)
    sites = []
    for site, member in sorted(home.members().sites.items()):
        answer = answers.get(site)
        facts: dict[str, Any] = {"site": site, "answer": "not asked yet", "rounds": None}
        if member.revoked:
            facts["answer"] = "revoked"
        elif answer is not None:
            facts |= {"answer": answer.reason or answer.status, "asked": answer.time}
            facts |= {"rounds": answer.rounds, "of": submission.plan.rounds - answer.round + 1}
        sites.append(facts)
    if as_json:
        plan = {
            "plan": submission.plan.digest,
            "task": submission.plan.task,
            "unit": submission.plan.unit,
        }
        typer.echo(json.dumps(_facts(home, submission) | plan | {"sites": sites}))
        return
    one = _facts(home, submission)
    typer.echo(f"{run}: {one['state']}, {one['rounds']} of {one['planned']} rounds")
    if one["detail"]:
        typer.echo(one["detail"])
    typer.echo(f"{submission.plan.task}, plan {submission.plan.digest}")
    typer.echo(f"a round needs {submission.plan.operation.min_sites} sites")
    for facts in sites:
        pays = ""
        if facts["rounds"] is not None:
            pays = f"can pay for {facts['rounds']} of {facts['of']} rounds"
        typer.echo(f"  {facts['site']:<20} {facts['answer']:<20} {pays}".rstrip())


def pause(run: Run, directory: Dir = HERE, reason: Reason = "") -> None:
    """Stop playing a run after its present round; nothing is lost."""
    _ask(directory, run, "pause", reason)


def resume(
    run: Run,
    directory: Dir = HERE,
    min_sites: MinSites = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="operation.KEY=VALUE", help="Change its [operation]."),
    ] = None,
    reason: Reason = "",
) -> None:
    """Queue a run again that was paused or stopped, or that failed: it goes on where it was."""
    from server.rounds.run_folder import with_operation

    _, queue = _opened(directory)
    submission = queue.find(run)
    changes = list(set_ or [])
    if min_sites is not None:
        changes.append(f"operation.min_sites={min_sites}")
    if changes:
        queue.operate(run, with_operation(submission.plan, changes))
    _ask(directory, run, "resume", " ".join([*changes, reason]).strip())


def stop(run: Run, directory: Dir = HERE, reason: Reason = "") -> None:
    """End a run at once, or take it from the queue; what is complete stays."""
    _ask(directory, run, "stop", reason)


def log(
    run: Run,
    directory: Dir = HERE,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the run ends.")
    ] = False,
    as_json: Json = False,
) -> None:
    """What happened in a run."""
    _, queue = _opened(directory)
    queue.find(run)
    last = 0
    while True:
        state = queue.find(run).state
        for number, when, event, facts in queue.log(run, last):
            last = number
            stamp = datetime.datetime.fromtimestamp(when, datetime.UTC)
            if as_json:
                text = json.dumps({"time": stamp.isoformat(), "event": event, **facts})
            else:
                more = " ".join(f"{key}={_shown(value)}" for key, value in facts.items())
                text = f"{stamp:%Y-%m-%d %H:%M:%S} {event} {more}".rstrip()
            typer.echo(text)
        if not follow or state in ("done", "budget", "failed", "stopped"):
            return
        time.sleep(0.5)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}:{_shown(one)}" for key, one in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _opened(directory: Path) -> "tuple[Home, Queue]":
    from server.service.queue import Queue

    home = Home(directory).check()
    return home, Queue(home.folder)


def _resolved(source: str, overrides: list[str], min_sites: int | None) -> Plan:
    """The plan with every number; only "actual" rows of an embedded task need torch."""
    from server.model_process import Child

    plan = requested(source, overrides, min_sites)
    if plan.nominal_units != "actual":
        return plan
    with Child(plan, None) as child:
        return resolved(plan, child)


def _free(home: Home, queue: "Queue", label: str) -> str:
    if (home.runs / label).exists():
        raise MembersError(f"--name {label}: a run of this name exists")
    return label


def _time(text: str | None) -> float:
    if text is None:
        return 0.0
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise MembersError(f"--at must be a time such as 2026-12-01T08:00, got {text}") from None


def _added(home: Home, added: "Submission", as_json: bool) -> None:
    from server.service.status import running

    serving = running(home.folder)
    if as_json:
        facts = _facts(home, added) | {"plan": added.plan.digest, "serving": serving}
        typer.echo(json.dumps(facts))
        return
    typer.echo(f"{added.name}: {added.state}; plan {added.plan.digest}")
    if not serving:
        typer.echo("no coordinator runs here yet: tacit-server serve --listen HOST:PORT")


def _facts(home: Home, run: "Submission") -> dict[str, Any]:
    from server.rounds.history import last_line

    last = last_line(home.runs / run.name)
    return {
        "run": run.name,
        "state": run.state,
        "request": run.request,
        "detail": run.detail,
        "rounds": last.get("round", 0),
        "planned": run.plan.rounds,
        "epsilon": last.get("epsilon"),
        "after": run.after,
        "at": run.at or None,
        "created": run.created,
    }


def _older(home: Home) -> list[dict[str, Any]]:
    """Run folders that were made before there was a queue."""
    from server.rounds.history import last_line
    from server.rounds.run_folder import FolderError, RunFolder

    rows = []
    for path in sorted(home.runs.glob("*/run.json")):
        last = last_line(path.parent)
        try:
            folder = RunFolder.open(path.parent)
            planned, summary = folder.plan().rounds, folder.summary() or {}
        except (FolderError, OSError):
            continue
        rows.append(
            {
                "run": path.parent.name,
                "state": summary.get("reason", "open"),
                "request": "",
                "detail": summary.get("detail", ""),
                "rounds": last.get("round", 0),
                "planned": planned,
                "epsilon": last.get("epsilon"),
            }
        )
    return rows


def _ask(directory: Path, run: str, request: str, reason: str) -> None:
    from server.service.status import running

    home, queue = _opened(directory)
    queue.find(run)
    with recorded(directory, request, run, reason=reason):
        submission = queue.ask(run, request)
    later = f"; {request} is asked for" if submission.request else ""
    typer.echo(f"{run}: {submission.state}{later}")
    if submission.state in ("queued", "running") and not running(home.folder):
        typer.echo("no coordinator runs here: tacit-server serve --listen HOST:PORT")
