"""`run` and `doctor`: the resident client, and what keeps it from running."""

import json
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.commands.options import (
    HERE,
    Dir,
    Expect,
    Json,
    Metrics,
    MetricsFile,
    PolicyFile,
    PopulationName,
)
from privacy.commands.exit_codes import started
from privacy.event_log import EventLog
from privacy.runtime import loading

if TYPE_CHECKING:
    from client.agent.credentials import Enrolled
    from client.agent.residents import Residents
    from client.agent.route import Route

Server = Annotated[
    str | None, typer.Option("--server", metavar="HOST:PORT", help="Else the bundle's.")
]
ProxyOption = Annotated[
    str,
    typer.Option(
        "--proxy",
        metavar="URL|env|none",
        help="HTTP proxy: http://[USER:PASSWORD@]HOST:PORT; env reads HTTPS_PROXY and NO_PROXY.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("run")(run)
    app.command("doctor")(doctor)


def run(
    data: Annotated[
        str, typer.Option(metavar="PATH|builtin:K/N", help="This site's training rows.")
    ] = "",
    directory: Dir = HERE,
    server: Server = None,
    proxy: ProxyOption = "env",
    policy: PolicyFile = None,
    population: PopulationName = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Made-up rows, no network: show what would leave.")
    ] = False,
    plan: Annotated[str | None, typer.Option(help="With --dry-run: a plan's name or file.")] = None,
    join: Annotated[
        Path | None, typer.Option("--join", metavar="BUNDLE", help="First join with this bundle.")
    ] = None,
    expect: Expect = None,
    metrics: Metrics = None,
    metrics_file: MetricsFile = None,
    as_json: Json = False,
) -> None:
    """Stay connected and take part in what the policy allows, until stopped.

    Without --data every population is served whose rows' place is known.
    """
    if dry_run:
        from client.agent.dry_run import rehearse, show

        rehearsal = rehearse(directory, plan, policy)
        typer.echo(json.dumps(rehearsal) if as_json else show(rehearsal))
        return
    with loading():
        from client.agent import process
        from client.agent.residents import residents
        from client.data.site_rows import Source

    from client.agent.credentials import Enrolled
    from client.agent.route import route
    from client.commands.enrolment import take_in

    if join is not None:
        take_in(directory, join, expect)
    from client.site_metrics import CountedEvents, SiteMetrics
    from privacy.metrics import exported

    source, log = Source.parse(data) if data else None, CountedEvents(as_json=as_json)
    site = Enrolled(directory).joined()
    fault = threading.Event()
    with process.alone(directory):
        held = residents(
            site,
            source,
            log,
            policy=policy,
            population=population,
            where=device,
            on_fault=fault.set,
        )
        for one in held.sites:
            if one.ledger is not None:
                facts = {"population": one.ledger.population, "spent_entries": one.ledger.head.n}
                log("starting", site=site.name, device=str(one.device), **facts)
        way = route(site.hosts, server, proxy)
        site_metrics = SiteMetrics(site, lambda: held.sites, log)
        with exported(site_metrics, where=metrics, file=metrics_file) as page:
            if page is not None:
                log("metrics_shown", where=page)
            with started():
                code = _stay(site, way, held, log, fault)
        raise typer.Exit(code)


def _stay(
    site: "Enrolled", way: "Route", held: "Residents", log: "EventLog", fault: threading.Event
) -> int:
    """Serve in a thread of its own until a signal, a `leave`, a refusal or a fault ends it."""
    with loading():
        from client.agent.connection import Agent
        from client.app import make_app

    app = make_app(lambda context, content: held.site_for(content))
    agent = Agent(app, site, way, log=log, stop=threading.Event(), limit=held.limit)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: agent.stop.set())
    with agent.in_thread():
        while not agent.stop.wait(1.0):
            if not site.certificate.is_file():
                log("folder_left")
                agent.stop.set()
            if fault.is_set():
                agent.stop.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)  # a second signal does not wait for a round's end
    if agent.refused:
        log(
            "revoked" if agent.refused == "revoked" else "refused",
            why=agent.refused,
            next="tacit-client doctor",
        )
    log("stopped")
    return int(bool(agent.refused) or fault.is_set())


def doctor(
    directory: Dir = HERE,
    server: Server = None,
    proxy: ProxyOption = "env",
    data: Annotated[str, typer.Option(help="As for run.")] = "",
    policy: PolicyFile = None,
    as_json: Json = False,
) -> None:
    """Check everything that `run` needs, one by one, each with the next step; exit 1 on a fault."""
    from client.doctor.doctor import examine
    from privacy.commands.checks import show as show_checks

    show_checks(examine(directory, server, data, policy, proxy), as_json=as_json)
