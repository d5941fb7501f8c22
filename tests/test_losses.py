import numpy as np
import pytest

from pse_sdk.config import STFT
from pse_sdk.stft import WINDOW, power_spectrogram

torch = pytest.importorskip("torch")
from pse_sdk.training.losses import SNR_CAP, compressed_spectrum_loss, negative_snr_db, spectrogram, waveform  # noqa: E402


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def spectra(batch=3, n_frames=20, seed=0):
    return spectrogram(noise(batch, n_frames * STFT.hop_length, seed=seed))


@pytest.mark.parametrize("n_frames", [1, 2, 3, 50])
def test_waveform_undoes_spectrogram_with_the_delay(n_frames):
    samples = noise(2, n_frames * STFT.hop_length)
    again = waveform(spectrogram(samples))
    assert again.shape == samples.shape and not again[:, :1].abs().gt(1e-5).any()
    torch.testing.assert_close(again[:, STFT.delay:], samples[:, :samples.shape[1] - STFT.delay], rtol=0, atol=1e-5)


def test_a_frame_holds_its_hop_and_the_one_before():
    hop = STFT.hop_length
    samples = noise(1, 5 * hop)
    frame = torch.fft.rfft(samples[0, 2 * hop:4 * hop] * torch.from_numpy(WINDOW))
    torch.testing.assert_close(spectrogram(samples)[0, 3], torch.view_as_real(frame).T, rtol=0, atol=1e-4)


@pytest.mark.parametrize("n_samples", [0, 1, 255, 256, 257, 5000])
def test_numpy_and_torch_see_the_same_power(n_samples):
    samples = noise(n_samples).numpy()
    whole = samples[:n_samples // STFT.hop_length * STFT.hop_length]
    expected = spectrogram(torch.from_numpy(whole)[None])[0].square().sum(1).numpy() if len(whole) else \
        np.zeros((0, STFT.n_bins))
    np.testing.assert_allclose(power_spectrogram(samples), expected, rtol=1e-4, atol=1e-4)


def test_the_target_itself_has_no_spectrum_loss():
    assert compressed_spectrum_loss(spectra(), spectra()).item() == pytest.approx(0, abs=1e-9)


def test_the_spectrum_loss_of_silence_is_the_compressed_power_of_the_target():
    # both terms are |target|^0.6, and 0.7 + 0.3 = 1; the floor under the estimate's power takes a few percent
    target = spectra()
    expected = (target.square().sum(2) ** 0.3).mean()
    assert compressed_spectrum_loss(torch.zeros_like(target), target).item() == pytest.approx(expected.item(), rel=0.05)


@pytest.mark.parametrize("missing_weight", [1.0, 3.0])
def test_the_spectrum_loss_knows_its_slope(missing_weight):
    estimate, target = (noise(2, 3, 2, 9, seed=seed).double() for seed in (0, 1))
    estimate.requires_grad_()
    weight = torch.tensor([[1.0, 0.2, 0.0], [2.0, 1.0, 0.5]])
    assert torch.autograd.gradcheck(lambda some: 3 * compressed_spectrum_loss(some, target, weight, missing_weight),
                                    estimate)


def test_a_wrong_phase_costs_only_the_complex_term():
    # |a - (-a)|^2 = 4 |a|^2 with a = |target|^0.3
    target = spectra()
    expected = 0.3 * 4 * (target.square().sum(2) ** 0.3).mean()
    assert compressed_spectrum_loss(-target, target).item() == pytest.approx(expected.item(), rel=1e-3)


def test_the_spectrum_loss_does_not_care_which_is_which():
    estimate, target = spectra(seed=1), spectra(seed=2)
    assert compressed_spectrum_loss(estimate, target).item() == pytest.approx(
        compressed_spectrum_loss(target, estimate).item(), rel=1e-5)


@pytest.mark.parametrize("loss", [compressed_spectrum_loss, negative_snr_db])
def test_weights_of_one_change_nothing(loss):
    estimate, target = spectra(seed=1), spectra(seed=2)
    torch.testing.assert_close(loss(estimate, target, torch.ones(3, 20)), loss(estimate, target))


@pytest.mark.parametrize("loss", [compressed_spectrum_loss, negative_snr_db])
def test_frames_of_weight_zero_do_not_count(loss):
    estimate, target, weight = spectra(seed=1), spectra(seed=2), torch.ones(3, 20)
    weight[:, 5:9] = 0
    other = estimate.clone()
    other[:, 5:9] = 1000.0
    torch.testing.assert_close(loss(other, target, weight), loss(estimate, target, weight))
    assert not torch.allclose(loss(other, target), loss(estimate, target))


def test_the_spectrum_loss_grows_with_the_weight():
    estimate, target = spectra(seed=1), spectra(seed=2)
    half = compressed_spectrum_loss(estimate, target, torch.full((3, 20), 0.5))
    torch.testing.assert_close(half, 0.5 * compressed_spectrum_loss(estimate, target))


@pytest.mark.parametrize("snr_db", [-20.0, -5.0, 0.0, 10.0, 20.0])
def test_the_snr_is_measured_for_each_item(snr_db):
    target = spectra(batch=1).repeat(2, 1, 1, 1)
    error = spectra(batch=1, seed=3)
    error = error * (target[:1].square().sum() / error.square().sum()).sqrt() * 10 ** (-snr_db / 20)
    estimate = target.clone()
    estimate[0] += error[0]
    measured = negative_snr_db(estimate, target)
    assert measured[0].item() == pytest.approx(10 * np.log10(10 ** (-snr_db / 10) + SNR_CAP), abs=1e-3)
    assert measured[1].item() == pytest.approx(-30, abs=1e-3)


def test_beyond_30_db_there_is_nothing_to_gain():
    target = spectra()
    estimate = (target * (1 + 1e-4)).requires_grad_()
    negative_snr_db(estimate, target).sum().backward()
    far = (target * 0.5).requires_grad_()
    negative_snr_db(far, target).sum().backward()
    assert estimate.grad.abs().max() < 0.1 * far.grad.abs().max()


@pytest.mark.parametrize("loss", [compressed_spectrum_loss, negative_snr_db])
def test_silence_on_both_sides_has_a_finite_loss_and_gradient(loss):
    estimate = torch.zeros(3, 20, 2, STFT.n_bins, requires_grad=True)
    loss(estimate, torch.zeros(3, 20, 2, STFT.n_bins)).sum().backward()
    assert estimate.grad.isfinite().all()


def test_what_is_missing_can_count_more_than_what_is_left_over():
    target = spectra()
    for factor, weight in ((0.5, 3.0), (2.0, 1.0)):
        plain, weighted = (compressed_spectrum_loss(factor * target, target, missing_weight=w) for w in (1.0, 3.0))
        # only magnitudes are wrong here: 0.7 of the loss is the magnitude's, 0.3 is of the same error with its phase
        torch.testing.assert_close(weighted, plain * (0.7 * weight + 0.3))
