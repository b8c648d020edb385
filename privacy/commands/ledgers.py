"""`tacit-privacy ledger show` and `verify`: what a ledger says, and whether it may be believed."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from privacy.accounting.epsilon import json_number, spent
from privacy.accounting.rounding import spent_text
from privacy.accounting.segments import check_delta, merge
from privacy.commands.options import Json
from privacy.ledger.entries import Entry, Verified, verify
from privacy.ledger.ledger import LedgerError
from privacy.runtime import ACCOUNTANTS, load

File = Annotated[Path, typer.Argument(metavar="LEDGER", help="The ledger's file.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Read and check a ledger.", no_args_is_help=True)
    group.command()(show)
    group.command("verify")(check)
    app.add_typer(group, name="ledger")


def check(ledger: File, as_json: Json = False) -> None:
    """Verify the chain: exit 0 where the ledger is sound, 4 with the line and field where not."""
    try:
        contents = verify(ledger)
    except LedgerError as error:
        if as_json and ledger.exists():
            facts = {"sound": False, "line": error.line, "error": str(error)}
            typer.echo(json.dumps({"ledger": str(ledger), **facts}))
        raise
    if as_json:
        facts = {"sound": True, "entries": len(contents.entries), "digest": contents.digest}
        typer.echo(json.dumps({"ledger": str(ledger), **facts}))
    else:
        typer.echo(f"sound: {len(contents.entries)} entries, ending in {contents.digest}")


def show(
    ledger: File,
    delta: Annotated[float | None, typer.Option(help="Also count epsilon at this delta.")] = None,
    as_json: Json = False,
) -> None:
    """Show what was spent, run by run, and other events of the ledger."""
    if delta is not None:
        check_delta(delta)
    contents = verify(ledger)
    if delta is not None:
        load(ACCOUNTANTS)
    epsilon = None if delta is None else spent(contents.events, delta)
    if as_json:
        typer.echo(json.dumps({"ledger": str(ledger), **_facts(contents, delta, epsilon)}))
        return
    console = Console()
    console.print(_table(contents.entries, delta), highlight=False)
    if epsilon is not None:
        console.print(
            f"epsilon {spent_text(epsilon)} at delta {delta:g} over the life of the ledger"
        )
    console.print(f"{len(contents.entries)} entries, ending in {contents.digest}", soft_wrap=True)
    for note in contents.log or ():
        details = ", ".join(f"{key} {value}" for key, value in note.details.items())
        line = f"{note.at}  {note.what} at {note.entries} entries  {details}"
        console.print(escape(line), highlight=False, soft_wrap=True)


def _facts(contents: Verified, delta: float | None, epsilon: float | None) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "entries": [
            {
                "n": entry.n,
                "run": entry.run,
                "round": entry.round,
                "plan": entry.plan,
                "event": entry.event.to_dict(),
            }
            for entry in contents.entries
        ],
        "digest": contents.digest,
        "segments": [
            {"sigma": sigma, "rate": rate, "steps": steps, "records": records}
            for sigma, rate, records, steps in merge(contents.events, None)
        ],
        "log": [
            {"what": note.what, "at": note.at, "entries": note.entries, **note.details}
            for note in contents.log or ()
        ],
    }
    return facts if delta is None else {**facts, "delta": delta, "epsilon": json_number(epsilon)}


def _table(entries: tuple[Entry, ...], delta: float | None) -> Table:
    """A line for each run and noise level, in the order in which they began."""
    groups: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in entries:
        event = entry.event
        key = (entry.run, entry.plan, event.unit, event.sigma, event.rate, event.steps)
        groups.setdefault(key, []).append(entry)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("run", "plan", "unit"):
        table.add_column(name)
    for name in ("sigma", "rate", "steps", "times", "rounds", "entries"):
        table.add_column(name, justify="right")
    if delta is not None:
        table.add_column("epsilon alone", justify="right")
    for (run, plan, unit, sigma, rate, steps), rows in groups.items():
        rounds = sorted({row.round for row in rows})
        cells = [
            Text(run if run.isprintable() else ascii(run), overflow="fold"),
            Text(ascii(plan)[1:-1][:12]),
            unit,
            f"{sigma:.4g}",
            f"{rate:.4g}",
            str(steps),
            str(sum(row.event.count for row in rows)),
            f"{rounds[0]}-{rounds[-1]}",
            f"{rows[0].n}-{rows[-1].n}",
        ]
        if delta is not None:
            cells.append(spent_text(spent([row.event for row in rows], delta)))
        table.add_row(*cells)
    return table
