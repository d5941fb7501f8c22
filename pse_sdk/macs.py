"""How much arithmetic a model is: multiply-accumulates, counted from the shapes of one real step."""

import json
import tempfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from .onnx_denoiser import session_options


def count_macs(model: bytes) -> int:
    """Multiply-accumulates of one step: matrix products, convolutions and recurrent layers, as the file has them.

    The shapes come from onnxruntime's profile of a real step with all optimization off; element-wise operations are
    not counted.
    """
    options = session_options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")     # packed weights are missing in the profile
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        session.run(None, {i.name: np.zeros(i.shape, np.float32) for i in session.get_inputs()})
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    return sum(_node_macs(event["args"]) for event in events if "op_name" in event.get("args", {}))


def _node_macs(node: Mapping[str, Any]) -> int:
    inputs = _shapes(node["input_type_shape"])
    outputs = _shapes(node["output_type_shape"])
    match node["op_name"]:
        case "MatMul":
            return prod(outputs[0]) * inputs[0][-1]
        case "Gemm":            # [M, K] x [K, N], where either may be stored transposed
            return prod(inputs[0]) * outputs[0][-1]
        case "Conv":            # weights [out, in / groups, kernel ...]
            return prod(outputs[0]) * prod(inputs[1][1:])
        case "ConvTranspose":   # weights [in, out / groups, kernel ...]
            return prod(inputs[0]) * prod(inputs[1][1:])
        case "GRU" | "LSTM":    # input [N, B, I], weights [directions, gates * H, I] and [directions, gates * H, H]
            return prod(inputs[0][:2]) * (prod(inputs[1]) + prod(inputs[2]))
        case _:
            return 0


def _shapes(entries: list[dict[str, list[int]]]) -> list[list[int]]:
    """A profile writes [{"float": [1, 44]}, ...]."""
    return [shape for entry in entries for shape in entry.values()]
