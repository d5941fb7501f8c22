"""The denoiser that is told whose voice to keep, and the items that it learns from."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from pse_sdk.config import MODELS, STFT  # noqa: E402
from pse_sdk.errors import ModelFileError  # noqa: E402
from pse_sdk.training import specialist, talker_network  # noqa: E402
from pse_sdk.training.losses import spectrogram  # noqa: E402
from pse_sdk.training.mixing import Batch, active_rms  # noqa: E402
from pse_sdk.training.network import load_network  # noqa: E402
from pse_sdk.training.pretrain import save_weights  # noqa: E402
from pse_sdk.training.speaker_network import N_DIMENSIONS  # noqa: E402
from pse_sdk.training.talker_network import (  # noqa: E402
    ENCODED_SECONDS,
    NOISE_IN_ENCODED,
    VOICE_SNRS_DB,
    build_talker_network,
    load_talker_network,
    talker_items,
)

PIECE = round(ENCODED_SECONDS * STFT.sample_rate)
N_ITEMS = 32


@pytest.fixture
def network():
    """Its voices matter more than those of a new one."""
    torch.manual_seed(0)
    network = build_talker_network("tiny_talker").eval()
    for voice_map in network.voice_maps:
        torch.nn.init.normal_(voice_map.weight, std=0.3)
    return network


@pytest.fixture
def batch():
    """Items of one constant each, the same for neighbours, in noise that is told from them by its sign."""
    target = 1.0 + torch.arange(N_ITEMS).float()[:, None].div(2, rounding_mode="floor").expand(-1, 800).clone()
    return Batch(target - 0.25, target, torch.ones(N_ITEMS, dtype=torch.bool))


def output(network, *voice):
    noisy = spectrogram(torch.randn(2, 40 * STFT.hop_length, generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        return network(noisy, network.initial_state(2), *voice)


def test_folded_for_a_voice_it_does_what_it_does_beside_it(network):
    voices = torch.randn(2, N_DIMENSIONS)
    found = [output(network, voice.expand(2, -1)) for voice in voices]
    assert not torch.allclose(found[0][0], found[1][0], atol=1e-2)
    for (beside, state), voice in zip(found, voices, strict=True):
        folded, folded_state = output(network.folded(voice))
        torch.testing.assert_close(folded, beside)
        for name, value in state.items():
            torch.testing.assert_close(folded_state[name], value)


def test_whose_voice_is_kept_is_heard_where_somebody_speaks(network):
    rng = np.random.default_rng(0)
    spoken = rng.standard_normal(3 * PIECE).astype(np.float32)
    hummed = np.sin(np.arange(3 * PIECE) * 0.1).astype(np.float32)
    alone, again, other = (output(network.for_talker(speech))[0] for speech in
                           ([spoken], [spoken, 1e-4 * hummed[:PIECE]], [hummed]))
    torch.testing.assert_close(alone, again)
    assert not torch.allclose(alone, other, atol=1e-3)


def test_pieces_that_are_too_short_say_nothing_of_a_voice(network):
    assert network.for_talker([np.ones(PIECE - 1, np.float32)] * 9) is None


def test_two_thirds_are_beside_another_voice_and_a_few_without_their_talker(batch):
    items = talker_items(batch)
    made, scale = items.batch, (items.batch.target / batch.target)[:, :1]
    spoken = made.has_speech
    assert int(items.beside_voice.sum()) == pytest.approx(N_ITEMS * 2 / 3, abs=3)
    assert 1 <= int((~spoken).sum()) <= 2 and not made.target[~spoken].any() and not items.beside_voice[~spoken].any()
    torch.testing.assert_close(made.noisy.square().mean(1), torch.ones(N_ITEMS), rtol=1e-4, atol=0)
    added = (made.noisy / scale - batch.target)[spoken]
    noise = torch.where(items.in_noise, -0.25, 0.0)[spoken, None]
    voice, beside = added - noise, items.beside_voice[spoken]
    assert not voice[~beside].abs().max() > 1e-4 and voice[beside].min() > 0
    snr_db = 20 * torch.log10(active_rms(batch.target[spoken]) / active_rms(voice))[beside].squeeze(1)
    low, high = VOICE_SNRS_DB
    assert low <= snr_db.min() < low + 3 and high - 3 < snr_db.max() <= high


def test_the_encoder_hears_the_same_talker_in_other_noise(batch):
    noisy = batch.noisy - torch.arange(N_ITEMS)[:, None] * 0.01
    encoded = talker_items(Batch(noisy, batch.target, batch.has_speech)).encoded
    neighbours = torch.arange(N_ITEMS) ^ 1
    torch.testing.assert_close(encoded, batch.target - NOISE_IN_ENCODED * (0.25 + 0.01 * neighbours[:, None]))


def test_items_without_speech_get_no_voice_and_lend_none(batch):
    silent = torch.arange(N_ITEMS) % 4 == 0
    target = torch.where(silent[:, None], 0.0, batch.target)
    items = talker_items(Batch(target - 0.25, target, ~silent))
    beside = silent | (torch.arange(N_ITEMS) % 4 == 2)
    assert not items.beside_voice[beside].any() and items.beside_voice[~beside].any()
    assert torch.isfinite(items.batch.noisy).all()


def test_a_size_without_such_weights_has_none_and_damaged_ones_are_refused(monkeypatch, network, tmp_path):
    monkeypatch.setattr(talker_network, "MODELS", tmp_path)
    assert load_talker_network("tiny") is None
    save_weights(copy.deepcopy(network).half(), tmp_path / "tiny_talker.safetensors")
    for name, value in load_talker_network("tiny").state_dict().items():
        torch.testing.assert_close(value, network.state_dict()[name].half().float())
    (tmp_path / "tiny_talker.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelFileError, match="tiny_talker"):
        load_talker_network("tiny")


@pytest.mark.parametrize("others, goes_on, begins", [("remove", False, True), ("keep", False, False),
                                                     ("remove", True, False)])
def test_a_specialist_for_one_voice_begins_where_that_voice_is_known(monkeypatch, network, others, goes_on, begins):
    monkeypatch.setattr(specialist, "load_talker_network", lambda size: network)
    job = specialist.Job([], size="tiny", others=others, start=b"a model" if goes_on else None)
    rng = np.random.default_rng(0)
    speech = rng.standard_normal(PIECE).astype(np.float32)
    pair = specialist.Pair.__new__(specialist.Pair)
    object.__setattr__(pair, "enhanced", speech)
    first = specialist._knowing_the_voice(job, [pair])
    assert (first is not None) is begins
    if first is not None:
        torch.testing.assert_close(output(first)[0], output(network.for_talker([speech]))[0])


@pytest.mark.skipif(not (MODELS / "small_talker.safetensors").exists(), reason="needs the package's models")
def test_what_ships_is_of_the_sizes_that_ship():
    for path in MODELS.glob("*_talker.safetensors"):
        size = path.name.removesuffix("_talker.safetensors")
        found = load_talker_network(size)
        assert found is not None
        start = load_network(size, MODELS / f"{size}.safetensors")
        assert found.folded(torch.zeros(N_DIMENSIONS)).n_parameters == start.n_parameters
