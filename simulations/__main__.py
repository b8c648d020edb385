"""tacit-simulate: a whole federation in one process, from one command."""

import json
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privacy.commands.exit_codes import BAD_INPUT, FAILED, Codes, run, started
from privacy.runtime import defer, loading, prepare

if TYPE_CHECKING:
    from rich.console import Console

    from privacy.contract.plan import Plan

EXIT = {"done": 0, "stopped": 0, "failed": 1, "budget": 3}
VIOLATION = 5
INTERRUPTED = 130
RUNS = Path("runs")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def simulate(
    plan: Annotated[
        str | None,
        typer.Argument(help="A shipped plan's name, or the path of a TOML file; none to resume."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the plan (repeatable)."),
    ] = None,
    sites: Annotated[int | None, typer.Option(help="The number of sites.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Fixes split and first weights, never the noise.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Where the task's files are.")] = None,
    task: Annotated[
        Path | None,
        typer.Option(help="A task package of your own: its folder, or its packed file."),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Where run folders are kept.")] = RUNS,
    name: Annotated[str | None, typer.Option(help="The run's name.")] = None,
    first: Annotated[
        Path | None,
        typer.Option("--from", metavar="RUN", help="A run folder, whose model is the first one."),
    ] = None,
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
    tensorboard: Annotated[
        Path | None,
        typer.Option("--tensorboard", metavar="DIR", help="Write event files to DIR/NAME."),
    ] = None,
    mlflow: Annotated[
        str | None, typer.Option("--mlflow", metavar="URI", help="Write to this MLflow server.")
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep",
            metavar="KEY=V,V",
            help="Run every combination of these values of plan keys (repeatable): CSV and SVG.",
        ),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare",
            metavar="EPSILON,EPSILON",
            help="The federation at these epsilons beside each site alone and no privacy.",
        ),
    ] = None,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            "--beside",
            metavar="PLAN|'KEY=VALUE ...'",
            help="With --compare: another plan, or this one with other keys (repeatable).",
        ),
    ] = None,
    repeat: Annotated[
        int,
        typer.Option("--repeat", min=1, max=1000, help="Seeds a cell, with --sweep or --compare."),
    ] = 1,
    workers: Annotated[
        int, typer.Option("--workers", min=1, max=256, help="Processes that share a sweep.")
    ] = 1,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and nothing else.")
    ] = False,
) -> None:
    """Simulate a private federation: train, account and keep a run folder.

    `tacit-simulate new NAME` writes a task package of your own, `tacit-simulate new DATA` the
    schema and the plan of a table.
    """
    from privacy.contract.rules.table import warnings

    overrides = list(set_ or [])
    overrides += [f"sites={sites}"] if sites is not None else []
    overrides += [f"seed={seed}"] if seed is not None else []
    chosen = _chosen(plan, overrides, runs, name, resume)
    label = name if name is not None else f"{chosen.task}-{time.strftime('%Y%m%d-%H%M%S')}"
    _check_name(label)
    for text in warnings(chosen):
        typer.echo(f"tacit-simulate: warning: {text}", err=True)
    if not as_json and sys.stderr.isatty():
        typer.echo(f"tacit-simulate: {chosen.task}, {chosen.rounds} rounds", err=True)
    with loading():
        from rich.console import Console

        from server.rounds.run_folder import FolderError
        from server.statistics_files import PAGE
        from simulations.display import RunView
        from simulations.engines.errors import EngineError
        from simulations.run import simulate as play

    console = Console(quiet=as_json, stderr=False)
    if sweep:
        if audit or dashboard or insecure or resume or tensorboard or mlflow:
            raise FolderError("--sweep runs alone: run it again under the same --name to go on")
        _swept(console, chosen, sweep, repeat, workers, runs / label, data, task, as_json=as_json)
        return
    if compare is not None:
        if audit or dashboard or insecure or resume or task or tensorboard or mlflow or workers > 1:
            raise FolderError("--compare runs alone, on the rows of a task that is there")
        from simulations.comparison import contenders, levels, present

        plans = contenders(plan or chosen.task, chosen, beside or [])
        present(console, plans, levels(compare), repeat, runs / label, data, as_json=as_json)
        return
    if beside:
        raise FolderError("--beside must be used with --compare")
    if repeat > 1 or workers > 1:
        raise FolderError("--repeat and --workers must be used with --sweep")
    again = f"tacit-simulate --resume --name {shlex.quote(label)}"
    again += "" if runs == RUNS else f" --runs {shlex.quote(str(runs))}"
    again += "" if data is None else f" --data {shlex.quote(str(data))}"
    again += "" if task is None else f" --task {shlex.quote(str(task))}"
    again += "" if first is None else f" --from {shlex.quote(str(first))}"
    again += " --insecure-reproducible" if insecure else ""
    with ExitStack() as stack:
        stop = stack.enter_context(_interruptible())
        if dashboard:
            from server.dashboard.app import serve

            served = serve(runs / label)
            stack.callback(served.close)
            typer.echo(f"The run is shown at {served.url} while it goes on.", err=True)
        view = stack.enter_context(RunView(console))
        begun = threading.Event()

        def start(plan: "Plan", done: int) -> None:
            begun.set()
            view.start(plan, done)

        stack.enter_context(started(begun.is_set))
        try:
            result = play(
                chosen,
                runs / label,
                task=task,
                data=data,
                first=first,
                resume=resume,
                insecure=insecure,
                on_read=lambda reading: typer.echo(f"data: {reading}", err=True),
                on_start=start,
                on_round=view.round,
                stop=stop.is_set,
            )
        except KeyboardInterrupt:
            if (runs / label).exists():
                typer.echo(f"tacit-simulate: interrupted; go on with: {again}", err=True)
            raise
        except EngineError as error:
            raise EngineError(f"{error}; go on with: {again}") from None
    if result.outcome.reason == "stopped" and stop.is_set():
        rounds = f"{result.summary['rounds']} of {chosen.rounds} rounds"
        typer.echo(f"tacit-simulate: stopped after {rounds}; go on with: {again}", err=True)
        raise typer.Exit(INTERRUPTED)
    with started():
        from simulations.display import sentence

        if result.folder is not None and (tensorboard is not None or mlflow is not None):
            from server.tracking import track

            track(result.folder, tensorboard=tensorboard, mlflow=mlflow)
        result_text = sentence(result.summary)
        audit_result = _audited(chosen, runs / label, data, seed) if audit else None
        if as_json:
            facts = {**result.summary, "run": str(result.folder), "sentence": result_text}
            typer.echo(
                json.dumps(facts | ({"audit": audit_result} if audit_result is not None else {}))
            )
        else:
            console.print(result_text, highlight=False, soft_wrap=True)
            console.print(f"The run is kept in {result.folder}", highlight=False, soft_wrap=True)
            if chosen.statistics is not None and result.folder is not None:
                page = result.folder / PAGE
                console.print(f"Its figures are in {page}", highlight=False, soft_wrap=True)
            console.print("Its ledgers began with this run: they say nothing of earlier ones.")
            if audit_result is not None:
                console.print(f"audit: {audit_result['verdict']} (audit.json)")
        if audit_result is not None and audit_result["verdict"] != "no violation found":
            raise typer.Exit(VIOLATION)
        raise typer.Exit(EXIT[result.outcome.reason])


