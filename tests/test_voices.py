import numpy as np
import pytest

from pse_sdk.config import STFT
from pse_sdk.noise import synthetic_voice

pytest.importorskip("torch")
from pse_sdk.training.voices import PIECE_SECONDS, another_voice, others_from, shifted  # noqa: E402

RATE = STFT.sample_rate


def pulses(pitch_hz, formant_hz, seconds=2.0):
    """A buzz that rings at one frequency."""
    n = int(seconds * RATE)
    buzz = np.zeros(n)
    buzz[np.arange(0, n, RATE / pitch_hz).astype(int)] = 1
    time = np.arange(800) / RATE
    ring = np.exp(-time * 300) * np.sin(2 * np.pi * formant_hz * time)
    return (0.3 * np.convolve(buzz, ring)[:n]).astype(np.float32)


def pitch_of(samples):
    """Hz, from the autocorrelation."""
    correlation = np.fft.irfft(np.abs(np.fft.rfft(samples, 2 * len(samples))) ** 2)
    lags = np.arange(RATE // 400, RATE // 60)
    return RATE / lags[np.argmax(correlation[lags])]


def formant_of(samples):
    """Hz of the loudest band, 200 Hz wide."""
    power = np.abs(np.fft.rfft(samples)) ** 2
    width = 200 * len(samples) // RATE
    return np.argmax(np.convolve(power, np.ones(width), "same")) * RATE / len(samples)


def test_nothing_moved_is_nothing_changed():
    samples = synthetic_voice(RATE, np.random.default_rng(0))
    np.testing.assert_allclose(shifted(samples, 0, 0), samples, atol=1e-5)


@pytest.mark.parametrize("octaves", [-0.5, 0.4])
def test_the_pitch_moves_and_the_throat_stays(octaves):
    moved = shifted(pulses(120, 1500), octaves, 0)
    assert pitch_of(moved) == pytest.approx(120 * 2**octaves, rel=0.03)
    assert formant_of(moved) == pytest.approx(1500, rel=0.12)


@pytest.mark.parametrize("octaves", [-0.3, 0.3])
def test_the_throat_moves_and_the_pitch_stays(octaves):
    moved = shifted(pulses(120, 1500), 0, octaves)
    assert pitch_of(moved) == pytest.approx(120, rel=0.01)
    assert formant_of(moved) == pytest.approx(1500 * 2**octaves, rel=0.12)


def test_there_are_not_more_voices_than_fit(monkeypatch):
    monkeypatch.setattr("pse_sdk.training.voices.MOST_VOICES", 3)
    speech = [synthetic_voice(round(length * PIECE_SECONDS * RATE), np.random.default_rng(0)) for length in (4, 0.4, 2)]
    assert len(list(others_from(speech, np.random.default_rng(0)))) == 3
    assert len(list(others_from(speech[1:], np.random.default_rng(0)))) == 2


def test_another_voice_is_finite_sound_of_like_level():
    samples = synthetic_voice(4 * RATE, np.random.default_rng(1))
    for seed in range(10):
        other = another_voice(samples, np.random.default_rng(seed))
        assert np.all(np.isfinite(other)) and 0.5 < other.std() / samples.std() < 2


def test_little_speech_is_said_by_many_voices_and_scraps_are_left_out(monkeypatch):
    monkeypatch.setattr("pse_sdk.training.voices.MOST_VOICES", 6)
    speech = [synthetic_voice(int(2.2 * PIECE_SECONDS * RATE), np.random.default_rng(2)), np.zeros(100, np.float32)]
    voices = list(others_from(speech, np.random.default_rng(0)))
    assert len(voices) == 6                                 # two pieces, each said by three
    pitches = sorted(pitch_of(voice) for voice in voices)
    assert len(np.unique(np.round(pitches))) > 2
    assert list(others_from([], np.random.default_rng(0))) == []
