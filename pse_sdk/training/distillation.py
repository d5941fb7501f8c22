"""What other denoisers make of the mixtures that a network is pre-trained with: a part of what it is to make of them.

The truth says what an ideal network would do; a good one says what can be done, and how it treats sounds that few
recordings of the corpus are like.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import STFT
from ..errors import PseError, SettingsError
from ..peers import make_peer
from .losses import spectrogram
from .network import Denoiser, load_network
from .teacher import Teacher

PACKAGE = "package"     # the name of what teaches specialists
WEIGHTS = ".safetensors"
LEVEL = 0.08            # RMS of mixtures as other people's denoisers hear them, -22 dBFS: some know speech by its level


class Teachers:
    """Denoisers that are asked for the speech in mixtures; the mean of what they say counts.

    Args:
        names: `package` for the two networks that teach specialists; FILE.safetensors:NAME for weights that
            pre-training left, of the network NAME (a size, or `teacher`); or FILE:NAME for a peer (`pse_sdk.peers`).

    Raises:
        SettingsError: there is no such teacher, or it cannot enhance a second of noise.
        ModelFileError: this installation lacks its own, or a file of weights is not that network's.
    """

    def __init__(self, names: Sequence[str]) -> None:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):    # what a stranger's program does to torch ends here
            self._estimates = [_estimate_of(name) for name in names]
        self.estimate(torch.randn(2, STFT.sample_rate // STFT.hop_length * STFT.hop_length,
                                  generator=torch.Generator().manual_seed(0)))

    @torch.no_grad()
    def estimate(self, noisy: Tensor) -> Tensor:
        """Spectra of the speech, [B, N, 2, F], in mixtures [B, T] of unit RMS.

        Raises:
            SettingsError: a peer failed, or made no numbers, or not as many as it was given.
        """
        with torch.random.fork_rng(devices=[]):
            return torch.stack([estimate(noisy) for estimate in self._estimates]).mean(0)


def label(name: str) -> str:
    """A teacher's name without the folder of its file: it may lie elsewhere on another machine."""
    file, colon, rest = name.rpartition(":")
    return f"{Path(file).name}{colon}{rest}"


def _estimate_of(name: str) -> Callable[[Tensor], Tensor]:
    if name == PACKAGE:
        return _of_networks(Teacher().networks)
    file, _, rest = name.rpartition(":")
    if not file or not rest:
        raise SettingsError(f"--teacher {name}: expected {PACKAGE}, FILE{WEIGHTS}:NAME for weights of a network, or "
                            "FILE:NAME for a peer that a Python file makes")
    if file.endswith(WEIGHTS):
        return _of_networks([load_network(rest, Path(file))])
    return _of_peer(name, file, rest)


def _of_networks(networks: Sequence[Denoiser]) -> Callable[[Tensor], Tensor]:
    def estimate(noisy: Tensor) -> Tensor:
        spectra = spectrogram(noisy)
        return torch.stack([network.to(noisy.device)(spectra, network.initial_state(len(spectra)))[0]
                            for network in networks]).mean(0)

    return estimate


def _of_peer(name: str, file: str, peer_name: str) -> Callable[[Tensor], Tensor]:
    try:
        peer = make_peer(file, peer_name)
    except PseError as error:
        raise SettingsError(f"--teacher {name}: {error}") from error

    def estimate(noisy: Tensor) -> Tensor:
        samples = (noisy * LEVEL).cpu().numpy()
        try:
            enhanced = np.asarray(peer.enhance_batch(samples.copy()) if hasattr(peer, "enhance_batch") else
                                  [peer.enhance(row.copy()) for row in samples])
            with np.errstate(over="ignore"):
                found = enhanced.astype(np.float32)
        except Exception as error:      # whatever a stranger's denoiser raises
            raise SettingsError(f"--teacher {name}: it failed ({type(error).__name__}: {error})") from error
        if found.shape != samples.shape:
            raise SettingsError(f"--teacher {name}: it made {found.shape} of {samples.shape}; expected as many samples "
                                "as it was given")
        if enhanced.dtype.kind != "f" or not np.isfinite(found).all():
            raise SettingsError(f"--teacher {name}: it made {enhanced.dtype} that are no samples; expected finite "
                                "floats, full scale at one")
        return spectrogram(torch.from_numpy(found).to(noisy) / LEVEL)

    return estimate
