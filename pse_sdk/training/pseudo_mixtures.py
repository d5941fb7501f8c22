"""What a specialist learns from: the user's recordings with noise added, and what it should make of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..config import STFT
from ..purification import FrameAnalysis
from ..segments import Stretch, pauses
from .corpus import Bank
from .mixing import active_rms, equalised

SEGMENT_FRAMES = 160        # 2.56 s
SNR_RANGE_DB = (-5.0, 10.0)
VOICE_SHARE, VOICE_SNR_RANGE_DB = 0.5, (-5.0, 15.0)     # where other voices are to be removed
CLEAN_BESIDE_VOICES = 1.5   # times as many items of clean speech there, or the own voice suffers with the others
CLEAN_SNR_DB = 35.0
FINETUNING_RATE = 5e-4      # seconds of speech are soon learnt by heart
RANDOM_START_RATE = 2e-3    # there is nothing to forget
OWN_SPEED_CHANGE, FOREIGN_SPEED_CHANGE, FOREIGN_EQUALISER_DB = 0.1, 0.3, 8.0     # of noises
FADED_SHARE, FADE_DB, FADE_FRAMES = 0.7, 40.0, 10
MARGIN_DB = 8.0             # injected noise is at least this much louder than what the recording holds already:
                            # a fainter one teaches the network to keep the recording's own noise


@dataclass(frozen=True)
class Method:
    """What the loss compares with, and how frames count."""

    teacher_targets: bool = False   # the teacher's output for the recording, not the recording itself
    purify: bool = False            # frames count by their purification weight
    remix_share: float = 0.0        # of the items that are the teacher's speech plus noise, without the recording's own
    clean_share: float = 0.1        # of the items that are the teacher's speech alone (`fade`), to be left as it is
    noise_share: float = 0.05       # of the items that are noise alone, to be silenced
    pauses_are_silent: bool = False     # frames that surely hold no speech count in full, with silence as their target
    contrast: str = ""              # "corrected" or "published": compare the outputs of pairs of mixtures as well
    random_start: bool = False      # not from the generalist
    told_start: bool = False        # from the network that is told about its user, where the size has one
    true_share: float = 0.3         # of the items whose speech is really clean, where the user gave some
    peak_rate: float | None = None  # None: that of the size


# Frames count alike: the teacher's speech can be trusted where the recording cannot. More noise alone than the others:
# the perceptual loss, which counts speech only, would leave pauses louder.
TEACHER = Method(pauses_are_silent=True, teacher_targets=True, remix_share=0.5, clean_share=0.22, noise_share=0.2,
                 told_start=True)
METHODS = {
    "pseudose": Method(),
    "pseudose+dp": Method(purify=True, pauses_are_silent=True),
    "cm": Method(contrast="corrected"),
    "cm-published": Method(contrast="published"),
    "cm+dp": Method(purify=True, pauses_are_silent=True, contrast="corrected"),
    "pseudose-from-random": Method(random_start=True, peak_rate=RANDOM_START_RATE),
    "finetune": Method(true_share=1.0, peak_rate=FINETUNING_RATE),
    "teacher": TEACHER,
    "teacher+dp": replace(TEACHER, purify=True),
}
AUTO = "teacher"


@dataclass(frozen=True)
class Pair:
    """A stretch of a recording and the teacher's idea of the speech in it [T], or the speech itself (`is_true`)."""

    stretch: Stretch
    enhanced: np.ndarray
    is_true: bool = False

    @classmethod
    def of_taught(cls, stretch: Stretch) -> "Pair":
        """A recording with its teacher's estimate."""
        assert stretch.estimate is not None
        return cls(stretch, stretch.estimate)

    @classmethod
    def of_clean(cls, stretch: Stretch) -> "Pair":
        """A recording that is its own reference: every frame can be trusted."""
        frames = stretch.frames
        trusted = FrameAnalysis(frames.speech, np.ones_like(frames.share), np.full_like(frames.snr_db, CLEAN_SNR_DB))
        return cls(Stretch(stretch.samples, trusted), stretch.samples, is_true=True)

    @property
    def residual(self) -> np.ndarray:
        return self.stretch.samples - self.enhanced


@dataclass(frozen=True)
class Items:
    """Shape: `mixture`, `target` [B, T], `weight` [B, N]."""

    mixture: Tensor
    target: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Contrasts:
    """Pairs of mixtures: the same recording in two noises (`alike` [B]), or two recordings in one noise."""

    first: Items
    second: Items
    alike: Tensor


@dataclass(frozen=True)
class NoiseBank:
    """Noises of one kind, and how often they are used against those of others."""

    clips: Bank
    share: float
    is_foreign: bool = False    # not the user's: varied more, for what else there is in the world


