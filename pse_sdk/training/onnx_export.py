"""From a network to the bytes of a model file, refused unless torch and onnxruntime agree."""

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
from .dft import RealDft
from .network import Denoiser, State

PARITY_STEPS = 2000
PARITY_TOLERANCE = 1e-5
SMALLEST_WEIGHT = 1e-20     # what lies below is set to zero: denormal products cost a hundred times as much


class HopDenoiser(nn.Module):
    """A network between analysis and synthesis: one hop of samples in, one hop out, every memory an argument."""

    window: Tensor

    def __init__(self, network: Denoiser) -> None:
        super().__init__()
        self.network = network
        self.dft = RealDft()
        self.register_buffer("window", torch.hann_window(STFT.n_fft).sqrt()[None])

    def initial_state(self) -> State:
        return {**self.network.initial_state(1),
                "input": torch.zeros(1, STFT.delay), "overlap": torch.zeros(1, STFT.delay)}

    def forward(self, samples: Tensor, state: State) -> tuple[Tensor, State]:
        """Shape: `samples` and the result [1, hop_length]."""
        hop = STFT.hop_length
        frame = torch.cat([state["input"], samples], dim=1)
        spectrum = self.dft(frame * self.window).view(1, 1, 2, STFT.n_bins)
        enhanced, next_state = self.network(spectrum, {k: v for k, v in state.items() if k not in ("input", "overlap")})
        output = self.dft.inverse(enhanced.view(2, STFT.n_bins)) * self.window
        return output[:, :hop] + state["overlap"], {**next_state, "input": samples, "overlap": output[:, hop:]}


class _Flat(nn.Module):
    """The same with tensors instead of a dictionary, as the exporter wants it."""

    def __init__(self, denoiser: HopDenoiser, names: list[str]) -> None:
        super().__init__()
        self.denoiser, self.names = denoiser, names

    def forward(self, samples: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        enhanced, next_state = self.denoiser(samples, dict(zip(self.names, state, strict=True)))
        # an output must not be an input itself, so the new input state is copied
        return (enhanced, *(next_state[name] * 1.0 if name == "input" else next_state[name] for name in self.names))


def export_model(network: Denoiser, info: ModelInfo) -> bytes:
    """The sealed bytes of a model file.

    Raises:
        ModelFileError: the graph does not do what the network does.
    """
    network = network.eval()
    denoiser = HopDenoiser(network).eval()
    state = denoiser.initial_state()
    names = list(state)
    with torch.no_grad():
        for value in network.parameters():
            value[value.abs() < SMALLEST_WEIGHT] = 0.0
    model = to_onnx(_Flat(denoiser, names), (torch.zeros(1, STFT.hop_length), *state.values()),
                    input_names=["samples"] + [f"state_{name}" for name in names],
                    output_names=["enhanced"] + [f"next_state_{name}" for name in names])
    info = replace(info, n_parameters=network.n_parameters, sample_rate=STFT.sample_rate,
                   hop_length=STFT.hop_length, n_fft=STFT.n_fft, delay=STFT.delay)
    onnx.helper.set_model_props(model, info.to_metadata())
    onnx.checker.check_model(model, full_check=True)
    sealed = seal(model.SerializeToString())
    error = parity_error(denoiser, OnnxDenoiser(sealed))
    if not error <= PARITY_TOLERANCE:
        raise ModelFileError(f"the exported graph differs from the network by {error:.1e} (at most "
                             f"{PARITY_TOLERANCE:.0e}); nothing was written, install the versions in constraints.txt")
    return sealed


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
    """Largest difference over 2,000 recurrent steps of noise that swells and fades, of outputs and of the last states.

    Infinite where either has a NaN; relative where a state is larger than one.
    """
    rng = np.random.default_rng(seed)
    state, other_state, error = denoiser.initial_state(), exported.initial_state(), 0.0
    for step in range(PARITY_STEPS):
        level = 0.3 * np.sin(step / 50.0) ** 2
        samples = (level * rng.standard_normal((1, STFT.hop_length))).astype(np.float32)
        ours, state = denoiser(torch.from_numpy(samples), state)
        theirs, other_state = exported.step(samples, other_state)
        error = max(error, _difference(ours.numpy(), theirs))
    for name, value in state.items():
        scale = value.abs().clamp_min(1.0).numpy()
        error = max(error, _difference(value.numpy() / scale, other_state[f"state_{name}"] / scale))
    return error


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
