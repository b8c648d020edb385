"""`authority show|rotate|finish`: the federation's authority is followed by another."""

import datetime
import json
from dataclasses import asdict
from typing import Annotated

import typer

from privacy.audit_trail import recorded
from privacy.identity.certificates import Certificate
from server.commands.options import HERE, Dir, Json, Reason
from server.registry.authority import finish as take_over
from server.registry.authority import rotate as announce
from server.registry.authority import rotation
from server.registry.sites import Home, spaced


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help=_group.__doc__, no_args_is_help=True)
    group.callback()(_group)
    for command in (show, rotate, finish):
        group.command(command.__name__)(command)
    app.add_typer(group, name="authority")


def _group() -> None:
    """The authority that signs all certificates, and its successor."""


def show(directory: Dir = HERE, as_json: Json = False) -> None:
    """The authority, until when it holds, and how far a rotation is."""
    home = Home(directory).check()
    authority, state = Certificate.read(home.ca.read_bytes()), rotation(home)
    if as_json:
        facts = {"authority": authority.fingerprint, "ends": authority.ends.isoformat()}
        typer.echo(json.dumps(facts | {"next": None if state is None else asdict(state)}))
        return
    typer.echo(f"authority {spaced(authority.fingerprint)}, valid to {authority.ends:%Y-%m-%d}")
    if state is not None:
        typer.echo(f"next      {spaced(state.fingerprint)}")
        typer.echo(f"  taken in by {', '.join(state.taken) or 'no site yet'}")
        if state.missing:
            typer.echo(f"  not yet by  {', '.join(state.missing)}")
        else:
            typer.echo("  every site has it: tacit-server authority finish")


def rotate(directory: Dir = HERE, reason: Reason = "") -> None:
    """Make the next authority and announce it: sites take it in over their connection."""
    Home(directory).check()
    with recorded(directory, "authority rotate", reason=reason):
        state = announce(directory, _now())
    typer.echo(f"next authority {spaced(state.fingerprint)}")
    typer.echo(
        "both are good now; sites take the next one in when they ask for their bundle (at a new"
        " connection, else once a day)"
    )
    typer.echo(
        "see how far it is: tacit-server authority show; then: tacit-server authority finish"
    )


def finish(
    directory: Dir = HERE,
    without: Annotated[
        bool,
        typer.Option(
            "--without-missing", help="Also where sites have not taken it in: they need bundles."
        ),
    ] = False,
    reason: Reason = "",
) -> None:
    """Let the next authority take over; certificates of the old one open nothing any more."""
    home = Home(directory).check()
    state = rotation(home)
    fingerprint = "" if state is None else state.fingerprint
    with recorded(directory, "authority finish", fingerprint=fingerprint, reason=reason):
        state = take_over(directory, _now(), without=without)
    typer.echo(f"authority {spaced(state.fingerprint)}")
    for site in state.missing:
        typer.echo(f"{site}: tacit-server renew {site}, and send the bundle; there: join")


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
