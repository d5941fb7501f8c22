"""Frames of samples, as the stream sees them: frame i holds hop i and the one before it."""

import numpy as np

from .config import STFT

WINDOW = np.sqrt(np.hanning(STFT.n_fft + 1)[:-1]).astype(np.float32)


def power_spectrogram(samples: np.ndarray) -> np.ndarray:
    """Energy of every bin: |rfft(window * frame)|^2.

    Shape: `samples` [T], result [N, F] with N = T // hop_length; the first frame starts with a hop of zeros.
    """
    n_frames = len(samples) // STFT.hop_length
    padded = np.concatenate([np.zeros(STFT.delay, np.float32), samples[:n_frames * STFT.hop_length]])
    if not n_frames:
        return np.zeros((0, STFT.n_bins), np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(padded, STFT.n_fft)[::STFT.hop_length]
    spectrum = np.fft.rfft(frames * WINDOW)
    return np.asarray(spectrum.real**2 + spectrum.imag**2, np.float32)
