"""What other denoisers make of the mixtures that a network is pre-trained with: a part of what it is to make of them.

The truth says what an ideal network would do; a good one says what can be done, and how it treats sounds that few
recordings of the corpus are like.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import PseError, SettingsError
from ..peers import make_peer
from .losses import spectrogram
from .network import Denoiser
from .teacher import Teacher

PACKAGE = "package"     # the name of what teaches specialists
LEVEL = 0.08            # RMS of mixtures as other people's denoisers hear them, -22 dBFS: some know speech by its level


class Teachers:
    """Denoisers that are asked for the speech in mixtures; the mean of what they say counts.

    Args:
        names: `package` for the two networks that teach specialists, or FILE:NAME for a peer (`pse_sdk.peers`). One
            with `enhance_batch(noisy)`, [B, T] to [B, T], is asked for a whole batch at once.

    Raises:
        SettingsError: there is no such teacher.
        ModelFileError: this installation lacks its own.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._estimates = [_package(Teacher().networks) if name == PACKAGE else _peer(name) for name in names]

    @torch.no_grad()
    def estimate(self, noisy: Tensor) -> Tensor:
        """Spectra of the speech, [B, N, 2, F], in mixtures [B, T] of unit RMS."""
        return torch.stack([estimate(noisy) for estimate in self._estimates]).mean(0)


def _package(networks: Sequence[Denoiser]) -> Callable[[Tensor], Tensor]:
    def estimate(noisy: Tensor) -> Tensor:
        spectra = spectrogram(noisy)
        return torch.stack([network.to(noisy.device)(spectra, network.initial_state(len(spectra)))[0]
                            for network in networks]).mean(0)

    return estimate


def _peer(name: str) -> Callable[[Tensor], Tensor]:
    file, _, peer_name = name.rpartition(":")
    if not file:
        raise SettingsError(f"--teacher {name}: expected {PACKAGE}, or FILE:NAME for a peer that a Python file makes")
    try:
        peer = make_peer(file, peer_name)
    except PseError as error:
        raise SettingsError(f"--teacher {name}: {error}") from error

    def estimate(noisy: Tensor) -> Tensor:
        samples = (noisy * LEVEL).cpu().numpy()
        try:
            enhanced = (peer.enhance_batch(samples) if hasattr(peer, "enhance_batch") else
                        np.stack([peer.enhance(row) for row in samples]))
        except Exception as error:      # whatever a stranger's denoiser raises
            raise SettingsError(f"--teacher {name}: it failed ({type(error).__name__}: {error})") from error
        if np.shape(enhanced) != samples.shape or not np.isfinite(enhanced).all():
            raise SettingsError(f"--teacher {name}: it made {np.shape(enhanced)} of {samples.shape}, or no numbers; "
                                "expected as many samples as it was given")
        return spectrogram(torch.from_numpy(np.asarray(enhanced, np.float32)).to(noisy) / LEVEL)

    return estimate
