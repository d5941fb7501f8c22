"""What a network is trained to make small. Estimates come first, targets second, both as spectra [B, N, 2, F]."""

import torch
from torch import Tensor

from ..config import STFT

COMPRESSION = 0.3
SNR_CAP = 1e-3      # of the target's energy: errors 30 dB down are not worth chasing
_WINDOW = torch.hann_window(STFT.n_fft).sqrt()


def spectrogram(samples: Tensor) -> Tensor:
    """Frames [B, N, 2, F] of samples [B, T]: T must be a multiple of the hop, N = T / hop.

    Frame i holds the hop i and the one before it, as the stream sees them; the first starts with a hop of zeros.
    """
    frames = torch.nn.functional.pad(samples, (STFT.delay, 0)).unfold(1, STFT.n_fft, STFT.hop_length)
    return torch.view_as_real(torch.fft.rfft(frames * _WINDOW.to(samples))).transpose(2, 3)


def power(spectra: Tensor) -> Tensor:
    """[B, N, F] of spectra [B, N, 2, F]."""
    return spectra.square().sum(2)


def waveform(spectra: Tensor) -> Tensor:
    """Samples [B, N * hop] of spectra [B, N, 2, F], delayed by `STFT.delay`: the inverse of `spectrogram`."""
    frames = torch.fft.irfft(torch.view_as_complex(spectra.transpose(2, 3).contiguous()), STFT.n_fft)
    frames = frames * _WINDOW.to(frames)
    hop = STFT.hop_length
    past = torch.nn.functional.pad(frames[:, :-1, hop:], (0, 0, 1, 0))
    return (frames[:, :, :hop] + past).flatten(1)


def compressed_spectrum_loss(estimate: Tensor, target: Tensor, weight: Tensor | None = None,
                             missing_weight: float = 1.0) -> Tensor:
    """Mean squared error of spectra compressed to the power 0.3, with phase and without it.

    Made for spectra of signals whose mixture has unit RMS.

    Args:
        weight: how much each frame counts, [B, N].
        missing_weight: how much magnitudes count that are too small, against those that are too large.

    Source: Ephrat et al., SIGGRAPH 2018 (power law); Braun and Tashev, arXiv 2009.12286, eq. 3 (both terms); the
    idea of `missing_weight`: the asymmetric loss of Wang et al., "VoiceFilter-Lite", Interspeech 2020.
    """
    estimate_power = power(estimate) + 1e-8
    target_power = power(target) + 1e-8
    estimate_magnitude = estimate_power ** (COMPRESSION / 2)
    target_magnitude = target_power ** (COMPRESSION / 2)
    magnitude_error = (estimate_magnitude - target_magnitude).square()
    magnitude_error = magnitude_error * torch.where(estimate_magnitude < target_magnitude, missing_weight, 1.0)
    complex_error = (estimate * (estimate_magnitude / estimate_power.sqrt()).unsqueeze(2)
                     - target * (target_magnitude / target_power.sqrt()).unsqueeze(2)).square().sum(2)
    error = (0.7 * magnitude_error + 0.3 * complex_error).mean(2)
    if weight is not None:
        error = error * weight
    return error.mean()


def negative_snr_db(estimate: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Negative SNR of each item [B] in dB, pooled over (weighted) frames before the logarithm, at most 30."""
    error = (estimate - target).square().sum((2, 3))
    energy = target.square().sum((2, 3))
    if weight is not None:
        error, energy = error * weight, energy * weight
    error, energy = error.sum(1), energy.sum(1)
    return 10 * torch.log10((error + SNR_CAP * energy + 1e-8) / (energy + 1e-8))
