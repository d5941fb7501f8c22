"""Endless mixtures for pre-training, batch by batch, all in torch: speech, rooms, noises, levels, telephone bands."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..config import STFT
from .corpus import Corpus


@dataclass(frozen=True)
class MixingConfig:
    """What a batch is made of. Shares are probabilities per item."""

    length: int = 160 * STFT.hop_length     # 2.56 s
    snr_db: tuple[float, float] = (-5.0, 20.0)
    clean_share: float = 0.08               # no noise at all: enhancement must leave it alone
    noise_only_share: float = 0.03
    second_noise_share: float = 0.4
    synthetic_noise_share: float = 0.1      # white to brown, where the corpus has few steady noises
    room_share: float = 0.3
    band_limit_share: float = 0.15
    gap_share: float = 0.12                 # with a stretch of digital silence, as muting and noise gates leave it
    gap_seconds: tuple[float, float] = (0.1, 1.6)
    equaliser_db: float = 8.0
    max_speed_change: float = 0.12


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


class Mixer:
    """Draws batches; the same seed and step give the same batch."""

    def __init__(self, corpus: Corpus, config: MixingConfig, seed: int) -> None:
        self.corpus, self.config, self.seed = corpus, config, seed
        n_fft = 1 << (config.length - 1).bit_length()
        self._n_fft = n_fft if n_fft >= config.length + 8192 else n_fft * 5 // 4
        rooms = corpus.rooms
        self._room_spectra = torch.stack([
            torch.fft.rfft(_normalised(rooms.samples[s:s + min(n, self._n_fft - config.length)]), self._n_fft)
            for s, n in zip(rooms.starts.tolist(), rooms.lengths.tolist(), strict=True)
        ])
        self._drawn: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))
        self._drawn_for = (-1, 0)

    def batch(self, step: int, size: int) -> Batch:
        """The mixtures of one step. Two steps share their sources, paired and weighed anew: it costs half the time."""
        config, length = self.config, self.config.length
        if self._drawn_for != (step // 2, size):
            self._drawn, self._drawn_for = self._draw_sources(step // 2, size), (step // 2, size)
        speech, noise = self._drawn
        noise = noise.roll(step % 2, dims=0)

        generator = _generator(self.seed, 0, step)
        uniform, chance = _sampler(size, generator)
        fade = 10 ** (uniform(-12, 12) / 20 * torch.linspace(-0.5, 0.5, length))     # noises come and go
        noise = torch.where(chance(0.3), noise * fade, noise)
        noise_rms = noise.square().mean(1, keepdim=True).add(1e-10).sqrt()
        noise = noise * (active_rms(speech) / noise_rms * 10 ** (-uniform(*config.snr_db) / 20))
        noise_only = chance(config.noise_only_share)
        clean = chance(config.clean_share) & ~noise_only
        noise = torch.where(clean, 0.0, noise)
        speech = torch.where(noise_only, 0.0, speech)

        noisy = speech + noise
        limited = chance(config.band_limit_share)
        both = self._band_limited(torch.cat([noisy, speech]), uniform(3000, 7000), limited.squeeze(1))
        noisy, speech = both[:size], both[size:]
        place = torch.arange(length) / STFT.sample_rate
        from_middle = (place - uniform(0.0, length / STFT.sample_rate)).abs()
        silent = (from_middle < uniform(*config.gap_seconds) / 2) & chance(config.gap_share)
        noisy, speech = noisy.masked_fill(silent, 0.0), speech.masked_fill(silent, 0.0)
        scale = 1.0 / noisy.square().mean(1, keepdim=True).add(1e-12).sqrt()
        return Batch(noisy * scale, speech * scale, ~noise_only.squeeze(1))

    def _draw_sources(self, draw: int, size: int) -> tuple[Tensor, Tensor]:
        """Speech and noise [B, T], through equalisers, speech also through rooms."""
        config, length = self.config, self.config.length
        generator = _generator(self.seed, 1, draw)
        uniform, chance = _sampler(size, generator)
        speech = self.corpus.speech.draw(size, length, generator, max_speed_change=config.max_speed_change)
        speech = self._filtered(speech, generator, rooms=chance(config.room_share))
        noise = self.corpus.noise.draw(size, length, generator, max_speed_change=config.max_speed_change)
        noise = noise / (noise.square().mean(1, keepdim=True) + 1e-8).sqrt()
        second = noise.roll(1, dims=0) * 10 ** (uniform(-10, 5) / 20)
        noise = noise + torch.where(chance(config.second_noise_share), second, 0.0)
        noise = torch.where(chance(config.synthetic_noise_share), self._coloured_noise(size, generator), noise)
        return speech, self._filtered(noise, generator, rooms=None)

    def _filtered(self, signals: Tensor, generator: torch.Generator, rooms: Tensor | None) -> Tensor:
        """A random smooth equaliser, and for the items in `rooms` a random room."""
        size, length = signals.shape
        n_points = 7
        points = self.config.equaliser_db * (2 * torch.rand(size, 1, n_points, generator=generator) - 1)
        bins = self._n_fft // 2 + 1
        # points lie evenly in log-frequency from 60 Hz to 8 kHz
        frequency = torch.linspace(0, STFT.sample_rate / 2, bins).clamp_min(60)
        position = torch.log(frequency / 60) / torch.log(torch.tensor(STFT.sample_rate / 2 / 60)) * (n_points - 1)
        low = position.long().clamp_max(n_points - 2)
        share = position - low
        points = points.squeeze(1)
        curve = 10 ** (torch.lerp(points[:, low], points[:, low + 1], share) / 20)
        spectrum = torch.fft.rfft(signals, self._n_fft) * curve
        if rooms is not None:
            index = rooms.squeeze(1).nonzero().squeeze(1)
            room = torch.randint(len(self._room_spectra), (len(index),), generator=generator)
            spectrum[index] = spectrum[index] * self._room_spectra[room]
        return torch.fft.irfft(spectrum, self._n_fft)[:, :length]

    def _coloured_noise(self, size: int, generator: torch.Generator) -> Tensor:
        white = torch.randn(size, self.config.length, generator=generator)
        slope = 2 * torch.rand(size, 1, generator=generator)
        spectrum = torch.fft.rfft(white)
        spectrum = spectrum * torch.arange(1, spectrum.shape[1] + 1) ** (-slope / 2)
        noise = torch.fft.irfft(spectrum, self.config.length)
        return noise / noise.square().mean(1, keepdim=True).sqrt()

    def _band_limited(self, signals: Tensor, cutoff_hz: Tensor, limited: Tensor) -> Tensor:
        index = limited.nonzero().squeeze(1)
        if not len(index):
            return signals
        cutoff = cutoff_hz[index].repeat(2, 1)
        index = torch.cat([index, index + len(limited)])
        spectrum = torch.fft.rfft(signals[index], self._n_fft)
        frequency = torch.linspace(0, STFT.sample_rate / 2, spectrum.shape[1])
        gain = ((cutoff - frequency) / 300 + 1).clamp(0, 1)
        signals = signals.clone()
        signals[index] = torch.fft.irfft(spectrum * gain, self._n_fft)[:, : signals.shape[1]]
        return signals


def _generator(*numbers: int) -> torch.Generator:
    """One of its own for each row of numbers. torch heeds only the lowest 32 bits of a seed, so they are hashed."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


def _sampler(size: int, generator: torch.Generator) -> tuple[Callable[..., Tensor], Callable[[float], Tensor]]:
    """Two functions that draw [size, 1]: uniform between two numbers, and true with a probability."""
    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(size, 1, generator=generator)

    def chance(share: float) -> Tensor:
        return torch.rand(size, 1, generator=generator) < share

    return uniform, chance


def _normalised(response: Tensor) -> Tensor:
    response = response.float()
    return response / response.square().sum().sqrt()
