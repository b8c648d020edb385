"""tacit-client audit: is this installation's training what it claims to be?"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from privacy.task_package.archive import Package

EXIT_VIOLATION = 5


def register(app: typer.Typer) -> None:
    """Add the command to the client's."""
    app.command("audit")(audit)


def audit(
    epsilon: Annotated[float, typer.Option(help="The epsilon that the canary audit claims.")] = 4.0,
    seconds: Annotated[
        float, typer.Option(help="About how long it may take: more time, more canaries.")
    ] = 90.0,
    plan: Annotated[
        str | None, typer.Option(help="Visit the settings of this plan too: a name or a file.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Audit through this package's model: its hash here, a file, a folder."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Visit the settings of an earlier audit again.", min=0)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the result here as JSON, its picture beside it.")
    ] = None,
    dir_: Annotated[
        Path | None, typer.Option("--dir", help="Leave audit.json in this site's folder.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.")
    ] = False,
) -> None:
    """Check this installation's private training and attack it with canaries; costs no budget.

    Exit 0: no violation found (which is no proof of privacy); 5: violation found.
    """
    from client.audit.audit import CLEAN, audit_installation
    from client.audit.check import Check
    from privacy.contract.plan_file import load_plan

    if not 0.05 <= epsilon <= 50:
        raise typer.BadParameter(f"--epsilon: expected 0.05 <= epsilon <= 50, got {epsilon:g}")
    if not 0 < seconds <= 86_400:
        raise typer.BadParameter(f"--seconds: expected 0 < seconds <= 86400, got {seconds:g}")
    if dir_ is not None and not dir_.is_dir():
        raise typer.BadParameter(f"--dir: expected an existing folder, got {dir_}")
    if out is not None and not out.parent.is_dir():
        raise typer.BadParameter(f"--out: expected an existing folder, got {out.parent}")
    console = Console(quiet=as_json, highlight=False, soft_wrap=True)

    def show(check: Check) -> None:
        mark = "[green]ok  [/]" if check.passed else "[bold red]FAIL[/]"
        console.print(
            f"{mark} {escape(check.name)}: {check.statistic:.4g}, p = {check.p:.2g}"
            f" [dim]({escape(check.detail)})[/]"
        )

    if task is not None:
        from client.tasks.packages.review import audit_package

        result = audit_package(_package(task, dir_), epsilon)
        for one in result["checks"]:
            show(Check(one["name"], one["statistic"] or 0.0, one["p"], one["detail"]))
    else:
        audited_plan = load_plan(plan) if plan is not None else None
        result = audit_installation(
            epsilon, seconds=seconds, seed=seed, plan=audited_plan, on_check=show
        )
    _show(console, result)
    for path in (out, dir_ / "audit.json" if dir_ is not None else None):
        if path is not None:
            keep(result, path)
    if as_json:
        typer.echo(json.dumps(result))
    if result["verdict"] != CLEAN:
        raise typer.Exit(EXIT_VIOLATION)


def _package(name: str, directory: Path | None) -> "Package":
    """The package of a path, or of a hash in this site's store."""
    from client.tasks.packages import store
    from privacy.task_package.archive import load_package

    path = Path(name)
    if path.exists():
        return load_package(path)
    here = Path() if directory is None else directory
    return store.readable(here, store.find(here, name))


def keep(audit: dict[str, Any], path: Path) -> None:
    """Write an audit as JSON, and its picture under the same name with .svg."""
    from client.audit.plot import bounds_svg

    path.write_text(json.dumps(audit, indent=2) + "\n", encoding="utf-8")
    path.with_suffix(".svg").write_text(bounds_svg(audit), encoding="utf-8")


def _show(console: Console, result: dict[str, Any]) -> None:
    console.print(f"\nclaimed: epsilon {result['claimed']:g} at delta {result['delta']:g}")
    for bound in result["bounds"]:
        console.print(
            f"proved by {escape(bound['name'])}: epsilon at least {bound['epsilon']:.2f}"
            f" (confidence {bound['confidence']:g})"
        )
    attacks = result.get("membership", {})
    for name, key in (("without privacy", "without_privacy"), ("with it", "private")):
        if (attack := attacks.get(key)) is None:
            continue
        console.print(
            f"guessing who was in, {name}: AUC {attack['auc']:.3f}, finds {attack['tpr']:.1%}"
            f" of the members at {attack['fpr']:.1%} false alarms"
        )
    colour = "green" if result["verdict"] == "no violation found" else "bold red"
    console.print(f"[{colour}]{result['verdict']}[/] in {result['seconds']:.0f} s")
    console.print(f"settings drawn by --seed {result['seed']}")
