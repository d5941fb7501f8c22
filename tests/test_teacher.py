import numpy as np
import pytest
import torch

from pse_sdk.config import STFT
from pse_sdk.errors import ModelFileError
from pse_sdk.training.losses import spectrogram
from pse_sdk.training.network import build_network
from pse_sdk.training.specialist import load_generalist
from pse_sdk.training.teacher import BEST_GENERALIST, CAUSAL, LOOKING_AHEAD, Teacher, estimate_speech, load_teacher


@pytest.fixture(scope="module")
def teacher():
    return load_teacher()


def passing(size):
    """A network that passes everything."""
    network = build_network(size).eval()
    with torch.no_grad():
        network.gain_head.weight.zero_()
        network.gain_head.bias.fill_(30.0)
        network.filter_head.weight.zero_()
    return network


@pytest.mark.parametrize("size, kept", [("teacher", LOOKING_AHEAD.kept), ("tiny", CAUSAL.kept)])
@pytest.mark.parametrize("n_chunks, more", [(0, 1), (0, 255), (0, 16_000), (1, 0), (1, 1), (9.5, 77)])
def test_chunks_are_joined_without_a_seam(size, kept, n_chunks, more):
    length = int(n_chunks * kept) * STFT.hop_length + more
    samples = np.random.default_rng(0).standard_normal(length).astype(np.float32)
    np.testing.assert_allclose(estimate_speech(passing(size), samples), samples, atol=1e-5)


def test_it_looks_ahead(teacher):
    samples = 0.1 * torch.randn(1, 100 * STFT.hop_length, generator=torch.Generator().manual_seed(0))
    louder = samples.clone()
    louder[:, 60 * STFT.hop_length:] *= 3
    with torch.no_grad():
        first, second = (teacher(spectrogram(s), teacher.initial_state(1))[0] for s in (samples, louder))
    assert (first[:, 50:58] - second[:, 50:58]).abs().max() > 1e-4


def test_noise_alone_is_lowered(teacher):
    rng = np.random.default_rng(0)
    noise = 0.05 * rng.standard_normal(64_000).astype(np.float32)
    assert np.square(estimate_speech(teacher, noise)).mean() < 0.1 * np.square(noise).mean()


def test_the_level_does_not_matter(teacher):
    samples = np.random.default_rng(1).standard_normal(32_000).astype(np.float32)
    loud, quiet = estimate_speech(teacher, 0.3 * samples), estimate_speech(teacher, 0.003 * samples)
    np.testing.assert_allclose(quiet * 100, loud, atol=1e-4)


def test_both_networks_are_heard(teacher):
    samples = 0.1 * np.random.default_rng(2).standard_normal(32_000).astype(np.float32)
    both = Teacher().estimate(samples)
    estimates = [estimate_speech(network, samples) for network in (teacher, load_generalist(BEST_GENERALIST))]
    np.testing.assert_allclose(both, sum(estimates) / 2, atol=1e-6)
    assert both.shape == samples.shape and both.dtype == np.float32


def test_an_installation_without_it_says_so(tmp_path):
    with pytest.raises(ModelFileError, match="teacher"):
        load_teacher(tmp_path / "teacher.safetensors")
