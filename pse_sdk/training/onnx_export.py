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
from .losses import spectrogram, waveform
from .network import Denoiser

PARITY_STEPS = 2000
PARITY_FRAMES = 500     # that the network hears at once
PARITY_TOLERANCE = 1e-5
ROUNDING_TIMES = 4.0    # of what rounding to float32 does to the network's own outputs, where that is more


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
    error = parity_error(network, OnnxDenoiser(sealed))
    if not error <= PARITY_TOLERANCE:
        limit = max(PARITY_TOLERANCE, ROUNDING_TIMES * rounding_error(network))
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


def parity_error(network: Denoiser, exported: OnnxDenoiser, seed: int = 0) -> float:
    """Largest difference between what a model file makes of 2,000 hops, one after the other, and what its network makes
    of them in training; infinite where either has a NaN.

    Two streams, one of which is silent while the other is not, are enhanced together, and the first of them alone too.
    """
    hops, error = _swelling_noise(seed), 0.0
    together, alone = exported.initial_state(2), exported.initial_state()
    for samples, expected in zip(hops, _enhanced(network, hops), strict=True):
        both, together = exported.step(samples, together)
        first, alone = exported.step(samples[:1], alone)
        error = max(error, _difference(expected, both), _difference(expected[:1], first))
    return error


def rounding_error(network: Denoiser, seed: int = 0) -> float:
    """Largest difference of the network's outputs from those of the same network in float64.

    Some networks are more sensitive than others: they make more of the last bit, whoever computes them.
    """
    hops = _swelling_noise(seed)
    exact = _enhanced(copy.deepcopy(network).double(), hops.astype(np.float64))
    return _difference(exact, _enhanced(network, hops))


@torch.no_grad()
def _enhanced(network: Denoiser, hops: np.ndarray) -> np.ndarray:
    """Hops [N, B, hop] as training hears them, delayed by `STFT.delay`."""
    spectra = spectrogram(torch.from_numpy(hops).transpose(0, 1).flatten(1))
    state, found = network.initial_state(len(spectra)), []
    for some in spectra.split(PARITY_FRAMES, 1):
        enhanced, state = network(some, state)
        found.append(enhanced)
    samples = waveform(torch.cat(found, 1))
    return samples.unflatten(1, (len(hops), -1)).transpose(0, 1).numpy()


def _swelling_noise(seed: int) -> np.ndarray:
    """Hops [N, 2, hop] of noise that swells and fades, from digital silence through what barely counts as sound."""
    steps = np.arange(PARITY_STEPS)[:, None, None]
    levels = np.maximum(0.0, 0.3 * np.sin(steps / 50.0 + np.array([[0.0], [np.pi]])) ** 3)
    noise = np.random.default_rng(seed).standard_normal((PARITY_STEPS, 2, STFT.hop_length))
    return (levels * noise).astype(np.float32)


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
