"""What listeners would say of an estimate, differentiable: how intelligible it is, and how disturbing.

Both follow a standard measure closely enough to be trained for (ESTOI and PESQ themselves judge the results).
Everything here takes power spectra [B, N, F] of mixtures of unit RMS, as `losses.power` makes them; estimates come
before targets.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import STFT
from .losses import raised

INTELLIGIBILITY_WEIGHT, DISTURBANCE_WEIGHT = 2.0, 0.15
N_THIRD_OCTAVES, LOWEST_THIRD_OCTAVE = 15, 150.0
SEGMENT_FRAMES, SEGMENT_STEP = 24, 8    # 384 ms
AUDIBLE_SHARE = 1e-3                    # of the loudest segment's energy: what is fainter does not count
TINY = 1e-7

N_BARK_BANDS, LOWEST_FREQUENCY = 49, 100.0
TELEPHONE_BAND = (325.0, 3250.0)        # in which levels are aligned
LEVEL = 2.3e8                           # of the aligned speech, as intensity over that of 0 dB SPL
LOUDNESS, LOUDNESS_EXPONENT = 0.187, 0.23
MASKED_SHARE = 0.25
ASYMMETRY_EXPONENT, LEAST_ASYMMETRY, MOST_ASYMMETRY = 1.2, 3.0, 12.0
ASYMMETRY_FLOOR, RATIO_FLOOR, GAIN_FLOOR = 1.1e3, 2.3e4, 1.1e5
MOST_DISTURBANCE = 45.0
WORST_EXPONENT, WORST_FRAMES, WORST_STEP = 6, 20, 10
SYMMETRIC_WEIGHT, ASYMMETRIC_WEIGHT = 0.1, 0.0309


def third_octaves() -> Tensor:
    """Which bins belong to which of the bands of ESTOI, [F, bands]."""
    centre = LOWEST_THIRD_OCTAVE * 2 ** (torch.arange(N_THIRD_OCTAVES) / 3)
    frequency = _frequencies()[:, None]
    return ((frequency >= centre * 2 ** (-1 / 6)) & (frequency < centre * 2 ** (1 / 6))).float()


def bark_bands() -> tuple[Tensor, Tensor, float]:
    """Triangular bands on the Bark scale [F, bands], the threshold of hearing in each (as intensity), their width."""
    frequency = _frequencies().double()
    bark = 6 * torch.asinh(frequency / 600)
    width = float(bark[-1]) / N_BARK_BANDS
    place = (bark / width - 0.5).clamp(0, N_BARK_BANDS - 1)
    bands = (1 - (place[:, None] - torch.arange(N_BARK_BANDS)).abs()).clamp_min(0)
    bands[frequency < LOWEST_FREQUENCY] = 0
    centre = 0.6 * torch.sinh((torch.arange(N_BARK_BANDS) + 0.5) * width / 6)       # kHz
    threshold_db = 3.64 * centre**-0.8 - 6.5 * torch.exp(-0.6 * (centre - 3.3) ** 2) + 1e-3 * centre**4
    return bands.float(), (10 ** (threshold_db / 10)).float(), width


def _frequencies() -> Tensor:
    return torch.arange(STFT.n_bins) * (STFT.sample_rate / STFT.n_fft)


_OCTAVES = third_octaves()
_BARK, _THRESHOLD, _WIDTH = bark_bands()
_TELEPHONE = ((_frequencies() >= TELEPHONE_BAND[0]) & (_frequencies() <= TELEPHONE_BAND[1])).float()[:, None]
_BANDS = torch.cat([_OCTAVES, _BARK, _TELEPHONE], 1)


def perceptual_loss(estimate: Tensor, target: Tensor, disturbance_weight: float = DISTURBANCE_WEIGHT) -> Tensor:
    """Of each item [B], both measures together; 0 where there is no speech.

    To be added to a loss of the SNR: alone it lets the SI-SDR fall.
    """
    has_speech = target.sum((1, 2)) > TINY
    estimate_in, target_in = _in_bands(estimate), _in_bands(target)
    loss = (INTELLIGIBILITY_WEIGHT * (1 - _intelligibility(estimate_in, target_in))
            + disturbance_weight * _disturbance(estimate_in, target_in))
    return torch.where(has_speech, loss, 0.0)


@dataclass(frozen=True)
class _Bands:
    """Power in third octaves [B, N, 15], in Bark bands [B, N, 49] and in all of the telephone's band [B, N, 1]."""

    third_octaves: Tensor
    bark: Tensor
    telephone: Tensor


def _in_bands(spectra: Tensor) -> _Bands:
    return _Bands(*(spectra @ _BANDS.to(spectra)).split((N_THIRD_OCTAVES, N_BARK_BANDS, 1), 2))


def intelligibility(estimate: Tensor, target: Tensor) -> Tensor:
    """Of each item [B], from -1 to 1 (as the target): correlation of normalized band envelopes in 384 ms segments.

    NaN-free; 0 where the target is silent or shorter than a segment. Source: Jensen and Taal, "An Algorithm for
    Predicting the Intelligibility of Speech Masked by Modulated Noise Maskers", IEEE TASLP 2016, eq. 3-8 (ESTOI), with
    the frames and the rate of this package.
    """
    return _intelligibility(_in_bands(estimate), _in_bands(target))


