import numpy as np
import pytest

from pse_sdk.config import SIZES, STFT
from pse_sdk.errors import SettingsError

torch = pytest.importorskip("torch")
from pse_sdk.training.losses import spectrogram  # noqa: E402
from pse_sdk.training.network import NETWORKS, band_matrix, build_network  # noqa: E402

MOST_PARAMETERS = {"tiny": 35_000, "small": 100_000, "medium": 350_000, "large": 1_050_000}
STREAMING_TOLERANCE = 1e-5      # of outputs that reach 10
LEVEL_TOLERANCE = 1e-3


@pytest.fixture(scope="module", params=SIZES)
def network(request):
    torch.manual_seed(0)
    return build_network(request.param).eval()


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def noise_spectra(batch=2, n_frames=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return spectrogram(0.1 * torch.randn(batch, n_frames * STFT.hop_length, generator=generator))


def test_every_size_has_a_network_and_so_has_the_teacher():
    assert tuple(NETWORKS) == (*SIZES, "teacher")


def test_each_size_keeps_to_its_number_of_parameters(network):
    size = next(name for name, config in NETWORKS.items() if config == network.config)
    assert 0.75 * MOST_PARAMETERS[size] < network.n_parameters <= MOST_PARAMETERS[size]


def test_an_unknown_size_is_refused():
    with pytest.raises(SettingsError, match="tiny, small, medium, large"):
        build_network("huge")


def test_many_frames_at_once_give_what_they_give_one_by_one(network):
    noisy = noise_spectra()
    at_once, last = network(noisy, network.initial_state(2))
    state, one_by_one = network.initial_state(2), []
    for i in range(noisy.shape[1]):
        frame, state = network(noisy[:, i:i + 1], state)
        one_by_one.append(frame)
    torch.testing.assert_close(torch.cat(one_by_one, 1), at_once, rtol=0, atol=STREAMING_TOLERANCE)
    for name, value in last.items():
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=STREAMING_TOLERANCE)


@pytest.mark.parametrize("cut", [1, 2, 7, 59])
def test_a_sequence_may_be_cut_anywhere(network, cut):
    noisy = noise_spectra()
    whole, _ = network(noisy, network.initial_state(2))
    head, state = network(noisy[:, :cut], network.initial_state(2))
    tail, _ = network(noisy[:, cut:], state)
    torch.testing.assert_close(torch.cat([head, tail], 1), whole, rtol=0, atol=STREAMING_TOLERANCE)


def test_a_later_frame_never_changes_an_earlier_one(network):
    noisy, other = noise_spectra(seed=1), noise_spectra(seed=2)
    other[:, :30] = noisy[:, :30]
    ours, theirs = (network(spectra, network.initial_state(2))[0] for spectra in (noisy, other))
    torch.testing.assert_close(ours[:, :30], theirs[:, :30], rtol=0, atol=STREAMING_TOLERANCE)
    assert (ours[:, 30] - theirs[:, 30]).abs().max() > 0.1


def test_the_clips_of_a_batch_do_not_hear_each_other(network):
    noisy = noise_spectra(batch=3)
    together, _ = network(noisy, network.initial_state(3))
    for i in range(3):
        alone, _ = network(noisy[i:i + 1], network.initial_state())
        torch.testing.assert_close(together[i:i + 1], alone, rtol=0, atol=STREAMING_TOLERANCE)


@pytest.mark.parametrize("gain_db", [-25, 25, 60])
def test_the_gains_do_not_depend_on_the_level(network, gain_db):
    noisy, gain = noise_spectra(), 10 ** (gain_db / 20)     # the noise is at -20 dBFS
    expected = gain * network(noisy, network.initial_state(2))[0]
    torch.testing.assert_close(network(gain * noisy, network.initial_state(2))[0], expected,
                               rtol=0, atol=LEVEL_TOLERANCE * expected.abs().max().item())


def test_the_given_state_is_left_as_it_is(network):
    _, state = network(noise_spectra(), network.initial_state(2))
    before = {name: value.clone() for name, value in state.items()}
    network(noise_spectra(seed=1), state)
    assert all(torch.equal(state[name], before[name]) for name in before)


def test_the_state_starts_at_zero_and_keeps_its_shapes(network):
    start = network.initial_state(2)
    assert not any(value.any() for value in start.values())
    _, state = network(noise_spectra(n_frames=1), start)
    assert {name: value.shape for name, value in state.items()} == {name: value.shape for name, value in start.items()}


def test_silence_stays_silence_and_leaves_nothing_broken(network):
    silence = torch.zeros(2, 500, 2, STFT.n_bins)
    quiet, state = network(silence, network.initial_state(2))
    assert not quiet.any() and all(value.isfinite().all() for value in state.values())


def test_training_reaches_every_parameter(network):
    with torch.enable_grad():
        enhanced, _ = network(noise_spectra(), network.initial_state(2))
        enhanced.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    network.zero_grad()


@pytest.mark.parametrize("n_bands", sorted({config.n_bands for config in NETWORKS.values()} | {48}))
def test_the_bands_share_every_bin_out_completely(n_bands):
    bands = band_matrix(n_bands, STFT.n_bins).numpy()
    assert bands.shape == (STFT.n_bins, n_bands) and bands.min() >= 0
    np.testing.assert_allclose(bands.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize("n_bands", sorted({config.n_bands for config in NETWORKS.values()} | {48}))
def test_bands_are_one_bin_wide_at_the_bottom_and_wider_above(n_bands):
    widths = band_matrix(n_bands, STFT.n_bins).sum(0).numpy()
    assert widths[:3] == pytest.approx(1, abs=0.3)
    assert np.all(np.diff([part.mean() for part in np.array_split(widths, 6)]) > 0)


def test_the_running_level_is_the_average_of_the_past_so_far(network):
    generator = torch.Generator().manual_seed(0)
    power = torch.rand(1, 200, generator=generator)
    level, state = network._running_level(power, torch.zeros(1, 2))
    decay = 1 - STFT.hop_seconds / 2.0
    weights = decay ** np.arange(199, -1, -1)
    assert level[0, 0] == pytest.approx(power[0, 0].item(), rel=1e-5)
    assert level[0, -1] == pytest.approx(np.average(power[0].numpy(), weights=weights), rel=1e-4)


def test_a_muted_microphone_does_not_change_the_level_that_was_heard():
    torch.manual_seed(0)
    network = build_network("tiny").eval()
    spectra = torch.randn(1, 100, 2, STFT.n_bins)
    with torch.no_grad():
        _, before = network(spectra, network.initial_state())
        _, after = network(torch.zeros(1, 1000, 2, STFT.n_bins), before)      # 16 s
    level = {name: float(state["level"][0, 0] / state["level"][0, 1]) for name, state in
             (("before", before), ("after", after))}
    assert level["after"] == pytest.approx(level["before"], rel=1e-3)
