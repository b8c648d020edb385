"""`backup`, `restore`, `audit-log`: a site's folder as a whole, and who changed what in it."""

from pathlib import Path
from typing import Annotated

import typer

from client.commands.options import HERE, Dir, Json
from privacy.audit_trail import record

KIND = "site"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("backup")(backup)
    app.command("restore")(restore)
    app.command("audit-log")(audit_log)


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The archive to write.")],
    directory: Dir = HERE,
) -> None:
    """Write this site's folder (keys, policy, ledgers) into one private archive with a manifest."""
    from client.agent import populations
    from client.agent.credentials import Enrolled
    from privacy.archive import backup as pack
    from privacy.archive import check_target

    name = Enrolled(directory).name
    check_target(directory, file)
    record(directory, "backup", str(file))
    made = pack(directory, file, kind=KIND, without=(".running", populations.CACHE))
    typer.echo(f"{file}: {name}, {len(made['files'])} files; it holds private keys")
    for one in populations.known(directory):
        if not Path(one.ledger).is_relative_to(directory.absolute()):
            typer.echo(f"not in it: {one.ledger}, the ledger of {one.name}: back it up as well")


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `backup` wrote.")],
    directory: Dir = HERE,
) -> None:
    """Unpack a whole backup into an empty folder."""
    from privacy.archive import restore as unpack

    made = unpack(file, directory, kind=KIND)
    record(directory, "restore", str(file))
    typer.echo(f"{directory}: {len(made['files'])} files restored")
    typer.echo("a ledger that was spent from since then is declined: tacit-client ledger recover")


def audit_log(directory: Dir = HERE, as_json: Json = False) -> None:
    """Who did what at this site, in order; a changed or removed line is found (exit 4)."""
    from privacy.commands.audit_log import show

    show(directory, as_json=as_json)
