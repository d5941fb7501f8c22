"""Samples in memory: one dtype, one range of sample rates, no NaN, and a way from one rate to another.

Source of the resampler: soxr, quality HQ (flat to 91 % of the lower rate's half, aliases below -100 dB).
"""

import math
import numbers
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from .arguments import a_type
from .errors import AudioError, SettingsError

LOWEST_SAMPLE_RATE = 4_000
HIGHEST_SAMPLE_RATE = 384_000
MAX_CHANNELS = 64
LARGEST_SAMPLE = 10.0
"""20 dB over full scale, which floats may reach; beyond is damage. It would deafen the network for seconds, and make
all else inaudible in a recording that is scaled to its peak."""

SILENCE_DBFS = -120.0
"""What `dbfs` says of digital silence, and of anything quieter than this."""

# Full scale of every dtype we take, by kind and bytes, so that a big-endian int16 is an int16 too.
_FULL_SCALE = {"f2": 1, "f4": 1, "f8": 1, "i2": 2**15, "i4": 2**31, "u1": 2**7}
_JUST_BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))


def as_float32(samples: Any) -> np.ndarray:
    """Samples of any common dtype as float32, where 1.0 is full scale.

    Args:
        samples: array, or anything that numpy makes an array of, with dtype float16, float32, float64,
            int16, int32 or uint8. Integers are scaled to [-1, 1) (uint8 has its zero at 128); floats keep
            their values, NaN and Inf included (see `replace_damage`).

    Shape: [T] or [T, channels] with 1 to 64 channels, T may be 0. The result has the same shape and is
    C-contiguous. It is the input itself when nothing had to be done, else a copy; the input is never changed.

    Raises:
        AudioError: another shape or dtype.

    >>> as_float32(np.array([-32768, 16384], dtype=np.int16))
    array([-1. ,  0.5], dtype=float32)
    """
    if isinstance(samples, np.ndarray) and samples.dtype == np.float32 and samples.flags.c_contiguous:
        _check_shape(samples)
        return samples
    try:
        array = np.asarray(samples)
    except (TypeError, ValueError, RuntimeError) as error:
        raise AudioError(f"expected samples [T] or [T, channels], got {_describe(samples)} that numpy cannot "
                         "turn into one array; give all channels the same length") from error
    scale = _FULL_SCALE.get(array.dtype.str[1:])
    if scale is None:
        raise AudioError(f"expected samples as float16, float32, float64, int16, int32 or uint8, got {array.dtype} "
                         f"({_describe(samples)}); convert them first, e.g. samples.astype('float32') / full_scale")
    _check_shape(array)
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes Inf, and is counted as such later
            return np.asarray(array, dtype=np.float32, order="C")
    zero = 128 if array.dtype.kind == "u" else 0
    scaled = (array.astype(np.float32, order="C") - zero) / scale
    # float32 has 24 bits, so the largest int32 would round up to 1.0.
    return np.asarray(np.minimum(scaled, _JUST_BELOW_ONE))


def check_sample_rate(rate: object) -> int:
    """The sample rate in Hz as an int.

    Raises:
        SettingsError: not a whole number from 4000 to 384000.

    >>> check_sample_rate(44100.0)
    44100
    """
    if isinstance(rate, numbers.Real) and not isinstance(rate, bool):
        hz = float(rate)
        if math.isfinite(hz) and hz == int(hz) and LOWEST_SAMPLE_RATE <= hz <= HIGHEST_SAMPLE_RATE:
            return int(hz)
    raise SettingsError(f"expected a sample rate from {LOWEST_SAMPLE_RATE} to {HIGHEST_SAMPLE_RATE} Hz, got {rate!r}; "
                        "common rates are 8000, 16000, 44100 and 48000")


def replace_damage(samples: np.ndarray) -> tuple[np.ndarray, int]:
    """Samples with 0 for every NaN, Inf and what lies beyond `LARGEST_SAMPLE`, and how many there were.

    Shape: any, kept. The same object comes back when there were none, else a copy.

    >>> replace_damage(np.array([0.5, np.nan, -1e3], dtype=np.float32))
    (array([0.5, 0. , 0. ], dtype=float32), 2)
    """
    if np.vdot(samples, samples) <= LARGEST_SAMPLE**2:      # all of it together, so each: not of NaN
        return samples, 0
    sound = np.abs(samples) <= LARGEST_SAMPLE
    n_replaced = int(sound.size - np.count_nonzero(sound))
    if n_replaced == 0:
        return samples, 0
    return np.where(sound, samples, samples.dtype.type(0)), n_replaced


