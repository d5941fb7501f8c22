"""Endless mixtures for pre-training, batch by batch, all in torch: speech, rooms, noises, levels, telephone bands.

Random numbers are drawn on the CPU for a whole batch; signals are made where the corpus lies, and only those asked for.
So neither the device nor the number of processes that share a batch changes which mixtures it holds.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..config import STFT
from ..errors import SettingsError
from .corpus import Corpus

JUDGED_EQUALISER_DB = 8.0
EQUALISER_POINTS = 7
GROUP = 4       # neighbours in a batch that exchange their noises; nothing else passes from one item to another


@dataclass(frozen=True)
class MixingConfig:
    """What a batch is made of. Shares are probabilities per item."""

    length: int = 160 * STFT.hop_length     # 2.56 s
    snr_db: tuple[float, float] = (-10.0, 15.0)     # noisier than what most people record: that is what is hard
    clean_share: float = 0.08               # no noise at all: enhancement must leave it alone
    noise_only_share: float = 0.03
    second_noise_share: float = 0.4
    generated_noise_share: float = 0.35     # crowds and more, where the corpus has such noise
    synthetic_noise_share: float = 0.1      # white to brown, where the corpus has few steady noises
    room_share: float = 0.3
    band_limit_share: float = 0.15
    gap_share: float = 0.12                 # with a stretch of digital silence, as muting and noise gates leave it
    gap_seconds: tuple[float, float] = (0.1, 1.6)
    equaliser_db: float = 4.0               # of speech
    max_speed_change: float = 0.12          # of speech, for more voices
    noise_equaliser_db: float = 8.0         # these three make more noises of those that there are
    max_noise_speed_change: float = 0.4
    reversed_noise_share: float = 0.4
    takes: int = 1          # neighbours whose speech is from one clip; divides `GROUP`
    noise_takes: int = 1    # neighbours in one noise, one room and behind one microphone; divides `GROUP` too

    def to_judge(self) -> "MixingConfig":
        """Without what only makes more sounds of those that there are, and equalised as ever: so scores of runs with
        other settings compare."""
        return replace(self, max_speed_change=0.0, max_noise_speed_change=0.0, reversed_noise_share=0.0,
                       equaliser_db=JUDGED_EQUALISER_DB, noise_equaliser_db=JUDGED_EQUALISER_DB)


@dataclass(frozen=True)
class Batch:
    """Shape: `noisy` and `target` [B, T]; `has_speech` [B]. Scaled so that the mixture's RMS is one."""

    noisy: Tensor
    target: Tensor
    has_speech: Tensor


