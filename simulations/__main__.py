"""tacit-simulate: a whole federation in one process, from one command."""

import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from privacy.commands.exit_codes import run
from privacy.runtime import loading, prepare

if TYPE_CHECKING:
    from privacy.contract.plan import Plan

EXIT = {"done": 0, "stopped": 0, "failed": 1, "budget": 3}
VIOLATION = 5

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def simulate(
    plan: Annotated[str, typer.Argument(help="A shipped plan's name, or the path of a TOML file.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the plan (repeatable)."),
    ] = None,
    sites: Annotated[int | None, typer.Option(help="The number of sites.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Fixes split and first weights, never the noise.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Where the task's files are.")] = None,
    runs: Annotated[Path, typer.Option(help="Where run folders are kept.")] = Path("runs"),
    name: Annotated[str | None, typer.Option(help="The run's name.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run --name.")] = False,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure-reproducible", help="Noise from the seed: for debugging, NOT private."
        ),
    ] = False,
    audit: Annotated[
        bool, typer.Option("--audit", help="Afterwards audit the plan with canaries; exit 5.")
    ] = False,
    dashboard: Annotated[
        bool, typer.Option("--dashboard", help="Show the run in the browser while it goes on.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.")
    ] = False,
) -> None:
    """Simulate a private federation: train, account and keep a run folder."""
    from privacy.contract.plan_file import load_plan
    from server.rounds.run_folder import FolderError

    console = Console(quiet=as_json, stderr=False)
    if resume and name is None:
        raise FolderError("--resume: expected --name NAME beside it")
    overrides = list(set_ or [])
    overrides += [f"sites={sites}"] if sites is not None else []
    overrides += [f"seed={seed}"] if seed is not None else []
    chosen = load_plan(plan, overrides)
    label = name if name is not None else f"{chosen.task}-{time.strftime('%Y%m%d-%H%M%S')}"
    _check_name(label)
    with loading():
        from simulations.display import RunView, sentence
        from simulations.run import simulate as play

    with ExitStack() as stack:
        if dashboard:
            from server.dashboard.app import serve

            served = serve(runs / label)
            stack.callback(served.close)
            typer.echo(f"The run is shown at {served.url} while it goes on.", err=True)
        view = stack.enter_context(RunView(console))
        result = play(
            chosen,
            runs / label,
            data=data,
            resume=resume,
            insecure=insecure,
            on_read=lambda reading: typer.echo(f"data: {reading}", err=True),
            on_start=view.start,
            on_round=view.round,
        )
    told = sentence(result.summary)
    found = _audited(chosen, result.folder, data, seed) if audit else None
    if as_json:
        said = {**result.summary, "run": str(result.folder), "sentence": told}
        typer.echo(json.dumps(said | ({"audit": found} if found is not None else {})))
    else:
        console.print(told, highlight=False, soft_wrap=True)
        console.print(f"The run is kept in {result.folder}", highlight=False, soft_wrap=True)
        console.print("Its ledgers began with this run: they say nothing of earlier ones.")
        if found is not None:
            console.print(f"audit: {found['verdict']} (audit.json)")
    if found is not None and found["verdict"] != "no violation found":
        raise typer.Exit(VIOLATION)
    raise typer.Exit(EXIT[result.outcome.reason])


def _audited(plan: "Plan", folder: Path, data: Path | None, seed: int | None) -> dict[str, Any]:
    """Plant canaries in the plan's own training, and keep what they betray beside the run."""
    from client.commands.audit import keep
    from simulations.audit import audit_plan

    found = audit_plan(plan, data=data, seed=seed)
    keep(found, folder / "audit.json")
    return found


def _check_name(name: str) -> None:
    from server.rounds.run_folder import FolderError

    if not name or name.startswith(".") or "/" in name or len(name) > 100 or not name.isprintable():
        raise FolderError(f"--name: expected a plain file name, got {name!r}")


def main() -> None:
    """Run the command: bad input is one line and exit 2, a file that fails one line and exit 1."""
    prepare()
    from privacy.ledger.ledger import LedgerError
    from server.rounds.checkpoint import CheckpointError

    run(app, "tacit-simulate", bad_input=(ValueError,), failed=(CheckpointError, LedgerError))


if __name__ == "__main__":
    main()
