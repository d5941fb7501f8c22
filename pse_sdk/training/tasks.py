"""What can be pre-trained: for each kind of network its loss, its scores, and the mixtures that it learns from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import STFT
from ..talkers import PIECE_FRAMES
from .distillation import Teachers
from .losses import compressed_spectrum_loss, negative_snr_db, power, spectrogram, waveform
from .mixing import Batch, MixingConfig
from .network import Denoiser, build_network
from .perception import DISTURBANCE_WEIGHT, disturbance, intelligibility, perceptual_loss
from .snr_network import SnrPredictor, evaluate_predictor, predictor_loss
from .speaker_network import SpeakerNetwork, evaluate_speakers, speaker_loss
from .user_network import HEARD_SECONDS, UserDenoiser, UserItems, build_user_network, user_items

SNR_WEIGHT = 0.1        # of the negative SNR in dB, beside the compressed spectrum


@dataclass(frozen=True)
class Task:
    """What is learnt: how to build the network, its loss, its scores, and the mixtures it learns from."""

    build: Callable[[str], Any]
    loss: Callable[[Any, Batch], Tensor]
    evaluate: Callable[[Any, list[Batch]], dict[str, float]]
    mixing: MixingConfig


def denoising_loss(network: Denoiser, batch: Batch, disturbance_weight: float = DISTURBANCE_WEIGHT,
                   teachers: Teachers | None = None, teacher_share: float = 0.0) -> Tensor:
    """`teacher_share`: how much nearness to what `teachers` make of the mixtures counts, of nearness to the truth."""
    noisy, target = spectrogram(batch.noisy), spectrogram(batch.target)
    estimate, _ = network(noisy, network.initial_state(len(noisy)))
    distance = _distance(estimate, target, batch.has_speech)
    if teachers is not None:
        taught = _distance(estimate, teachers.estimate(batch.noisy), batch.has_speech)
        distance = torch.lerp(distance, taught, teacher_share)
    return distance + _heard(estimate, target, batch.has_speech, disturbance_weight)


def _loss_of_estimate(estimate: Tensor, target: Tensor, has_speech: Tensor) -> Tensor:
    """Of spectra [B, N, 2, F]."""
    return _distance(estimate, target, has_speech) + _heard(estimate, target, has_speech, DISTURBANCE_WEIGHT)


def _heard(estimate: Tensor, target: Tensor, has_speech: Tensor, disturbance_weight: float) -> Tensor:
    """Of spectra [B, N, 2, F]: the part of the loss that is what listeners say."""
    return (perceptual_loss(power(estimate), power(target), disturbance_weight) * has_speech).mean()


def _distance(estimate: Tensor, target: Tensor, has_speech: Tensor) -> Tensor:
    """Of spectra [B, N, 2, F]: the other part."""
    snr = negative_snr_db(estimate, target)
    return compressed_spectrum_loss(estimate, target) + SNR_WEIGHT * (snr * has_speech).mean()


def user_loss(network: UserDenoiser, batch: Batch) -> Tensor:
    items = user_items(batch)
    estimate, target, _ = _told(network, items)
    return _loss_of_estimate(estimate, target, items.batch.has_speech)


def _told(network: UserDenoiser, items: UserItems) -> tuple[Tensor, Tensor, Tensor]:
    """Spectra [B, N, 2, F]: enhanced, wanted, noisy."""
    noisy, target = spectrogram(items.batch.noisy), spectrogram(items.batch.target)
    about = network.about(items.voice, items.noise, items.keeps_others)
    return network(noisy, network.initial_state(len(noisy)), about)[0], target, noisy


@torch.no_grad()
def evaluate_users(network: UserDenoiser, batches: list[Batch]) -> dict[str, float]:
    """Over validation mixtures: the loss, and the mean SI-SDR gain in dB of the user's voice in his noise, of
    other voices and in other noise, and beside another voice alone that is to be removed."""
    losses, gains = [], dict[str, list[Tensor]](si_sdr_improvement=[], si_sdr_improvement_elsewhere=[],
                                                si_sdr_improvement_beside_voice=[])
    for batch in batches:
        items = user_items(batch)
        enhanced, wanted, noisy = _told(network, items)
        losses.append(_loss_of_estimate(enhanced, wanted, items.batch.has_speech).item())
        gain, counts = _gains(enhanced, wanted, noisy, items.batch.has_speech)
        alone = counts & ~items.beside_voice
        for name, chosen in zip(gains, (alone & items.is_own, alone & ~items.is_own,
                                        counts & items.beside_voice & ~items.in_noise), strict=True):
            gains[name].append(gain[chosen])
    return {"loss": sum(losses) / len(losses),
            **{name: torch.cat(found).mean().item() for name, found in gains.items()}}


@torch.no_grad()
def evaluate_denoising(network: Denoiser, batches: list[Batch]) -> dict[str, float]:
    """Over validation mixtures: the loss, and the means of the SI-SDR gain in dB and of both perceptual measures."""
    losses, found = [], dict[str, list[Tensor]](si_sdr_improvement=[], intelligibility=[], disturbance=[])
    for batch in batches:
        noisy, wanted = spectrogram(batch.noisy), spectrogram(batch.target)
        enhanced, _ = network(noisy, network.initial_state(len(noisy)))
        losses.append(_loss_of_estimate(enhanced, wanted, batch.has_speech).item())
        gain, counts = _gains(enhanced, wanted, noisy, batch.has_speech)
        found["si_sdr_improvement"].append(gain[counts])
        for measure in (intelligibility, disturbance):
            found[measure.__name__].append(measure(power(enhanced), power(wanted))[counts])
    return {"loss": sum(losses) / len(losses),
            **{name: torch.cat(values).mean().item() for name, values in found.items()}}


def _gains(enhanced: Tensor, wanted: Tensor, noisy: Tensor, has_speech: Tensor) -> tuple[Tensor, Tensor]:
    """Of spectra [B, N, 2, F]: SI-SDR gains in dB [B], and which count: of speech with what is to be removed less than
    30 dB below it."""
    estimate, target, mixture = waveform(enhanced), waveform(wanted), waveform(noisy)
    return (_si_sdr(estimate, target) - _si_sdr(mixture, target),
            has_speech & ((mixture - target).square().sum(1) > 1e-3 * target.square().sum(1)))


def _si_sdr(estimate: Tensor, target: Tensor) -> Tensor:
    scaled = target * ((estimate * target).sum(1, keepdim=True) / target.square().sum(1, keepdim=True).add(1e-8))
    return 10 * torch.log10(scaled.square().sum(1) / (estimate - scaled).square().sum(1).add(1e-8) + 1e-8)


DENOISING = Task(build_network, denoising_loss, evaluate_denoising, MixingConfig())
SNR_PREDICTION = Task(lambda _: SnrPredictor(), predictor_loss, evaluate_predictor,
                      MixingConfig(length=320 * STFT.hop_length, noise_only_share=0.1))
USER_DENOISING = Task(build_user_network, user_loss, evaluate_users,
                      MixingConfig(length=round(HEARD_SECONDS * STFT.sample_rate), takes=2, noise_takes=2))
SPEAKER_EMBEDDING = Task(lambda _: SpeakerNetwork(), speaker_loss, evaluate_speakers,
                         MixingConfig(length=PIECE_FRAMES * STFT.hop_length, snr_db=(0.0, 30.0), noise_only_share=0.0,
                                      gap_share=0.0, max_speed_change=0.0, takes=2))
