"""A network as the graph of one hop: samples and a memory in, enhanced samples and the next memory out.

It is written node by node, after `network.forward` with N = 1. What a step costs is the number of its nodes (a third of
a microsecond each, and a microsecond for each input with its output), so whatever is constant is multiplied into the
weights beforehand, spectra stay in the order in which the transform leaves them, and all states share one vector:

    state_memory    last hop | overlap | low bins of past frames | level | hidden state of each layer

Most of that cost is the same for one stream and for thirty, so a step takes any number B of them, which know nothing of
each other. The file says B = 1, and that it may be more: see `batch`.

Widths, layers and taps are the network's. `onnx_export` refuses a graph that does something else than the network.
"""

import numpy as np
import onnx
import torch
from torch import Tensor

from ..batch import DATA_BATCH
from ..config import STFT
from ..errors import ModelFileError
from .dft import BIN_AT, BLOCK, N_BLOCKS, N_FOLDED, SHARE, FoldedDft, n_low_blocks
from .network import (
    FEATURE_FLOOR,
    FEATURE_OFFSET,
    FEATURE_SCALE,
    LEVEL_DECAY,
    LEVEL_FLOOR,
    NO_WEIGHT,
    Denoiser,
    build_network,
)
from .nodes import Nodes

STEEP = 1e15    # what is no more than 1e-6 over the floor of the level may count as silence


def hop_model(network: Denoiser, *, half: bool = True) -> onnx.ModelProto:
    """The graph from `samples` [B, hop_length] and `state_memory` [B, M] to `enhanced` and `next_state_memory`.

    Args:
        half: keep weights as float16, in half the space; they are what `round_weights` makes of them.
    """
    return _HopGraph(network, half).model()


def network_of(model: bytes, size: str) -> Denoiser:
    """The network whose `hop_model` a model file is: what was multiplied into the weights is taken out again.

    Raises:
        ModelFileError: the file holds something else.
    """
    graph = onnx.load_from_string(model).graph
    values = {constant.name: onnx.numpy_helper.to_array(constant).astype(np.float64) for constant in graph.initializer}
    network = build_network(size)
    config = network.config
    found: dict[str, np.ndarray] = {}
    try:
        values |= {node.output[0]: values[node.input[0]] for node in graph.node if node.op_type == "Cast"}
        layers = [[values[name][0] for name in node.input[1:4]] for node in graph.node if node.op_type == "GRU"]
        heads = [[values[name] for name in node.input[1:]] for node in graph.node
                 if node.op_type == "Gemm" and any(attribute.name == "transB" for attribute in node.attribute)]
        scale, offset = FEATURE_SCALE, FEATURE_OFFSET
        for i, (w, r, b) in enumerate(layers):
            inputs, (bias, hidden_bias) = w / scale, np.split(b, 2)
            arrays = {"weight_ih_l0": inputs, "weight_hh_l0": r, "bias_ih_l0": bias - offset * inputs.sum(1),
                      "bias_hh_l0": hidden_bias}
            found |= {f"layers.{i}.{name}": _gates(array) for name, array in arrays.items()}
            scale, offset = 1.0, 0.0
        (found["gain_head.weight"], found["gain_head.bias"]), (taps, taps_bias) = heads
        place = [list(BIN_AT).index(i) for i in range(config.n_filter_bins)]
        n_rows = 2 * config.n_taps
        found["filter_head.weight"] = taps.reshape(n_rows, -1, config.hidden)[:, place].reshape(-1, config.hidden)
        found["filter_head.bias"] = taps_bias.reshape(n_rows, -1)[:, place].ravel()
        network.load_state_dict({name: torch.from_numpy(np.array(array, np.float32)) for name, array in found.items()})
    except (KeyError, ValueError, RuntimeError) as error:
        raise ModelFileError(f"the model holds no network of size {size} ({str(error).splitlines()[0]}); start from a "
                             "generalist or from a specialist of this version") from error
    return network.eval()


