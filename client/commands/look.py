"""`look` and `drift`: what the site's own rows look like, exactly, and whether that changed."""

import json
from pathlib import Path
from typing import Annotated

import typer

from client.commands.options import HERE, Dir, Json, PopulationName
from privacy.contract.plan import PlanError
from privacy.contract.plan_file import load_plan
from privacy.files import PRIVATE, write_atomic
from privacy.runtime import loading


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("look")(look)
    app.command("drift")(drift)


def look(
    data: Annotated[
        Path | None, typer.Argument(help="The rows; else where the population's lie.")
    ] = None,
    plan: Annotated[
        str | None, typer.Option(help="A plan of statistics, or of training; else the schema.")
    ] = None,
    schema: Annotated[Path | None, typer.Option(help="A schema, in a plan's place.")] = None,
    population: PopulationName = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the page is written, if not DIR/look.html.")
    ] = None,
    directory: Dir = HERE,
    as_json: Json = False,
) -> None:
    """Show the owner the exact figures of the site's own rows: they must stay at the site.

    With a plan of statistics these are the figures that it would release with noise; else all
    columns are shown. Nothing leaves this machine, and nothing is spent.
    """
    with loading():
        from client.commands.data_check import registered_data, task_for
        from client.statistics.look import everything, look
        from client.tasks.registry import task
    from privacy.statistics.page import to_html

    data = data or registered_data(directory, population)
    questions = None
    if plan is not None:
        chosen = load_plan(plan)
        questions, of = chosen.statistics, task(chosen.reads, chosen.schema)
        if chosen.code is not None:
            raise PlanError("--plan must be one whose rows have public columns, got a package's")
    else:
        of = task_for(directory, data, None, schema, population)
    facts = look(questions or everything(of), of, data, data.name)
    if as_json:
        typer.echo(json.dumps(facts))
        return
    path = out or directory / "look.html"
    write_atomic(path, to_html(facts, noiseless=True).encode(), mode=PRIVATE)
    typer.echo(f"{path}: the exact figures of {data}, without noise; they must stay here")


def drift(
    data: Annotated[Path, typer.Argument(help="The recent rows.")],
    against: Annotated[Path, typer.Option(help="A run of statistics, or older rows of this site.")],
    model: Annotated[
        str | None, typer.Option("--model", help="The model in use: a run, a checkpoint, latest.")
    ] = None,
    labelled: Annotated[
        bool,
        typer.Option("--labelled", help="The recent rows have labels: is the model calibrated?"),
    ] = False,
    out: Annotated[Path | None, typer.Option(help="An .html page.")] = None,
    directory: Dir = HERE,
    key: Annotated[
        list[str] | None, typer.Option("--key", help="A further signer's public key.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Tell whether recent rows differ from a reference beyond noise and chance; exit 4 if they do.

    Nothing leaves this machine, and nothing is spent; the figures must stay here.
    """
    with loading():
        from dataclasses import replace

        from client.commands.shared import opened
        from client.data.input_files import chunks
        from client.inference.evaluation import evaluate
        from client.inference.predictor import predict, predictor
        from client.statistics.drift import calibration, worst
        from client.statistics.drift import drift as compared
        from client.statistics.drift_page import to_html

    if labelled and model is None:
        raise typer.BadParameter("--labelled must come with --model")
    of = None if model is None else opened(model, directory, key, None, quiet=as_json)
    found = compared(data, against, None if of is None else of.task)
    if labelled and of is not None:
        rows = chunks(of.task, data, labels=True)
        measured = evaluate(of.task, predict(predictor(of), rows))
        found = replace(found, calibration=calibration(measured))
    if out is not None:
        write_atomic(out, to_html(found).encode(), mode=PRIVATE)
    if as_json:
        typer.echo(json.dumps(found.to_dict() | {"page": str(out) if out else None}))
    else:
        typer.echo(f"{found.rows} rows against {found.reference}")
        for one in worst(found.columns):
            if one.drifted:
                typer.echo(f"  {one.column}: DRIFTED (distance {one.distance:.3f}, p {one.p:.1e})")
        if (known := found.calibration) is not None:
            verdict = "NOT CALIBRATED" if known.drifted else "calibrated within chance"
            sure, right = 100 * known.confidence, 100 * known.accuracy
            typer.echo(f"  the model is {sure:.1f} % sure, {right:.1f} % right: {verdict}")
        if not found.drifted:
            typer.echo("  no drift beyond noise and chance")
    if found.drifted:
        raise typer.Exit(4)