@dataclass(frozen=True)
class NoiseBanks:
    """Noises to inject."""

    banks: tuple[NoiseBank, ...]

    def draw(self, n: int, length: int, generator: torch.Generator) -> Tensor:
        """`n` noises [n, length] of unit RMS."""
        shares = torch.tensor([bank.share for bank in self.banks], dtype=torch.float64)
        choice = torch.multinomial(shares, n, replacement=True, generator=generator)
        noise = torch.empty(n, length)
        for i, bank in enumerate(self.banks):
            index = (choice == i).nonzero().squeeze(1)
            if len(index):
                speed_change = FOREIGN_SPEED_CHANGE if bank.is_foreign else OWN_SPEED_CHANGE
                noise[index] = bank.clips.draw(len(index), length, generator, max_speed_change=speed_change)
                if bank.is_foreign:
                    noise[index] = equalised(noise[index], FOREIGN_EQUALISER_DB, generator)
        return noise / (noise.square().mean(1, keepdim=True) + 1e-10).sqrt()


class PseudoMixtures:
    """Draws training items from pairs and noises; the same seed gives the same items.

    Args:
        voices: of other people, to be removed as well.
    """

    def __init__(self, pairs: Sequence[Pair], noises: NoiseBanks, method: Method, seed: int,
                 voices: NoiseBanks | None = None) -> None:
        self.method, self._noises, self._voices = method, noises, voices
        self._generator = torch.Generator().manual_seed(seed)
        hop = STFT.hop_length
        usable = [pair for pair in pairs if pair.stretch.n_frames >= SEGMENT_FRAMES]
        silent = [method.pauses_are_silent & ~np.bool_(pair.is_true) & pauses(pair.stretch.frames) for pair in usable]
        weights = [np.where(quiet, 1.0, pair.stretch.frames.weight) for quiet, pair in zip(silent, usable, strict=True)]
        # true speech is kept once: this is most of what personalization has in memory
        self._samples = torch.from_numpy(np.concatenate([*(pair.stretch.samples for pair in usable),
                                                         *(pair.enhanced for pair in usable if not pair.is_true)],
                                                        dtype=np.float32))
        self._weight = torch.from_numpy(np.concatenate(weights)).float()
        # a frame more at both ends of each recording
        self._gain = torch.from_numpy(np.concatenate([np.pad(~quiet, 1, mode="edge") for quiet in silent])).float()
        starts, enhanced_starts, gain_starts, snr_db, true = list[int](), list[int](), list[int](), [], []
        base, enhanced_base = 0, sum(pair.stretch.n_frames for pair in usable)
        for i, pair in enumerate(usable):
            stretch = pair.stretch
            for start in range(0, stretch.n_frames - SEGMENT_FRAMES + 1, 8):
                part = Stretch(stretch.samples[start * hop:(start + SEGMENT_FRAMES) * hop],
                               stretch.frames.part(start, start + SEGMENT_FRAMES))
                if part.seconds_of_speech >= 0.4 * SEGMENT_FRAMES * STFT.hop_seconds:
                    starts.append(base + start)
                    enhanced_starts.append((base if pair.is_true else enhanced_base) + start)
                    gain_starts.append(base + 2 * i + start)
                    snr_db.append(part.snr_db)
                    true.append(pair.is_true)
            base += stretch.n_frames
            enhanced_base += 0 if pair.is_true else stretch.n_frames
        self._starts, self._enhanced_starts = torch.tensor(starts), torch.tensor(enhanced_starts)
        self._gain_starts = torch.tensor(gain_starts)
        self._snr_db = torch.tensor(snr_db, dtype=torch.float32)
        is_true = torch.tensor(true, dtype=torch.bool)
        n_true = is_true.sum()
        self._chance = torch.where(is_true, method.true_share / n_true.clamp_min(1),
                                   (1 - method.true_share) / (len(starts) - n_true).clamp_min(1)).double()

    @property
    def n_segments(self) -> int:
        """That items are drawn from."""
        return int((self._chance > 0).sum())

    def state(self) -> Tensor:
        """Of the random numbers: after `set_state` the same items are drawn as after `state`."""
        return self._generator.get_state()

    def set_state(self, state: Tensor) -> None:
        self._generator.set_state(state)

    def draw(self, n: int) -> Items:
        generator = self._generator
        pick = torch.multinomial(self._chance, n, replacement=True, generator=generator)
        speech, enhanced, goal, weight = self._segments(pick)
        remix = torch.rand(n, generator=generator) < self.method.remix_share
        speech[remix] = enhanced[remix]
        noise = self._noises.draw(n, speech.shape[1], generator)
        highest = torch.where(remix[:, None], SNR_RANGE_DB[1] + 5.0, self._highest_snr_db(pick))
        snr_db = SNR_RANGE_DB[0] + (highest - SNR_RANGE_DB[0]) * torch.rand(n, 1, generator=generator)
        added = noise * (active_rms(speech) * 10 ** (-snr_db / 20))
        if self._voices is not None:
            added = self._beside_voices(added, active_rms(speech), self._voices)
        times = 1.0 if self._voices is None else CLEAN_BESIDE_VOICES
        alone = torch.rand(n, generator=generator) < times * self.method.clean_share
        silent = torch.rand(n, generator=generator) < self.method.noise_share
        mixture, target = speech + added, goal
        mixture[alone] = target[alone] = fade(enhanced[alone], generator)
        mixture[silent], target[silent] = noise[silent], 0.0
        weight[silent | alone] = 1.0
        scale = _to_unit_rms(mixture)
        return Items(mixture * scale, target * scale, weight)

    def _beside_voices(self, added: Tensor, rms: Tensor, voices: NoiseBanks) -> Tensor:
        """What is added to the items [n, T], with a voice in some of them, half the time instead of the noise."""
        n, length = added.shape
        chosen = torch.rand(n, 1, generator=self._generator) < VOICE_SHARE
        instead = torch.rand(n, 1, generator=self._generator) < 0.5
        low, high = VOICE_SNR_RANGE_DB
        snr_db = low + (high - low) * torch.rand(n, 1, generator=self._generator)
        voice = voices.draw(n, length, self._generator) * rms * 10 ** (-snr_db / 20)
        return torch.where(chosen, torch.where(instead, voice, added + voice), added)

    def draw_contrasts(self, n: int) -> Contrasts:
        """Pairs as in Sivaraman and Kim (contrastive mixtures): half are alike. Both have the scale of the first."""
        generator = self._generator
        alike = torch.arange(n) % 2 == 0
        pick = torch.multinomial(self._chance, n, replacement=True, generator=generator)
        away = torch.randint(1, max(2, len(self._starts)), (n,), generator=generator)
        picks = torch.stack([pick, torch.where(alike, pick, (pick + away) % self.n_segments)])
        noises = self._noises.draw(2 * n, SEGMENT_FRAMES * STFT.hop_length, generator).view(2, n, -1)
        noises[1] = torch.where(alike[:, None], noises[1], noises[0])
        shares = torch.rand(2, n, generator=generator)
        shares[1] = torch.where(alike, shares[1], shares[0])
        found: list[Items] = []
        scale = torch.ones(n, 1)
        for pick, noise, share in zip(picks, noises, shares, strict=True):
            recording, _, goal, weight = self._segments(pick)
            snr_db = SNR_RANGE_DB[0] + (self._highest_snr_db(pick) - SNR_RANGE_DB[0]) * share[:, None]
            mixture = recording + noise * active_rms(recording) * 10 ** (-snr_db / 20)
            if not found:
                scale = _to_unit_rms(mixture)
            found.append(Items(mixture * scale, goal * scale, weight))
        return Contrasts(found[0], found[1], alike)

    def _segments(self, pick: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The segments `pick` [n]: as recorded, the speech in them, and what is to be made of the recording [n, T], and
        their frames' weights [n, N]: ones without purification."""
        hop = STFT.hop_length
        samples = self._samples.unfold(0, SEGMENT_FRAMES * hop, hop)
        recording, enhanced = samples[self._starts[pick]], samples[self._enhanced_starts[pick]]
        gain = self._gain.unfold(0, SEGMENT_FRAMES + 2, 1)[self._gain_starts[pick]]
        goal = (enhanced if self.method.teacher_targets else recording) * _gate(gain)
        weight = self._weight.unfold(0, SEGMENT_FRAMES, 1)[self._starts[pick]]
        return recording, enhanced, goal, weight if self.method.purify else torch.ones_like(weight)

    def _highest_snr_db(self, pick: Tensor) -> Tensor:
        """Of noise injected into the recordings of segments `pick` [n]. Shape: [n, 1]."""
        return (self._snr_db[pick, None] - MARGIN_DB).clamp(SNR_RANGE_DB[0] + 2.0, SNR_RANGE_DB[1])


def fade(samples: Tensor, generator: torch.Generator) -> Tensor:
    """Most of the items [n, T] with a gain that wanders between 0 and -40 dB, the others as they are.

    The teacher's speech stops dead where the recording drowned it. Learnt as it is, it would teach that whatever is
    quiet is noise.
    """
    n, length = samples.shape
    points = torch.rand(n, 1, length // (FADE_FRAMES * STFT.hop_length) + 1, generator=generator) * -FADE_DB
    gain_db = torch.nn.functional.interpolate(points, size=length, mode="linear", align_corners=True).squeeze(1)
    chosen = torch.rand(n, 1, generator=generator) < FADED_SHARE
    return samples * torch.where(chosen, 10 ** (gain_db / 20), 1.0)


def _to_unit_rms(mixture: Tensor) -> Tensor:
    """The factors [n, 1] that give each mixture [n, T] unit RMS."""
    return 1.0 / mixture.square().mean(1, keepdim=True).add(1e-12).sqrt()


def _gate(gain: Tensor) -> Tensor:
    """Samples' gains [n, N * hop] of the frames' [n, N + 2], the first and the last of which are neighbours: a change
    takes a hop, from the middle of a frame to that of the next."""
    hop = STFT.hop_length
    ramp = torch.arange(hop) / hop
    between = gain[:, :-1, None] * (1 - ramp) + gain[:, 1:, None] * ramp
    return between.flatten(1)[:, hop // 2:][:, :(gain.shape[1] - 2) * hop]
