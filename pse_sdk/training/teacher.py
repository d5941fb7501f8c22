"""The best estimate of the speech in a recording that this package can make, for specialists to learn from.

Two networks are asked, one that looks ahead and the best generalist, and their estimates averaged: they err in
different places, and the mean is nearer to the truth than either.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..config import MODELS, STFT
from ..enhancer import generalist
from .losses import spectrogram, waveform
from .network import Denoiser, load_network

BEST_GENERALIST = "large"


@dataclass(frozen=True)
class Chunks:
    """How a long recording is cut for one network, in frames."""

    before: int     # that are heard first, and dropped
    kept: int
    after: int      # that are heard ahead, and dropped

    @property
    def whole(self) -> int:
        return self.before + self.kept + self.after


# The teacher learnt from 5.12 s at a time, and with longer stretches it is worse. More frames around what is kept make
# neither estimate better.
LOOKING_AHEAD, CAUSAL = Chunks(40, 240, 40), Chunks(125, 500, 0)
N_AT_ONCE = 8


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
        causal = load_network(BEST_GENERALIST, generalist(BEST_GENERALIST).with_suffix(".safetensors"))
        self.networks = load_teacher(), causal

    def estimate(self, samples: np.ndarray, on_chunks: Callable[[], None] = lambda: None) -> np.ndarray:
        """The speech [T] in samples [T] at the model's rate, time-aligned. `on_chunks`: see `estimate_speech`."""
        speech, other = (estimate_speech(network, samples, on_chunks) for network in self.networks)
        speech += other
        speech *= 0.5
        return speech


@torch.no_grad()
def estimate_speech(network: Denoiser, samples: np.ndarray,
                    on_chunks: Callable[[], None] = lambda: None) -> np.ndarray:
    """The speech [T] in samples [T] at the model's rate, time-aligned, in chunks that overlap.

    Args:
        on_chunks: called before every half minute of sound or so; what it raises ends the work.
    """
    chunks, hop = LOOKING_AHEAD if network.config.looks_ahead else CAUSAL, STFT.hop_length
    kept = chunks.kept * hop
    n_chunks = max(1, -(-len(samples) // kept))
    # mirrored ends: digital silence around a noisy recording would look like its pauses
    n_after = n_chunks * kept + chunks.after * hop - len(samples)
    padded = np.pad(samples, (chunks.before * hop, n_after), mode="reflect" if len(samples) > 1 else "edge")
    rows = torch.from_numpy(padded).unfold(0, chunks.whole * hop, kept)
    found = np.empty((len(rows), kept), np.float32)
    for start in range(0, len(rows), N_AT_ONCE):
        on_chunks()
        some = rows[start:start + N_AT_ONCE]
        spectra = spectrogram(torch.nn.functional.pad(some, (0, hop)))
        estimate, _ = network(spectra, network.initial_state(len(some)))
        aligned = waveform(estimate)[:, STFT.delay:]
        found[start:start + N_AT_ONCE] = aligned[:, chunks.before * hop:chunks.before * hop + kept].numpy()
    return found.reshape(-1)[:len(samples)]
