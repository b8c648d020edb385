"""A released model made smaller: the least weights set to zero, numbers in half precision.

Both are computed from the released model alone, so they cost no privacy (post-processing).
"""

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from client.dpsgd.weights import trained_of

if TYPE_CHECKING:
    import onnx


def pruned(network: nn.Module, share: float) -> tuple[nn.Module, int, int]:
    """A copy whose smallest `share` of trained weights are zero; how many, and of how many.

    Weights of all layers are ranked together by their size (magnitude pruning: Han et al. 2015).
    Vectors (biases, norms) keep all their numbers. Of weights of equal size the first are taken.
    """
    smaller = copy.deepcopy(network)
    matrices = [p for p in trained_of(smaller).values() if p.dim() > 1]
    count = sum(p.numel() for p in matrices)
    zeros = int(share * count)
    if zeros:
        sizes = torch.cat([p.detach().abs().flatten() for p in matrices])
        least = torch.zeros(count, dtype=torch.bool)
        least[sizes.argsort(stable=True)[:zeros]] = True
        with torch.no_grad():
            parts = least.split([p.numel() for p in matrices])
            for p, part in zip(matrices, parts, strict=True):
                p[part.view(p.shape)] = 0
    return smaller, zeros, count


def halved(graph: "onnx.ModelProto") -> "onnx.ModelProto":
    """The graph with weights and products in float16; inputs and outputs stay as they were."""
    from client.inference.onnx_runtime import float16_tools

    OnnxModel, convert_float_to_float16 = float16_tools()
    converted: Any = OnnxModel(convert_float_to_float16(graph, keep_io_types=True))
    converted.topological_sort()  # the casts of inputs stand behind what reads them
    half: onnx.ModelProto = converted.model
    return half
