"""`track`: a run's history for TensorBoard and MLflow."""

from pathlib import Path
from typing import Annotated

import typer

from server.commands.options import HERE, Dir, Run
from server.registry.sites import Home

TensorBoard = Annotated[
    Path | None,
    typer.Option("--tensorboard", metavar="DIR", help="Write event files to DIR/RUN."),
]
Mlflow = Annotated[
    str | None, typer.Option("--mlflow", metavar="URI", help="Write to this MLflow server.")
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("track")(track)


def track(
    run: Run,
    directory: Dir = HERE,
    tensorboard: TensorBoard = None,
    mlflow: Mlflow = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the run ends.")
    ] = False,
) -> None:
    """Write a run's history to TensorBoard or MLflow: metrics, epsilon, seconds, a step a round."""
    from server.service.queue import Queue, QueueError
    from server.tracking import track as write

    home = Home(directory).check()

    def ended() -> bool:
        try:
            state = Queue(home.folder).find(run).state
        except QueueError:  # a run of before there was a queue
            return True
        return not follow or state in ("done", "budget", "failed", "stopped")

    done = write(home.runs / run, tensorboard=tensorboard, mlflow=mlflow, until=ended)
    typer.echo(f"{run}: {done} rounds written")
