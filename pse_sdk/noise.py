"""Foreign noise out of nothing, from rain to crowds, for training where no folder of noises exists.

Every kind of noise is an excitation (hiss, pulses, clicks, chords) whose spectrum and movement follow real noise:

    excitation [T] -> short-time spectrum [N, F] -> gain to a drawn long-term spectrum, moving in time -> noise [T]

The long-term spectra are draws from the principal components of real recordings (but for rumble, of which these hold
little), the movements from the quantiles of their level swings; `noise_statistics` has both.
"""

from collections.abc import Callable

import numpy as np

from .config import STFT
from .errors import SettingsError
from .noise_statistics import (
    BAND_CENTRES,
    BAND_EDGES,
    HZ_PER_BIN,
    N_BANDS,
    STATISTICS,
    decibels,
    n_frames,
    short_time_spectrum,
)
from .stft import WINDOW

RMS = 0.1
MAX_SECONDS = 3600.0

# Levels between two band centres lie on a line: levels [.., bands] @ _TO_BINS is [.., F].
_TO_BINS = np.stack([np.interp(np.arange(STFT.n_bins), BAND_CENTRES, row) for row in np.eye(N_BANDS)])
_TO_BINS = _TO_BINS.astype(np.float32)
# Resonances of an adult's throat: lowest and highest frequency, width, strength.
# The ranges of the first three after Peterson and Barney, JASA 1952, table II.
_FORMANTS = ((280, 800, 90, 1.0), (800, 2300, 130, 0.6), (2200, 3200, 200, 0.35), (3300, 4200, 300, 0.25))
_TABLE_LENGTH = 4096      # samples in one period of a wave table


def foreign_noise(seconds: float, rng: np.random.Generator, kind: str | None = None) -> np.ndarray:
    """Make noise at 16 kHz, another one each call. The same state of `rng` gives the same noise.

    Args:
        seconds: above 0, at most an hour. One call is one scene; ask several times for several scenes.
        kind: one of `NOISE_KINDS`; None draws one, the frequent ones in the world more often.

    Shape: the result is [T], float32 with RMS 0.1. Peaks of sparse noises may exceed 1: scale before playing.

    Raises:
        SettingsError: no such kind, or `seconds` out of range.

    >>> foreign_noise(0.5, np.random.default_rng(0), kind="rain").shape
    (8000,)
    """
    n_samples = round(seconds * STFT.sample_rate) if 0 < seconds <= MAX_SECONDS else 0
    if n_samples == 0:
        raise SettingsError(f"expected a sample or more and at most {MAX_SECONDS:.0f} seconds of noise, got {seconds}")
    if kind is None:
        kind = str(rng.choice(NOISE_KINDS, p=[share for share, _ in _KINDS.values()]))
    if kind not in _KINDS:
        raise SettingsError(f"no noise of kind {kind!r}; choose one of {', '.join(NOISE_KINDS)}")

    # Clicks and pauses need room to happen: a short noise is a cut of a longer one.
    n_made = max(n_samples, 4 * STFT.sample_rate)
    start = rng.integers(n_made - n_samples + 1)
    noise = _KINDS[kind][1](n_made, rng)[start:start + n_samples]
    return (noise * (RMS / _rms(noise))).astype(np.float32)


# The kinds. Each makes n samples, at any level.

def _coloured(n: int, rng: np.random.Generator) -> np.ndarray:
    """A fan, a tap, a far road: it never changes."""
    return _shape(_hiss(n, rng), rng)


def _modulated(n: int, rng: np.random.Generator) -> np.ndarray:
    """Wind, waves, traffic passing: level and colour come and go."""
    return _shape(_hiss(n, rng), rng, _movement(n, rng, ranks=(0.3, 1.0)))


