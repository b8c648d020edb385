"""A run's history as TensorBoard events and as an MLflow run.

Everything comes from `history.jsonl`, which holds what was evaluated on public rows and what sites
paid for: nothing else can leave by this way. It is read after the fact or while the run goes on, by
a process of its own, so that no tracker's library is near a coordinator.
"""

import importlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from privacy.contract.plan import Plan
from server.rounds.run_folder import RunFolder

EXPERIMENT: Final = "tacit"
TAG: Final = "tacit.run"
_LOOK_SECONDS: Final = 1.0

Write = Callable[[Mapping[str, Any]], None]


class TrackingError(ValueError):
    """A tracker that is not installed or cannot be reached: one line."""


def track(
    path: Path,
    *,
    tensorboard: Path | None = None,
    mlflow: str | None = None,
    until: Callable[[], bool] = lambda: True,
) -> int:
    """Write the rounds of a run to the trackers; how many.

    It looks for further rounds until `until()` is true, and once more after that.
    """
    folder = RunFolder.open(path)
    if tensorboard is None and mlflow is None:
        raise TrackingError("--tensorboard DIR or --mlflow URI must be given")
    with ExitStack() as stack:
        writers: list[Write] = []
        if tensorboard is not None:
            writers.append(stack.enter_context(_tensorboard(tensorboard / path.name)))
        if mlflow is not None:
            writers.append(stack.enter_context(_mlflow(mlflow, path, folder)))
        rounds = 0
        for line in _lines(path / "history.jsonl", until):
            for write in writers:
                write(line)
            rounds += 1
        return rounds


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of one round, by name."""
    figures = {f"metrics/{name}": value for name, value in line["metrics"].items()}
    if line["epsilon"] is not None:
        figures["epsilon/most"] = line["epsilon"]
    for site, answer in line["sites"].items():
        if answer["epsilon"] is not None:
            figures[f"epsilon/{site}"] = answer["epsilon"]
    trained = sum(answer["status"] == "trained" for answer in line["sites"].values())
    return figures | {"round/seconds": line["seconds"], "round/sites_trained": float(trained)}


def _lines(path: Path, until: Callable[[], bool]) -> Iterator[Mapping[str, Any]]:
    """The complete lines of a history, and those that are appended until `until()`."""
    offset, last = 0, False
    while True:
        last = until()
        if path.is_file():
            with path.open("rb") as file:
                file.seek(offset)
                content = file.read()
            whole = content[: content.rfind(b"\n") + 1]
            offset += len(whole)
            for line in whole.splitlines():
                yield json.loads(line)
        if last:
            return
        time.sleep(_LOOK_SECONDS)


@contextmanager
def _tensorboard(folder: Path) -> Iterator[Write]:
    writer = _library("tensorboardX", "tensorboard").SummaryWriter(str(folder), purge_step=1)

    def write(line: Mapping[str, Any]) -> None:
        for name, value in scalars(line).items():
            writer.add_scalar(name, value, line["round"])
        writer.flush()

    try:
        yield write
    finally:
        writer.close()


@contextmanager
def _mlflow(uri: str, path: Path, folder: RunFolder) -> Iterator[Write]:
    """One run of the experiment `tacit`, found again by the run's id; steps are rounds."""
    library = _library("mlflow", "mlflow")
    try:
        client = library.MlflowClient(uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        number = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
        query = f"tags.`{TAG}` = '{folder.id}'"
        known = client.search_runs([number], filter_string=query)
        if known:
            run = known[0].info.run_id
        else:
            run = client.create_run(number, run_name=path.name, tags={TAG: folder.id}).info.run_id
            for name, value in _parameters(folder.plan()).items():
                client.log_param(run, name, value)
    except library.exceptions.MlflowException as error:
        raise TrackingError(f"--mlflow {uri}: {str(error).splitlines()[0]}") from None
    last = max((point.step for point in client.get_metric_history(run, "round/seconds")), default=0)

    def write(line: Mapping[str, Any]) -> None:
        if line["round"] > last:
            for name, value in scalars(line).items():
                client.log_metric(run, name, value, step=line["round"])

    try:
        yield write
    finally:
        ended = folder.summary()
        if ended is not None:
            status = "FAILED" if ended["reason"] == "failed" else "FINISHED"
            client.set_terminated(run, status)


def _parameters(plan: Plan) -> dict[str, str]:
    """The plan's keys, but texts of many lines."""
    parameters = {"plan": plan.digest}
    for key, value in plan.to_dict().items():
        if isinstance(value, str | int | float | bool) and "\n" not in str(value):
            parameters[key] = str(value)
    return parameters


def _library(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise TrackingError(f"{name} is not installed (pip install 'tacit[{extra}]')") from None