def active_rms(speech: Tensor) -> Tensor:
    """RMS [B, 1] over the 25 ms frames within 30 dB of the loudest one."""
    power = speech[:, : speech.shape[1] // 400 * 400].unflatten(1, (-1, 400)).square().mean(2)
    active = (power > power.amax(1, keepdim=True) * 1e-3).float()
    return ((power * active).sum(1, keepdim=True) / active.sum(1, keepdim=True).clamp_min(1) + 1e-10).sqrt()


def equalised(signals: Tensor, most_db: float, generator: torch.Generator) -> Tensor:
    """Each of `signals` [B, T] through an equaliser of its own: smooth, by up to `most_db`."""
    length = signals.shape[1]
    points = most_db * (2 * torch.rand(len(signals), EQUALISER_POINTS, generator=generator) - 1)
    spectrum = torch.fft.rfft(signals)
    return torch.fft.irfft(spectrum * _gains(points, spectrum.shape[1]), length)


class Mixer:
    """Draws batches; the same seed and step give the same batch."""

    def __init__(self, corpus: Corpus, config: MixingConfig, seed: int) -> None:
        self.corpus, self.config, self.seed = corpus, config, seed
        self.device = corpus.speech.starts.device
        n_fft = 1 << (config.length - 1).bit_length()
        self._n_fft = n_fft if n_fft >= config.length + 8192 else n_fft * 5 // 4
        self._drawn: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))
        self._drawn_for = (-1, 0, slice(None))

    def batch(self, step: int, size: int, rows: slice = slice(None)) -> Batch:
        """The mixtures of one step. Two steps share their sources, paired and weighed anew: it costs half the time.

        Args:
            rows: which of the `size` are wanted, in whole groups.

        Raises:
            SettingsError: `size` is no multiple of `GROUP`.
        """
        if size % GROUP:
            raise SettingsError(f"expected a batch that is a multiple of {GROUP}, got {size}")
        config, length = self.config, self.config.length
        if self._drawn_for != (step // 2, size, rows):
            self._drawn, self._drawn_for = self._draw_sources(step // 2, size, rows), (step // 2, size, rows)
        speech, noise = self._drawn
        noise = exchanged(noise, step % 2 * config.noise_takes)

        draws = _Draws((self.seed, 0, step), size, rows, self.device)
        slope = torch.linspace(-0.5, 0.5, length, device=self.device)
        fade = 10 ** (draws.uniform(-12, 12) / 20 * slope)      # noises come and go
        noise = torch.where(draws.chance(0.3), noise * fade, noise)
        noise_rms = noise.square().mean(1, keepdim=True).add(1e-10).sqrt()
        noise = noise * (active_rms(speech) / noise_rms * 10 ** (-draws.uniform(*config.snr_db) / 20))
        noise_only = draws.chance(config.noise_only_share)
        clean = draws.chance(config.clean_share) & ~noise_only
        noise = torch.where(clean, 0.0, noise)
        speech = torch.where(noise_only, 0.0, speech)

        noisy = speech + noise
        limited = draws.chance(config.band_limit_share)
        both = self._band_limited(torch.cat([noisy, speech]), draws.uniform(3000, 7000), limited.squeeze(1))
        noisy, speech = both.chunk(2)
        place = torch.arange(length, device=noisy.device) / STFT.sample_rate
        from_middle = (place - draws.uniform(0.0, length / STFT.sample_rate)).abs()
        silent = (from_middle < draws.uniform(*config.gap_seconds) / 2) & draws.chance(config.gap_share)
        noisy, speech = noisy.masked_fill(silent, 0.0), speech.masked_fill(silent, 0.0)
        scale = 1.0 / noisy.square().mean(1, keepdim=True).add(1e-12).sqrt()
        return Batch(noisy * scale, speech * scale, ~noise_only.squeeze(1))

    def _draw_sources(self, draw: int, size: int, rows: slice) -> tuple[Tensor, Tensor]:
        """Speech and noise [B, T], through equalisers, speech also through rooms."""
        config, length = self.config, self.config.length
        draws = _Draws((self.seed, 1, draw), size, rows, self.device, config.noise_takes)
        speech = self.corpus.speech.draw(size, length, draws.generator, max_speed_change=config.max_speed_change,
                                         rows=rows, takes=config.takes)
        in_room = draws.chance(config.room_share).squeeze(1).nonzero().squeeze(1)
        room = draws.integers(self.corpus.rooms.n_clips)[in_room]
        speech = self._filtered(speech, draws, config.equaliser_db, (in_room, room))
        noise = self.corpus.noise.draw(size, length, draws.generator,
                                       max_speed_change=config.max_noise_speed_change, rows=rows,
                                       takes=config.noise_takes)
        if self.corpus.generated is not None:
            generated = self.corpus.generated.draw(size, length, draws.generator,
                                                   max_speed_change=config.max_noise_speed_change, rows=rows,
                                                   takes=config.noise_takes)
            noise = torch.where(draws.chance(config.generated_noise_share), generated, noise)
        noise = noise / (noise.square().mean(1, keepdim=True) + 1e-8).sqrt()
        second = exchanged(noise, config.noise_takes) * 10 ** (draws.uniform(-10, 5) / 20)
        noise = noise + torch.where(draws.chance(config.second_noise_share), second, 0.0)
        synthetic = draws.chance(config.synthetic_noise_share).squeeze(1).nonzero().squeeze(1).tolist()
        slope = draws.uniform(0, 2)
        for i in synthetic:     # each from a seed of its own: they are long, and few are wanted
            noise[i] = _coloured_noise((self.seed, 2, draw, range(size)[rows][i]), length, slope[i])
        noise = self._filtered(noise, draws, config.noise_equaliser_db)
        return speech, torch.where(draws.chance(config.reversed_noise_share), noise.flip(1), noise)

    def _filtered(self, signals: Tensor, draws: "_Draws", equaliser_db: float,
                  rooms: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """A random smooth equaliser, and `rooms`: for the items of some numbers the rooms of others."""
        length = signals.shape[1]
        points = draws.uniform(-equaliser_db, equaliser_db, EQUALISER_POINTS)
        spectrum = torch.fft.rfft(signals, self._n_fft)
        spectrum = spectrum * _gains(points, spectrum.shape[1])
        if rooms is not None and len(rooms[0]):
            response = self.corpus.rooms.beginnings(rooms[1], self._n_fft - length)
            response = response / response.square().sum(1, keepdim=True).sqrt().clamp_min(1e-6)
            spectrum[rooms[0]] *= torch.fft.rfft(response, self._n_fft)
        return torch.fft.irfft(spectrum, self._n_fft)[:, :length]

    def _band_limited(self, signals: Tensor, cutoff_hz: Tensor, limited: Tensor) -> Tensor:
        index = limited.nonzero().squeeze(1)
        if not len(index):
            return signals
        cutoff = cutoff_hz[index].repeat(2, 1)
        index = torch.cat([index, index + len(limited)])
        spectrum = torch.fft.rfft(signals[index], self._n_fft)
        gain = ((cutoff - self._frequencies(spectrum.shape[1])) / 300 + 1).clamp(0, 1)
        signals = signals.clone()
        signals[index] = torch.fft.irfft(spectrum * gain, self._n_fft)[:, : signals.shape[1]]
        return signals

    def _frequencies(self, n_bins: int) -> Tensor:
        return torch.linspace(0, STFT.sample_rate / 2, n_bins, device=self.device)


class _Draws:
    """Random numbers for the items of a batch: drawn for all `size`, given for `rows`, on a device. `takes` neighbours
    get the same ones."""

    def __init__(self, seeds: tuple[int, ...], size: int, rows: slice, device: torch.device, takes: int = 1) -> None:
        self.generator, self._size, self._rows, self._device = _generator(*seeds), size, rows, device
        self._takes = takes

    def uniform(self, low: float, high: float, n: int = 1) -> Tensor:
        """Between two numbers, [B, n]."""
        return low + (high - low) * self._for_items(torch.rand(self._size // self._takes, n, generator=self.generator))

    def chance(self, share: float) -> Tensor:
        """True with a probability, [B, 1]."""
        return self.uniform(0, 1) < share

    def integers(self, below: int) -> Tensor:
        """From zero up, [B]."""
        return self._for_items(torch.randint(below, (self._size // self._takes,), generator=self.generator))

    def _for_items(self, drawn: Tensor) -> Tensor:
        return drawn.repeat_interleave(self._takes, 0)[self._rows].to(self._device)


def exchanged(items: Tensor, by: int) -> Tensor:
    """Every item of [B, ...] with that of the one `by` places before it in its group."""
    return items.unflatten(0, (-1, GROUP)).roll(by, dims=1).flatten(0, 1)


def _gains(points: Tensor, n_bins: int) -> Tensor:
    """Of an equaliser, [B, n_bins] from 0 Hz to half the rate, through `points` [B, n] in dB that lie evenly in
    log-frequency from 60 Hz on."""
    n_points, highest = points.shape[1], STFT.sample_rate / 2
    frequency = torch.linspace(0, highest, n_bins, device=points.device).clamp_min(60)
    position = torch.log(frequency / 60) / np.log(highest / 60) * (n_points - 1)
    low = position.long().clamp_max(n_points - 2)
    return 10 ** (torch.lerp(points[:, low], points[:, low + 1], position - low) / 20)


def _coloured_noise(seeds: tuple[int, ...], length: int, slope: Tensor) -> Tensor:
    """White (slope 0) to brown (2) noise [T] of unit RMS."""
    spectrum = torch.fft.rfft(torch.randn(length, generator=_generator(*seeds)).to(slope.device))
    spectrum = spectrum * torch.arange(1, len(spectrum) + 1, device=slope.device) ** (-slope / 2)
    noise = torch.fft.irfft(spectrum, length)
    return noise / noise.square().mean().sqrt()


def _generator(*numbers: int) -> torch.Generator:
    """One of its own for each row of numbers. torch heeds only the lowest 32 bits of a seed, so they are hashed."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))
