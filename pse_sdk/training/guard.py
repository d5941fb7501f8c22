"""Is the specialist really better? Judged on parts of the recordings that training never saw, before it is used.

References are the teacher's estimates of the speech in held-out recordings, mixed anew with held-out noise, so that
start and candidate are compared on the same mixtures with the same (imperfect) references.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..config import STFT
from ..report import Check
from .fit import DISTURBANCE_WEIGHT, SNR_WEIGHT
from .losses import power, spectrogram, waveform
from .mixing import active_rms
from .network import Denoiser
from .perception import disturbance, intelligibility, perceptual_loss
from .pseudo_mixtures import NoiseBanks, Pair, fade

ITEM_FRAMES = 192           # 3.07 s
SNRS_DB = (-5.0, 0.0, 5.0, 10.0)
MOST_GAIN_DB = 3.0          # one item cannot buy more than this
LEAST_MEAN_GAIN_DB = 0.3    # with less, one null candidate in twenty passes (benchmarks/guard.py)
LEAST_DOUBTFUL_GAIN_DB = 1.0    # of recordings of several talkers: 0.52 dB was worth -0.23 dB, for one of them
LEAST_VOICES_GAIN_DB = 0.5
WORST_ELSEWHERE_DB = -0.3
WORST_CLEAN_LOSS_DB = -0.5
PERCEPTUAL_DB = 1 / SNR_WEIGHT      # of SI-SDR that one of `perceptual_loss` is worth, as in training
WORST_INTELLIGIBILITY, WORST_QUALITY = -0.005, -0.03
BLOCK_FRAMES = 6            # 96 ms: speech that is lowered for so long is missed
AUDIBLE_DB = 45.0           # below an item's loudest block: what lies deeper is not heard
MUTED_DB = -30.0            # lower than that makes no difference
WORST_LOWERED_DB = -0.6
CLEAN_ENOUGH_DB = 30.0      # changes this far below the speech are not heard
MOST_VOICES_GAIN_DB = 10.0
N_BOOTSTRAP = 1000
N_AT_ONCE = 8           # items judged at once, for the sake of memory


def si_sdr_db(estimate: Tensor, target: Tensor) -> Tensor:
    """SI-SDR [B] of samples [B, T] in dB. Source: Le Roux et al., ICASSP 2019."""
    return _by_parts(_si_sdr_db, estimate, target)


def _si_sdr_db(estimate: Tensor, target: Tensor) -> Tensor:
    estimate = estimate - estimate.mean(1, keepdim=True)
    target = target - target.mean(1, keepdim=True)
    scaled = target * (estimate * target).sum(1, keepdim=True) / (target.square().sum(1, keepdim=True) + 1e-10)
    return 10 * torch.log10((scaled.square().sum(1) + 1e-10) / ((estimate - scaled).square().sum(1) + 1e-10))


def _by_parts(measure: Callable[..., Tensor], *sounds: Tensor) -> Tensor:
    """What `measure` makes of sounds [B, T], a few items at once."""
    return torch.cat([measure(*some) for some in zip(*(samples.split(N_AT_ONCE) for samples in sounds), strict=True)])


@torch.no_grad()
def enhance_batch(network: Denoiser, noisy: Tensor) -> Tensor:
    """Aligned with `noisy` [B, T], T a multiple of the hop."""
    def enhanced(some: Tensor) -> Tensor:
        return waveform(network(spectrogram(some), network.initial_state(len(some)))[0])[:, STFT.delay:]

    return _by_parts(enhanced, torch.nn.functional.pad(noisy, (0, STFT.hop_length)))


@dataclass(frozen=True)
class Limits:
    worst_tenth_db: float
    worst_pause_db: float


KEEPING_VOICES = Limits(worst_tenth_db=-1.0, worst_pause_db=1.0)
# For several dB beside other voices more is forgiven: with the limits above, one user of eight would have got nothing
# instead of 3.7 dB
REMOVING_VOICES = Limits(worst_tenth_db=-2.0, worst_pause_db=2.0)


@dataclass(frozen=True)
class HeldOut:
    """Material of one part that only judges. Shape: all [B, T]; `groups` [B] names the segment each item came from."""

    mixture: Tensor
    reference: Tensor
    groups: Tensor
    elsewhere: Tensor       # the same references in noises that are not the user's
    clean: Tensor           # the references, words fading, and the same voice in other moods: to be left as they are
    pauses: Tensor          # noise alone
    beside_voices: Tensor | None = None     # the same references, where other voices are to be removed
    are_doubtful: bool = False              # the references may hold more than the user's speech

    @property
    def limits(self) -> Limits:
        return KEEPING_VOICES if self.beside_voices is None else REMOVING_VOICES

    @property
    def n_segments(self) -> int:
        return int(self.groups.max()) + 1 if len(self.groups) else 0


def held_out(pairs: Sequence[Pair], own: NoiseBanks, foreign: NoiseBanks, voices: NoiseBanks | None = None,
             moods: Sequence[np.ndarray] = (), *, most_segments: int, seed: int, are_doubtful: bool = False) -> HeldOut:
    """Items from the speech of `pairs`: each segment at four SNRs in the user's noise, in foreign noise and beside
    other voices, if those are to be removed. `moods` [T] are the user's voice as it is at other times."""
    length = ITEM_FRAMES * STFT.hop_length
    found: list[tuple[float, np.ndarray]] = []
    for pair in pairs:
        for start in range(0, pair.stretch.n_frames - ITEM_FRAMES + 1, ITEM_FRAMES // 2):
            frames = pair.stretch.frames.part(start, start + ITEM_FRAMES)
            if (frames.speech > 0.5).mean() >= 0.4:
                place = slice(start * STFT.hop_length, start * STFT.hop_length + length)
                found.append((float(frames.share[frames.speech > 0.5].mean()), pair.enhanced[place]))
    found.sort(key=lambda item: -item[0])
    found = found[:most_segments]
    if not found:
        empty = torch.empty(0, length)
        return HeldOut(empty, empty, torch.empty(0, dtype=torch.long), empty, empty, empty)
    speech = torch.from_numpy(np.stack([segment for _, segment in found])).float()
    speech = speech / active_rms(speech)
    generator = torch.Generator().manual_seed(seed)
    n = len(speech)
    reference = speech.repeat(len(SNRS_DB), 1)
    gains = torch.tensor([10 ** (-snr_db / 20) for snr_db in SNRS_DB]).repeat_interleave(n)[:, None]
    mixture = reference + gains * own.draw(len(reference), length, generator)
    elsewhere = reference + gains * foreign.draw(len(reference), length, generator)
    clean = fade(torch.cat([speech, *_segments(moods[:most_segments], length)]), generator)
    alone = own.draw(max(4, n), length, generator)
    beside = None if voices is None else reference + gains * voices.draw(len(reference), length, generator)
    return HeldOut(mixture, reference, torch.arange(n).repeat(len(SNRS_DB)), elsewhere, clean, alone, beside,
                   are_doubtful)


def _segments(sounds: Sequence[np.ndarray], length: int) -> list[Tensor]:
    """The beginnings [1, length] of those that are long enough, as loud as speech of unit level."""
    whole = [torch.from_numpy(samples[None, :length]) for samples in sounds if len(samples) >= length]
    return [samples / active_rms(samples) for samples in whole]


def gains_db(candidate: Denoiser, start: Denoiser, mixture: Tensor, reference: Tensor) -> Tensor:
    """SI-SDR of the candidate's output less the start's, item by item, in dB."""
    return (si_sdr_db(enhance_batch(candidate, mixture), reference)
            - si_sdr_db(enhance_batch(start, mixture), reference))


class Score:
    """The validation score of a network against the start: mean gain, less what it costs elsewhere.

    What the guard would refuse is to lose here already, on other sounds: hence half of its limits for pauses and level.
    `seconds` are what one look takes.
    """

    def __init__(self, start: Denoiser, material: HeldOut) -> None:
        began = time.monotonic()
        self._material = material
        mixture = enhance_batch(start, material.mixture)
        self._start = si_sdr_db(mixture, material.reference)
        self._heard = _perceptual_loss(mixture, material.reference)
        self._elsewhere = si_sdr_db(enhance_batch(start, material.elsewhere), material.reference)
        if material.beside_voices is not None:
            self._beside = si_sdr_db(enhance_batch(start, material.beside_voices), material.reference)
        self._pause_db = _level_db(enhance_batch(start, material.pauses))
        self._kept_db = kept_level_db(material.clean, enhance_batch(start, material.clean))
        self.seconds = time.monotonic() - began

    def __call__(self, network: Denoiser) -> float:
        material = self._material
        mixture = enhance_batch(network, material.mixture)
        gain = (si_sdr_db(mixture, material.reference) - self._start).clamp_max(MOST_GAIN_DB)
        perceived = PERCEPTUAL_DB * (self._heard - _perceptual_loss(mixture, material.reference)).mean()
        elsewhere = si_sdr_db(enhance_batch(network, material.elsewhere), material.reference) - self._elsewhere
        louder = _level_db(enhance_batch(network, material.pauses)) - self._pause_db
        lowered = kept_level_db(material.clean, enhance_batch(network, material.clean)) - self._kept_db
        if material.beside_voices is not None:
            beside = si_sdr_db(enhance_batch(network, material.beside_voices), material.reference) - self._beside
            gain = torch.cat([gain, beside.clamp_max(MOST_VOICES_GAIN_DB)])
        return float(gain.mean() + perceived + 0.5 * elsewhere.mean().clamp_max(0)
                     - (louder - material.limits.worst_pause_db / 2).clamp_min(0)
                     + min(0.0, lowered - WORST_LOWERED_DB / 2))


def kept_level_db(clean: Tensor, enhanced: Tensor) -> float:
    """How far speech [B, T] to be left as it is was lowered: mean over audible 96 ms blocks, dB, at most 0."""
    block = BLOCK_FRAMES * STFT.hop_length
    whole = clean.shape[1] // block * block
    before, after = (samples[:, :whole].unflatten(1, (-1, block)).square().mean(2) + 1e-12
                     for samples in (clean, enhanced))
    audible = before > before.amax(1, keepdim=True) * 10 ** (-AUDIBLE_DB / 10)
    return float((10 * torch.log10(after / before)).clamp(MUTED_DB, 0.0)[audible].mean())


def _perceptual_loss(estimate: Tensor, reference: Tensor) -> Tensor:
    measure = partial(perceptual_loss, disturbance_weight=DISTURBANCE_WEIGHT)
    return _by_parts(_of_powers(measure), estimate, reference)


def perceived_gains(after: Tensor, before: Tensor, reference: Tensor) -> tuple[float, float]:
    """By how much `after` is more intelligible than `before`, all [B, T], and less disturbing."""
    understood, disturbed = ([_by_parts(_of_powers(measure), samples, reference).mean() for samples in (after, before)]
                             for measure in (intelligibility, disturbance))
    return float(understood[0] - understood[1]), float(disturbed[1] - disturbed[0])


def _of_powers(measure: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`measure` of power spectra, of sounds."""
    return lambda *sounds: measure(*(power(spectrogram(samples)) for samples in sounds))


def _level_db(samples: Tensor) -> Tensor:
    return 10 * torch.log10(samples.square().mean() + 1e-10)


def judge(candidate: Denoiser, start: Denoiser, material: HeldOut, seed: int = 0) -> tuple[float, tuple[Check, ...]]:
    """The mean gain in dB on the user's noise (and other voices, if they are to be removed), and the checks that all
    must pass."""
    after, before = (enhance_batch(network, material.mixture) for network in (candidate, start))
    gain, groups = si_sdr_db(after, material.reference) - si_sdr_db(before, material.reference), material.groups
    understood, undisturbed = perceived_gains(after, before, material.reference)
    in_noise = gain
    if material.beside_voices is not None:
        beside = gains_db(candidate, start, material.beside_voices, material.reference)
        gain, groups = torch.cat([gain, beside]), groups.repeat(2)
    lower = lower_bound(gain.numpy(), groups.numpy(), np.random.default_rng(seed))
    elsewhere = gains_db(candidate, start, material.elsewhere, material.reference)
    clean, clean_before = enhance_batch(candidate, material.clean), enhance_batch(start, material.clean)
    kept = si_sdr_db(clean, material.clean).clamp_max(CLEAN_ENOUGH_DB)
    kept_before = si_sdr_db(clean_before, material.clean).clamp_max(CLEAN_ENOUGH_DB)
    pause = _level_db(enhance_batch(candidate, material.pauses)) - _level_db(enhance_batch(start, material.pauses))
    mean = float(gain.mean())
    def at_least(name: str, value: float, limit: float, meaning: str) -> Check:
        return Check(name, bool(np.isfinite(value)) and value >= limit, value, limit, meaning)

    where, limits = "in the user's noise", material.limits
    parts: tuple[Check, ...] = ()
    if material.beside_voices is not None:
        where = "in the user's noise and beside other voices"
        parts = (at_least("noise_db", float(in_noise.mean()), WORST_ELSEWHERE_DB, "of that in noise, dB"),
                 at_least("voices_db", float(beside.mean()), LEAST_VOICES_GAIN_DB, "of that beside voices, dB"))
    return mean, (
        at_least("mean_gain_db", mean, LEAST_DOUBTFUL_GAIN_DB if material.are_doubtful else LEAST_MEAN_GAIN_DB,
                 f"mean gain {where}{', more of it where several talk' if material.are_doubtful else ''}, dB"), *parts,
        at_least("sure_gain_db", lower, 0.0, "gain in all but 5 of 100 draws of the held-out segments, dB"),
        at_least("worst_tenth_db", float(gain.quantile(0.1)), limits.worst_tenth_db, "gain of the worst tenth, dB"),
        at_least("intelligibility", understood, WORST_INTELLIGIBILITY, "intelligibility in the user's noise, ESTOI"),
        at_least("quality", undisturbed, WORST_QUALITY, "quality in the user's noise, PESQ before its last mapping"),
        at_least("elsewhere_db", float(elsewhere.mean()), WORST_ELSEWHERE_DB, "mean gain in noise of other places, dB"),
        at_least("clean_db", float((kept - kept_before).mean()), WORST_CLEAN_LOSS_DB,
                 "fidelity to speech without noise against before, dB"),
        at_least("lowered_db", kept_level_db(material.clean, clean) - kept_level_db(material.clean, clean_before),
                 WORST_LOWERED_DB, "level of speech without noise against before, dB"),
        at_least("pauses_db", -float(pause), -limits.worst_pause_db, "noise in pauses lowered against before, dB"),
    )


def lower_bound(gains: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> float:
    """What the mean exceeds in 95 of 100 draws of whole segments: items of one segment are not independent.

    No bound of that confidence: segments overlap by half, and of few of them draws tell little. `LEAST_MEAN_GAIN_DB`
    is what refuses null candidates.
    """
    means = np.array([gains[groups == group].mean() for group in np.unique(groups)])
    draws = rng.integers(0, len(means), (N_BOOTSTRAP, len(means)))
    return float(np.quantile(means[draws].mean(1), 0.05))
