"""What is noticed of a recording beside speech in noise."""

import numpy as np
import pytest

from pse_sdk.noise import foreign_noise
from pse_sdk.purification import FrameAnalysis
from pse_sdk.remarks import holds_music, is_narrow
from pse_sdk.segments import Stretch

RATE = 16_000
SECONDS = 20


def stretch(samples: np.ndarray, speech: float = 1.0) -> Stretch:
    n_frames = len(samples) // 256
    return Stretch(samples[:256 * n_frames].astype(np.float32), FrameAnalysis(*np.full((3, n_frames), speech)))


@pytest.mark.parametrize("highest_hz, narrow", [(3400, True), (5500, True), (6400, False)])
def test_speech_from_a_telephone_is_noticed(highest_hz, narrow):
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(2 * RATE))
    spectrum[2 * highest_hz:] *= 1e-4
    samples = np.fft.irfft(spectrum)
    assert is_narrow(stretch(samples)) == narrow
    assert not is_narrow(stretch(samples, speech=0.0))


def voice(rng: np.random.Generator) -> np.ndarray:
    """Harmonics of a pitch that never rests, in syllables."""
    time = np.arange(SECONDS * RATE) / RATE
    pitch = 140 * 2 ** (0.3 * np.sin(2 * np.pi * 0.8 * time) + 0.1 * np.sin(2 * np.pi * 2.3 * time))
    phase = np.cumsum(2 * np.pi * pitch / RATE)
    return sum(np.sin(k * phase) / k for k in range(1, 25)) * np.clip(np.sin(2 * np.pi * 2 * time), 0.02, 1)


def melody(rng: np.random.Generator) -> np.ndarray:
    """Two parts, a note of each every half or whole second."""
    parts = []
    for seconds in (0.5, 1.0):
        notes = 220 * 2 ** (rng.choice([0, 2, 4, 5, 7, 9, 11, 12], round(SECONDS / seconds)) / 12)
        time = np.arange(round(seconds * RATE)) / RATE
        decay = np.exp(-2 * time / seconds)
        parts.append(np.concatenate([decay * sum(np.sin(2 * np.pi * k * hz * time) / k for k in (1, 2, 3))
                                     for hz in notes]))
    return parts[0] + parts[1]


def unit(samples: np.ndarray) -> np.ndarray:
    return samples / np.sqrt(np.mean(np.square(samples)))


@pytest.mark.parametrize("seed", range(3))
def test_music_is_noticed_alone_and_behind_a_voice(seed):
    rng = np.random.default_rng(seed)
    music = unit(melody(rng))
    assert holds_music(stretch(0.1 * music))
    assert holds_music(stretch(0.1 * (unit(voice(rng)) + 0.5 * music)))
    assert holds_music(stretch(1e-4 * music))       # however faint the recording


@pytest.mark.parametrize("kind", ["coloured", "modulated", "hum", "babble", "impulsive", "rhythmic", "rain"])
def test_a_voice_in_noise_is_no_music(kind):
    rng = np.random.default_rng(1)
    speech = unit(voice(rng))
    assert not holds_music(stretch(0.1 * speech))
    assert not holds_music(stretch(0.1 * (speech + 0.6 * unit(foreign_noise(SECONDS, rng, kind)))))


def test_neither_a_mains_hum_nor_silence_nor_a_click_is_music():
    time = np.arange(SECONDS * RATE) / RATE
    mains = sum(np.sin(2 * np.pi * 50 * k * time) / k for k in range(1, 8))
    assert not holds_music(stretch(0.1 * mains))
    assert not holds_music(stretch(np.zeros(SECONDS * RATE)))
    assert not holds_music(stretch(np.ones(300)))


def test_only_the_first_minutes_are_looked_at():
    rng = np.random.default_rng(0)
    quiet = 1e-3 * rng.standard_normal(130 * RATE)
    assert not holds_music(stretch(np.concatenate([quiet, melody(rng)])))
