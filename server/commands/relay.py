"""`relay`: a party of another coordinator that is a coordinator to its own sites."""

import signal
from pathlib import Path
from typing import Annotated, Final

import typer

from privacy.audit_trail import record
from privacy.commands.exit_codes import started
from server.commands.options import HERE, AskEvery, Dir, Json, Listen
from server.commands.running import check_certificate, link
from server.commands.view import View
from server.registry.hosts import split_host
from server.registry.relays import upward_of
from server.registry.sites import Home, MembersError

_ANSWER_SECONDS: Final = 10.0
"""How long sites have for a proposal: less than their relay has."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("relay")(relay)


def relay(
    listen: Listen,
    directory: Dir = HERE,
    server: Annotated[
        str | None,
        typer.Option("--server", metavar="HOST:PORT", help="The coordinator's; else the bundle's."),
    ] = None,
    proxy: Annotated[
        str, typer.Option("--proxy", metavar="URL|env|none", help="As for tacit-client run.")
    ] = "env",
    ask_every: AskEvery = 15.0,
    as_json: Json = False,
) -> None:
    """Stay open for this relay's sites, and pass their sums to its coordinator, until stopped."""
    home = Home(directory).check()
    where = split_host(listen)
    check_certificate(home)
    name = checked(home)
    view = View(as_json=as_json)
    with link(home, where, view) as (grid, stop):
        from server.relay.relay import Relay
        from server.relay.upward import connected
        from server.service.status import StatusBoard

        address = "{}:{}".format(*grid.address)
        record(home.folder, "relay", address, reason=name)
        with StatusBoard(home.folder, listen=address, presence=grid.presence) as board:
            held = Relay.over(home, name, grid, board, view.log, ask_every, _ANSWER_SECONDS)
            view.log("listening", where=address, relay=name)
            facts = {"log": view.log, "server": server, "proxy": proxy}
            way = connected(upward_of(home), held.app(), **facts)  # type: ignore[arg-type]
            with way as upward, started():
                while not stop.event.wait(0.5) and not upward.stop.is_set():
                    continue
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.SIG_DFL)  # a second signal waits for no round
            board.stop(stop.signal or upward.refused, None)
        if upward.refused:
            view.log("refused", why=upward.refused, next="tacit-client doctor")
            raise typer.Exit(1)
        view.log("stopped", by=stop.signal)


def checked(home: Home) -> str:
    """The relay's name at its coordinator; MembersError where the folder is no relay's."""
    from server.relay.upward import Enrolment

    folder: Path = upward_of(home)
    if not folder.is_dir():
        raise MembersError(
            f"{folder}: no enrolment with a coordinator here (tacit-client enroll --site NAME "
            f"--dir {folder}; there: tacit-server sign --relay NAME.csr; then join)"
        )
    if nested := sorted(m.name for m in home.members().sites.values() if m.relay):
        raise MembersError(
            f"--dir {home.folder}: {nested[0]} is a relay, a relay's parties must be sites"
        )
    return Enrolment(folder).name
