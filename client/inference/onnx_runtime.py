"""ONNX Runtime, with its telemetry off before it is loaded; the only module that imports it."""

from typing import Any

from client.models.loading import ModelError
from privacy.runtime import disable_telemetry

disable_telemetry()  # at its import ONNX Runtime has already begun to collect

import onnxruntime  # noqa: E402

__all__ = ["float16_tools", "inference_session", "onnxruntime", "quantization_tools"]


def inference_session(graph: bytes, threads: int | None = None) -> Any:
    """A graph ready to run on this CPU, on so many threads; ModelError."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    # Spinning workers would hold whole cores between requests.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except RuntimeError as error:
        raise ModelError("expected an ONNX graph that ONNX Runtime can run") from error


def quantization_tools() -> Any:
    """Its tools for int8, which take long to load."""
    from onnxruntime import quantization

    return quantization


def float16_tools() -> tuple[Any, Any]:
    """`OnnxModel` and `convert_float_to_float16`, which take long to load."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    return OnnxModel, convert_float_to_float16
