"""`report` and `verify`: file what was spent on whom, and check what was filed."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from privacy.commands.options import Json
from privacy.report.sources import ReportError
from privacy.runtime import loading

if TYPE_CHECKING:  # with jinja2 and cryptography, only where a report is made or checked
    from privacy.report.bundle.verify import Verification
    from privacy.report.report import Report


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(report)
    app.command()(verify)


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(help="Run folders, or a site's folder.", metavar="RUN_OR_SITE_DIR..."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to; else report/ in the first folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compute what was spent on whom and file it; exit 4 if it does not fit together."""
    with loading():
        from privacy.report.bundle.write import file_report

    document, where, names = file_report(folders, out)
    if as_json:
        typer.echo(json.dumps(_facts(document, where), allow_nan=False))
    else:
        _show(document, where, names)
    if not document.sound:
        raise typer.Exit(4)


def verify(
    folder: Annotated[Path, typer.Argument(help="A report's folder.", metavar="REPORT_DIR")],
    ledger: Annotated[
        list[str] | None,
        typer.Option("--ledger", help="The ledger itself, NAME=FILE or FILE (repeatable)."),
    ] = None,
    ca: Annotated[
        Path | None, typer.Option("--ca", help="The authority's certificate (PEM) to be held to.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check signature, digests, chains, and compute every figure again; exit 4 if any differs."""
    with loading():
        from privacy.report.bundle.verify import name_ledgers
        from privacy.report.bundle.verify import verify as check

    if not folder.is_dir():
        raise ReportError(f"{folder} must be a report's folder")
    try:
        authority = ca.read_bytes() if ca is not None else None
    except OSError as error:
        raise ReportError(f"--ca must be a certificate, got {ca} ({error.strerror})") from None
    verification = check(folder, name_ledgers(folder, ledger or []), authority)
    if as_json:
        facts = {
            "sound": verification.sound,
            "origin": verification.origin,
            "figures": verification.figures,
            "differences": [one.to_dict() for one in verification.differences],
        }
        typer.echo(json.dumps(facts))
    else:
        _tell(verification)
    if not verification.sound:
        raise typer.Exit(4)


def _facts(document: "Report", where: Path) -> dict[str, Any]:
    plain = document.content["plain"]
    return {
        "sound": document.sound,
        "report": str(where),
        "view": document.content["view"],
        "epsilon": plain["epsilon"],
        "delta": plain["delta"],
        "attacker_at_most": plain["at_most"],
        "problems": [one.to_dict() for one in document.problems],
    }


def _show(document: "Report", where: Path, names: dict[str, str]) -> None:
    from privacy.report.html import figure, percent

    console = Console(soft_wrap=True, highlight=False)
    plain = document.content["plain"]
    for problem in document.problems:
        console.print(f"[bold red]not sound[/] {escape(problem.where)}: {escape(problem.message)}")
    for name in plain["without_any_guarantee"]:
        console.print(f"[bold red]no privacy[/] {escape(name)} was trained without noise")
    for name in plain["open_to_the_coordinator"]:
        console.print(f"[bold yellow]open to the coordinator[/] {escape(name)}")
    if plain["at_most"] is not None:
        console.print(
            f"epsilon {figure(plain['epsilon'])} at delta {figure(plain['delta'])}: an attacker "
            f"who knows all else goes from 50 % to at most {percent(plain['at_most'])} %"
        )
    for site, name in sorted(names.items(), key=lambda pair: pair[1]):
        console.print(f"{escape(name)} is {escape(site)} (this is not in the report)")
    console.print(f"filed in {escape(str(where))}")


def _tell(verification: "Verification") -> None:
    console = Console(soft_wrap=True, highlight=False)
    for one in verification.differences:
        console.print(f"[bold red]differs[/] {escape(one.where)}: {escape(one.message)}")
    console.print(escape(verification.origin))
    if verification.sound:
        console.print(f"sound: {verification.figures} figures computed again, all agree")
