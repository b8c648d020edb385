"""`audit`: is this installation's DP-SGD what it claims to be?"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from client.auditing import Audit

VIOLATION_EXIT = 5
_MOST_EPSILON = 20.0


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(audit)


def audit(
    epsilon: Annotated[float, typer.Option(help="The claim that the canaries test.")] = 4.0,
    seconds: Annotated[float, typer.Option(help="How long it may take, about.")] = 60.0,
    out: Annotated[Path | None, typer.Option(help="Where to write the findings (JSON).")] = None,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="A site's folder: leaves audit.json there.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda:N.")] = "cpu",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.")
    ] = False,
) -> None:
    """Check conformance, plant canaries, bound epsilon from below; exit 5 on a violation."""
    if not 0.1 <= epsilon <= _MOST_EPSILON:
        raise typer.BadParameter(f"expected 0.1 <= epsilon <= {_MOST_EPSILON:g}, got {epsilon}")
    if not 5 <= seconds <= 3600:
        raise typer.BadParameter(f"expected 5 <= seconds <= 3600, got {seconds}")
    for place in (out.parent if out else None, directory):
        if place is not None and not place.is_dir():
            raise typer.BadParameter(f"expected an existing folder, got {place}")

    from client.auditing import audit as play

    console = Console(quiet=as_json)
    with console.status("auditing") as status:
        found = play(epsilon, seconds=seconds, device=device, heard=status.update)
    text = json.dumps(found.to_dict(), indent=1) + "\n"
    for path in (out, directory / "audit.json" if directory else None):
        if path is not None:
            path.write_text(text, encoding="utf-8")
            picture(found, path.with_suffix(".svg"))
    if as_json:
        typer.echo(json.dumps(found.to_dict()))
    else:
        show(found, console)
    if found.violated:
        raise typer.Exit(VIOLATION_EXIT)


def show(found: "Audit", console: Console) -> None:
    """The findings for a person."""
    checks = Table("check", "statistic", "p", "", box=None, title="conformance")
    for check in found.checks:
        mark = "[green]fine[/]" if check.passed else "[bold red]VIOLATION[/]"
        checks.add_row(check.name, f"{check.statistic:.4g}", f"{check.p:.2g}", mark)
        if not check.passed:
            checks.add_row("", check.detail, "", "")
    console.print(checks)
    table = Table(
        "lower bound", "epsilon", "claimed", "confidence", "p", box=None, title="canaries"
    )
    for bound in found.bounds:
        row = (bound.epsilon, found.claimed, bound.confidence)
        table.add_row(bound.name, *(f"{value:.3g}" for value in row), f"{bound.p:.2g}")
    console.print(table)
    attacks = Table("membership inference", "AUC", "TPR at 0.1 % FPR", box=None)
    attacks.add_row("with this privacy", f"{found.private.auc:.3f}", f"{found.private.tpr:.2%}")
    attacks.add_row("without privacy", f"{found.open.auc:.3f}", f"{found.open.tpr:.2%}")
    console.print(attacks)
    verdict = found.to_dict()["verdict"]
    console.print(
        f"{verdict}, in {found.seconds:.0f} s", style="red" if found.violated else "green"
    )
    if not found.violated:
        console.print("An audit can find a violation; it cannot prove that there is none.")


def picture(found: "Audit", path: Path) -> None:
    """Accounted epsilon against the lower bounds, as one SVG file."""
    bars = [("accounted", found.claimed)] + [
        (b.name.split(" (")[0], b.epsilon) for b in found.bounds
    ]
    most = max(value for _, value in bars) or 1.0
    rows = []
    for i, (name, value) in enumerate(bars):
        y, width = 20 + 40 * i, 300 * value / most
        colour = "#555" if i == 0 else ("#c00" if value > found.claimed else "#07c")
        rows.append(
            f'<text x="0" y="{y + 15}">{name}</text>'
            f'<rect x="110" y="{y}" width="{width:.1f}" height="22" fill="{colour}"/>'
            f'<text x="{115 + width:.1f}" y="{y + 15}">{value:.2f}</text>'
        )
    height = 30 + 40 * len(bars)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 480 {height}" '
        f'font-family="sans-serif" font-size="13" role="img">'
        f"<title>accounted epsilon and its lower bounds</title>{''.join(rows)}</svg>\n",
        encoding="utf-8",
    )
