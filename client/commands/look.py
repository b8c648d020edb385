"""`look`, `drift`, `importance`: the site's own rows, exactly: what they are, and what counts."""

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
    app.command("importance")(importance)


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
        from client.inference.predictor import predictor
        from client.statistics.drift import calibration, worst
        from client.statistics.drift import drift as compared
        from client.statistics.drift_page import to_html

    if labelled and model is None:
        raise typer.BadParameter("--labelled must come with --model")
    of = None if model is None else opened(model, directory, key, None, quiet=as_json)
    found = compared(data, against, None if of is None else of.task)
    if labelled and of is not None:
        rows = chunks(of.task, data, labels=True)
        measured = evaluate(of.task, predictor(of).predict(rows))
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


def importance(
    data: Annotated[Path, typer.Argument(help="The rows: the first of them are explained.")],
    model: Annotated[
        str, typer.Option("--model", help="A run folder, a checkpoint, or latest.")
    ] = "latest",
    rows: Annotated[int, typer.Option(min=1, max=1000, help="How many rows are explained.")] = 200,
    rounds: Annotated[
        int, typer.Option(min=1, max=50, help="How many rounds of the run are compared.")
    ] = 5,
    out: Annotated[Path | None, typer.Option(help="An .html page.")] = None,
    directory: Dir = HERE,
    key: Annotated[
        list[str] | None, typer.Option("--key", help="A further signer's public key.")
    ] = None,
    task: Annotated[
        Path | None, typer.Option("--task", help="The task package of the model.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out rows that do not fit.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Tell which columns a model rests on over many rows, and which of them are mostly noise.

    The last rounds of the model's run are compared: what rests on the data stays. Nothing leaves
    this machine, and nothing is spent; the figures must stay here.
    """
    with loading():
        from client.commands.shared import opened, tasks_of, tell_faults
        from client.data.input_files import chunks
        from client.dpsgd.trees import joined
        from client.inference.html import importance_page
        from client.inference.importance import SHOWN, earlier
        from client.inference.importance import importance as measured
        from client.models.loading import ModelError, load, of_same_run
        from client.models.trusted_keys import known_keys
        from client.scoring.tally import Tally

    if out is not None and out.suffix != ".html":
        raise ModelError(f"out: expected a name that ends with .html, got {out}")
    of = opened(model, directory, key, task, quiet=as_json)
    files = earlier(of_same_run(of.path, directory), of.card.round, rounds)
    trust, tasks = known_keys(directory, key or ()), tasks_of(directory, task)
    models = [*(load(one, trust, tasks) for one in files if one != of.path), of]
    tally = Tally(rows, f"{data}: ")
    for _ in tally.watch(chunks(of.task, data), skip_bad, lambda done: None):
        if not tally.wanted:
            break
    tell_faults(tally)
    if not tally.first:
        raise ModelError(f"{data}: expected rows to explain, found none")
    found = measured(models, joined(tally.first), len(tally.numbers))
    if out is not None:
        write_atomic(out, importance_page(of, found).encode(), mode=PRIVATE)
    if as_json:
        facts = {"model": of.digest, "run": of.card.run} | found.to_dict()
        typer.echo(json.dumps(facts | {"page": str(out) if out else None}))
        return
    numbers = ", ".join(str(one) for one in found.rounds)
    typer.echo(f"{found.rows} rows, {'rounds' if len(found.rounds) > 1 else 'round'} {numbers}")
    if len(found.rounds) > 1:
        typer.echo(f"{100 * found.alike:.1f} % of the rows are predicted alike by all rounds")
    typer.echo(f"  {'column':<32} {'share':>7} {'change':>7}")
    for one in found.columns[:SHOWN]:
        change = "-" if one.change is None else f"{100 * one.change:.0f} %"
        mark = "  mostly noise" if one.changes else ""
        name = one.column if len(one.column) <= 32 else one.column[:31] + "…"
        typer.echo(f"  {name:<32} {100 * one.share:>5.1f} % {change:>7}{mark}")
    if more := found.columns[SHOWN:]:
        noisy = sum(one.changes for one in more)
        typer.echo(f"  {len(more)} more columns, {noisy} of them mostly noise")
    if out is not None:
        typer.echo(f"page: {out} (for this site alone)")
