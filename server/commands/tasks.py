"""`task add`: the task packages that a coordinator's plans may name."""

import json
from pathlib import Path
from typing import Annotated

import typer

from privacy.audit_trail import recorded
from privacy.files import write_atomic
from privacy.task_package.archive import SUFFIX, load_package
from privacy.task_package.manifest import manifest_of
from server.commands.options import HERE, Dir, Json
from server.registry.sites import Home

TaskPackage = Annotated[
    Path | None,
    typer.Option("--task", help="The task package that the plan names, if it is not here."),
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    group = typer.Typer(help="Task packages that plans may name.", no_args_is_help=True)
    group.callback()(_group)
    group.command("add")(add)
    app.add_typer(group, name="task")


def _group() -> None:
    """Task packages that plans may name."""


def add(
    file: Annotated[Path, typer.Argument(metavar="PATH", help="A packed file, or a folder.")],
    directory: Dir = HERE,
    as_json: Json = False,
) -> None:
    """Keep a task package, so that queued plans may name it; sites get the file by your ways."""
    home = Home(directory).check()
    package = load_package(file)
    with recorded(directory, "task add", manifest_of(package).name, fingerprint=package.digest):
        name, code = add_package(home, file)
    if as_json:
        typer.echo(json.dumps({"name": name, "code": code}))
    else:
        typer.echo(f'task = "{name}"\ncode = "{code}"')


def add_package(home: Home, path: Path) -> tuple[str, str]:
    """Keep a task package for the plans that name it; its name and its code."""
    package = load_package(path)
    name = manifest_of(package).name
    home.tasks.mkdir(mode=0o700, exist_ok=True)
    write_atomic(home.tasks / f"{package.digest}{SUFFIX}", package.content)
    return name, package.code