def _hum(n: int, rng: np.random.Generator) -> np.ndarray:
    """Mains, motors, engines: harmonics over a hiss."""
    pitch_hz = rng.choice([50.0, 60.0, 100.0, 120.0]) if rng.random() < 0.4 else _log_uniform(rng, 25, 400)
    jitter = _log_uniform(rng, 1e-4, 1e-2) * _wander(n, 0.05, rng)
    glide = rng.choice([0.0, 0.02, 0.2]) * _wander(n, _log_uniform(rng, 1, 8), rng)
    decay = rng.uniform(0.3, 1.5)
    harmonics = np.arange(1, int(min(60, 7000 / pitch_hz)) + 1)
    lines = _wave_table(harmonics**-decay * 10 ** (rng.normal(0, 7, len(harmonics)) / 20), rng)
    motor = _periodic(lines, pitch_hz * np.exp2(_to_samples(jitter + glide, n)))
    excitation = motor + 10 ** (rng.uniform(-18, 3) / 20) * _hiss(n, rng)
    return _over_floor(_shape(excitation, rng, _movement(n, rng, ranks=(0.0, 0.5))), rng, above_db=(10, 40))


def _rumble(n: int, rng: np.random.Generator) -> np.ndarray:
    """Inside a car, a train or a plane: a roar below some hundred hertz, above which little is left."""
    hz = BAND_CENTRES * HZ_PER_BIN
    highest_hz, lowest_hz = _log_uniform(rng, 80, 500), _log_uniform(rng, 20, 80)
    level_db = -rng.uniform(6, 18) * np.log2(np.maximum(hz / highest_hz, 1))
    level_db -= rng.uniform(0, 12) * np.log2(np.maximum(lowest_hz / hz, 1))
    level_db = np.maximum(level_db, -rng.uniform(35, 60)) + rng.normal(0, 2.0, N_BANDS)
    return _shape(_hiss(n, rng), rng, _movement(n, rng, ranks=(0.0, 0.5)), level_db)


def _babble(n: int, rng: np.random.Generator) -> np.ndarray:
    """People talking: a few voices, and each again from elsewhere at another time."""
    crowd = np.zeros(n, np.float32)
    for _ in range(rng.integers(1, 4)):
        voice = synthetic_voice(n, rng)
        for _ in range(rng.integers(1, 4)):
            crowd += 10 ** (rng.uniform(-12, 0) / 20) * np.roll(voice, rng.integers(n))
    return _over_floor(_in_a_room(crowd, rng), rng, above_db=(5, 25))


def _impulsive(n: int, rng: np.random.Generator) -> np.ndarray:
    """Keys, dishes, knocks, steps: a few sounds that ring and die, again and again."""
    centre_hz = _log_uniform(rng, 150, 4000)
    ring_seconds = _log_uniform(rng, 0.004, 0.05) * (1000 / centre_hz) ** 0.3
    sounds = [_struck(rng, centre_hz, ring_seconds) for _ in range(rng.integers(2, 7))]
    clicks = _scatter(n, sounds, _log_uniform(rng, 0.7, 9), rng, spread_db=5)
    return _over_floor(_in_a_room(clicks, rng), rng, above_db=(0, 25))


def _rhythmic(n: int, rng: np.random.Generator) -> np.ndarray:
    """A washing machine, a train, a pump: two hisses whose levels repeat, out of step."""
    period_seconds = _log_uniform(rng, 0.07, 1.6)
    jitter = rng.choice([0.003, 0.03]) * _wander(n, 2 * period_seconds, rng)
    frequency_hz = np.exp2(_to_samples(jitter, n)) / period_seconds
    machine = np.zeros(n, np.float32)
    for depth_db, level_db in ((rng.uniform(4, 10), 0.0), (rng.uniform(2, 6), rng.uniform(-20, 0))):
        swing_db = depth_db * _periodic(_wave_table(1 / np.arange(1, rng.integers(2, 9)), rng), frequency_hz)
        part = _shape(_hiss(n, rng) * 10 ** (swing_db / 20), rng)
        machine += part * (10 ** (level_db / 20) / _rms(part))
    return _over_floor(machine, rng, above_db=(5, 30))


