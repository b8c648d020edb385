"""A torch model as an ONNX graph, by torch's own exporter (torch.export and onnxscript).

Whatever the exporter can translate is exported: any other model is refused in one line.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from client.models.loading import ModelError
from client.tasks.rows import Rows

OPSET: Final = 18
"""What the exporter writes by itself; older programs read it too."""
NAME: Final = "scores"
"""The one output; of several, NAME.key or NAME.0, NAME.1 and so on."""


def to_onnx(network: nn.Module, rows: Rows) -> onnx.ModelProto:
    """The model as a checked graph for any number of rows; `rows` show the form of its inputs.

    Its inputs are `x`, or the arrays of a row by name; its outputs are named as `names_of` says.
    Weights keep their state_dict names. Nothing in it tells where it was made. ModelError.
    """
    try:
        import onnxscript  # noqa: F401 - the exporter's own; an extra of this product
    except ImportError:
        raise ModelError(
            'format onnx needs the extra "export" (pip install "tacit[export]")'
        ) from None
    network = network.eval()
    tree = rows.take(range(min(3, len(rows)))).x
    inputs = tree if isinstance(tree, dict) else {"x": tree}
    with torch.no_grad():
        outputs = names_of(network(tree))
    dims = tuple({0: torch.export.Dim("rows")} for _ in inputs)
    program = None
    try:
        with _quiet():
            program = torch.onnx.export(
                _Flat(network, tuple(inputs) if isinstance(tree, dict) else None),
                tuple(inputs.values()),
                dynamo=True,
                dynamic_shapes=(dims,),
                input_names=list(inputs),
                output_names=list(outputs),
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("torch", "onnxscript", "builtins"):
            raise
        why = " ".join(str(error.__cause__ or error).split())[:200]
        raise ModelError(f"model: must be one that torch.onnx exports ({why})") from error
    if program is None:
        raise ModelError("model: must be one that torch.onnx exports")
    graph = program.model_proto
    _without_zeros(graph.graph)
    for value in graph.graph.input:
        if not value.type.tensor_type.shape.dim[0].dim_param:
            raise ModelError(
                "model: must take any number of rows to be exported; it makes a constant of it "
                "(write x.shape[0] for len(x))"
            )
    _anonymous(graph)
    onnx.checker.check_model(graph, full_check=True)
    return graph


def names_of(outputs: Any) -> dict[str, Tensor]:
    """The outputs of a model by the names that an exported graph gives them; ModelError."""
    if isinstance(outputs, Tensor):
        return {NAME: outputs}
    pairs = outputs.items() if isinstance(outputs, Mapping) else enumerate(outputs)
    named = {f"{NAME}.{key}": value for key, value in pairs}
    if not named or not all(isinstance(value, Tensor) for value in named.values()):
        raise ModelError("model: must give a tensor, or a flat dict or tuple of tensors, to export")
    return named


class _Flat(nn.Module):
    """The model with the arrays of a row as arguments of their own, and outputs in a list."""

    def __init__(self, network: nn.Module, names: tuple[str, ...] | None) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *arrays: Tensor) -> tuple[Tensor, ...]:
        x = arrays[0] if self.names is None else dict(zip(self.names, arrays, strict=True))
        return tuple(names_of(self.network(x)).values())


def _without_zeros(graph: onnx.GraphProto) -> None:
    """Take `allowzero`, which some programs do not know, from Reshapes to a shape without a 0."""
    shapes = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer if len(t.dims) < 2}
    for node in graph.node:
        if node.op_type == "Reshape" and (shapes.get(node.input[1], np.zeros(1)) != 0).all():
            kept = [a for a in node.attribute if a.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend(kept)


def _anonymous(graph: onnx.ModelProto) -> None:
    """Leave out what the exporter notes of this machine: paths, lines of source, module names."""
    for part in (graph, graph.graph, *graph.functions):
        del part.metadata_props[:]
        part.doc_string = ""
    for node in (*graph.graph.node, *(node for f in graph.functions for node in f.node)):
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*graph.graph.input, *graph.graph.output, *graph.graph.value_info):
        del value.metadata_props[:]
        value.doc_string = ""
    for tensor in graph.graph.initializer:
        tensor.doc_string = ""
        del tensor.metadata_props[:]
    graph.producer_name, graph.producer_version = "tacit", ""
    renamed = {t.name: t.name.removeprefix("network.") for t in graph.graph.initializer}
    for tensor in graph.graph.initializer:
        tensor.name = renamed[tensor.name]
    for node in graph.graph.node:
        for at, name in enumerate(node.input):
            node.input[at] = renamed.get(name, name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's advice out of the site's log."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
