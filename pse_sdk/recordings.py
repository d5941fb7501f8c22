"""What users give, made fit to work with: mono recordings at 16 kHz.

`read_recordings` takes files, folders and samples, and keeps whole recordings in memory as the noisy speech to learn
from. What is wrong with them is mended where that is safe, and noted in plain words.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np

from .arguments import a_type, as_number
from .audio import (
    MAX_CHANNELS,
    as_float32,
    check_sample_rate,
    check_scale,
    count_beyond,
    replace_damage,
    resample_blocks,
    resampled_length,
)
from .audio_file import NUMBERS_PER_BLOCK, AudioReader, audio_files
from .config import STFT
from .errors import AudioError, SettingsError
from .stft import frame_power

logger = logging.getLogger(__name__)

LEAST_SHARE_SECONDS = 60.0      # of one recording, where many have to share the time
SHORTEST_SECONDS = 0.2

_SILENCE = 1e-4  # a swing of 3 steps of 16 bits, -80 dBFS: no microphone in a room is that quiet
_CORRELATED = 0.5
_CLIPPED_SHARE = 0.001
_AUDIBLE_OFFSET = 0.01
SAME_SOUND = 0.999      # squared correlation of two recordings of the same length that are one
SAME_TAKE = 0.85        # correlation of the levels of two that are one, cut or encoded in another way; others: 0.3
_LEAST_LEVELS = 600     # fewer than 10 s of them may be alike by chance
_LOUD_DB = -40.0        # above it a level belongs to speech, or to a noise that is not gated away

GIVEN_AGAIN = "given more than once: used once"

Source = str | os.PathLike[str] | tuple[Any, float]
"""A file, a folder, or `(samples, sample_rate)`."""


@dataclass(frozen=True, eq=False)
class Recording:
    """One noisy recording of the user, ready to work with."""

    samples: np.ndarray  # [T] mono float32 in [-1, 1] at STFT.sample_rate
    name: str  # for messages only
    notes: tuple[str, ...] = ()  # what was mended, in plain words
    clipped: float = 0.0  # share of the samples that sit at the peak, as nothing that was recorded whole does

    @property
    def seconds(self) -> float:
        return len(self.samples) / STFT.sample_rate

    @cached_property
    def levels(self) -> np.ndarray:
        """Of every 16 ms [N], in dB below the loudest, at most 60."""
        power = frame_power(self.samples)
        return np.asarray(10 * np.log10(np.maximum(power / power.max(initial=1e-15), 1e-6)), np.float32)

    @cached_property
    def _level_spectra(self) -> dict[int, np.ndarray]:
        return {}

    def level_spectrum(self, n_fft: int) -> np.ndarray:
        """Transform of the levels, with mean 0 and sum of squares 1; kept, for it is compared with every other's."""
        if n_fft not in self._level_spectra:
            levels = self.levels - self.levels.mean()
            self._level_spectra[n_fft] = np.fft.rfft(levels / (np.linalg.norm(levels) + 1e-6), n_fft)
        return self._level_spectra[n_fft]