def _chosen(
    source: str | None, overrides: list[str], runs: Path, name: str | None, resume: bool
) -> "Plan":
    """The plan of a new run, or of the run that is resumed, whose folder holds it."""
    from privacy.contract.plan_file import load_plan

    if resume:
        from server.rounds.run_folder import FolderError, resumed_plan

        if name is None:
            raise FolderError("--resume needs --name NAME beside it")
        _check_name(name)
        return resumed_plan(runs / name, source, overrides)
    if source is None:
        raise ValueError("a plan must be named, unless --resume --name NAME takes the run's own")
    return load_plan(source, overrides)


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """The first Ctrl-C asks to stop after the round that is under way; the second stops at once."""
    stop_request = threading.Event()

    def interrupt(number: int, frame: object) -> None:
        if stop_request.is_set():
            raise KeyboardInterrupt
        stop_request.set()
        text = "stopping after this round; press Ctrl-C again to stop at once"
        print(f"tacit-simulate: {text}", file=sys.stderr, flush=True)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield stop_request
    finally:
        signal.signal(signal.SIGINT, before)


def _swept(
    console: "Console",
    plan: "Plan",
    options: list[str],
    repeat: int,
    workers: int,
    folder: Path,
    data: Path | None,
    task: Path | None,
    *,
    as_json: bool,
) -> None:
    """Run a sweep, and write its records and its picture beside its runs."""
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from privacy.contract.plan_file import swept_values
    from privacy.files import write_atomic
    from simulations.parameter_sweep import sweep

    values: Any = swept_values(options)
    folder.mkdir(parents=True, exist_ok=True)
    with Progress(console=Console(stderr=True), disable=as_json) as bar:
        shown = bar.add_task("runs", total=None)
        result = sweep(
            plan,
            seeds=repeat,
            folder=folder,
            workers=workers,
            on_cell=lambda _, cells: bar.update(shown, total=cells, advance=1),
            task=task,
            data=data,
            **values,
        )
    write_atomic(folder / "sweep.csv", result.csv().encode())
    write_atomic(folder / "sweep.svg", result.plot().encode())
    if as_json:
        facts = {"run": str(folder), "metric": result.metric, "cells": result.summary()}
        typer.echo(json.dumps(facts, allow_nan=False))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in (*result.keys, "runs", f"mean {result.metric}", "standard deviation"):
        table.add_column(name, justify="right")
    for cell in result.summary():
        figures = (cell["mean"], cell["standard_deviation"])
        shown_figures = ["-" if value is None else f"{value:.4f}" for value in figures]
        table.add_row(*(str(cell[key]) for key in result.keys), str(cell["runs"]), *shown_figures)
    console.print(table, highlight=False)
    console.print(f"sweep.csv and sweep.svg are in {folder}", highlight=False, soft_wrap=True)
    if plan.private:
        console.print("Each run's epsilon counts that run alone: choosing by them costs more.")


