"""A graph written node by node: names and constants are taken care of here."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

OPSET, IR_VERSION = 17, 8


class Nodes:
    """The nodes so far. Methods add one and return the name of its output, to be the input of others.

    >>> nodes = Nodes()
    >>> doubled = nodes("Mul", "samples", nodes.constant([2.0]), output="enhanced")
    >>> nodes.model({"samples": [1, 256]}, {"enhanced": [1, 256]}).graph.node[0].op_type
    'Mul'
    """

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def __call__(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """One node with one output."""
        output = output or self._new_name()
        self._nodes.append(onnx.helper.make_node(operator, inputs, [output], **attributes))
        return output

    def reshape(self, value: str, *shape: int, output: str = "") -> str:
        return self("Reshape", value, self.constant(np.array(shape)), output=output)

    def split(self, value: str, lengths: Sequence[int], axis: int) -> list[str]:
        names = [f"{self._new_name()}_{i}" for i in range(len(lengths))]
        self._nodes.append(onnx.helper.make_node("Split", [value, self.constant(np.array(lengths))], names, axis=axis))
        return names

    def gru(self, value: str, hidden: str, weights: Sequence[str], hidden_size: int) -> str:
        """The next hidden state [1, B, H]; `weights` are the operator's W, R and B."""
        name = self._new_name()
        self._nodes.append(onnx.helper.make_node("GRU", [value, *weights, "", hidden], ["", name],
                                                 hidden_size=hidden_size, linear_before_reset=1))
        return name

    def constant(self, value: Any) -> str:
        """Integers are kept as int64, all else as float32."""
        value = np.asarray(value)
        return self._keep(value.astype(np.int64 if value.dtype.kind == "i" else np.float32))

    def half_constant(self, value: np.ndarray) -> str:
        """Float32, kept as float16: the runtime widens it once, when it loads the file."""
        return self("Cast", self._keep(value.astype(np.float16)), to=onnx.TensorProto.FLOAT)

    def sparse_constant(self, value: np.ndarray) -> str:
        """Float32, kept as what is not zero and where: the runtime fills it in once, when it loads the file."""
        where = np.flatnonzero(value)
        zeros = self("ConstantOfShape", self.constant([value.size]))
        filled = self("ScatterElements", zeros, self.constant(where), self.constant(value.ravel()[where]))
        return self.reshape(filled, *value.shape)

    def model(self, inputs: dict[str, Sequence[int]], outputs: dict[str, Sequence[int]]) -> onnx.ModelProto:
        """All nodes as a model of float32 inputs and outputs: name -> shape."""
        def described(values: dict[str, Sequence[int]]) -> list[onnx.ValueInfoProto]:
            return [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
                    for name, shape in values.items()]

        graph = onnx.helper.make_graph(self._nodes, "graph", described(inputs), described(outputs), self._constants)
        return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)],
                                      ir_version=IR_VERSION, producer_name="pse_sdk")

    def _keep(self, value: np.ndarray) -> str:
        name = f"c{len(self._constants)}"
        self._constants.append(onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def _new_name(self) -> str:
        return f"n{len(self._nodes)}"