class _HopGraph:
    def __init__(self, network: Denoiser, half: bool) -> None:
        self.network, self.config = network, network.config
        assert not self.config.looks_ahead
        self.nodes = Nodes()
        self.weights = self.nodes.half_constant if half else self.nodes.constant
        self.n_low_blocks = n_low_blocks(self.config.n_filter_bins)
        self.n_low = self.n_low_blocks * BLOCK

    def model(self) -> onnx.ModelProto:
        nodes, config = self.nodes, self.config
        n_past = config.n_taps - 1
        lengths = [STFT.delay, STFT.delay, *[2 * self.n_low] * n_past, 2, *[config.hidden] * config.n_layers]
        last_hop, overlap, *others = nodes.split("state_memory", lengths, axis=1)
        past, level = others[:n_past], others[n_past]
        hidden = [nodes.reshape(state, 1, -1, config.hidden) for state in others[n_past + 1:]]

        window = nodes.constant(np.sin(np.pi * np.arange(STFT.n_fft) / STFT.n_fft)[None])
        dft = FoldedDft(nodes)
        spectrum = dft.spectrum(nodes("Mul", nodes("Concat", last_hop, "samples", axis=1), window))

        features, level = self.features(spectrum, level)
        hidden = [nodes.reshape(state, -1, config.hidden) for state in self.layers(features, hidden)]
        total = hidden[0]
        for more in hidden[1:]:
            total = nodes("Add", total, more)

        low = nodes.split(spectrum, [self.n_low, N_FOLDED - self.n_low], axis=2)[0]
        past = [*past, nodes.reshape(low, -1, 2 * self.n_low)]
        masked = nodes.reshape(nodes("Mul", spectrum, self.gains(total)), -1, 2 * N_BLOCKS, BLOCK)
        products, sums = self.filtered(total, past)
        frame = dft.frame(nodes("Concat", masked, products, axis=1),
                          np.concatenate([np.eye(2 * N_BLOCKS), sums], axis=1))

        frame = nodes("Mul", nodes.reshape(frame, -1, STFT.n_fft), window)
        ready, rest = nodes.split(frame, [STFT.hop_length, STFT.delay], axis=1)
        nodes("Add", ready, overlap, output="enhanced")
        nodes("Concat", "samples", rest, *past[1:], level, *hidden, axis=1, output="next_state_memory")
        hop_shape, memory_shape = [1, STFT.hop_length], [1, sum(lengths)]
        model = nodes.model({"samples": hop_shape, "state_memory": memory_shape},
                            {"enhanced": hop_shape, "next_state_memory": memory_shape})
        for value in [*model.graph.input, *model.graph.output]:
            value.type.tensor_type.shape.dim[0].denotation = DATA_BATCH
        return model

    def features(self, spectrum: str, level: str) -> tuple[str, str]:
        """Features [1, B, bands], still without their scale and offset, and the next `level` [B, 2].

        The level is kept as (running sum of power and floor, running sum of weights): their quotient is the level
        plus its floor.
        """
        nodes, n_bands, step = self.nodes, self.config.n_bands, 1.0 - LEVEL_DECAY
        power = nodes("ReduceSumSquare", spectrum, axes=[1], keepdims=0)    # [B, 272]
        # one product with the power of every place: the bands; power and one, to be added to the level; how far the
        # mean power is over the floor, so many times that it is beyond 0 and 1 at once
        measures = np.zeros((N_FOLDED, n_bands + 3))
        measures[:, :n_bands] = _array(self.network.band_mean)[BIN_AT]
        measures[:, n_bands], measures[:, -1] = step / STFT.n_bins, STEEP / STFT.n_bins
        offsets = np.concatenate([np.zeros(n_bands), [step * LEVEL_FLOOR, step, -STEEP * LEVEL_FLOOR]])
        measured = nodes("Gemm", power, nodes.sparse_constant(SHARE[:, None] * measures), nodes.constant(offsets))
        bands, new, beyond = nodes.split(measured, [n_bands, 2, 1], axis=1)
        new = nodes("Mul", new, nodes("Clip", beyond, nodes.constant(NO_WEIGHT), nodes.constant(1.0)))
        level = nodes("Gemm", level, nodes.constant(np.eye(2)), new, alpha=LEVEL_DECAY)     # level * decay + new
        relative = nodes("Div", bands, nodes("Div", *nodes.split(level, [1, 1], axis=1)))
        # a layer wants [N, B, bands], and gets it from the shape of the floor
        return nodes("Log", nodes("Add", relative, nodes.constant([[[FEATURE_FLOOR]]]))), level

    def layers(self, features: str, hidden: list[str]) -> list[str]:
        """The next hidden state [1, B, H] of every layer."""
        states, scale, offset = [], FEATURE_SCALE, FEATURE_OFFSET
        for layer, state in zip(self.network.layers, hidden, strict=True):
            value = {name: _gates(_array(parameter)) for name, parameter in layer.named_parameters()}
            bias = value["bias_ih_l0"] + offset * value["weight_ih_l0"].sum(1)
            weights = [self.weights(scale * value["weight_ih_l0"][None]), self.weights(value["weight_hh_l0"][None]),
                       self.nodes.constant(np.concatenate([bias, value["bias_hh_l0"]])[None])]
            features = self.nodes.gru(features, state, weights, self.config.hidden)
            states.append(features)
            scale, offset = 1.0, 0.0
        return states

    def gains(self, total: str) -> str:
        """The gain at every place [B, 1, 272]."""
        nodes, head = self.nodes, self.network.gain_head
        gains = nodes("Sigmoid", self.linear(total, _array(head.weight), _array(head.bias)))
        spread = nodes.sparse_constant(_array(self.network.band_spread)[:, BIN_AT])
        return nodes("MatMul", nodes.reshape(gains, -1, 1, self.config.n_bands), spread)

    def filtered(self, total: str, frames: list[str]) -> tuple[str, np.ndarray]:
        """Products of the taps with the low bins of each frame [B, R, 17], and how they add up to blocks [32, R]."""
        nodes, config, head = self.nodes, self.config, self.network.filter_head
        bin_at = BIN_AT[:self.n_low]
        used, bin_at = bin_at < config.n_filter_bins, bin_at.clip(max=config.n_filter_bins - 1)
        weight = _array(head.weight).reshape(2 * config.n_taps, config.n_filter_bins, config.hidden)
        bias = _array(head.bias).reshape(2 * config.n_taps, config.n_filter_bins)
        taps = self.linear(total, (weight[:, bin_at] * used[:, None]).reshape(-1, config.hidden),
                           (bias[:, bin_at] * used).ravel())
        products = nodes("Mul", nodes.reshape(taps, -1, config.n_taps, 2, 1, self.n_low),
                         nodes.reshape(nodes("Concat", *frames, axis=1), -1, config.n_taps, 1, 2, self.n_low))
        # (a + jb) (x + jy): of ax, ay, bx, by the real part is ax - by, the imaginary one ay + bx
        parts = np.array([[1, 0, 0, -1], [0, 1, 1, 0]])
        low_blocks = np.eye(N_BLOCKS, self.n_low_blocks)
        sums = np.concatenate([np.kron(parts, low_blocks)] * config.n_taps, axis=1)
        return nodes.reshape(products, -1, sums.shape[1], BLOCK), sums

    def linear(self, value: str, weight: np.ndarray, bias: np.ndarray) -> str:
        return self.nodes("Gemm", value, self.weights(weight), self.nodes.constant(bias), transB=1)


def _gates(array: np.ndarray) -> np.ndarray:
    """torch has the gates of a GRU in the order reset, update, new; ONNX update, reset, new. From one to the other."""
    first, second, new = np.split(array, 3)
    return np.concatenate([second, first, new])


def _array(parameter: Tensor) -> np.ndarray:
    return parameter.detach().double().numpy()