def read_recordings(sources: Source | Iterable[Source], *, max_seconds: float = 4 * 3600.0, evenly: bool = False,
                    on_bad: Literal["raise", "skip"] = "raise") -> list[Recording]:
    """Read what a user gives as mono float32 at 16 kHz. What can be mended is mended, and noted.

    Args:
        sources: one of, or several of: a file (WAV, FLAC, OGG, Opus, MP3, AIFF; with PyAV also M4A, MP4, WebM,
            AMR, 3GP, AAC, MKV, MOV), a folder (searched with its subfolders for such suffixes, sorted, hidden
            files left out), or `(samples, sample_rate)` with samples as `as_float32` takes them.
        max_seconds: reading stops when the recordings last this long together.
        evenly: read no more of any recording than its share of `max_seconds` (or a minute, if that is more), so that
            the first ones do not take the place of all others.
        on_bad: "raise" refuses everything when one recording is bad; "skip" leaves bad ones out, logs a warning
            for each, and lists them in the notes of the last recording.

    Mended: channels become their average where they agree with the loudest one, so that neither opposite phase
    nor a dead channel harms it; a constant offset (DC) is removed; NaN, Inf and impossible numbers become 0;
    what goes beyond full scale is scaled down to it; the same take given twice, louder or softer, cut or encoded
    in another way, is used once.
    Noted, not mended: clipping, and a file that ends early.

    Memory is that of the result and one block. Every file is decoded twice, first to look, then to convert.

    Raises:
        AudioError: a file that is missing, empty, not audio, or damaged so that nothing can be read; a recording
            that is silent, shorter than 0.2 s or of another scale than [-1, 1]; a folder without audio; nothing given
            or nothing left.
        MissingDependencyError: a phone's recording, and PyAV is not installed. Raised with "skip", too.
        SettingsError: `max_seconds`, `on_bad` or a sample rate that cannot be.

    >>> tone = np.sin(np.arange(48_000) / 20)
    >>> [recording] = read_recordings((tone, 48_000))
    >>> recording.seconds
    1.0
    """
    if on_bad not in ("raise", "skip"):
        raise SettingsError(f"expected on_bad='raise' or 'skip', got {on_bad!r}")
    as_number(max_seconds, "max_seconds", SHORTEST_SECONDS)

    recordings: list[Recording] = []
    remarks: list[str] = []

    def leave_out(error: AudioError) -> None:
        if on_bad == "raise":
            raise error
        logger.warning("left out: %s", error)
        remarks.append(f"left out: {error}")

    inputs: Iterable[Callable[[], AudioReader | _Samples]] = _inputs(sources, leave_out)
    most_of_each = max_seconds
    if evenly:
        inputs = list(inputs)
        most_of_each = max(LEAST_SHARE_SECONDS, max_seconds / max(1, len(inputs)))
    for open_input in inputs:
        seconds_left = max_seconds - sum(recording.seconds for recording in recordings)
        if seconds_left < SHORTEST_SECONDS:
            remarks.append(f"further recordings were not read: {max_seconds:g} s in all are the most")
            break
        try:
            with closing(open_input()) as source:
                recording = _read(source, min(seconds_left, most_of_each))
        except AudioError as error:
            leave_out(error)
            continue
        first = next((i for i, other in enumerate(recordings) if is_copy(other, recording)), None)
        if first is None:
            recordings.append(recording)
        elif GIVEN_AGAIN not in recordings[first].notes:
            recordings[first] = replace(recordings[first], notes=(*recordings[first].notes, GIVEN_AGAIN))

    if not recordings:
        shown = "; ".join(remarks[:3]) + (f"; and {len(remarks) - 3} more" if len(remarks) > 3 else "")
        raise AudioError("no recordings to use: " + (shown or "the list of sources is empty"))
    *others, last = recordings
    return [*others, replace(last, notes=(*last.notes, *remarks))]


def is_copy(one: Recording, other: Recording) -> bool:
    """Whether they hold the same sound, be it louder or softer, or the same take, cut or encoded in another way."""
    if len(one.samples) == len(other.samples) and all(     # a few samples tell most that do not
            float(a @ b) ** 2 > SAME_SOUND * float(a @ a) * float(b @ b)
            for a, b in ((one.samples[::step], other.samples[::step]) for step in (61, 1))):
        return True
    return _is_same_take(one, other)