def _rain(n: int, rng: np.random.Generator) -> np.ndarray:
    """Rain, frying, fire, an old record: tiny clicks, from a few to thousands a second."""
    per_second = _log_uniform(rng, 10, 4000)
    drops = np.zeros(n, np.float32)
    n_drops = 1 + rng.poisson(per_second * n / STFT.sample_rate)
    drops[rng.integers(n, size=n_drops)] = rng.choice([-1, 1], n_drops) * np.exp(rng.normal(0, 1, n_drops))
    # No drop is a single sample: each rings for about a millisecond.
    drops = np.convolve(drops, _hiss(64, rng) * np.exp(-np.arange(64, dtype=np.float32) / rng.uniform(3, 25)), "same")
    return _over_floor(_shape(drops, rng, _movement(n, rng, ranks=(0.0, 0.6))), rng, above_db=(0, 25))


def _tones(n: int, rng: np.random.Generator) -> np.ndarray:
    """Beeps, birds or music."""
    manner = rng.choice(["beeps", "birds", "music"])
    if manner == "beeps":
        pitches_hz, seconds, glide = _log_uniform(rng, 400, 3000) * np.array([1, rng.uniform(0.5, 2)]), (0.05, 0.5), 0.0
    elif manner == "birds":
        pitches_hz, seconds, glide = _log_uniform(rng, 1200, 6000) * np.exp2(rng.normal(0, 0.3, 6)), (0.04, 0.3), 0.4
    else:
        major = np.array([0, 2, 4, 5, 7, 9, 11, 12, 16, 19]) / 12
        pitches_hz, seconds, glide = _log_uniform(rng, 60, 500) * np.exp2(rng.permutation(major)), (0.2, 1.5), 0.0
    timbre = np.arange(1, 1 + rng.integers(1, 12)) ** -rng.uniform(0.7, 2.5)
    sounds = [_note(rng, pitch_hz, rng.uniform(*seconds), glide, timbre) for pitch_hz in pitches_hz]
    tune = _scatter(n, sounds, _log_uniform(rng, 1, 8), rng, spread_db=3)
    return _over_floor(_in_a_room(tune, rng), rng, above_db=(0, 25))


_KINDS: dict[str, tuple[float, Callable[[int, np.random.Generator], np.ndarray]]] = {
    "coloured": (0.08, _coloured),
    "modulated": (0.19, _modulated),
    "hum": (0.11, _hum),
    "rumble": (0.10, _rumble),
    "babble": (0.13, _babble),
    "impulsive": (0.13, _impulsive),
    "rhythmic": (0.09, _rhythmic),
    "rain": (0.09, _rain),
    "tones": (0.08, _tones),
}
NOISE_KINDS: tuple[str, ...] = tuple(_KINDS)


# What the kinds are made of.

def _shape(samples: np.ndarray, rng: np.random.Generator, movement_db: np.ndarray | float = 0.0,
           spectrum_db: np.ndarray | None = None) -> np.ndarray:
    """Give `samples` [T] a long-term spectrum [bands], or one drawn from real ones, and let it move by `movement_db`
    [N, bands]."""
    spectrum = short_time_spectrum(samples)
    power = np.add.reduceat(spectrum.real**2 + spectrum.imag**2, BAND_EDGES[:-1], axis=1).mean(0) / np.diff(BAND_EDGES)
    loudest = power.max()
    # Where the excitation has nothing, little is lifted: not more than 50 dB.
    wanted_db = STATISTICS.draw_spectrum(rng) if spectrum_db is None else spectrum_db
    level_db = wanted_db - decibels(np.maximum(power / loudest, 1e-5) * loudest)
    level_db = level_db + movement_db - decibels(np.mean(10 ** (np.atleast_2d(movement_db) / 10), axis=0))
    ripple_db = np.convolve(rng.normal(0, 2.0, STFT.n_bins + 4), [0.25, 0.5, 0.75, 0.5, 0.25], "valid")
    gain_db = level_db.astype(np.float32) @ _TO_BINS + ripple_db.astype(np.float32)
    return _istft(spectrum * 10 ** (gain_db / 20), len(samples))


