"""Facts about generated noise: what it promises to everybody, and how each kind lives up to its name."""

import numpy as np
import pytest

from pse_sdk.config import STFT
from pse_sdk.errors import SettingsError
from pse_sdk.noise import NOISE_KINDS, foreign_noise
from pse_sdk.noise_statistics import (
    BAND_CENTRES,
    BAND_EDGES,
    HZ_PER_BIN,
    N_BANDS,
    STATISTICS,
    band_power,
    band_statistics,
)

N_DRAWS = 12
"""The parameters of a kind are random: facts hold for the median of a dozen draws."""


def draws(kind: str, seconds: float = 8.0) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [foreign_noise(seconds, rng, kind) for _ in range(N_DRAWS)]


def crest_db(samples: np.ndarray) -> float:
    return float(20 * np.log10(np.abs(samples).max() / np.sqrt(np.mean(np.square(samples, dtype=np.float64)))))


def envelope_spectrum(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies in Hz and the share of the variance of the 4 ms level that each has."""
    level = np.sqrt(np.square(samples[:len(samples) // 64 * 64]).reshape(-1, 64).mean(1))
    power = np.abs(np.fft.rfft((level - level.mean()) * np.hanning(len(level)))) ** 2
    return np.fft.rfftfreq(len(level), 64 / STFT.sample_rate), power / power.sum()


def line_height_db(samples: np.ndarray) -> float:
    """How far the highest line of the long-term spectrum, in bins of 2 Hz, stands above its 200 Hz of surroundings."""
    power = np.square(np.abs(np.fft.rfft(samples[:len(samples) // 8000 * 8000].reshape(-1, 8000) * np.hanning(8000))))
    level = 10 * np.log10(power.mean(0)[:3000] + 1e-12).reshape(-1, 100)
    return float((level.max(1) - np.median(level, axis=1)).max())


@pytest.mark.parametrize("kind", [*NOISE_KINDS, None])
def test_the_same_generator_gives_the_same_noise(kind):
    first, second, other = (foreign_noise(1.0, np.random.default_rng(seed), kind) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - other).max() > 0.01


@pytest.mark.parametrize("seconds", [0.01, 0.33333, 1.0, 5.0001])
@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_noise_has_the_asked_length_and_level(kind, seconds):
    for seed in range(4):
        noise = foreign_noise(seconds, np.random.default_rng(seed), kind)
        assert noise.shape == (round(seconds * STFT.sample_rate),)
        assert noise.dtype == np.float32
        assert np.sqrt(np.mean(np.square(noise, dtype=np.float64))) == pytest.approx(0.1, rel=1e-4)
        assert np.isfinite(noise).all()


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_two_draws_of_a_kind_differ_in_colour(kind):
    spectra = np.stack([band_statistics(noise).spectrum_db for noise in draws(kind)])
    assert spectra.std(0).mean() > 2.0


def test_without_a_kind_every_kind_comes():
    crests = [crest_db(foreign_noise(2.0, np.random.default_rng(seed))) for seed in range(40)]
    assert min(crests) < 14 and max(crests) > 25


def test_coloured_noise_is_stationary():
    for noise in draws("coloured"):
        statistics = band_statistics(noise)
        assert statistics.slow_shared_db < 0.5      # white noise has 0.1
        assert crest_db(noise) < 16


def test_modulated_noise_comes_and_goes():
    slow_db = [band_statistics(noise).slow_shared_db for noise in draws("modulated")]
    assert np.median(slow_db) > 1.5


def test_hum_has_spectral_lines():
    assert min(line_height_db(noise) for noise in draws("hum")) > 15
    assert max(line_height_db(noise) for noise in draws("coloured")) < 15


def test_rumble_is_loudest_low_down_and_falls_steeply():
    def fall_db(noise):
        """From the loudest band below 500 Hz to 2 kHz."""
        spectrum_db = band_statistics(noise).spectrum_db
        hz = BAND_CENTRES * HZ_PER_BIN
        return spectrum_db[hz < 500].max() - spectrum_db[np.abs(hz - 2000).argmin()]

    rumble, steady = ([fall_db(noise) for noise in draws(kind)] for kind in ("rumble", "coloured"))
    assert np.median(rumble) > 30 and min(rumble) > 15
    assert np.median(steady) < 25


def test_babble_swings_as_often_as_speech_has_syllables():
    def share_of_syllables(noise):
        hz, share = envelope_spectrum(noise)
        return share[(hz >= 2) & (hz <= 8)].sum()

    babble, steady = ([share_of_syllables(noise) for noise in draws(kind)] for kind in ("babble", "coloured"))
    assert np.median(babble) > 0.25
    assert max(steady) < 0.25                       # 6 of 125 Hz, and more where the noise itself is narrow


def test_impulsive_noise_has_high_peaks():
    assert np.median([crest_db(noise) for noise in draws("impulsive")]) > 20    # Gaussian noise: about 13


def test_rhythmic_noise_repeats():
    def highest_line(noise):
        hz, share = envelope_spectrum(noise)
        return share[hz > 0.5].max()

    rhythmic, steady = ([highest_line(noise) for noise in draws(kind)] for kind in ("rhythmic", "coloured"))
    assert np.median(rhythmic) > 3 * np.median(steady)


def test_rain_is_made_of_clicks():
    def click_db(noise):
        """How far the peaks of the brightest octave stand out; colour and slow swings do not count there."""
        bright = np.diff(noise, 2)
        local = np.square(bright[:len(bright) // 400 * 400]).reshape(-1, 400)
        return np.median(10 * np.log10(local.max(1) / local.mean(1)))

    rain, steady = ([click_db(noise) for noise in draws(kind)] for kind in ("rain", "coloured"))
    assert np.median(rain) > np.median(steady) + 1.0


def test_tones_stand_above_their_surroundings():
    assert np.median([line_height_db(noise) for noise in draws("tones")]) > 15


@pytest.fixture(scope="module")
def many_draws():
    rng = np.random.default_rng(3)
    return [band_statistics(foreign_noise(10.0, rng)) for _ in range(200)]


def test_the_mean_spectrum_is_that_of_real_noise(many_draws):
    mean_db = np.mean([statistics.spectrum_db for statistics in many_draws], axis=0)
    assert np.sqrt(np.mean((mean_db - STATISTICS.mean_db) ** 2)) < 4.0
    assert np.abs(mean_db - STATISTICS.mean_db).max() < 8.0


def test_the_spectra_differ_as_much_as_those_of_real_noise(many_draws):
    deviation_db = np.std([statistics.spectrum_db for statistics in many_draws], axis=0)
    real_db = np.sqrt(np.square(STATISTICS.components_db).sum(0) + STATISTICS.residual_db**2)
    assert 0.6 < deviation_db.mean() / real_db.mean() < 1.2


@pytest.mark.parametrize("swing", ["slow_shared_db", "slow_own_db"])
def test_the_median_slow_swing_is_that_of_real_noise(many_draws, swing):
    median_db = np.median([getattr(statistics, swing) for statistics in many_draws])
    assert median_db == pytest.approx(np.median(getattr(STATISTICS, swing)), abs=0.7)


def test_statistics_find_a_swing_that_was_put_in():
    time = np.arange(20 * STFT.sample_rate) / STFT.sample_rate
    white = np.random.default_rng(0).standard_normal(len(time))
    swing_db = np.where(time % 8 < 4, 3.0, -3.0)    # deviation 3 dB, the same in all bands
    statistics = band_statistics(white * 10 ** (swing_db / 20))
    assert statistics.slow_shared_db == pytest.approx(3.0, abs=0.2)
    assert statistics.slow_own_db < 0.8
    np.testing.assert_allclose(statistics.spectrum_db, 0, atol=1.0)


def test_bands_hold_every_bin_but_the_constant():
    assert BAND_EDGES[0] == 1 and BAND_EDGES[-1] == STFT.n_bins and (np.diff(BAND_EDGES) > 0).all()
    tone = np.sin(2 * np.pi * 1000 * np.arange(16000) / STFT.sample_rate)
    assert band_power(tone).shape[1] == N_BANDS
    loudest = int(band_power(tone).mean(0).argmax())
    assert BAND_EDGES[loudest] <= 1000 / 31.25 < BAND_EDGES[loudest + 1]


def test_an_unknown_kind_is_refused():
    with pytest.raises(SettingsError, match="no noise of kind 'thunder'; choose one of coloured"):
        foreign_noise(1.0, np.random.default_rng(0), "thunder")


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 1e-6])
def test_an_impossible_length_is_refused(seconds):
    with pytest.raises(SettingsError, match="seconds"):
        foreign_noise(seconds, np.random.default_rng(0))


def test_silence_has_no_statistics():
    with pytest.raises(SettingsError, match="silence"):
        band_statistics(np.zeros(5 * STFT.sample_rate))
