"""The network that looks ahead, at work: the best estimate of the speech in a recording that this package can make."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from ..config import MODELS, STFT
from ..errors import ModelFileError
from .losses import spectrogram, waveform
from .network import Denoiser, build_network

CHUNK, MARGIN = 512, 64     # frames estimated at once (8.2 s), and how many at each inner edge are estimated twice
N_AT_ONCE = 8


def load_teacher(path: Path = MODELS / "teacher.safetensors") -> Denoiser:
    """The teacher that ships.

    Raises:
        ModelFileError: this installation has none.
    """
    if not path.exists():
        raise ModelFileError(f"this installation has no weights of the teacher ({path.name}); install it anew")
    network = build_network("teacher")
    network.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return network.eval()


@torch.no_grad()
def estimate_speech(network: Denoiser, samples: np.ndarray) -> np.ndarray:
    """The speech [T] in samples [T] at the model's rate, time-aligned, in chunks that overlap."""
    hop, inner = STFT.hop_length, CHUNK - 2 * MARGIN
    n_chunks = max(1, -(-len(samples) // (inner * hop)))
    # mirrored ends: digital silence around a noisy recording would look like its pauses
    n_after = (n_chunks * inner + MARGIN) * hop - len(samples)
    padded = np.pad(samples, (MARGIN * hop, n_after), mode="reflect" if len(samples) > 1 else "edge")
    chunks = torch.from_numpy(padded).unfold(0, CHUNK * hop, inner * hop)
    found = []
    for some in chunks.split(N_AT_ONCE):
        spectra = spectrogram(torch.nn.functional.pad(some, (0, hop)))
        estimate, _ = network(spectra, network.initial_state(len(some)))
        aligned = waveform(estimate)[:, STFT.delay:]
        found.append(aligned[:, MARGIN * hop:(MARGIN + inner) * hop])
    return torch.cat(found).flatten()[:len(samples)].numpy()
