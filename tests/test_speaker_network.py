import numpy as np
import onnxruntime
import pytest
import torch

from pse_sdk.config import STFT
from pse_sdk.model_format import check_seal
from pse_sdk.training.mixing import Batch
from pse_sdk.training.speaker_network import (
    N_DIMENSIONS,
    SpeakerNetwork,
    evaluate_speakers,
    export_embedding,
    speaker_loss,
)

N_ITEMS = 8
NOWHERE = torch.nn.functional.normalize(torch.ones(N_ITEMS, N_DIMENSIONS), dim=1)       # all alike
APART = torch.eye(N_DIMENSIONS)[torch.arange(N_ITEMS) // 2]                             # neighbours alike
MIXED_UP = torch.eye(N_DIMENSIONS)[torch.arange(N_ITEMS) % 2]          # others than the neighbour alike


@pytest.fixture
def batch() -> Batch:
    noisy = torch.randn(N_ITEMS, 64 * STFT.hop_length, generator=torch.Generator().manual_seed(0))
    return Batch(noisy, noisy, torch.ones(N_ITEMS, dtype=torch.bool))


def test_the_loss_is_small_where_neighbours_find_each_other(batch):
    apart, nowhere, mixed_up = (speaker_loss(lambda _, found=found: found, batch).item()
                                for found in (APART, NOWHERE, MIXED_UP))
    assert apart < 0.01 and nowhere == pytest.approx(np.log(N_ITEMS - 1), abs=1e-5) and mixed_up > 5


def test_the_equal_error_rate_is_zero_for_perfect_embeddings_and_high_for_bad_ones(batch):
    rates = [evaluate_speakers(lambda _, found=found: found, [batch])["equal_error_rate"]
             for found in (APART, MIXED_UP)]
    assert rates[0] < 0.15 and rates[1] > 0.4     # four pairs: in steps of an eighth


def test_the_network_learns_to_tell_voices_apart(batch):
    """Two pitches take the place of voices."""
    torch.manual_seed(0)
    place = torch.arange(64 * STFT.hop_length) / STFT.sample_rate

    def voice(hz: float, seed: int) -> torch.Tensor:
        swing = torch.rand(1, generator=torch.Generator().manual_seed(seed)) * 4 + 2
        comb = sum(torch.sin(2 * torch.pi * hz * k * place) for k in range(1, 20))
        return comb * (1 + torch.sin(2 * torch.pi * swing * place))

    noisy = torch.stack([voice(hz, seed) for hz, seed in [(110, 0), (110, 1), (190, 2), (190, 3)]])
    noisy = noisy / noisy.square().mean(1, keepdim=True).sqrt() + 0.01 * batch.noisy[:4]
    pairs = Batch(noisy, noisy, torch.ones(4, dtype=torch.bool))
    network = SpeakerNetwork()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    first = speaker_loss(network, pairs).item()
    for _ in range(30):
        optimizer.zero_grad()
        loss = speaker_loss(network, pairs)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2 * first


def test_level_and_equalisation_do_not_change_an_embedding():
    torch.manual_seed(0)
    network = SpeakerNetwork().eval()
    power = torch.rand(1, 192, STFT.n_bins, generator=torch.Generator().manual_seed(1)) ** 2 + 0.1
    curve = 10 ** torch.linspace(-0.6, 0.6, STFT.n_bins)
    with torch.no_grad():
        found, louder, brighter = network(power), network(power * 100), network(power * curve)
    torch.testing.assert_close(found, louder, rtol=0, atol=1e-3)
    assert (found * brighter).sum() > 0.98


def test_the_export_does_what_the_network_does_for_any_number_and_length():
    torch.manual_seed(0)
    network = SpeakerNetwork().eval()
    model = export_embedding(network, {"equal_error_rate": 0.25})
    check_seal(model)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["pse.equal_error_rate"] == "0.2500"
    for n, n_frames in ((1, 30), (5, 192)):
        power = torch.rand(n, n_frames, STFT.n_bins)
        with torch.no_grad():
            expected = network(power).numpy()
        np.testing.assert_allclose(session.run(None, {"power": power.numpy()})[0], expected, atol=1e-5)
