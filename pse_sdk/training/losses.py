"""What a network is trained to make small. Estimates come first, targets second, both as spectra [B, N, 2, F]."""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from ..config import STFT

COMPRESSION = 0.3
POWER_FLOOR = 1e-8
SNR_CAP = 1e-3      # of the target's energy: errors 30 dB down are not worth chasing
_WINDOW = torch.hann_window(STFT.n_fft).sqrt()


def spectrogram(samples: Tensor) -> Tensor:
    """Frames [B, N, 2, F] of samples [B, T]: T must be a multiple of the hop, N = T / hop.

    Frame i holds the hop i and the one before it, as the stream sees them; the first starts with a hop of zeros.
    """
    frames = torch.nn.functional.pad(samples, (STFT.delay, 0)).unfold(1, STFT.n_fft, STFT.hop_length)
    spectra = torch.fft.rfft(frames * _WINDOW.to(samples))
    return torch.stack([spectra.real, spectra.imag], 2)


def power(spectra: Tensor) -> Tensor:
    """[B, N, F] of spectra [B, N, 2, F]."""
    real, imaginary = spectra.unbind(2)
    return real * real + imaginary * imaginary      # a sum over two is slow


def raised(values: Tensor, exponent: float) -> Tensor:
    """Positive `values` to the power of `exponent`, in a third of the time that `**` takes."""
    return torch.exp2(torch.log2(values) * exponent)


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
    if weight is None:
        weight = estimate.new_ones(estimate.shape[:2])
    loss: Tensor = _CompressedSpectrumLoss.apply(estimate, target, weight, missing_weight)
    return loss


class _CompressedSpectrumLoss(torch.autograd.Function):
    """`compressed_spectrum_loss` with its derivative written out: half the time of what torch would record."""

    @staticmethod
    def forward(ctx: FunctionCtx, estimate: Tensor, target: Tensor, weight: Tensor, missing_weight: float) -> Tensor:
        (real, imaginary), (wanted_real, wanted_imaginary) = estimate.unbind(2), target.unbind(2)
        estimate_power, target_power = power(estimate) + POWER_FLOOR, power(target) + POWER_FLOOR
        magnitude, wanted = raised(estimate_power, COMPRESSION / 2), raised(target_power, COMPRESSION / 2)
        scale, wanted_scale = magnitude * estimate_power.rsqrt(), wanted * target_power.rsqrt()     # of the spectra
        much = magnitude - wanted
        costly = much + (missing_weight - 1) * much.clamp_max(0)
        real_error = real * scale - wanted_real * wanted_scale
        imaginary_error = imaginary * scale - wanted_imaginary * wanted_scale
        error = 0.7 * much * costly + 0.3 * (real_error.square() + imaginary_error.square())

        each = (weight / error.numel()).unsqueeze(2)
        along = real_error * real + imaginary_error * imaginary
        radial = (1.4 * COMPRESSION * costly * magnitude + 0.6 * (COMPRESSION - 1) * scale * along) / estimate_power
        shared = 0.6 * scale
        ctx.save_for_backward(torch.stack([(shared * real_error + radial * real) * each,
                                           (shared * imaginary_error + radial * imaginary) * each], 2))
        return (error * each).sum()

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:      # type: ignore[override]
        derivative, = ctx.saved_tensors     # type: ignore[attr-defined]
        return derivative * gradient, None, None, None


def negative_snr_db(estimate: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Negative SNR of each item [B] in dB, pooled over (weighted) frames before the logarithm, at most 30."""
    error = (estimate - target).square().sum((2, 3))
    energy = target.square().sum((2, 3))
    if weight is not None:
        error, energy = error * weight, energy * weight
    error, energy = error.sum(1), energy.sum(1)
    return 10 * torch.log10((error + SNR_CAP * energy + 1e-8) / (energy + 1e-8))
