"""The denoiser that is told about its user, and the items that it learns from."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from pse_sdk.config import MODELS, STFT  # noqa: E402
from pse_sdk.errors import ModelFileError  # noqa: E402
from pse_sdk.segments import Stretch  # noqa: E402
from pse_sdk.training import material, user_network  # noqa: E402
from pse_sdk.training.job import Job  # noqa: E402
from pse_sdk.training.losses import spectrogram  # noqa: E402
from pse_sdk.training.mixing import Batch, active_rms  # noqa: E402
from pse_sdk.training.network import load_network, save_weights  # noqa: E402
from pse_sdk.training.pseudo_mixtures import METHODS, Pair  # noqa: E402
from pse_sdk.training.tasks import evaluate_users, user_loss  # noqa: E402
from pse_sdk.training.user_network import (  # noqa: E402
    HEARD_SECONDS,
    N_TOLD,
    NOISE_IN_VOICE,
    VOICE_IN_NOISE,
    VOICE_SNRS_DB,
    build_user_network,
    load_user_network,
    user_items,
)

PIECE = round(HEARD_SECONDS * STFT.sample_rate)
N_ITEMS = 32


@pytest.fixture
def network():
    """What it is told matters more to it than to a new one."""
    torch.manual_seed(0)
    network = build_user_network("tiny_user").eval()
    for layer in network.told:
        torch.nn.init.normal_(layer.shift.weight, std=0.3)
        torch.nn.init.normal_(layer.said.weight, std=0.3)
    return network


@pytest.fixture
def batch():
    """Items of one constant each, the same for neighbours, in noise that is told from them by its sign."""
    target = 1.0 + torch.arange(N_ITEMS).float()[:, None].div(2, rounding_mode="floor").expand(-1, 800).clone()
    return Batch(target - 0.25, target, torch.ones(N_ITEMS, dtype=torch.bool))


def output(network, *about):
    noisy = spectrogram(torch.randn(2, 40 * STFT.hop_length, generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        return network(noisy, network.initial_state(2), *about)


def test_folded_for_a_user_it_does_what_it_does_when_told_of_him(network):
    users = torch.randn(2, N_TOLD)
    found = [output(network, about.expand(2, -1)) for about in users]
    assert not torch.allclose(found[0][0], found[1][0], atol=1e-2)
    for (told, state), about in zip(found, users, strict=True):
        folded, folded_state = output(network.folded(about))
        torch.testing.assert_close(folded, told, rtol=1e-4, atol=1e-4)
        for name, value in state.items():
            torch.testing.assert_close(folded_state[name], value, rtol=1e-4, atol=1e-4)


def test_voice_noise_and_what_is_asked_for_each_change_what_it_does(network):
    rng = np.random.default_rng(0)
    spoken = rng.standard_normal(3 * PIECE).astype(np.float32)
    hummed = np.sin(np.arange(3 * PIECE) * 0.1).astype(np.float32)

    def of(speech, noise, keeps_others=True):
        return output(network.for_user(speech, noise, keeps_others=keeps_others))[0]

    usual = of([spoken], [hummed])
    for other in (of([hummed], [hummed]), of([spoken], [spoken]), of([spoken], []), of([], [hummed]),
                  of([spoken], [hummed], keeps_others=False)):
        assert not torch.allclose(usual, other, atol=1e-3)
    # hardly anybody speaks in the second; the level of a noise says nothing
    torch.testing.assert_close(of([spoken, 1e-4 * hummed[:PIECE]], [0.1 * hummed]), usual, rtol=1e-3, atol=1e-3)


def test_what_is_too_short_or_silent_tells_nothing(network):
    nothing = output(network.for_user([], [], keeps_others=True))[0]
    for sound in (np.ones(PIECE - 1, np.float32), np.zeros(2 * PIECE, np.float32)):
        torch.testing.assert_close(output(network.for_user([sound], [sound], keeps_others=True))[0], nothing)


def test_in_every_second_group_most_items_hold_another_voice_and_a_few_no_talker(batch):
    items = user_items(batch)
    made, scale = items.batch, (items.batch.target / batch.target)[:, :1]
    spoken = made.has_speech
    assert items.keeps_others.tolist() == [i // 4 % 2 == 1 for i in range(N_ITEMS)]
    assert not items.beside_voice[items.keeps_others].any()
    assert int(items.beside_voice.sum()) == pytest.approx(N_ITEMS / 3, abs=2)
    assert 1 <= int((~spoken).sum()) <= 2 and not made.target[~spoken].any() and not items.beside_voice[~spoken].any()
    torch.testing.assert_close(made.noisy.square().mean(1), torch.ones(N_ITEMS), rtol=1e-4, atol=0)
    added = (made.noisy / scale - batch.target)[spoken]
    noise = torch.where(items.in_noise, -0.25, 0.0)[spoken, None]
    voice, beside = added - noise, items.beside_voice[spoken]
    assert not voice[~beside].abs().max() > 1e-4 and voice[beside].min() > 0
    snr_db = 20 * torch.log10(active_rms(batch.target[spoken]) / active_rms(voice))[beside].squeeze(1)
    low, high = VOICE_SNRS_DB
    assert low <= snr_db.min() < low + 4 and high - 4 < snr_db.max() <= high


def test_encoders_mostly_hear_the_same_talker_in_the_same_noise(batch):
    noise = -0.25 - torch.arange(N_ITEMS)[:, None] * 0.01
    items = user_items(Batch(batch.target + noise, batch.target, batch.has_speech))
    index = torch.arange(N_ITEMS)
    whose = torch.where(items.keeps_others & (index % 4 == 1), (index ^ 1) ^ 2, index ^ 1)
    torch.testing.assert_close(items.voice, batch.target[whose] + NOISE_IN_VOICE * noise[whose])
    whose = torch.where(index % 4 == 3, (index ^ 1) ^ 2, index ^ 1)
    torch.testing.assert_close(items.noise, noise[whose] + VOICE_IN_NOISE * batch.target[whose])
    assert items.is_own.tolist() == [i % 4 in (0, 2) or (i % 4 == 1 and i // 4 % 2 == 0) for i in range(N_ITEMS)]


def test_of_users_without_speech_or_noise_nothing_is_known(batch):
    silent, quiet = torch.arange(N_ITEMS) % 4 == 0, torch.arange(N_ITEMS) % 4 == 1
    target = torch.where(silent[:, None], 0.0, batch.target)
    items = user_items(Batch(target - torch.where(quiet, 0.0, 0.25)[:, None], target, ~silent))
    unheard = silent | (torch.arange(N_ITEMS) % 4 == 2)
    assert not items.beside_voice[unheard].any() and items.beside_voice[~unheard].any()
    assert torch.isfinite(items.batch.noisy).all()
    assert torch.equal(items.voice.any(1), ~quiet | items.keeps_others)
    assert not items.noise[silent].any() and items.noise[quiet].any(1).all()


def test_it_learns_from_silence_too(network, batch):
    nothing = Batch(torch.zeros(8, PIECE), torch.zeros(8, PIECE), torch.zeros(8, dtype=torch.bool))
    loss = user_loss(network.train(), nothing)
    loss.backward()
    gradients = [value.grad for value in network.parameters() if value.grad is not None]
    assert torch.isfinite(loss) and all(torch.isfinite(gradient).all() for gradient in gradients)
    long = Batch(*(sound.repeat(1, PIECE // 800) for sound in (batch.noisy, batch.target)), batch.has_speech)
    assert set(evaluate_users(network.eval(), [long])) == {
        "loss", "si_sdr_improvement", "si_sdr_improvement_elsewhere", "si_sdr_improvement_beside_voice"}


def test_a_size_without_such_weights_has_none_and_damaged_ones_are_refused(monkeypatch, network, tmp_path):
    monkeypatch.setattr(user_network, "MODELS", tmp_path)
    assert load_user_network("tiny") is None
    save_weights(copy.deepcopy(network).half(), tmp_path / "tiny_user.safetensors")
    for name, value in load_user_network("tiny").state_dict().items():
        torch.testing.assert_close(value, network.state_dict()[name].half().float())
    (tmp_path / "tiny_user.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelFileError, match="tiny_user"):
        load_user_network("tiny")


@pytest.mark.parametrize("method, others, goes_on, begins", [
    ("auto", "keep", False, True), ("auto", "remove", False, True), ("auto", "keep", True, False),
    ("pseudose", "keep", False, False), ("pseudose", "remove", False, True),
    ("pseudose-from-random", "remove", False, False)])
def test_a_specialist_begins_where_its_user_is_known(monkeypatch, network, method, others, goes_on, begins):
    monkeypatch.setattr(material, "load_user_network", lambda size: network)
    job = Job([], method=method, size="tiny", others=others, start=b"a model" if goes_on else None)
    assert job.training_method is METHODS["teacher" if method == "auto" else method]
    rng = np.random.default_rng(0)
    speech, noise = rng.standard_normal((2, PIECE)).astype(np.float32)
    pair = Pair(Stretch(speech + noise, None), speech)
    first = material._knowing_the_user(job, [pair], [pair.residual])
    assert (first is not None) is begins
    if first is not None:
        told = network.for_user([speech], [noise], keeps_others=others == "keep")
        torch.testing.assert_close(output(first)[0], output(told)[0], rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(not list(MODELS.glob("*_user.safetensors")), reason="needs the package's models")
def test_what_ships_is_of_the_sizes_that_ship():
    for path in MODELS.glob("*_user.safetensors"):
        size = path.name.removesuffix("_user.safetensors")
        found = load_user_network(size)
        assert found is not None
        start = load_network(size, MODELS / f"{size}.safetensors")
        assert found.folded(torch.zeros(N_TOLD)).n_parameters == start.n_parameters
