"""From a network to the bytes of a model file, refused unless torch and onnxruntime agree."""

import copy
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from ..config import STFT
from ..errors import ModelFileError
from ..model_format import ModelInfo, seal
from ..onnx_denoiser import OnnxDenoiser
from .graph import hop_model
from .network import Denoiser, State

PARITY_STEPS = 2000
PARITY_TOLERANCE = 1e-5
ROUNDING_TIMES = 4.0    # of what rounding to float32 does to the network's own outputs, where that is more


class HopDenoiser(nn.Module):
    """A network between analysis and synthesis: a hop of each stream in, a hop out, every memory an argument.

    What the graph has to do, in the plainest words: torch's own transforms, the network's own forward.
    """

    window: Tensor

    def __init__(self, network: Denoiser) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("window", torch.hann_window(STFT.n_fft).sqrt())

    def initial_state(self, batch: int = 1) -> State:
        return {**self.network.initial_state(batch),
                "input": self.window.new_zeros(batch, STFT.delay),
                "overlap": self.window.new_zeros(batch, STFT.delay)}

    def forward(self, samples: Tensor, state: State) -> tuple[Tensor, State]:
        """Shape: `samples` and the result [B, hop_length]."""
        hop = STFT.hop_length
        frame = torch.cat([state["input"], samples], dim=1) * self.window
        spectrum = torch.view_as_real(torch.fft.rfft(frame)).transpose(1, 2).unsqueeze(1)
        enhanced, next_state = self.network(spectrum, {k: v for k, v in state.items() if k not in ("input", "overlap")})
        enhanced = torch.view_as_complex(enhanced[:, 0].transpose(1, 2).contiguous())
        output = torch.fft.irfft(enhanced, STFT.n_fft) * self.window
        return output[:, :hop] + state["overlap"], {**next_state, "input": samples, "overlap": output[:, hop:]}


def export_model(network: Denoiser, info: ModelInfo, *, half: bool = True) -> bytes:
    """The sealed bytes of a model file.

    Args:
        half: keep the weights as float16. The file then has the network that `round_weights` makes.

    Raises:
        ModelFileError: the graph does not do what the network does.
    """
    network = (round_weights(network) if half else network).eval()
    model = hop_model(network, half=half)
    info = replace(info, n_parameters=network.n_parameters, sample_rate=STFT.sample_rate,
                   hop_length=STFT.hop_length, n_fft=STFT.n_fft, delay=STFT.delay)
    onnx.helper.set_model_props(model, info.to_metadata())
    onnx.checker.check_model(model, full_check=True)
    sealed = seal(model.SerializeToString())
    denoiser = HopDenoiser(network)
    error = parity_error(denoiser, OnnxDenoiser(sealed))
    if not error <= PARITY_TOLERANCE:
        limit = max(PARITY_TOLERANCE, ROUNDING_TIMES * rounding_error(denoiser))
        if not np.isfinite(error) or not error <= limit:
            raise ModelFileError(f"the exported graph differs from the network by {error:.1e} (at most {limit:.0e}); "
                                 "nothing was written, install the versions in constraints.txt")
    return sealed


@torch.no_grad()
def round_weights(network: Denoiser) -> Denoiser:
    """A copy with every weight (not the biases) rounded to float16, which is what a model file keeps.

    What is too small for float16 becomes zero, so that no product is a denormal number: those cost a hundred times as
    much.
    """
    rounded = copy.deepcopy(network)
    for value in rounded.parameters():
        if value.ndim > 1:
            value.copy_(value.half())
    return rounded


def to_onnx(module: nn.Module, inputs: tuple[Tensor, ...], **names: Any) -> onnx.ModelProto:
    """The graph of a module, without a trace of the machine that made it; `names` as in `torch.onnx.export`."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad(), _quiet():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), inputs, buffer, dynamo=False, opset_version=17,  # type: ignore[arg-type]
                          **names)
    model = onnx.load_from_string(buffer.getvalue())
    for node in model.graph.node:       # exporters leave source paths there
        node.doc_string = ""
        node.name = ""
    model.doc_string = ""
    model.producer_name, model.producer_version = "pse_sdk", ""
    return model


@torch.no_grad()
def parity_error(denoiser: HopDenoiser, exported: OnnxDenoiser, seed: int = 0) -> float:
    """Largest difference of the outputs over 2,000 recurrent steps; infinite where either has a NaN.

    Two streams, one of which is silent while the other is not, are enhanced together, and the first of them alone too.
    """
    state, together, alone, error = denoiser.initial_state(2), exported.initial_state(2), exported.initial_state(), 0.0
    for samples in _swelling_noise(seed):
        expected, state = denoiser(torch.from_numpy(samples), state)
        both, together = exported.step(samples, together)
        first, alone = exported.step(samples[:1], alone)
        error = max(error, _difference(expected.numpy(), both), _difference(expected.numpy()[:1], first))
    return error


@torch.no_grad()
def rounding_error(denoiser: HopDenoiser, seed: int = 0) -> float:
    """Largest difference of the network's outputs from those of the same network in float64.

    Some networks are more sensitive than others: they make more of the last bit, whoever computes them.
    """
    exact = copy.deepcopy(denoiser).double()
    state, exact_state, error = denoiser.initial_state(2), exact.initial_state(2), 0.0
    for samples in map(torch.from_numpy, _swelling_noise(seed)):
        rounded, state = denoiser(samples, state)
        expected, exact_state = exact(samples.double(), exact_state)
        error = max(error, _difference(expected.numpy(), rounded.numpy()))
    return error


def _swelling_noise(seed: int) -> Iterator[np.ndarray]:
    """Hops [2, hop] of noise that swells and fades, from digital silence through what barely counts as sound."""
    rng = np.random.default_rng(seed)
    for step in range(PARITY_STEPS):
        levels = np.maximum(0.0, 0.3 * np.sin(step / 50.0 + np.array([[0.0], [np.pi]])) ** 3)
        yield (levels * rng.standard_normal((2, STFT.hop_length))).astype(np.float32)


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    difference = float(np.abs(ours - theirs).max())
    return np.inf if np.isnan(difference) else difference       # max(0.0, nan) is 0.0


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter announces its retirement on every call, through a logger of its own."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
