"""Frames of samples, as the stream sees them: frame i holds hop i and the one before it."""

import numpy as np

from .config import STFT

WINDOW = np.sqrt(np.hanning(STFT.n_fft + 1)[:-1]).astype(np.float32)
FRAMES_AT_ONCE = 4096


def frame_power(samples: np.ndarray) -> np.ndarray:
    """Mean square of every hop [N] of samples [T]; what does not fill one is left out."""
    frames = samples[:len(samples) // STFT.hop_length * STFT.hop_length].reshape(-1, STFT.hop_length)
    power: np.ndarray = np.einsum("nt,nt->n", frames, frames) / STFT.hop_length
    return power


def power_spectrogram(samples: np.ndarray) -> np.ndarray:
    """Energy of every bin: |rfft(window * frame)|^2.

    Shape: `samples` [T], result [N, F] with N = T // hop_length; the first frame starts with a hop of zeros.
    """
    n_frames, hop = len(samples) // STFT.hop_length, STFT.hop_length
    power = np.zeros((n_frames, STFT.n_bins), np.float32)
    padded = np.concatenate([np.zeros(STFT.delay, np.float32), samples[:n_frames * hop]])
    for start in range(0, n_frames, FRAMES_AT_ONCE):        # or half an hour's transform would take a gigabyte
        block = padded[start * hop:(start + FRAMES_AT_ONCE - 1) * hop + STFT.n_fft]
        frames = np.lib.stride_tricks.sliding_window_view(block, STFT.n_fft)[::hop]
        spectrum = np.fft.rfft(frames * WINDOW)
        power[start:start + FRAMES_AT_ONCE] = spectrum.real**2 + spectrum.imag**2
    return power
