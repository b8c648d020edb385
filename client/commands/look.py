"""`look`: what a plan of statistics would release of the site's own rows, without any noise."""

import json
from pathlib import Path
from typing import Annotated

import typer

from client.agent import populations
from client.agent.populations import PopulationError
from client.commands.options import HERE, Dir, Json, PopulationName
from privacy.contract.plan import PlanError
from privacy.contract.plan_file import load_plan
from privacy.files import PRIVATE, write_atomic
from privacy.runtime import loading


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("look")(look)


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
        from client.commands.data_check import task_for
        from client.statistics.look import everything, look
        from client.tasks.registry import task
    from privacy.statistics.page import to_html

    if data is None:
        one = populations.choose(directory, name=population)
        if one.data is None:
            raise PopulationError(f"{one.name}: has no data registered, expected DATA")
        data = Path(one.data)
    asked = None
    if plan is not None:
        chosen = load_plan(plan)
        asked, of = chosen.statistics, task(chosen.reads, chosen.schema)
        if chosen.code is not None:
            raise PlanError("--plan must be one whose rows have public columns, got a package's")
    else:
        of = task_for(directory, data, None, schema, population)
    facts = look(asked or everything(of), of, data, data.name)
    if as_json:
        typer.echo(json.dumps(facts))
        return
    path = out or directory / "look.html"
    write_atomic(path, to_html(facts, noiseless=True).encode(), mode=PRIVATE)
    typer.echo(f"{path}: the exact figures of {data}, without noise; they must stay here")
