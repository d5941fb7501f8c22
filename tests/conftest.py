"""What many tests share: model files of networks that were never trained, and a voice in noise."""

import os

import numpy as np
import pytest

from pse_sdk import Enhancer
from pse_sdk.child import GIVE_WAY
from pse_sdk.model_format import ModelInfo

# before torch is imported: beside other programs, tests whose threads spin would take ten times as long
for name, value in GIVE_WAY.items():
    os.environ.setdefault(name, value)

RATE = 16_000


@pytest.fixture(scope="session")
def tiny_network():
    """A `tiny` network with random weights."""
    torch = pytest.importorskip("torch")
    from pse_sdk.training.network import build_network
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return build_network("tiny").eval()


@pytest.fixture(scope="session")
def tiny_model(tiny_network, tmp_path_factory):
    """Path of the model file of `tiny_network`."""
    return export(tiny_network, tmp_path_factory.mktemp("models") / "tiny.onnx")


@pytest.fixture(scope="session")
def enhancer(tiny_model):
    return Enhancer(tiny_model)


@pytest.fixture(scope="session")
def unity(tiny_network, tmp_path_factory):
    """An Enhancer whose network changes nothing."""
    return with_gain(tiny_network, 1.0, tmp_path_factory)


@pytest.fixture(scope="session")
def halving(tiny_network, tmp_path_factory):
    """An Enhancer whose network halves everything."""
    return with_gain(tiny_network, 0.5, tmp_path_factory)


@pytest.fixture(scope="session")
def mute(tiny_network, tmp_path_factory):
    """An Enhancer whose network lets nothing through."""
    return with_gain(tiny_network, 0.0, tmp_path_factory)


@pytest.fixture(scope="session")
def noisy():
    """Three seconds at 16 kHz, mono: a buzz in syllables, and white noise 10 dB below it."""
    rng = np.random.default_rng(0)
    time = np.arange(3 * RATE) / RATE
    phase = 2 * np.pi * np.cumsum(120 + 15 * np.sin(2 * np.pi * 0.7 * time)) / RATE
    buzz = sum(np.sin(harmonic * phase) / harmonic for harmonic in range(1, 30))
    voice = 0.1 * np.clip(np.sin(2 * np.pi * 2 * time), 0, 1) * buzz
    noise = rng.standard_normal(len(time)) * np.sqrt(np.mean(voice**2) / 10)
    return (voice + noise).astype(np.float32)


def with_gain(network, gain, tmp_path_factory):
    """An Enhancer whose network gives every bin one gain, and filters nothing."""
    import copy

    import torch
    network = copy.deepcopy(network)
    with torch.no_grad():
        for head, bias in ((network.gain_head, {0.0: -40.0, 0.5: 0.0, 1.0: 40.0}[gain]), (network.filter_head, 0.0)):
            head.weight.zero_()
            head.bias.fill_(bias)
    return Enhancer(export(network, tmp_path_factory.mktemp("models") / f"gain_{gain}.onnx"))


def export(network, path):
    from pse_sdk.training.onnx_export import export_model
    path.write_bytes(export_model(network, ModelInfo("tiny", 0, 0, 0, 0, 0)))
    return path
