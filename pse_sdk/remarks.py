"""What a recording is beside speech in noise, for the notes of a report."""

import numpy as np

from .config import STFT
from .segments import Stretch
from .stft import power_spectrogram

LOOKED_AT_FRAMES = 8000     # the first two minutes
NARROW_BAND_HZ, NARROW_SHARE = 6000, 1e-5       # less of the energy above it than that: nothing
TONE_WINDOW, TONE_HOP = 2048, 1024      # samples; bins of 8 Hz, frames of 64 ms
TONES_HZ = (125, 4000)
LEAST_TONE_DB = 9.0         # above the mean of the neighbouring bins
NEIGHBOURS = 21
TONE_FRAMES = (6, 60)       # a note lasts 0.4 to 4 s; no vowel keeps its pitch to 8 Hz for so long
HUM_SHARE = 0.25            # of all frames: what sounds so often is no melody
LEAST_MUSIC_SHARE = 0.07    # of the loud frames with two notes: speech alone has 0.04 at most, with faint music 0.11


def is_narrow(stretch: Stretch) -> bool:
    """Whether its speech ends below `NARROW_BAND_HZ`, by its first minutes."""
    power = power_spectrogram(stretch.samples[:LOOKED_AT_FRAMES * STFT.hop_length])
    power = power[stretch.frames.speech[:len(power)] > 0.5].sum(0)
    edge = round(NARROW_BAND_HZ / STFT.sample_rate * STFT.n_fft)
    return bool(power[edge:].sum() < NARROW_SHARE * power.sum())


def holds_music(stretch: Stretch) -> bool:
    """Whether notes sound in it, by its first minutes: tones that stay where they are, two at a time, and end."""
    samples = stretch.samples[:LOOKED_AT_FRAMES * STFT.hop_length]
    if len(samples) < TONE_WINDOW:
        return False
    frames = np.lib.stride_tricks.sliding_window_view(samples, TONE_WINDOW)[::TONE_HOP]
    low, high = (round(hz / STFT.sample_rate * TONE_WINDOW) for hz in TONES_HZ)
    spectrum = np.fft.rfft(frames * np.hanning(TONE_WINDOW).astype(np.float32))[:, low:high]
    level = 10 * np.log10(np.square(np.abs(spectrum)) + 1e-14)
    tones = _peaks(level)
    hum = tones.mean(0) > HUM_SHARE
    tones[:, hum | np.roll(hum, 1) | np.roll(hum, -1)] = False
    loudest = level.max(1)
    loud = loudest > np.median(loudest) - 20
    return bool((_notes_at_once(tones)[loud] >= 2).mean() > LEAST_MUSIC_SHARE)


def _peaks(level: np.ndarray) -> np.ndarray:
    """Where level [N, F] in dB is higher than beside it, and far higher than the bins around."""
    half = NEIGHBOURS // 2
    sums = np.cumsum(np.pad(level, ((0, 0), (half + 1, half)), mode="edge"), 1)
    around = (sums[:, NEIGHBOURS:] - sums[:, :-NEIGHBOURS]) / NEIGHBOURS
    inner = level[:, 1:-1]
    found = (inner > level[:, :-2]) & (inner >= level[:, 2:]) & (inner > around[:, 1:-1] + LEAST_TONE_DB)
    return np.pad(found, ((0, 0), (1, 1)))


def _notes_at_once(tones: np.ndarray) -> np.ndarray:
    """How many of the tones [N, F] in each frame last as long as a note does. Shape: [N]."""
    n_frames = len(tones)
    steps = np.diff(np.pad(tones.T.astype(np.int8), ((0, 0), (1, 1))))      # 1 where a tone begins, -1 where it is over
    begin, end = np.nonzero(steps == 1)[1], np.nonzero(steps == -1)[1]      # bin after bin, so that they go together
    least, most = TONE_FRAMES
    notes = (end - begin >= least) & (end - begin < most)
    changes = np.bincount(begin[notes], minlength=n_frames + 1) - np.bincount(end[notes], minlength=n_frames + 1)
    return np.cumsum(changes)[:n_frames]
