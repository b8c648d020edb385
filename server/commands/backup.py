"""`backup`, `restore`, `repair`, `audit-log`: a coordinator's folder as a whole."""

import datetime
from pathlib import Path
from typing import Annotated

import typer

from privacy.audit_trail import record, recorded
from privacy.commands.options import Ask, PassphraseFile
from server.commands.options import HERE, Dir, Json
from server.registry.sites import Home

KIND = "coordinator"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("backup")(backup)
    app.command("restore")(restore)
    app.command("repair")(repair)
    app.command("audit-log")(audit_log)


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The archive to write.")],
    directory: Dir = HERE,
    ask: Ask = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Write everything (keys, sites, heads, runs, queue) into one private archive."""
    from privacy.commands.backups import packed

    Home(directory).check()
    content = packed(
        directory,
        file,
        kind=KIND,
        without=(".coordinator", ".lock", "status.json"),
        ask=ask,
        passphrase_file=passphrase_file,
        unencrypted="it holds the authority's key",
    )
    typer.echo(f"{file}: {content}")


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `backup` wrote.")],
    directory: Dir = HERE,
    ask: Ask = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Unpack a whole backup into an empty folder; sites need no new bundle."""
    from privacy.commands.backups import unpacked

    files = unpacked(file, directory, kind=KIND, ask=ask, passphrase_file=passphrase_file)
    Home(directory).check()
    record(directory, "restore", str(file))
    typer.echo(f"{directory}: {files} files restored; next: tacit-server doctor")


def repair(directory: Dir = HERE) -> None:
    """Make a missing ca.pem or server.pem again from its key; nothing that is there changes."""
    from server.registry.repair import repair as make_again

    Home(directory).check()
    with recorded(directory, "repair"):
        names = make_again(directory, datetime.datetime.now(datetime.UTC))
    result = f"made {', '.join(names)} again" if names else "nothing is missing"
    typer.echo(f"{directory}: {result}")


def audit_log(directory: Dir = HERE, as_json: Json = False) -> None:
    """Who did what at this coordinator, in order; a changed or removed line is found (exit 4)."""
    from privacy.commands.audit_log import show

    Home(directory).check()
    show(directory, as_json=as_json)
