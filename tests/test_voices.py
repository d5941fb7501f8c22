import numpy as np
import pytest

from pse_sdk.config import STFT
from pse_sdk.noise import synthetic_voice

pytest.importorskip("torch")
from pse_sdk.training import voices  # noqa: E402
from pse_sdk.training.voices import (  # noqa: E402
    MOOD_PITCH_OCTAVES,
    PIECE_SECONDS,
    another_voice,
    in_other_moods,
    others_from,
    shifted,
)

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


def test_nobody_else_sounds_like_the_user_in_another_mood(monkeypatch):
    moved = []
    monkeypatch.setattr(voices, "shifted", lambda samples, *octaves: moved.append(octaves) or samples)
    speech = [np.ones(int(40 * PIECE_SECONDS * RATE), np.float32)]
    n_moods = len(list(in_other_moods(speech, np.random.default_rng(0))))
    moods = np.array(moved).T
    assert n_moods == 40 and moods[0].min() < -0.1 and moods[0].max() > 0.4
    moved.clear()
    for seed in range(500):
        another_voice(speech[0], np.random.default_rng(seed))
    others = np.array(moved).T
    like_the_user = np.abs(others[1]) < np.abs(moods[1]).max()
    assert like_the_user.sum() > 20
    assert not ((others[0] > MOOD_PITCH_OCTAVES[0]) & (others[0] < MOOD_PITCH_OCTAVES[1]))[like_the_user].any()


def test_a_mood_is_the_same_throat_at_another_pitch():
    speech = pulses(120, 1500, seconds=PIECE_SECONDS)
    for mood in in_other_moods([speech] * 4, np.random.default_rng(3)):
        octaves = (np.log2(pitch_of(mood) / 120) + 0.45) % 1 - 0.45     # two periods are found as well as one
        assert MOOD_PITCH_OCTAVES[0] - 0.05 < octaves < MOOD_PITCH_OCTAVES[1] + 0.05
        assert formant_of(mood) == pytest.approx(1500, rel=0.12)
        assert len(mood) >= PIECE_SECONDS / 2**MOOD_PITCH_OCTAVES[1] * RATE - 2
