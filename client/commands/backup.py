"""`backup`, `restore`, `audit-log`: a site's folder as a whole, and who changed what in it."""

from pathlib import Path
from typing import Annotated

import typer

from client.commands.options import HERE, Dir, Json
from privacy.audit_trail import record
from privacy.commands.options import Ask, PassphraseFile

KIND = "site"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("backup")(backup)
    app.command("restore")(restore)
    app.command("audit-log")(audit_log)


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The archive to write.")],
    directory: Dir = HERE,
    ask: Ask = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Write this site's folder (keys, policy, ledgers) into one private archive with a manifest."""
    from client.agent import populations
    from client.agent.credentials import Enrolled
    from privacy.commands.backups import packed

    name = Enrolled(directory).name
    content = packed(
        directory,
        file,
        kind=KIND,
        without=(".running", populations.CACHE),
        ask=ask,
        passphrase_file=passphrase_file,
        unencrypted="it holds private keys",
    )
    typer.echo(f"{file}: {name}, {content}")
    for one in populations.known(directory):
        if not Path(one.ledger).is_relative_to(directory.absolute()):
            typer.echo(f"not in it: {one.ledger}, the ledger of {one.name}: back it up as well")


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `backup` wrote.")],
    directory: Dir = HERE,
    ask: Ask = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Unpack a whole backup into an empty folder."""
    from privacy.commands.backups import unpacked

    files = unpacked(file, directory, kind=KIND, ask=ask, passphrase_file=passphrase_file)
    record(directory, "restore", str(file))
    typer.echo(f"{directory}: {files} files restored")
    typer.echo("a ledger that was spent from since then is declined: tacit-client ledger recover")


def audit_log(directory: Dir = HERE, as_json: Json = False) -> None:
    """Who did what at this site, in order; a changed or removed line is found (exit 4)."""
    from privacy.commands.audit_log import show

    show(directory, as_json=as_json)