def _audited(plan: "Plan", folder: Path, data: Path | None, seed: int | None) -> dict[str, Any]:
    """Plant canaries in the plan's own training, and keep what they betray beside the run."""
    from client.commands.audit import keep
    from simulations.audit import audit_plan

    result = audit_plan(plan, data=data, seed=seed)
    keep(result, folder / "audit.json")
    return result


def _check_name(name: str) -> None:
    if not name or name.startswith(".") or "/" in name or len(name) > 100 or not name.isprintable():
        raise ValueError(f"--name must be a plain file name, got {name!r}")


new_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@new_app.command()
def new(
    name: Annotated[
        Path,
        typer.Argument(
            metavar="NAME|DATA",
            help="A new folder, also the task's name; or a table: its schema and plan to fill in.",
        ),
    ],
    kind: Annotated[str, typer.Option(help="image, text, audio, table or series.")] = "table",
    data: Annotated[
        Path | None, typer.Option(help="Your own files; made-up ones are written without.")
    ] = None,
) -> None:
    """Write a task package of your own that runs at once; or, for a table, a schema and a plan.

    Of a table only the header and the kinds of its columns are looked at, no value is written.
    """
    if name.exists() and data is None:
        from simulations.new_schema import new_schema

        schema, filled = new_schema(name, Path())
        typer.echo(f"{schema}: the columns, to be filled in; {filled}: a plan")
        typer.echo(f"run it: {shlex.join(['tacit-simulate', str(filled), '--data', str(name)])}")
        return
    from simulations.new_task import new as write

    task, plan, rows = write(name, kind, data)
    typer.echo(f"{task}: the package; {plan}: a plan; {rows}: the rows")
    typer.echo(
        "run it: "
        + shlex.join(["tacit-simulate", str(plan), "--task", str(task), "--data", str(rows)])
    )


def main() -> None:
    """Run the command: bad input is one line and exit 2, a file that fails one line and exit 1."""
    prepare()
    defer("opacus")
    making = sys.argv[1:2] == ["new"]
    if making:
        del sys.argv[1]
    run(
        new_app if making else app,
        "tacit-simulate new" if making else "tacit-simulate",
        _codes,
    )


def _codes() -> Codes:
    from privacy.ledger.ledger import LedgerError
    from server.rounds.checkpoint import CheckpointError
    from simulations.engines.errors import EngineError, OwnCodeError

    failed = (OSError, CheckpointError, LedgerError, EngineError, OwnCodeError)
    return {ValueError: BAD_INPUT} | dict.fromkeys(failed, FAILED)


if __name__ == "__main__":
    main()
