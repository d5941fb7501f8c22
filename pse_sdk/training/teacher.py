"""The best estimate of the speech in a recording that this package can make, for specialists to learn from.

Two networks are asked, one that looks ahead and the best generalist, and their estimates averaged: they err in
different places, and the mean is nearer to the truth than either.
"""

from pathlib import Path

import numpy as np
import torch

from ..config import MODELS, STFT
from ..enhancer import Enhancer
from .losses import spectrogram, waveform
from .network import Denoiser, load_network

# Frames estimated at once, and how many at each inner edge are estimated twice. It learnt from 5.12 s at a time, and
# with longer stretches it is worse.
CHUNK, MARGIN = 320, 60
N_AT_ONCE = 8
BLOCK = 30 * STFT.sample_rate
BEST_GENERALIST = "large"


def load_teacher(path: Path = MODELS / "teacher.safetensors") -> Denoiser:
    """The network that looks ahead, as it ships.

    Raises:
        ModelFileError: this installation has none.
    """
    return load_network("teacher", path)


class Teacher:
    """Both networks.

    Raises:
        ModelFileError: this installation lacks one of them.
    """

    def __init__(self) -> None:
        self._looks_ahead = load_teacher()
        self._generalist = Enhancer(size=BEST_GENERALIST)

    def estimate(self, samples: np.ndarray) -> np.ndarray:
        """The speech [T] in samples [T] at the model's rate, time-aligned."""
        speech = estimate_speech(self._looks_ahead, samples)
        with self._generalist.stream(STFT.sample_rate) as stream:       # in blocks, for the sake of memory
            blocks = [stream.process(samples[start:start + BLOCK]) for start in range(0, len(samples), BLOCK)]
            causal = np.concatenate([*blocks, stream.flush()])[stream.delay_samples:]
        speech += causal
        speech *= 0.5
        return speech


@torch.no_grad()
def estimate_speech(network: Denoiser, samples: np.ndarray) -> np.ndarray:
    """The speech [T] in samples [T] at the model's rate, time-aligned, in chunks that overlap."""
    hop, inner = STFT.hop_length, CHUNK - 2 * MARGIN
    n_chunks = max(1, -(-len(samples) // (inner * hop)))
    # mirrored ends: digital silence around a noisy recording would look like its pauses
    n_after = (n_chunks * inner + MARGIN) * hop - len(samples)
    padded = np.pad(samples, (MARGIN * hop, n_after), mode="reflect" if len(samples) > 1 else "edge")
    chunks = torch.from_numpy(padded).unfold(0, CHUNK * hop, inner * hop)
    found = np.empty((len(chunks), inner * hop), np.float32)
    for start in range(0, len(chunks), N_AT_ONCE):
        some = chunks[start:start + N_AT_ONCE]
        spectra = spectrogram(torch.nn.functional.pad(some, (0, hop)))
        estimate, _ = network(spectra, network.initial_state(len(some)))
        aligned = waveform(estimate)[:, STFT.delay:]
        found[start:start + N_AT_ONCE] = aligned[:, MARGIN * hop:(MARGIN + inner) * hop].numpy()
    return found.reshape(-1)[:len(samples)]
