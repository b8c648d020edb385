"""`backup`, `restore`, `audit-log`: a site's folder as a whole, and who changed what in it."""

from pathlib import Path
from typing import Annotated

import typer

from client.commands.options import HERE, Dir, Json
from privacy.audit_trail import record
from privacy.commands.options import Ask, PassphraseFile, passphrase_of

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
    from privacy.archive import backup as pack
    from privacy.archive import check_target

    name = Enrolled(directory).name
    check_target(directory, file)
    passphrase = passphrase_of(ask, passphrase_file, confirm=True)
    record(directory, "backup", str(file))
    without = (".running", populations.CACHE)
    manifest = pack(directory, file, kind=KIND, without=without, passphrase=passphrase)
    protection = "encrypted" if passphrase else "it holds private keys"
    typer.echo(f"{file}: {name}, {len(manifest['files'])} files; {protection}")
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
    from privacy.archive import restore as unpack

    passphrase = passphrase_of(ask, passphrase_file, confirm=False)
    manifest = unpack(file, directory, kind=KIND, passphrase=passphrase)
    record(directory, "restore", str(file))
    typer.echo(f"{directory}: {len(manifest['files'])} files restored")
    typer.echo("a ledger that was spent from since then is declined: tacit-client ledger recover")


def audit_log(directory: Dir = HERE, as_json: Json = False) -> None:
    """Who did what at this site, in order; a changed or removed line is found (exit 4)."""
    from privacy.commands.audit_log import show

    show(directory, as_json=as_json)