def _intelligibility(estimate: _Bands, target: _Bands) -> Tensor:
    if target.third_octaves.shape[1] < SEGMENT_FRAMES:
        return target.third_octaves.new_zeros(len(target.third_octaves))
    envelopes = [(spectra.third_octaves + TINY).sqrt().unfold(1, SEGMENT_FRAMES, SEGMENT_STEP)
                 for spectra in (estimate, target)]     # [B, segments, bands, frames]
    energy = envelopes[1].square().sum((2, 3))
    loudest = energy.amax(1, keepdim=True)
    audible = ((energy > AUDIBLE_SHARE * loudest) & (loudest > AUDIBLE_SHARE)).float()
    first, second = (_normalized(_normalized(envelope, 3), 2) for envelope in envelopes)
    alike = (first * second).sum((2, 3)) / SEGMENT_FRAMES
    return (alike * audible).sum(1) / audible.sum(1).clamp_min(1)


def _normalized(values: Tensor, dim: int) -> Tensor:
    """Of zero mean and unit energy along `dim`."""
    values = values - values.mean(dim, keepdim=True)
    return values / (values.square().sum(dim, keepdim=True) + 10 * TINY).sqrt()


def disturbance(estimate: Tensor, target: Tensor) -> Tensor:
    """Of each item [B], what PESQ would take off its best score of 4.5: 0 for the target itself.

    Loudness in Bark bands is compared; what is added to the target counts more than what is missing. Means nothing
    where the target is silent. Source: ITU-T P.862 (2001), 10.2, and P.862.2, without the alignment in time, with the
    threshold of hearing of Terhardt (1979) and the Bark scale of Schroeder et al. (1979) instead of their tables.
    """
    return _disturbance(_in_bands(estimate), _in_bands(target))


def _disturbance(estimate: _Bands, target: _Bands) -> Tensor:
    level, wanted_level = (spectra.telephone.mean(1, keepdim=True) + TINY for spectra in (estimate, target))
    # an estimate that is next to silent is not made loud again
    heard = estimate.bark * (LEVEL / torch.maximum(level, 0.01 * wanted_level))
    wanted = target.bark * (LEVEL / wanted_level)
    energy = wanted.sum(2, keepdim=True)
    active = (energy > AUDIBLE_SHARE * LEVEL).float()
    spectral_ratio = (((heard * active).sum(1, keepdim=True) + RATIO_FLOOR)
                      / ((wanted * active).sum(1, keepdim=True) + RATIO_FLOOR))
    wanted = wanted * spectral_ratio.clamp(0.01, 100)
    gain = (wanted.sum(2, keepdim=True) + GAIN_FLOOR) / (heard.sum(2, keepdim=True) + GAIN_FLOOR)
    heard = heard * gain.clamp(3e-4, 5)

    first, second = _loudness(heard), _loudness(wanted)
    apart = (first - second).abs()
    masked = 0.5 * MASKED_SHARE * (first + second - apart)      # a share of the lesser one
    difference = (apart - masked).clamp_min(0)
    asymmetry = raised((heard + ASYMMETRY_FLOOR) / (wanted + ASYMMETRY_FLOOR), ASYMMETRY_EXPONENT)
    asymmetry = asymmetry.clamp_max(MOST_ASYMMETRY) * (asymmetry >= LEAST_ASYMMETRY)
    total_width = N_BARK_BANDS * _WIDTH
    symmetric = ((difference.square() * _WIDTH).sum(2) * total_width + 100 * TINY).sqrt()
    asymmetric = (difference * asymmetry * _WIDTH).sum(2)
    faint = ((energy[..., 0] + 2.3e6) / LEVEL) ** 0.04      # frames of pauses count a little more
    return (SYMMETRIC_WEIGHT * _worst((symmetric / faint).clamp_max(MOST_DISTURBANCE))
            + ASYMMETRIC_WEIGHT * _worst((asymmetric / faint).clamp_max(MOST_DISTURBANCE)))


def _loudness(intensity: Tensor) -> Tensor:
    """In sone per Bark, of intensities in Bark bands. Source: Zwicker, as in P.862."""
    threshold = _THRESHOLD.to(intensity)
    above = raised(0.5 + 0.5 * intensity / threshold, LOUDNESS_EXPONENT) - 1
    return LOUDNESS * (threshold / 0.5) ** LOUDNESS_EXPONENT * above.clamp_min(0)


def _worst(frames: Tensor) -> Tensor:
    """One value [B] of frames [B, N]: the worst of each third of a second, RMS over those."""
    parts = frames.unfold(1, WORST_FRAMES, WORST_STEP) if frames.shape[1] >= WORST_FRAMES else frames[:, None]
    worst = (parts**WORST_EXPONENT).mean(2).add(TINY) ** (1 / WORST_EXPONENT)
    return worst.square().mean(1).sqrt()
