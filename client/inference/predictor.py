"""Prediction with a released model, on the site's own machine: rows in, predictions out.

On the CPU the model runs as an ONNX graph in ONNX Runtime, several times faster than eager torch
for the small models here; on a GPU, where asked, it runs as it was trained.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from client.data.input_files import Chunk, Fault
from client.inference.onnx_graph import ConversionError, to_onnx
from client.inference.onnx_runtime import onnxruntime
from client.models.loading import Model, ModelError
from client.tasks.task import Task

BATCH: Final = 8192
"""Rows that go through the model at once."""

Scores = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Predictor:
    """A loaded model ready to score encoded rows: `scores(x)` [rows, outputs] of x [rows, ...]."""

    model: Model
    scores: Callable[[NDArray[Any]], Scores]
    engine: str

    def outputs(self, x: NDArray[Any]) -> Scores:
        """The scores of any number of rows, a batch at a time."""
        if len(x) <= BATCH:
            return self.scores(x)
        return np.concatenate([self.scores(x[i : i + BATCH]) for i in range(0, len(x), BATCH)])


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """What was said of some rows: `rows` counts from 1 through the file.

    `best` is each row's class as an index into `classes`, `probability` that of the class and
    `every` those of all; of a regression there are `values` in the label's unit instead. `labels`
    are the known labels as indices or values; `scores` are raw; `ids` is the column `ids_name` of
    the file, which names its rows.
    """

    rows: NDArray[np.int64]
    classes: tuple[str, ...]
    best: NDArray[np.int64]
    values: NDArray[np.float64]
    probability: NDArray[np.float32] | None
    scores: Scores
    labels: NDArray[Any] | None = None
    groups: list[str] | None = None
    faults: tuple[Fault, ...] = ()
    done: float = 0.0
    every: Scores | None = None
    ids: Any = None
    ids_name: str = ""


def predictor(model: Model, device: str = "cpu", threads: int | None = None) -> Predictor:
    """Make a model ready on a device: `cpu`, or `cuda` and the like through torch."""
    if device != "cpu":
        return _on_device(model, device)
    if model.graph is not None:
        return Predictor(model, session(model.graph, threads), "ONNX Runtime")
    if model.network is None:
        raise ModelError(f"{model.path}: expected a model with weights")
    try:
        graph = to_onnx(model.network, model.task.shape, input_type(model.task))
    except ConversionError:
        return _on_device(model, "cpu")
    return Predictor(model, session(graph.SerializeToString(), threads), "ONNX Runtime")


def session(graph: bytes, threads: int | None = None) -> Callable[[NDArray[Any]], Scores]:
    """A function that runs an ONNX graph in this process."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    # Spinning workers would hold whole cores between requests.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        running = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except RuntimeError as error:
        raise ModelError("expected an ONNX graph that ONNX Runtime can run") from error

    def scores(x: NDArray[Any]) -> Scores:
        result: Scores = running.run(["scores"], {"x": x})[0]
        return result

    return scores


def input_type(task: Task) -> torch.dtype:
    """The numbers that a task's model takes."""
    return getattr(task, "dtype", torch.float32)


def _on_device(model: Model, device: str) -> Predictor:
    if model.network is None:
        raise ModelError(f"{model.path}: an exported ONNX file runs on the CPU, got {device}")
    try:
        network = model.network.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device: expected one that is here, got {device!r}") from error

    def scores(x: NDArray[Any]) -> Scores:
        with torch.inference_mode():
            result: Scores = network(torch.from_numpy(x).to(device)).float().cpu().numpy()
            return result

    return Predictor(model, scores, f"torch on {device}")


def decode(task: Task, scores: Scores) -> tuple[list[str] | list[float], Scores | None]:
    """Scores as classes with their probabilities, or as values in the label's unit."""
    decoded = task.decode(torch.from_numpy(scores)).numpy()
    if task.kind == "regression":
        return [float(value) for value in decoded.reshape(-1)], None
    best = decoded.argmax(1)
    names = np.array(task.classes, dtype=object)[best].tolist()
    return names, decoded[np.arange(len(best)), best]


def predict(
    ready: Predictor, chunks: Iterator[Chunk], *, every: bool = False
) -> Iterator[Predictions]:
    """Predict chunk after chunk: memory holds one of them, whatever the file's size.

    With `every`, the probabilities of all classes are kept.
    """
    task = ready.model.task
    for chunk in chunks:
        count = len(chunk.rows)
        width = max(len(task.classes), 1)
        scores = np.zeros((0, width), np.float32)
        if count:
            scores = ready.outputs(np.ascontiguousarray(chunk.x.numpy()))
        decoded = task.decode(torch.from_numpy(scores)).numpy()
        best, values, probability = np.zeros(0, np.int64), np.zeros(0), None
        if task.kind == "regression":
            values = decoded.reshape(-1).astype(np.float64)
        else:
            best = decoded.argmax(1)
            probability = decoded[np.arange(count), best]
        yield Predictions(
            chunk.rows,
            task.classes,
            best,
            values,
            probability,
            scores,
            labels=None if chunk.y is None else chunk.y.numpy(),
            groups=chunk.groups,
            faults=chunk.faults,
            done=chunk.done,
            every=decoded if every and task.classes else None,
            ids=chunk.ids,
            ids_name=chunk.ids_name,
        )
