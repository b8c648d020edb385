"""ONNX Runtime, with its telemetry off before it is loaded; the only module that imports it."""

from privacy.runtime import disable_telemetry

disable_telemetry()  # at its import ONNX Runtime has already begun to collect

import onnxruntime  # noqa: E402
from onnxruntime import quantization  # noqa: E402
from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: E402
from onnxruntime.transformers.onnx_model import OnnxModel  # noqa: E402

__all__ = ["OnnxModel", "convert_float_to_float16", "onnxruntime", "quantization"]
