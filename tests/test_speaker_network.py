import numpy as np
import onnxruntime
import pytest
import torch

from pse_sdk.config import STFT
from pse_sdk.model_format import check_seal
from pse_sdk.training.mixing import Batch, active_rms
from pse_sdk.training.speaker_network import (
    N_DIMENSIONS,
    SECOND_VOICE_DB,
    SpeakerNetwork,
    evaluate_speakers,
    export_embedding,
    speaker_loss,
    with_second_voice,
)

N_ITEMS = 8
NOWHERE = torch.nn.functional.normalize(torch.ones(N_ITEMS, N_DIMENSIONS), dim=1)       # all alike
APART = torch.eye(N_DIMENSIONS)[torch.arange(N_ITEMS) // 2]                             # neighbours alike
MIXED_UP = torch.eye(N_DIMENSIONS)[torch.arange(N_ITEMS) % 2]          # others than the neighbour alike


@pytest.fixture
def batch() -> Batch:
    noisy = torch.randn(N_ITEMS, 64 * STFT.hop_length, generator=torch.Generator().manual_seed(0))
    return Batch(noisy, noisy, torch.ones(N_ITEMS, dtype=torch.bool))


def answering(found: torch.Tensor, sure: float):
    """A network with these embeddings, sure or not that the second half of the items holds two voices."""
    return lambda power: (torch.cat([found, found]), sure * (torch.arange(len(power)) >= len(power) // 2).float()
                          - sure / 2)


def test_the_loss_is_small_where_neighbours_find_each_other(batch):
    apart, nowhere, mixed_up = (speaker_loss(answering(found, 40.0), batch).item()
                                for found in (APART, NOWHERE, MIXED_UP))
    assert apart < 0.01 and nowhere == pytest.approx(np.log(N_ITEMS - 1), abs=1e-5) and mixed_up > 5


def test_the_loss_is_small_where_one_voice_is_told_from_two(batch):
    sure, unsure, wrong = (speaker_loss(answering(APART, sure), batch).item() for sure in (40.0, 0.0, -40.0))
    assert sure < 0.01 and unsure == pytest.approx(np.log(2), abs=0.01) and wrong > 15


def test_the_equal_error_rates_are_zero_for_a_perfect_network_and_high_for_a_bad_one(batch):
    good, bad = (evaluate_speakers(answering(found, sure), [batch])
                 for found, sure in ((APART, 40.0), (MIXED_UP, -40.0)))
    assert good["equal_error_rate"] < 0.15 and bad["equal_error_rate"] > 0.4     # four pairs: in steps of an eighth
    assert good["overlap_error_rate"] < 0.15 and bad["overlap_error_rate"] > 0.85


def test_a_second_voice_is_of_another_pair_and_at_most_so_much_louder(batch):
    speech = torch.zeros_like(batch.target)
    for i in range(N_ITEMS):
        speech[i, i * 1000:i * 1000 + 800] = i // 2 + 1.0
    both = with_second_voice(Batch(batch.noisy, speech, batch.has_speech))
    second = both - batch.noisy
    for i in range(N_ITEMS):
        other = i // 4 * 4 + (i + 2) % 4
        assert torch.count_nonzero(second[i].abs() > 1e-4) == 800 and second[i, other * 1000 + 400] > 0
    gain_db = 20 * torch.log10(active_rms(second) / active_rms(speech)).squeeze(1)
    torch.testing.assert_close(gain_db, torch.linspace(-SECOND_VOICE_DB, SECOND_VOICE_DB, N_ITEMS), rtol=0, atol=1e-2)


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
        (found, _), (louder, _), (brighter, _) = network(power), network(power * 100), network(power * curve)
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
            expected = network(power)
        for answer, value in zip(session.run(None, {"power": power.numpy()}), expected, strict=True):
            np.testing.assert_allclose(answer, value.numpy(), atol=1e-5)
