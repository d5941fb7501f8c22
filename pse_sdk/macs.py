"""How much arithmetic a model is: multiply-accumulates, counted from the shapes of real steps."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from .onnx_denoiser import session_options


class CountedSession(onnxruntime.InferenceSession):     # type: ignore[misc]
    """A session that counts its arithmetic: slow, with all optimization off and the runtime's profile on.

    Options and providers that the caller asks for are left aside.
    """

    def __init__(self, model: str | os.PathLike[str] | bytes, *_: Any, **__: Any) -> None:
        options = session_options()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")     # packed weights have no shape there
        options.enable_profiling = True
        self._folder = tempfile.TemporaryDirectory()
        options.profile_file_prefix = str(Path(self._folder.name) / "profile")
        self.n_runs = 0
        self.n_bytes = len(model) if isinstance(model, bytes) else Path(model).stat().st_size
        super().__init__(model, options, providers=["CPUExecutionProvider"])

    def run(self, *arguments: Any, **named: Any) -> Any:
        self.n_runs += 1
        return super().run(*arguments, **named)

    def macs_per_run(self) -> float:
        """Multiply-accumulates of a run, the mean of all so far. Ends the counting."""
        with self._folder:
            events = json.loads(Path(self.end_profiling()).read_text("utf-8"))
        counted = sum(_node_macs(event["args"]) for event in events if "op_name" in event.get("args", {}))
        return counted / max(self.n_runs, 1)


def count_macs(model: bytes) -> int:
    """Multiply-accumulates of one step: matrix products, convolutions and recurrent layers, as the file has them.

    The shapes come from onnxruntime's profile of a real step with all optimization off; element-wise operations are
    not counted.
    """
    session = CountedSession(model)
    session.run(None, {i.name: np.zeros(i.shape, np.float32) for i in session.get_inputs()})
    return round(session.macs_per_run())


@contextmanager
def counted_sessions() -> Iterator[list[CountedSession]]:
    """The sessions that anybody in this process makes meanwhile, every one of them a `CountedSession`."""
    sessions: list[CountedSession] = []

    def make(*arguments: Any, **named: Any) -> CountedSession:
        sessions.append(CountedSession(*arguments, **named))
        return sessions[-1]

    usual = onnxruntime.InferenceSession
    onnxruntime.InferenceSession = make
    try:
        yield sessions
    finally:
        onnxruntime.InferenceSession = usual


def _node_macs(node: Mapping[str, Any]) -> int:
    inputs = _shapes(node["input_type_shape"])
    outputs = _shapes(node["output_type_shape"])
    match node["op_name"]:
        case "MatMul" | "MatMulInteger" | "DynamicQuantizeMatMul":
            return prod(outputs[0]) * inputs[0][-1]
        case "Gemm":            # [M, K] x [K, N], where either may be stored transposed
            return prod(inputs[0]) * outputs[0][-1]
        case "Conv" | "ConvInteger":        # weights [out, in / groups, kernel ...]
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
