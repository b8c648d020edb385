"""What the commands on released models share: open one, read its rows, say what was left out."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from client.data.input_files import chunks
from client.models.loading import Model, find, load
from client.models.trusted_keys import known_keys
from client.scoring.predictions import LoadedModel
from client.scoring.tally import SHOWN, Progress, Tally
from client.tasks.rows import Rows, TaskError, unknown_words
from privacy.contract.plan import Plan
from privacy.contract.policy import load_policy
from privacy.files import write_atomic
from privacy.task_package.archive import Package, load_package

if TYPE_CHECKING:  # an exported model predicts without torch
    from client.tasks.task import Task


def tasks_of(directory: Path | None, package: Path | None = None) -> "Callable[[Plan], Task]":
    """Where tasks come from: a package that the user names, else what the site approved."""
    from client.tasks.packages.package_task import package_task
    from client.tasks.packages.store import Packages

    if package is not None:
        named = load_package(package)

        def task_of_plan(plan: Plan) -> "Task":
            if plan.code != named.code:
                raise TaskError(f"--task {package}: is {named.code}, expected {plan.code}")
            return package_task(named, plan.task_options, name=plan.task)

        return task_of_plan
    where = Path() if directory is None else directory

    def approved() -> tuple[str, ...]:
        path = where / "policy.toml"
        return load_policy(path).packages if path.is_file() else ()

    return Packages(where, approved)


def package_of(task: "Task", directory: Path | None, package: Path | None) -> Package | None:
    """The package of a task, for workers that make it again; None for a task of the product."""
    if not task.code:
        return None
    if package is not None:
        return load_package(package)
    from client.tasks.packages.store import PREFIX, read

    return read(Path() if directory is None else directory, task.code.removeprefix(PREFIX))


def opened(
    name: str,
    directory: Path | None,
    keys: list[str] | None,
    package: Path | None = None,
    *,
    quiet: bool,
) -> Model:
    """The model of that name, whose origin was asked about; it is said unless `quiet`."""
    path = find(name, directory)
    model = load(path, known_keys(directory, keys or ()), tasks_of(directory, package))
    if not quiet:
        say_origin(model)
    return model


def say_origin(model: LoadedModel) -> None:
    """Whose model it is, on stderr."""
    card = model.card
    typer.echo(
        f"model {model.digest[:16]} ({card.task}, run {card.run}, round {card.round}): "
        f"{model.origin.words}; {card.privacy}",
        err=True,
    )


def rows(model: Model, data: Path, skip_bad: bool = False) -> Rows:
    """All labelled rows of a file at once."""
    import torch

    from client.dpsgd.trees import joined

    tally = Tally(name=f"{data}: ")
    parts = list(tally.watch(chunks(model.task, data, labels=True), skip_bad, lambda done: None))
    filled = [(chunk.x, chunk.y) for chunk in parts if chunk.y is not None and len(chunk.rows)]
    tell_faults(tally)
    if not filled:
        raise TaskError(f"{data}: expected labelled rows, found none")
    return Rows(joined([x for x, _ in filled]), torch.cat([y for _, y in filled]))


def explained(model: Model, tally: Tally, out: Path | None) -> list[dict[str, Any]]:
    """What the first rows' predictions rest on, a line a row; beside `out`, if there is one."""
    from client.dpsgd.trees import joined
    from client.inference.attribution import explain
    from client.inference.html import explanation_page

    if not tally.first:
        return []
    explanations = explain(model, joined(tally.first), tally.numbers)
    lines = [one.to_dict() for one in explanations]
    if out is not None:
        numbers = "".join(json.dumps(line) + "\n" for line in lines)
        write_atomic(out.with_name(out.name + ".explained.jsonl"), numbers.encode())
        write_atomic(
            out.with_name(out.name + ".explained.html"),
            explanation_page(model, explanations).encode(),
        )
    return lines


def tell_faults(tally: Tally) -> None:
    """Which rows were left out, the first of them one by one; and which values nobody knew."""
    for fault in tally.faults[:SHOWN]:
        typer.echo(f"skipped: {fault}", err=True)
    if tally.skipped > 0 and len(tally.faults) > SHOWN:
        typer.echo(f"skipped: {tally.skipped} rows in all", err=True)
    for words in unknown_words(tally.unknown, tally.rows + tally.skipped):
        typer.echo(words, err=True)


@contextmanager
def progress(what: str) -> Iterator[Progress]:
    """A bar on the terminal, if there is one."""
    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda done: bar.update(task, completed=done)
