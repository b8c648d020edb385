"""`data check`: how a site's own file reads under a plan's or its own schema; for its owner."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.agent import populations
from client.agent.populations import PopulationError
from client.commands.options import HERE, Dir, Json, PopulationName
from privacy.contract.plan_file import load_plan
from privacy.runtime import loading

if TYPE_CHECKING:
    from client.tasks.task import Task


def check(
    data: Annotated[
        Path | None, typer.Argument(help="The rows; else where the population's lie.")
    ] = None,
    plan: Annotated[
        str | None, typer.Option(help="A plan's name or file; else the registered schema.")
    ] = None,
    schema: Annotated[Path | None, typer.Option(help="A schema, in a plan's place.")] = None,
    population: PopulationName = None,
    show: Annotated[
        bool, typer.Option("--show", help="Show the first three rows' values.")
    ] = False,
    directory: Dir = HERE,
    as_json: Json = False,
) -> None:
    """Read a file as training would, and tell what is missing, outside, unknown or left out.

    Nothing leaves this machine, and nothing is spent. Exit 1 where rows would be left out or a
    column's values are none of the public ones.
    """
    with loading():
        from client.data.check import check as checked

    data = data or registered_data(directory, population)
    result = checked(task_for(directory, data, plan, schema, population), data, shown=3 * show)
    facts = result.to_dict() | ({"first": result.first} if show else {})
    if as_json:
        typer.echo(json.dumps(facts, default=str))
    else:
        _print(Console(), facts)
    raise typer.Exit(int(result.worst() > 0))


def registered_data(directory: Path, population: str | None) -> Path:
    """Where the rows of a population lie; PopulationError where nobody said so."""
    one = populations.choose(directory, name=population)
    if one.data is None:
        raise PopulationError(f"{one.name}: has no data registered, expected DATA")
    return Path(one.data)


def task_for(
    directory: Path, data: Path, plan: str | None, schema: Path | None, population: str | None
) -> "Task":
    """The task of a plan, of a schema, or of the schema that is registered with the data."""
    from client.tasks.registry import task, task_of_schema

    if schema is not None:
        return task_of_schema(schema.read_text(encoding="utf-8"))
    if plan is not None:
        of = load_plan(plan)
        return task(of.reads, of.schema)
    text = populations.schema_of(directory, data, population)
    if text is None:
        raise PopulationError("expected --plan, --schema, or a schema registered with the data")
    return task_of_schema(text)


def _print(console: Console, facts: dict[str, Any]) -> None:
    def say(line: str) -> None:
        console.print(escape(line), highlight=False, soft_wrap=True)

    say(f"{facts['rows']} rows on {facts['lines']} lines; {facts['left_out']} would be left out")
    for where in facts["where"]:
        say(f"  {where}")
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("column", "type", "missing", "outside", "unknown", "left out", "codes?"):
        table.add_column(name, justify="left" if name in ("column", "type", "codes?") else "right")
    for one in facts["columns"]:
        shares = (f"{100 * one[name]:.2f} %" for name in ("missing", "outside", "unknown"))
        codes = ", ".join(one["sentinels"])
        table.add_row(escape(one["column"]), one["type"], *shares, str(one["left_out"]), codes)
    console.print(table, highlight=False)
    for name, count in facts["classes"].items():
        say(f"class {name}: {count} rows")
    for row in facts.get("first", []):
        say("; ".join(f"{name} = {value!r}" for name, value in row.items()))