def _movement(n: int, rng: np.random.Generator, ranks: tuple[float, float]) -> np.ndarray:
    """Level swings [N, bands] in dB as real noises have them, between two ranks of liveliness."""
    slow_seconds, fast_seconds = _log_uniform(rng, 1, 6), _log_uniform(rng, 0.016, 0.3)
    # Neighbouring bands move together: ten tracks, spread over the bands.
    spread = np.stack([np.interp(np.linspace(0, 9, N_BANDS), np.arange(10), row) for row in np.eye(10)])
    spread = (spread / np.sqrt(np.square(spread).sum(0))).astype(np.float32)
    movement = np.zeros((n_frames(n), N_BANDS), np.float32)
    for seconds, shared_db, own_db in (
        (slow_seconds, _at_rank(STATISTICS.slow_shared_db, ranks, rng), _at_rank(STATISTICS.slow_own_db, ranks, rng)),
        (fast_seconds, _at_rank(STATISTICS.fast_shared_db, ranks, rng), _at_rank(STATISTICS.fast_own_db, ranks, rng)),
    ):
        movement += shared_db * _wander(n, seconds, rng)[:, None]
        movement += own_db * np.stack([_wander(n, seconds, rng) for _ in spread], axis=1) @ spread
    return movement


def _at_rank(quantiles: np.ndarray, ranks: tuple[float, float], rng: np.random.Generator) -> float:
    return float(np.interp(rng.uniform(*ranks), np.linspace(0, 1, len(quantiles)), quantiles))


def _over_floor(foreground: np.ndarray, rng: np.random.Generator, above_db: tuple[float, float]) -> np.ndarray:
    """Let `foreground` come and go over the hiss of a place, on the mean above it by a draw from `above_db`."""
    n = len(foreground)
    swing_db = _at_rank(STATISTICS.slow_shared_db, (0.0, 1.0), rng) * _wander(n, _log_uniform(rng, 1, 10), rng)
    foreground = foreground * 10 ** (_to_samples(swing_db, n) / 20)
    floor = _shape(_hiss(n, rng), rng, _movement(n, rng, ranks=(0.0, 0.5)))
    return foreground / _rms(foreground) + floor * (10 ** (-rng.uniform(*above_db) / 20) / _rms(floor))


