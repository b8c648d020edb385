"""A torch model as an ONNX graph, built operation by operation from its traced forward pass.

Only the operations of the tasks' models are known; any other is refused by name, never guessed.
The weights keep their state_dict names, so that an exported graph can be compared with its model.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import fx, nn

from client.tasks.features.public_layers import SMALLEST, RandomFeatures, RowNorm

OPSET = 17
IR_VERSION = 9


class ConversionError(ValueError):
    """A model with an operation that has no translation here."""


class _Graph:
    """The nodes and constants collected so far."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def constant(self, value: np.ndarray, name: str | None = None) -> str:
        name = name or f"constant_{len(self.constants)}"
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], output, **attributes))
        return output

    def whole(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))


def to_onnx(
    model: nn.Module,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """The model as a checked ONNX graph from `x` [rows, *shape] to `scores` [rows, ...]."""
    # Wrapped, so that a model that is one layer is traced as that layer, not through it.
    traced = _traced(nn.Sequential(model.eval()))
    with torch.inference_mode():
        scores = model(torch.zeros((1, *shape), dtype=dtype))
    graph = _Graph()
    known: dict[str, str] = {}
    modules = dict(traced.named_modules())
    result = ""
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            known[node.name] = "x"
        elif node.op == "get_attr":
            value = _attribute(traced, str(node.target))
            name = str(node.target).removeprefix("0.")
            known[node.name] = graph.constant(value.detach().numpy(), name)
        elif node.op == "call_module":
            known[node.name] = _module(graph, str(node.target), modules[node.target], known, node)
        elif node.op in ("call_function", "call_method"):
            known[node.name] = _call(graph, node, known)
        else:
            result = known[node.args[0].name]
    graph.nodes.append(helper.make_node("Identity", [result], ["scores"], "scores"))
    kind = helper.np_dtype_to_tensor_dtype(torch.zeros(0, dtype=dtype).numpy().dtype)
    built = helper.make_model(
        helper.make_graph(
            graph.nodes,
            type(model).__name__,
            [helper.make_tensor_value_info("x", kind, ["rows", *shape])],
            [
                helper.make_tensor_value_info(
                    "scores", TensorProto.FLOAT, ["rows", *scores.shape[1:]]
                )
            ],
            list(graph.constants.values()),
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="tacit",
    )
    helper.set_model_props(built, dict(metadata or {}))
    onnx.checker.check_model(built, full_check=True)
    return built


class _Tracer(fx.Tracer):
    """The product's own first layers are one operation each."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = isinstance(m, RowNorm | RandomFeatures)
        return own or super().is_leaf_module(m, module_qualified_name)


def _traced(model: nn.Module) -> fx.GraphModule:
    return fx.GraphModule(model, _Tracer().trace(model))


def _attribute(root: nn.Module, path: str) -> torch.Tensor:
    value: Any = root
    for part in path.split("."):
        value = getattr(value, part)
    if not isinstance(value, torch.Tensor):
        raise ConversionError(f"{path}: expected a tensor")
    return value


def _module(
    graph: _Graph, name: str, module: nn.Module, known: Mapping[str, str], node: fx.Node
) -> str:
    first = node.args[0]
    if not isinstance(first, fx.Node):
        raise ConversionError(f"{name}: expected one tensor as input")
    x = known[first.name]
    for kind, build in _MODULES.items():
        if isinstance(module, kind):
            return build(graph, name.removeprefix("0").removeprefix("."), module, x)
    raise ConversionError(f"{name}: no translation to ONNX for {type(module).__name__}")


def _weight(graph: _Graph, name: str, module: nn.Module, field: str = "weight") -> str:
    full = f"{name}.{field}".removeprefix(".")
    return graph.constant(getattr(module, field).detach().numpy(), full)


def _linear(graph: _Graph, name: str, module: nn.Linear, x: str) -> str:
    weight = _weight(graph, name, module)
    bias = [_weight(graph, name, module, "bias")] if module.bias is not None else []
    return graph.add("Gemm", x, weight, *bias, transB=1)


def _sizes(value: Any, dims: int) -> list[int]:
    return [int(v) for v in value] if isinstance(value, tuple | list) else [int(value)] * dims


def _conv(graph: _Graph, name: str, module: nn.Conv1d | nn.Conv2d, x: str) -> str:
    dims = len(module.kernel_size)
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        raise ConversionError(f"{name}: expected a padding in numbers, with zeros")
    bias = [_weight(graph, name, module, "bias")] if module.bias is not None else []
    return graph.add(
        "Conv",
        x,
        _weight(graph, name, module),
        *bias,
        kernel_shape=list(module.kernel_size),
        strides=_sizes(module.stride, dims),
        pads=_sizes(module.padding, dims) * 2,
        dilations=_sizes(module.dilation, dims),
        group=module.groups,
    )


def _max_pool(graph: _Graph, name: str, module: nn.MaxPool1d | nn.MaxPool2d, x: str) -> str:
    dims = 1 if isinstance(module, nn.MaxPool1d) else 2
    return graph.add(
        "MaxPool",
        x,
        kernel_shape=_sizes(module.kernel_size, dims),
        strides=_sizes(module.stride, dims),
        pads=_sizes(module.padding, dims) * 2,
        dilations=_sizes(module.dilation, dims),
        ceil_mode=int(module.ceil_mode),
    )


def _average_pool(graph: _Graph, name: str, module: nn.AvgPool1d | nn.AvgPool2d, x: str) -> str:
    dims = 1 if isinstance(module, nn.AvgPool1d) else 2
    return graph.add(
        "AveragePool",
        x,
        kernel_shape=_sizes(module.kernel_size, dims),
        strides=_sizes(module.stride, dims),
        pads=_sizes(module.padding, dims) * 2,
        ceil_mode=int(module.ceil_mode),
        count_include_pad=int(module.count_include_pad),
    )


def _global_pool(graph: _Graph, name: str, module: nn.Module, x: str) -> str:
    if set(_sizes(module.output_size, 1)) != {1}:
        raise ConversionError(f"{name}: expected an adaptive pooling to size 1")
    return graph.add("GlobalAveragePool", x)


def _flatten(graph: _Graph, name: str, module: nn.Flatten, x: str) -> str:
    if (module.start_dim, module.end_dim) != (1, -1):
        raise ConversionError(f"{name}: expected a flattening of all but the rows")
    return graph.add("Flatten", x, axis=1)


def _unflatten(graph: _Graph, name: str, module: nn.Unflatten, x: str) -> str:
    if module.dim != 1:
        raise ConversionError(f"{name}: expected an unflattening of dimension 1")
    return graph.add("Reshape", x, graph.whole(0, *module.unflattened_size))


def _group_norm(graph: _Graph, name: str, module: nn.GroupNorm, x: str) -> str:
    groups, dtype = module.num_groups, np.float32
    split = graph.add("Reshape", x, graph.whole(0, groups, -1))
    ones = graph.constant(np.ones(groups, dtype))
    zeros = graph.constant(np.zeros(groups, dtype))
    scaled = graph.add("InstanceNormalization", split, ones, zeros, epsilon=module.eps)
    out = graph.add("Reshape", scaled, graph.whole(0, module.num_channels, -1))
    if module.affine:
        for field, kind in (("weight", "Mul"), ("bias", "Add")):
            values = getattr(module, field).detach().numpy().reshape(-1, 1)
            out = graph.add(kind, out, graph.constant(values, f"{name}.{field}"))
    return graph.add("Reshape", out, graph.add("Shape", x))


def _layer_norm(graph: _Graph, name: str, module: nn.LayerNorm, x: str) -> str:
    if not module.elementwise_affine:
        raise ConversionError(f"{name}: expected a layer norm with weights")
    bias = [_weight(graph, name, module, "bias")] if module.bias is not None else []
    axis = -len(module.normalized_shape)
    weight = _weight(graph, name, module)
    return graph.add("LayerNormalization", x, weight, *bias, axis=axis, epsilon=module.eps)


def _embedding(graph: _Graph, name: str, module: nn.Embedding, x: str) -> str:
    return graph.add("Gather", _weight(graph, name, module), x, axis=0)


def _plain(kind: str) -> Callable[[_Graph, str, Any, str], str]:
    return lambda graph, name, module, x: graph.add(kind, x)


def _gelu(graph: _Graph, name: str, module: nn.GELU, x: str) -> str:
    half = graph.constant(np.array(0.5, np.float32))
    one = graph.constant(np.array(1, np.float32))
    root = graph.constant(np.array(2**-0.5, np.float32))
    if module.approximate != "none":
        raise ConversionError(f"{name}: expected the exact GELU")
    erf = graph.add("Add", graph.add("Erf", graph.add("Mul", x, root)), one)
    return graph.add("Mul", graph.add("Mul", x, half), erf)


def _row_norm(graph: _Graph, name: str, module: RowNorm, x: str) -> str:
    least = graph.constant(np.array(SMALLEST, np.float32))
    length = graph.constant(np.array(module.length, np.float32))
    size = graph.add("Max", graph.add("ReduceL2", x, axes=[-1], keepdims=1), least)
    return graph.add("Mul", x, graph.add("Div", length, size))


def _random_features(graph: _Graph, name: str, module: RandomFeatures, x: str) -> str:
    projection = module.projection.detach().numpy().T
    z = graph.add("MatMul", x, graph.constant(projection, f"{name}.projection".removeprefix(".")))
    both = graph.add("Concat", graph.add("Cos", z), graph.add("Sin", z), axis=-1)
    return graph.add("Mul", both, graph.constant(np.array(module.size, np.float32)))


_MODULES: dict[type[nn.Module], Callable[[_Graph, str, Any, str], str]] = {
    nn.Linear: _linear,
    nn.Conv1d: _conv,
    nn.Conv2d: _conv,
    nn.MaxPool1d: _max_pool,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool1d: _average_pool,
    nn.AvgPool2d: _average_pool,
    nn.AdaptiveAvgPool1d: _global_pool,
    nn.AdaptiveAvgPool2d: _global_pool,
    nn.Flatten: _flatten,
    nn.Unflatten: _unflatten,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    nn.Embedding: _embedding,
    nn.GELU: _gelu,
    nn.Tanh: _plain("Tanh"),
    nn.ReLU: _plain("Relu"),
    nn.Sigmoid: _plain("Sigmoid"),
    RowNorm: _row_norm,
    RandomFeatures: _random_features,
    nn.Identity: lambda graph, name, module, x: x,
    nn.Dropout: lambda graph, name, module, x: x,
}

_UNARY = {
    torch.tanh: "Tanh",
    torch.relu: "Relu",
    torch.sigmoid: "Sigmoid",
    F.relu: "Relu",
    F.tanh: "Tanh",
    "tanh": "Tanh",
    "relu": "Relu",
    "sigmoid": "Sigmoid",
}
_BINARY = {
    operator.add: "Add",
    operator.sub: "Sub",
    operator.mul: "Mul",
    operator.truediv: "Div",
    torch.add: "Add",
    torch.mul: "Mul",
}


def _call(graph: _Graph, node: fx.Node, known: Mapping[str, str]) -> str:
    """A function or a method call."""

    def value(argument: Any) -> str:
        if isinstance(argument, fx.Node):
            return known[argument.name]
        return graph.constant(np.array(argument, np.float32))

    def option(position: int, name: str, default: Any = None) -> Any:
        if len(node.args) > position:
            return node.args[position]
        return node.kwargs.get(name, default)

    target: Any = node.target
    if target in _UNARY:
        return graph.add(_UNARY[target], value(node.args[0]))
    if target in _BINARY:
        return graph.add(_BINARY[target], value(node.args[0]), value(node.args[1]))
    if target in (torch.flatten, "flatten") and option(1, "start_dim", 0) == 1:
        return graph.add("Flatten", value(node.args[0]), axis=1)
    if target in (torch.mean, "mean"):
        axes = _sizes(option(1, "dim"), 1)
        keep = int(bool(option(2, "keepdim", False)))
        return graph.add("ReduceMean", value(node.args[0]), axes=axes, keepdims=keep)
    if target in (torch.unsqueeze, "unsqueeze"):
        return graph.add("Unsqueeze", value(node.args[0]), graph.whole(option(1, "dim")))
    if target in (torch.squeeze, "squeeze") and option(1, "dim") is not None:
        return graph.add("Squeeze", value(node.args[0]), graph.whole(option(1, "dim")))
    raise ConversionError(f"no translation to ONNX for {getattr(target, '__name__', target)!r}")
