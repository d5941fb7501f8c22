"""Noises in numbers: how their levels are spread over bands of frequency, how they swing in time.

`band_statistics` measures any noise. `STATISTICS` is what `export/measure_noise_statistics.py` measured on real ones,
read from `noise_statistics.json`.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .config import STFT
from .errors import SettingsError
from .stft import WINDOW

N_BANDS = 20
HZ_PER_BIN = STFT.sample_rate / STFT.n_fft
# Bands grow with frequency: 60 Hz wide below 200 Hz, 1.2 kHz at the top. The bin of the constant is left out.
_EDGES_HZ = 300 * np.expm1(np.linspace(0, np.log1p(STFT.sample_rate / 2 / 300), N_BANDS + 1))
BAND_EDGES = np.round(_EDGES_HZ / HZ_PER_BIN).astype(int)
BAND_EDGES[[0, -1]] = 1, STFT.n_bins
BAND_CENTRES = (BAND_EDGES[:-1] + BAND_EDGES[1:] - 1) / 2
_FRAMES_PER_SECOND = STFT.sample_rate // STFT.hop_length
_FLOOR_DB = 40.0          # a band this far below its own mean is silent; digital silence would swing without end


@dataclass(frozen=True)
class BandStatistics:
    """How a noise is spread over bands and how it moves, all in dB.

    `spectrum_db` [bands] is the long-term power density over the density of all bands together. The swings are
    standard deviations: `slow` of levels over 1 s, `fast` of levels over 16 ms around those; `shared` by all bands
    (of the mean of their levels), `own` the rest, a mean over bands.
    """

    spectrum_db: np.ndarray
    slow_shared_db: float
    slow_own_db: float
    fast_shared_db: float
    fast_own_db: float


def band_power(samples: np.ndarray) -> np.ndarray:
    """Mean power per bin [N, bands] of the frames, 16 ms apart, of `samples` [T]."""
    spectrum = short_time_spectrum(samples.astype(np.float32))
    power = spectrum.real**2 + spectrum.imag**2
    return np.add.reduceat(power, BAND_EDGES[:-1], axis=1) / np.diff(BAND_EDGES)


def band_statistics(samples: np.ndarray) -> BandStatistics:
    """Describe `samples` [T]. Raises SettingsError where they are shorter than 2 s, or silent."""
    power = band_power(samples)[1:-1]                       # the outer frames hold half of the samples
    n_seconds = len(power) // _FRAMES_PER_SECOND
    mean_power = power.mean(0)
    if n_seconds < 2 or mean_power.max() < 1e-9:
        raise SettingsError(f"expected 2 s of sound or more, got {len(samples) / STFT.sample_rate:.2f} s, or silence")
    floor = np.maximum(mean_power * 10 ** (-_FLOOR_DB / 10), 1e-12)
    density = mean_power @ np.diff(BAND_EDGES) / (STFT.n_bins - 1)

    by_second = power[:n_seconds * _FRAMES_PER_SECOND].reshape(n_seconds, _FRAMES_PER_SECOND, N_BANDS)
    slow_db = decibels(np.maximum(by_second.mean(1), floor))  # [seconds, bands]
    fast_db = decibels(np.maximum(by_second, floor))
    fast_db -= fast_db.mean(1, keepdims=True)
    return BandStatistics(
        decibels(np.maximum(mean_power / density, 1e-7)),
        *_shared_and_own(slow_db),
        *_shared_and_own(fast_db.reshape(-1, N_BANDS)),
    )


def _shared_and_own(levels_db: np.ndarray) -> tuple[float, float]:
    shared = levels_db.mean(1, keepdims=True)
    return float(shared.std()), float((levels_db - shared).std(0).mean())


@dataclass(frozen=True)
class NoiseStatistics:
    """Real noises in numbers, all in dB.

    `mean_db` [bands] and `components_db` [components, bands] (standard deviations) describe the long-term spectra,
    `residual_db` what the components leave. The swings are quantiles at even ranks from 0 to 1, as in
    `BandStatistics`, the fast ones less what white noise swings by itself.
    """

    mean_db: np.ndarray
    components_db: np.ndarray
    residual_db: float
    slow_shared_db: np.ndarray
    slow_own_db: np.ndarray
    fast_shared_db: np.ndarray
    fast_own_db: np.ndarray

    @classmethod
    def read(cls, path: Path) -> "NoiseStatistics":
        numbers = json.loads(path.read_text("utf-8"))
        residual_db = float(numbers.pop("residual_db"))
        return cls(residual_db=residual_db, **{name: np.array(value) for name, value in numbers.items()})

    def draw_spectrum(self, rng: np.random.Generator) -> np.ndarray:
        """A long-term spectrum [bands] in dB."""
        weights = rng.standard_normal(len(self.components_db)).clip(-2.5, 2.5)
        return np.asarray(self.mean_db + weights @ self.components_db + rng.normal(0, self.residual_db, N_BANDS))


STATISTICS = NoiseStatistics.read(Path(__file__).with_name("noise_statistics.json"))


def decibels(power: np.ndarray) -> np.ndarray:
    """The level in dB of a power or density, above 0."""
    return np.asarray(10 * np.log10(power))


def n_frames(n: int) -> int:
    """Frames that `n` samples lie in, each sample in two."""
    return -(-n // STFT.hop_length) + 1


def short_time_spectrum(samples: np.ndarray) -> np.ndarray:
    """Spectra [N, F] of the frames of `samples` [T]; N is `n_frames(T)`."""
    hop = STFT.hop_length
    padded = np.pad(samples, (hop, (n_frames(len(samples)) * hop - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, STFT.n_fft)[::hop]
    return np.fft.rfft(frames * WINDOW).astype(np.complex64)