def _in_a_room(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Add the decaying echo of a room, and its colour. The end of `samples` echoes at their beginning."""
    n_fft = _round_length(len(samples))
    seconds = np.arange(STFT.sample_rate) / STFT.sample_rate
    tail = _hiss(len(seconds), rng) * np.exp(-6.9 * seconds / rng.uniform(0.15, 1.2)).astype(np.float32)
    tail *= 10 ** (rng.uniform(-15, 3) / 20) / np.sqrt(np.square(tail).sum())
    dark = 1 / (1 + np.linspace(0, 8, n_fft // 2 + 1, dtype=np.float32) / rng.uniform(1, 8))
    colour_db = 0.7 * (STATISTICS.draw_spectrum(rng) - STATISTICS.mean_db)
    colour = np.interp(np.linspace(0, STFT.n_bins - 1, len(dark)), BAND_CENTRES, 10 ** (colour_db / 20))
    response = (1 + np.fft.rfft(tail, n_fft) * dark) * colour.astype(np.float32)
    return np.fft.irfft(np.fft.rfft(samples, n_fft) * response, n_fft)[:len(samples)].astype(np.float32)


def synthetic_voice(n: int, rng: np.random.Generator) -> np.ndarray:
    """`n` samples of somebody who talks no language: syllables of a consonant and a vowel, with melody and pauses.

    Pulses and hiss pass resonances that move from vowel to vowel.
    """
    seconds = n / STFT.sample_rate
    pace = rng.uniform(0.12, 0.22)                          # mean seconds of a syllable
    n_syllables = int(seconds / pace * 1.5) + 4
    durations = pace * rng.uniform(0.6, 1.5, n_syllables)
    pauses = np.where(rng.random(n_syllables) < rng.uniform(0.08, 0.25), rng.uniform(0.2, 1.0, n_syllables), 0.0)
    starts = np.concatenate([[0.0], np.cumsum(durations + pauses)[:-1]])
    middles = starts + 0.6 * durations

    time = np.arange(n_frames(n)) * STFT.hop_seconds
    syllable = np.searchsorted(starts, time, "right") - 1
    place = (time - starts[syllable]) / durations[syllable]          # 0 to 1 in a syllable, above in a pause
    level = np.sqrt(np.sin(np.pi * np.clip(place, 0, 1))) * 10 ** (rng.normal(0, 4, n_syllables) / 20)[syllable]
    hissing = (place < rng.uniform(-0.3, 0.4, n_syllables)[syllable]).astype(np.float32)

    size = rng.uniform(0.9, 1.25)                                    # short throats sound higher
    pitch_hz = 70 * size**3 * rng.uniform(1.0, 1.8)
    melody = pitch_hz * np.exp2(np.interp(time, middles, rng.normal(0, 0.2, n_syllables)))
    tilt = np.arange(1, int(min(60, 6000 / pitch_hz)) + 1) ** -rng.uniform(0.6, 1.1)
    pulses = _periodic(_wave_table(tilt, None), _to_samples(melody, n))
    voiced = _to_samples(1 - hissing, n)
    excitation = voiced * pulses + (0.03 + 0.25 * (1 - voiced)) * _hiss(n, rng)

    hz = np.arange(STFT.n_bins, dtype=np.float32) * np.float32(HZ_PER_BIN)
    gain = np.full((len(time), STFT.n_bins), 0.01, np.float32)
    for low_hz, high_hz, width_hz, strength in _FORMANTS:
        formant_hz = np.interp(time, middles, size * rng.uniform(low_hz, high_hz, n_syllables)).astype(np.float32)
        gain += strength / (1 + np.square((hz - formant_hz[:, None]) * np.float32(1 / width_hz)))
    hiss_hz = rng.uniform(1500, 7000, n_syllables)[syllable].astype(np.float32)
    consonant = 1 / (1 + np.square((hz - hiss_hz[:, None]) * np.float32(1 / 1200)))
    gain += hissing[:, None] * (consonant - gain)
    return _istft(short_time_spectrum(excitation) * gain * level.astype(np.float32)[:, None], n)


def _struck(rng: np.random.Generator, centre_hz: float, ring_seconds: float) -> np.ndarray:
    """A thing that was hit: a burst of hiss and some resonances, each dying at its own pace."""
    seconds = np.arange(int(8 * ring_seconds * STFT.sample_rate) + 32) / STFT.sample_rate
    n_modes = rng.integers(2, 9)
    modes_hz = np.minimum(centre_hz * np.exp2(rng.normal(0, 0.8, n_modes)), 7500)
    rings = ring_seconds * np.exp2(rng.normal(0, 0.7, n_modes)).clip(0.2, 2)
    levels = rng.uniform(0.1, 1, n_modes)
    modes = levels * np.sin(2 * np.pi * seconds[:, None] * modes_hz) * np.exp(-seconds[:, None] / rings)
    burst = _hiss(len(seconds), rng) * np.exp(-seconds / (0.3 * ring_seconds))
    return np.asarray(modes.sum(1) + rng.uniform(0.1, 1) * burst, np.float32)


def _note(rng: np.random.Generator, pitch_hz: float, duration: float, glide: float, timbre: np.ndarray) -> np.ndarray:
    n = int(duration * STFT.sample_rate)
    place = np.linspace(0, 1, n)
    harmonics = timbre[:max(1, int(6000 / pitch_hz))]
    waves = _periodic(_wave_table(harmonics, rng), pitch_hz * np.exp2(rng.normal(0, 1) * glide * place))
    decay = np.exp(-place * rng.choice([0.0, 2.0, 5.0]))
    edges = np.clip(np.minimum(place, 1 - place) * duration / 0.005, 0, 1)     # 5 ms to rise and to fall
    return np.asarray(waves * decay * edges, np.float32)


def _scatter(n: int, sounds: list[np.ndarray], per_second: float, rng: np.random.Generator,
             *, spread_db: float) -> np.ndarray:
    """Place `sounds` at random times [T]: anywhere, or on a beat with some beats left out."""
    n_events = 1 + rng.poisson(per_second * n / STFT.sample_rate)
    if rng.random() < 0.4:
        step = STFT.sample_rate / (per_second * 1.5)
        places = (np.arange(int(n / step) + 1) * step + rng.normal(0, 0.03 * step, int(n / step) + 1)) % n
        places = places[rng.random(len(places)) < 0.7]
    else:
        places = rng.uniform(0, n, n_events)
    scene = np.zeros(n, np.float32)
    for place in np.append(places, rng.uniform(0, n)).astype(int):
        sound = sounds[rng.integers(len(sounds))][:n - place]
        scene[place:place + len(sound)] += sound * np.float32(10 ** (rng.normal(0, spread_db) / 20))
    return scene


# Signals and numbers.

def _hiss(n: int, rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal(n, dtype=np.float32)


def _wander(n: int, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """A random walk without end [N] for `n` samples: mean 0, deviation 1, a new direction about every `seconds`."""
    place = np.arange(n_frames(n)) * (STFT.hop_seconds / seconds) + rng.random()
    # On a line between two independent draws the variance is 2/3 of theirs, on the mean.
    turns = rng.normal(0, np.sqrt(1.5), int(place[-1]) + 2)
    return np.asarray(np.interp(place, np.arange(len(turns)), turns), np.float32)


def _wave_table(levels: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
    """One period of RMS 1 with these levels of harmonics; phases are random, or with None those of a pulse."""
    spectrum = np.zeros(_TABLE_LENGTH // 2 + 1, complex)
    phases = rng.uniform(0, 2 * np.pi, len(levels)) if rng is not None else np.zeros(len(levels))
    spectrum[1:len(levels) + 1] = levels * np.exp(1j * phases)
    table = np.fft.irfft(spectrum)
    return (table / _rms(table)).astype(np.float32)


def _periodic(table: np.ndarray, frequency_hz: np.ndarray) -> np.ndarray:
    """Run through a wave table at a frequency that may change from sample to sample [T]."""
    phase = np.cumsum(frequency_hz.astype(np.float64) * (_TABLE_LENGTH / STFT.sample_rate))
    return table[phase.astype(np.int64) % _TABLE_LENGTH]


def _to_samples(track: np.ndarray, n: int) -> np.ndarray:
    """From a value a frame [N] to a value a sample [T]."""
    places = np.arange(n, dtype=np.float32) / STFT.hop_length
    return np.asarray(np.interp(places, np.arange(len(track)), track), np.float32)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) + 1e-12


def _round_length(n: int) -> int:
    """The next 2^k or 3 * 2^k, even: lengths the Fourier transform is quick at."""
    power = 1 << max(2, (n - 1).bit_length())
    return power * 3 // 4 if power * 3 // 4 >= n else power


def _istft(spectrum: np.ndarray, n: int) -> np.ndarray:
    """The `n` samples that have this short-time spectrum."""
    hop = STFT.hop_length
    frames = np.fft.irfft(spectrum).astype(np.float32) * WINDOW
    samples = np.zeros((len(frames) + 1, hop), np.float32)
    samples[:-1] = frames[:, :hop]
    samples[1:] += frames[:, hop:]
    return samples.reshape(-1)[hop:hop + n]
