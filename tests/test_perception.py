"""`pse_sdk/training/perception.py`: that it says what ESTOI and PESQ say, and can be trained for."""

import numpy as np
import pytest

from pse_sdk import metrics
from pse_sdk.noise import synthetic_voice

torch = pytest.importorskip("torch")
from pse_sdk.training.losses import power, spectrogram  # noqa: E402
from pse_sdk.training.perception import disturbance, intelligibility  # noqa: E402

RATE, HOP = 16_000, 256
MEASURES = [intelligibility, disturbance]


def noisy(snr_db, seed=0):
    """Mixture and speech, together of unit RMS [T]."""
    rng = np.random.default_rng(seed)
    speech = synthetic_voice(4 * RATE // HOP * HOP, rng).astype(np.float32)
    noise = rng.standard_normal(len(speech)).astype(np.float32)
    mixture = speech + noise * np.sqrt(np.mean(speech**2) / 10 ** (snr_db / 10))
    scale = 1 / np.sqrt(np.mean(mixture**2))
    return mixture * scale, speech * scale


def spectra(*samples):
    return of(torch.from_numpy(np.stack(samples)))


def of(samples):
    return power(spectrogram(samples))


@pytest.mark.parametrize("package, metric, measure, sign", [("pystoi", "extended_stoi", intelligibility, 1),
                                                            ("pesq", "pesq_wide_band", disturbance, -1)])
def test_it_agrees_with_the_measure_it_follows(package, metric, measure, sign):
    pytest.importorskip(package)
    stats = pytest.importorskip("scipy.stats")
    pairs = [noisy(snr_db, seed) for seed in (0, 1) for snr_db in (0, 5, 10, 15, 20, 30)]
    ours = [sign * measure(spectra(mixture), spectra(speech)).item() for mixture, speech in pairs]
    theirs = [getattr(metrics, metric)(mixture, speech) for mixture, speech in pairs]
    assert stats.spearmanr(ours, theirs).statistic > 0.95


def test_the_target_itself_is_best():
    mixture, speech = noisy(5)
    other = noisy(5, seed=1)[1]
    same, worse, wrong = (intelligibility(spectra(estimate), spectra(speech)).item()
                          for estimate in (speech, mixture, other))
    assert same == pytest.approx(1, abs=0.01) and same > worse > wrong
    same, worse, wrong = (disturbance(spectra(estimate), spectra(speech)).item()
                          for estimate in (speech, mixture, other))
    assert same == pytest.approx(0, abs=0.01) and same < worse < 4.6 and same < wrong


@pytest.mark.parametrize("measure", MEASURES)
def test_the_level_does_not_matter_and_items_do_not_see_each_other(measure):
    pairs = [noisy(0, 0), noisy(10, 1)]
    estimates, targets = spectra(*(mixture for mixture, _ in pairs)), spectra(*(speech for _, speech in pairs))
    together = measure(estimates, targets)
    torch.testing.assert_close(together[1:], measure(estimates[1:], targets[1:]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together, measure(0.1 * estimates, targets), rtol=0, atol=2e-3)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("n_frames", [1, 10, 24, 160])
@pytest.mark.parametrize("estimate_level, target_level", [(1, 1), (0, 1), (1, 0), (0, 0), (1e-4, 1), (1e4, 1)])
def test_what_is_silent_short_or_loud_gives_numbers_and_gradients(measure, n_frames, estimate_level, target_level):
    generator = torch.Generator().manual_seed(0)
    estimate = (estimate_level * torch.randn(2, n_frames * HOP, generator=generator)).requires_grad_()
    target = of(target_level * torch.randn(2, n_frames * HOP, generator=generator))
    found = measure(of(estimate), target)
    assert found.shape == (2,) and torch.isfinite(found).all()
    if found.requires_grad:
        (gradient,) = torch.autograd.grad(found.sum(), estimate)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("measure, sign", [(intelligibility, -1), (disturbance, 1)])
def test_following_the_gradient_helps(measure, sign):
    mixture, speech = noisy(0)
    target = spectra(speech)
    estimate = torch.from_numpy(mixture)[None].requires_grad_()
    optimizer = torch.optim.Adam([estimate], lr=0.05)
    before = measure(of(estimate), target).item()
    for _ in range(20):
        optimizer.zero_grad()
        (sign * measure(of(estimate), target).sum()).backward()
        optimizer.step()
    assert sign * (measure(of(estimate), target).item() - before) < -0.05