def count_beyond(samples: np.ndarray) -> int:
    """Finite samples beyond `LARGEST_SAMPLE`, for `check_scale`."""
    return int(np.count_nonzero((np.abs(samples) > LARGEST_SAMPLE) & np.isfinite(samples)))


def check_scale(name: str, n_beyond: int, n_samples: int) -> None:
    """Refuse what has so many samples beyond `LARGEST_SAMPLE` that they are no damage but of another scale.

    Raises:
        AudioError: more than a tenth is beyond.
    """
    if n_beyond > n_samples / 10:
        raise AudioError(f"{name}: {n_beyond / n_samples:.0%} of the samples are beyond {LARGEST_SAMPLE:g}, expected "
                         "floats in [-1, 1] or integers; divide 16-bit numbers kept as floats by 32768")


def resample(samples: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Samples at another rate. The same rate returns the input unchanged.

    Shape: [T] or [T, channels] to [resampled_length(T)] or [resampled_length(T), channels], float32.

    Raises:
        AudioError: samples of another shape or dtype than `as_float32` takes.
        SettingsError: a rate outside 4000 to 384000 Hz.

    >>> resample(np.zeros(441, dtype=np.float32), 44_100, 16_000).shape
    (160,)
    """
    from_rate, to_rate = check_sample_rate(from_rate), check_sample_rate(to_rate)
    samples = as_float32(samples)
    if from_rate == to_rate:
        return samples
    import soxr  # here: an application that streams never needs it
    return np.asarray(soxr.resample(samples, from_rate, to_rate, quality="HQ"))


def resample_blocks(blocks: Iterable[np.ndarray], from_rate: int, to_rate: int) -> Iterator[np.ndarray]:
    """One recording, given block by block, at another rate: joined, it is what `resample` gives for the whole.

    Only a few milliseconds are kept between blocks, so a recording of hours needs the memory of one block.

    Shape: every block is [T] or every block is [T, channels], float32; so is the output, whose blocks
    have other lengths, 0 included.
    """
    from_rate, to_rate = check_sample_rate(from_rate), check_sample_rate(to_rate)
    stream = rest = None
    for block in blocks:
        if from_rate == to_rate:
            yield block
            continue
        if stream is None:
            import soxr
            n_channels = 1 if block.ndim == 1 else block.shape[1]
            stream = soxr.ResampleStream(from_rate, to_rate, n_channels, dtype="float32", quality="HQ")
            rest = np.zeros_like(block[:0])
        yield stream.resample_chunk(block)
    if stream is not None:
        yield stream.resample_chunk(rest, last=True)


def resampled_length(n_samples: int, from_rate: int, to_rate: int) -> int:
    """Samples that `resample` makes of `n_samples`: n_samples * to_rate / from_rate, halves rounded up.

    >>> resampled_length(3, 32_000, 16_000)
    2
    """
    return (2 * n_samples * to_rate + from_rate) // (2 * from_rate)


def dbfs(samples: np.ndarray) -> float:
    """Level (RMS over all samples and channels) in dB relative to full scale 1.0, at least -120.

    No samples at all are as quiet as silence.

    >>> round(dbfs(np.full(100, 0.1, dtype=np.float32)), 6)
    -20.0
    """
    flat = as_float32(samples).ravel()
    if flat.size == 0:
        return SILENCE_DBFS
    # einsum adds up in float64 without making a float64 copy of a recording of hours
    mean_square = float(np.einsum("i,i->", flat, flat, dtype=np.float64)) / flat.size
    return max(10 * math.log10(mean_square), SILENCE_DBFS) if mean_square > 0 else SILENCE_DBFS


def _check_shape(array: np.ndarray) -> None:
    if array.ndim not in (1, 2):
        raise AudioError(f"expected samples [T] or [T, channels], got shape {array.shape}; "
                         "give one recording at a time")
    if array.ndim == 2 and array.shape[1] == 0:
        raise AudioError(f"expected at least one channel in [T, channels], got shape {array.shape}")
    if array.ndim == 2 and array.shape[1] > MAX_CHANNELS:
        raise AudioError(f"expected [T, channels] with at most {MAX_CHANNELS} channels, got shape {array.shape}; "
                         "if it is [channels, T], transpose it: samples.T")


def _describe(samples: object) -> str:
    """Type of what the caller gave, with its shape where it has one."""
    shape = getattr(samples, "shape", None)
    return a_type(samples) + (f" of shape {tuple(shape)}" if isinstance(shape, tuple) else "")
