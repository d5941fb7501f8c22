"""Other people's voices, where nobody else's are at hand: the user's own, with another throat and another pitch.

Pitch moves with the pace, by resampling. The throat is the spectral envelope (the smooth part of the logarithm of the
spectrum, its cepstrum up to some lags), which is then stretched by itself.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import soxr
import torch

from ..config import STFT
from .losses import spectrogram, waveform

PITCH_OCTAVES, THROAT_OCTAVES = 0.9, 0.3    # another voice is at most so far away
SAME_PITCH_OCTAVES, SAME_THROAT_OCTAVES = 0.5, 0.08     # nearer than both it could be the same one in another mood
MOOD_PITCH_OCTAVES, MOOD_THROAT_OCTAVES = (-0.2, 0.5), 0.03     # what moods do to a voice: its throat stays
ENVELOPE_LAGS = 24          # 1.5 ms: shorter than a period of any voice
MOST_GAIN_DB = 20.0
PIECE_SECONDS = 6.0         # for each voice
MOST_VOICES = 120           # more take memory and add little


def others_from(speech: Sequence[np.ndarray], rng: np.random.Generator) -> Iterator[np.ndarray]:
    """As many voices as can be of somebody's speech [T] at the model's rate, each saying a few seconds of it; at most
    `MOST_VOICES`."""
    pieces = _pieces(speech)
    if len(pieces) > MOST_VOICES:
        pieces = [pieces[i] for i in np.sort(rng.choice(len(pieces), MOST_VOICES, replace=False))]
    times = max(1, MOST_VOICES // max(1, len(pieces)))
    return (another_voice(piece, rng) for _ in range(times) for piece in pieces)


def in_other_moods(speech: Sequence[np.ndarray], rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Somebody's speech [T] at the model's rate as the same person would say it higher and faster, or lower and slower:
    a few seconds at a time, at most `MOST_VOICES` times."""
    for piece in _pieces(speech)[:MOST_VOICES]:
        yield shifted(piece, rng.uniform(*MOOD_PITCH_OCTAVES), rng.uniform(-MOOD_THROAT_OCTAVES, MOOD_THROAT_OCTAVES))


def _pieces(speech: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Of a few seconds each [T]; scraps are left out."""
    length = round(PIECE_SECONDS * STFT.sample_rate)
    pieces = [samples[start:start + length] for samples in speech for start in range(0, len(samples), length)]
    return [piece for piece in pieces if len(piece) >= length // 2]


def another_voice(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`samples` [T] as somebody else might say them, faster or slower: [T / pace]."""
    while True:
        pitch = rng.uniform(-PITCH_OCTAVES, PITCH_OCTAVES)
        throat = 0.2 * pitch + rng.normal(0, 0.13)      # short ones sound higher
        throat = np.clip(throat, -THROAT_OCTAVES, THROAT_OCTAVES)
        if abs(pitch) > SAME_PITCH_OCTAVES or abs(throat) > SAME_THROAT_OCTAVES:
            return shifted(samples, pitch, throat)


def shifted(samples: np.ndarray, pitch_octaves: float, throat_octaves: float) -> np.ndarray:
    """`samples` [T] with the pitch moved, and the spectral envelope moved by another factor, each in octaves."""
    moved = soxr.resample(samples, STFT.sample_rate * 2.0**pitch_octaves, STFT.sample_rate).astype(np.float32)
    whole = np.pad(moved, (0, -len(moved) % STFT.hop_length + STFT.hop_length))
    spectrum = spectrogram(torch.from_numpy(whole)[None])
    level = np.log(spectrum.square().sum(2)[0].numpy() + 1e-8) / 2
    cepstrum = np.fft.irfft(level)
    cepstrum[:, ENVELOPE_LAGS:cepstrum.shape[1] - ENVELOPE_LAGS + 1] = 0
    envelope = np.fft.rfft(cepstrum).real
    place = np.arange(STFT.n_bins) * 2.0 ** (pitch_octaves - throat_octaves)    # resampling has moved it as the pitch
    low = np.minimum(place.astype(int), STFT.n_bins - 2)
    share = np.minimum(place - low, 1.0)
    wanted = envelope[:, low] * (1 - share) + envelope[:, low + 1] * share
    most = MOST_GAIN_DB * np.log(10) / 20
    gain = torch.from_numpy(np.exp(np.clip(wanted - envelope, -most, most)).astype(np.float32))
    return waveform(spectrum * gain[None, :, None])[0, STFT.delay:STFT.delay + len(moved)].numpy()