def _is_same_take(first: Recording, second: Recording) -> bool:
    """Whether the levels of two recordings agree where they fit best, also where both are loud."""
    shorter, longer = sorted((len(first.levels), len(second.levels)))
    if shorter < _LEAST_LEVELS or shorter < 0.8 * longer:
        return False
    n_fft = 1 << (2 * longer).bit_length()
    correlation = np.fft.irfft(first.level_spectrum(n_fft) * second.level_spectrum(n_fft).conj(), n_fft)
    shift = int(correlation.argmax())
    if correlation[shift] < SAME_TAKE:
        return False
    shift -= n_fft if shift > n_fft // 2 else 0
    one, other = first.levels[max(0, shift):], second.levels[max(0, -shift):]
    n_both = min(len(one), len(other))
    one, other = one[:n_both], other[:n_both]
    loud = (one > _LOUD_DB) & (other > _LOUD_DB)    # one word in silence is like any other, but for its own levels
    return bool(loud.sum() >= _LEAST_LEVELS // 4 and np.corrcoef(one[loud], other[loud])[0, 1] > SAME_TAKE)


# From sources to inputs, each of which is one recording.


class _Samples:
    """Samples in memory, behind the face of an `AudioReader`."""

    notes: tuple[str, ...] = ()

    def __init__(self, name: str, samples: object, sample_rate: float) -> None:
        self.name = name
        self.sample_rate = check_sample_rate(sample_rate)
        array = samples if isinstance(samples, np.ndarray) else self._float32(samples)
        fits = array.ndim == 1 or (array.ndim == 2 and array.shape[1] <= MAX_CHANNELS)
        beginning = self._float32(array[:1] if fits else array)     # of hours only what is read becomes floats
        self.n_channels = beginning.shape[1] if beginning.ndim == 2 else 1
        self._samples = array

    def blocks(self) -> Iterator[np.ndarray]:
        length = max(1, NUMBERS_PER_BLOCK // self.n_channels)
        return (self._float32(self._samples[start:start + length]).reshape(-1, self.n_channels)
                for start in range(0, len(self._samples), length))

    def _float32(self, samples: object) -> np.ndarray:
        try:
            return as_float32(samples)
        except AudioError as error:
            raise AudioError(f"{self.name}: {error}") from error

    def close(self) -> None:
        """Memory needs no closing."""


def _inputs(sources: Source | Iterable[Source],
            leave_out: Callable[[AudioError], None]) -> Iterator[Callable[[], AudioReader | _Samples]]:
    """For every recording among the sources, in order, what opens it."""
    wanted = "a file, a folder or (samples, sample_rate)"
    several: Iterable[Any]
    if isinstance(sources, (str, os.PathLike)) or _is_pair(sources):
        several = [sources]
    elif isinstance(sources, Iterable) and not isinstance(sources, (np.ndarray, bytes, dict)):
        several = sources
    else:
        raise AudioError(f"expected {wanted}, or several of them, got {a_type(sources)}; "
                         "samples need their rate: (samples, 16000)")
    if isinstance(sources, tuple) and len(sources) == 2 and isinstance(sources[0], np.ndarray) and several is sources:
        several = [sources]     # one recording, whose rate is no number
    for position, source in enumerate(several, start=1):
        if _is_pair(source):
            yield partial(_Samples, f"recording {position}", *source)
        elif isinstance(source, (str, os.PathLike)):
            try:
                files = audio_files(source)
            except AudioError as error:
                leave_out(error)
                continue
            yield from (partial(AudioReader, file) for file in files)
        elif isinstance(source, tuple) and len(source) == 2:
            raise AudioError(f"recording {position}: expected (samples, sample_rate) with a number in Hz, got "
                             f"{a_type(source[1])} for the rate")
        else:
            raise AudioError(f"recording {position}: expected {wanted}, got {a_type(source)}; "
                             "samples need their rate: (samples, 16000)")


def _is_pair(source: object) -> bool:
    return isinstance(source, tuple) and len(source) == 2 and isinstance(source[1], (int, float, np.number))


# From an input to a recording: look at all of it, decide, convert.


@dataclass(frozen=True)
class _Look:
    """What one pass over all samples tells. Arrays are per channel."""

    n_samples: int
    was_cut: bool
    n_replaced: int
    n_beyond: int  # of those replaced, numbers
    mean: np.ndarray
    covariance: np.ndarray  # [channels, channels]
    swing: np.ndarray  # highest minus lowest sample
    n_clipped: np.ndarray


def _read(source: AudioReader | _Samples, max_seconds: float) -> Recording:
    rate = source.sample_rate
    look = _look(source.blocks(), source.n_channels, max_samples=int(min(max_seconds, 1e9) * rate))
    seconds = look.n_samples / rate
    if look.n_samples == 0:
        raise AudioError(f"{source.name} holds no samples; record again, or leave it out")
    if seconds < SHORTEST_SECONDS:
        raise AudioError(f"{source.name} lasts {seconds:.3f} s, at least {SHORTEST_SECONDS} s are needed")
    check_scale(source.name, look.n_beyond, look.n_samples * source.n_channels)
    if look.swing.max() < _SILENCE:
        not_sound = f" and {look.n_replaced} samples that are no numbers" if look.n_replaced else ""
        where = f" in its first {seconds / 60:.0f} minutes, and more is not read" if look.was_cut else ""
        raise AudioError(f"{source.name} holds only digital silence{not_sound}{where}; "
                         "check that the microphone is connected, allowed and not muted")

    weights = _channel_weights(look.covariance)
    mean = look.mean.astype(np.float32)
    mono = (replace_damage(block)[0] - mean for block in _at_most(source.blocks(), look.n_samples))
    samples = np.zeros(resampled_length(look.n_samples, rate, STFT.sample_rate), dtype=np.float32)
    filled = 0
    for part in resample_blocks((block @ weights for block in mono), rate, STFT.sample_rate):
        samples[filled:filled + len(part)] = part
        filled += len(part)
    peak = max(samples.max(), -samples.min())
    if peak > 1:
        samples /= peak
    used = weights > 0
    clipped = float(look.n_clipped[used].sum() / (look.n_samples * used.sum()))
    return Recording(samples, source.name, (*source.notes, *_notes(look, weights, peak, seconds, clipped)), clipped)


def _look(blocks: Iterable[np.ndarray], n_channels: int, max_samples: int) -> _Look:
    n_samples = n_replaced = n_beyond = 0
    was_cut = False
    total, products = np.zeros(n_channels), np.zeros((n_channels, n_channels))
    # Row 0 is the upper side of the sound, row 1 the lower: int16 clips at 32767 and at -32768.
    peaks, n_clipped = np.full((2, n_channels), -np.inf), np.zeros((2, n_channels))
    for whole_block in blocks:
        if n_samples + len(whole_block) > max_samples:
            was_cut = True
            whole_block = whole_block[:max_samples - n_samples]
        if len(whole_block) == 0:
            break
        # [channels, T] here: numpy sums along a long last axis ten times as fast as along a long first one
        whole = np.ascontiguousarray(whole_block.T)
        block, n = replace_damage(whole)
        n_beyond += count_beyond(whole) if n else 0
        n_samples, n_replaced = n_samples + len(whole_block), n_replaced + n
        wide = block.astype(np.float64)
        total += wide.sum(axis=1)
        products += wide @ wide.T
        higher = np.stack([block.max(axis=1), -block.min(axis=1)])
        n_clipped[higher > peaks] = 0  # what sat at an earlier, lower peak was not clipped
        peaks = np.maximum(peaks, higher)
        n_clipped += [[_n_in_runs(x == top) for x, top in zip(block, peaks[0], strict=True)],
                      [_n_in_runs(x == -top) for x, top in zip(block, peaks[1], strict=True)]]
    mean = total / max(n_samples, 1)
    return _Look(n_samples, was_cut, n_replaced, n_beyond, mean, products / max(n_samples, 1) - np.outer(mean, mean),
                 swing=peaks.sum(axis=0), n_clipped=n_clipped.sum(axis=0))


def _at_most(blocks: Iterable[np.ndarray], n_samples: int) -> Iterator[np.ndarray]:
    for block in blocks:
        yield block[:n_samples]
        n_samples -= len(block)
        if n_samples <= 0:
            return


def _n_in_runs(at_peak: np.ndarray) -> int:
    """Samples [T] that are at the peak three or more in a row."""
    run = at_peak[:-2] & at_peak[1:-1] & at_peak[2:]
    in_run = np.zeros_like(at_peak)
    for shift in range(3):
        in_run[shift:len(at_peak) - 2 + shift] |= run
    return int(np.count_nonzero(in_run))


def _channel_weights(covariance: np.ndarray) -> np.ndarray:
    """What each channel counts in the mono sum [channels]: the average of the loudest and those that follow it.

    A channel in opposite phase, one with another sound, and a dead one correlate with the loudest at less than 0.5
    and are left out.
    """
    power = covariance.diagonal()
    loudest = int(power.argmax())
    norm = np.sqrt(np.maximum(power * power[loudest], 0))
    used = covariance[loudest] > _CORRELATED * norm
    used[loudest] = True
    return np.asarray(used / used.sum(), dtype=np.float32)


def _notes(look: _Look, weights: np.ndarray, peak: float, seconds: float, clipped: float) -> Iterator[str]:
    used = weights > 0
    if look.was_cut:
        yield f"only the first {seconds:.1f} s were read: more is not taken"
    if look.n_replaced:
        yield f"{look.n_replaced} samples were NaN, infinite or impossibly large: replaced by 0"
    if not used.all():
        kept = " and ".join(str(channel + 1) for channel in np.flatnonzero(used))
        yield f"used channel {kept} of {len(used)}: the rest is silent, in opposite phase or another sound"
    if abs(look.mean @ weights) > _AUDIBLE_OFFSET * max(1.0, peak):
        yield f"a constant offset of {look.mean @ weights:.3f} was removed"
    if peak > 2:
        yield f"samples reached {peak:.0f} where 1.0 is full scale: scaled down"
    if clipped > _CLIPPED_SHARE:
        yield f"clipped: {clipped:.1%} of the samples sit at the peak; turn the input level down next time"
