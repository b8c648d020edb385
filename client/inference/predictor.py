"""Prediction with a released model, on the site's own machine: rows in, predictions out.

A checkpoint runs in torch, as it was trained; an exported ONNX file runs in ONNX Runtime.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from client.data.input_files import Chunk
from client.dpsgd.trees import cut, floats, joined, mapped, tensors
from client.inference.decoded_columns import columns
from client.models.loading import Model, ModelError
from client.scoring.predictions import Predictions, of_chunk
from client.tasks.task import Task, none_of

BATCH: Final = 8192
"""Rows that go through the model at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Predictor:
    """A loaded model ready to score encoded rows: `scores(x)` of x, both trees of [rows, ...].

    At most `batch` rows go through it at once.
    """

    model: Model
    scores: Callable[[Any], Any]
    engine: str
    batch: int = BATCH

    def outputs(self, x: Any) -> Any:
        """The raw outputs of any number of rows, a batch at a time."""
        count = len(tensors(x)[0])
        if count <= self.batch:
            return self.scores(x)
        begins = range(0, count, self.batch)
        return joined([self.scores(cut(x, slice(i, i + self.batch))) for i in begins])

    def predict(self, chunks: Iterator[Chunk], *, every: bool = False) -> Iterator[Predictions]:
        """Predict chunk after chunk: memory holds one of them, whatever the file's size.

        With `every`, what stands behind each prediction is kept: the probabilities of all classes.
        """
        task = self.model.task
        for chunk in chunks:
            if len(chunk.rows):
                scores = self.outputs(chunk.x)
            else:
                scores = cut(self.outputs(one_row(task)), slice(0))
            yield of_chunk(chunk, columns(task, scores, every=every), scores)


def predictor(model: Model, device: str = "cpu", threads: int | None = None) -> Predictor:
    """Make a model ready on a device: `cpu`, or `cuda` and the like for what runs in torch.

    `threads` are those of ONNX Runtime.
    """
    if model.graph is not None:
        if device != "cpu":
            raise ModelError(f"{model.path}: an exported ONNX file runs on the CPU, got {device}")
        return Predictor(model, session(model.graph, threads), "ONNX Runtime")
    if model.network is None:
        raise ModelError(f"{model.path}: expected a model with weights")
    try:
        network = model.network.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device: expected one that is here, got {device!r}") from error

    if device == "cpu" and type(network) is nn.Linear:
        return Predictor(model, _linear(network), "torch on cpu", sys.maxsize)

    def scores(x: Any) -> Any:
        with torch.inference_mode():
            outputs = network(x if device == "cpu" else mapped(lambda t: t.to(device), x))
            if not all(len(t) == len(tensors(x)[0]) for t in tensors(outputs)):
                raise ModelError(f"{model.path}: model must give its outputs row by row")
            return floats(outputs if device == "cpu" else mapped(Tensor.cpu, outputs))

    return Predictor(model, scores, f"torch on {device}")


def settle_threads(ready: Predictor) -> None:
    """In a process that only predicts: one thread of torch for a model that is a single layer.

    To hand out a product of microseconds costs more than the product.
    """
    if ready.batch == sys.maxsize:
        torch.set_num_threads(1)


def _linear(layer: nn.Linear) -> Callable[[Any], Any]:
    """A single layer as one product with the outputs first, which few of them make four times as
    fast; it needs no memory beside its outputs, so that any number of rows may go through at once.
    """
    weight, bias = layer.weight.detach(), layer.bias.detach()

    def scores(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return torch.addmm(bias[:, None], weight, x.float().t()).t()

    return scores


def session(graph: bytes, threads: int | None = None) -> Callable[[Any], Any]:
    """A function that runs an ONNX graph in this process: a tree of tensors in, one out.

    Inputs and outputs are known by name; one alone is no tree.
    """
    from client.inference.onnx_runtime import inference_session

    running = inference_session(graph, threads)
    names = [one.name for one in running.get_outputs()]

    def scores(x: Any) -> Any:
        inputs = x if isinstance(x, dict) else {"x": x}
        arrays = {name: np.ascontiguousarray(value.numpy()) for name, value in inputs.items()}
        outputs = [torch.from_numpy(array) for array in running.run(names, arrays)]
        return _tree(names, outputs)

    return scores


def _tree(names: list[str], outputs: list[Tensor]) -> Any:
    """The outputs in the form that the model gave them: a tensor, a tuple or a dict of them."""
    if names == ["scores"]:
        return outputs[0]
    keys = [name.removeprefix("scores.") for name in names]
    if keys == [str(i) for i in range(len(keys))]:
        return tuple(outputs)
    return dict(zip(keys, outputs, strict=True))


def one_row(task: Task) -> Any:
    """A row of zeros: its outputs have the form of every row's."""
    return mapped(lambda t: torch.zeros((1, *t.shape[1:]), dtype=t.dtype), none_of(task).x)
