"""`audit-log`, of a coordinator and of a site: who did what, in order, verified."""

import json
from pathlib import Path

import typer

from privacy.audit_trail import FILE, read
from privacy.ledger.chain import LedgerError


def show(folder: Path, *, as_json: bool) -> None:
    """Print every act of a folder, the latest last; exit 4 where the trail is not sound."""
    try:
        acts = read(folder)
    except LedgerError as error:
        if as_json:
            typer.echo(json.dumps({"sound": False, "problem": str(error)}))
        else:
            typer.echo(f"not sound: {error}", err=True)
        raise typer.Exit(4) from None
    if as_json:
        typer.echo(json.dumps({"sound": True, "acts": [act.to_dict() for act in acts]}))
        return
    for act in acts:
        reason = f"  ({act.reason})" if act.reason else ""
        line = f"{act.time[:19].replace('T', ' ')}  {act.user:<12} {act.command:<16} {act.object}"
        typer.echo(f"{line}{reason}".rstrip())
    typer.echo(f"{folder / FILE}: {len(acts)} acts, every line follows from the one before")
