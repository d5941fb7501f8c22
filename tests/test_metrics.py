import sys
from importlib.util import find_spec

import numpy as np
import pytest

from pse_sdk.errors import AudioError, MissingDependencyError
from pse_sdk.metrics import (
    SI_SDR_LIMIT_DB,
    extended_stoi,
    pesq_wide_band,
    score,
    si_sdr,
    si_sdr_improvement,
)

RATE = 16_000
needs_pesq = pytest.mark.skipif(find_spec("pesq") is None, reason="needs pesq")
needs_pystoi = pytest.mark.skipif(find_spec("pystoi") is None, reason="needs pystoi")
MEASURES = [si_sdr, pytest.param(pesq_wide_band, marks=needs_pesq), pytest.param(extended_stoi, marks=needs_pystoi)]


def voice(seconds=3.0, seed=0):
    """A buzz through two moving resonances, in syllables: enough of a voice for PESQ and ESTOI."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * RATE)) / RATE
    pitch = 120 + 15 * np.sin(2 * np.pi * 0.7 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    buzz = np.zeros_like(t)
    for harmonic in range(1, 30):
        hz = harmonic * pitch
        for resonance_hz in (600 + 200 * np.sin(9 * t), 1700 - 400 * np.cos(7 * t)):
            buzz += np.exp(-((hz - resonance_hz) / 250) ** 2) * np.sin(harmonic * phase)
    syllables = np.clip(np.sin(2 * np.pi * 2 * t), 0, 1)
    return 0.1 * syllables * (buzz + 0.02 * rng.standard_normal(len(t)))


def with_noise(clean, snr_db, seed=1):
    noise = np.random.default_rng(seed).standard_normal(len(clean))
    return clean + noise * np.sqrt((clean @ clean) / (noise @ noise)) * 10 ** (-snr_db / 20)


@pytest.mark.parametrize("snr_db", [-20, -5, 0, 30])
def test_si_sdr_is_the_snr_of_noise_that_is_orthogonal_to_the_target(snr_db):
    t = np.arange(RATE) / RATE
    target, noise = np.sin(2 * np.pi * 200 * t), np.sin(2 * np.pi * 300 * t)
    assert si_sdr(target + noise * 10 ** (-snr_db / 20), target) == pytest.approx(snr_db, abs=1e-6)


@pytest.mark.parametrize("scale, offset", [(1e-6, 0.0), (1e3, 0.0), (-1.0, 0.0), (1.0, 0.5)])
def test_si_sdr_ignores_scale_sign_and_offset(scale, offset):
    target = voice(1.0)
    noisy = with_noise(target, 5)
    assert si_sdr(scale * noisy + offset, target) == pytest.approx(si_sdr(noisy, target), abs=1e-6)


def test_si_sdr_of_the_target_itself_is_the_upper_limit():
    target = voice(1.0)
    assert si_sdr(target, target) == SI_SDR_LIMIT_DB
    assert si_sdr(0.3 * target, target) == SI_SDR_LIMIT_DB


def test_si_sdr_of_silence_is_the_lower_limit():
    target = voice(1.0)
    assert si_sdr(np.zeros_like(target), target) == -SI_SDR_LIMIT_DB
    assert si_sdr(np.full_like(target, 0.1), target) == -SI_SDR_LIMIT_DB


def test_si_sdr_of_something_unrelated_is_far_below_zero():
    t = np.arange(RATE) / RATE
    assert si_sdr(np.sin(2 * np.pi * 300 * t), np.sin(2 * np.pi * 200 * t)) == -SI_SDR_LIMIT_DB


@pytest.mark.parametrize("measure", MEASURES)
def test_nothing_can_be_said_about_a_silent_target(measure):
    assert np.isnan(measure(voice(1.0), np.zeros(RATE)))
    assert np.isnan(measure(np.zeros(RATE), np.zeros(RATE)))


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("estimate, target", [
    (np.ones(5), np.ones(6)),
    (np.ones((5, 1)), np.ones(5)),
    (np.ones((2, 5)), np.ones((2, 5))),
    (np.ones(0), np.ones(0)),
])
def test_two_mono_clips_of_one_length_are_wanted(measure, estimate, target):
    with pytest.raises(AudioError, match="one length"):
        measure(estimate, target)


def test_the_noisy_input_improves_nothing():
    target = voice(1.0)
    noisy = with_noise(target, 0)
    assert si_sdr_improvement(noisy, noisy, target) == 0.0
    assert si_sdr_improvement(with_noise(target, 10), noisy, target) == pytest.approx(10, abs=0.5)


@needs_pesq
def test_pesq_is_highest_for_the_target_and_falls_with_noise():
    target = voice()
    values = [pesq_wide_band(e, target) for e in (target, with_noise(target, 20), with_noise(target, 0))]
    assert values[0] > 4.6
    assert values == sorted(values, reverse=True)


@needs_pesq
def test_pesq_of_silence_is_the_lowest_of_all():
    target = voice()
    assert pesq_wide_band(np.zeros_like(target), target) < pesq_wide_band(with_noise(target, -20), target)


@needs_pystoi
def test_estoi_is_one_for_the_target_and_falls_with_noise():
    target = voice()
    values = [extended_stoi(e, target) for e in (target, with_noise(target, 20), with_noise(target, 0))]
    assert values[0] == pytest.approx(1.0, abs=1e-6)
    assert values == sorted(values, reverse=True)


@needs_pesq
@needs_pystoi
@pytest.mark.parametrize("n_samples", [1, 100, 1700, 3000])
def test_pesq_and_estoi_say_nan_of_too_short_a_clip(n_samples):
    target = voice()[1000:1000 + n_samples]
    assert np.isnan(pesq_wide_band(target, target))
    assert np.isnan(extended_stoi(target, target))


@needs_pesq
@needs_pystoi
def test_score_is_the_three_measures():
    target = voice()
    noisy, estimate = with_noise(target, 0), with_noise(target, 8)
    scores = score(estimate, noisy, target)
    assert scores.si_sdr_improvement == si_sdr_improvement(estimate, noisy, target)
    assert scores.pesq == pesq_wide_band(estimate, target)
    assert scores.estoi == pytest.approx(extended_stoi(estimate, target), abs=1e-9)     # pystoi adds a little noise


@pytest.mark.parametrize("measure, package", [(pesq_wide_band, "pesq"), (extended_stoi, "pystoi")])
def test_without_the_package_the_error_says_what_to_install(monkeypatch, measure, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=r"pse_sdk\[bench\]"):
        measure(voice(1.0), voice(1.0))


def test_si_sdr_needs_no_package(monkeypatch):
    for package in ("pesq", "pystoi", "scipy"):
        monkeypatch.setitem(sys.modules, package, None)
    assert si_sdr(voice(1.0), voice(1.0)) == SI_SDR_LIMIT_DB
