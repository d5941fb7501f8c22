"""What users give, made fit to work with: files, folders and samples become mono recordings at 16 kHz.

Two ways in. `read_recordings` keeps whole recordings in memory, mended, as the noisy speech to learn from;
`AudioReader` walks through one file of any length in constant memory, as it is.

A file is judged by its content, never by its suffix or by the lengths in its header: libsndfile (soundfile) tries
it first, FFmpeg (PyAV, for what phones record) second, and only samples that were really decoded count.
"""

import hashlib
import logging
import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import soundfile

from .audio import (
    HIGHEST_SAMPLE_RATE,
    LOWEST_SAMPLE_RATE,
    MAX_CHANNELS,
    as_float32,
    check_sample_rate,
    replace_non_finite,
    resample_blocks,
    resampled_length,
)
from .config import STFT
from .errors import AudioError, MissingDependencyError, SettingsError

logger = logging.getLogger(__name__)

SHORTEST_SECONDS = 0.2

_BLOCK_SECONDS = 10.0
_NUMBERS_PER_BLOCK = 2**21  # 8 MiB as float32, whatever rate and channels a damaged header claims
_PIECE = 4096  # samples per call of libsndfile: an error loses no more than this

_SOUNDFILE_SUFFIXES = {".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf"}
_PHONE_SUFFIXES = {".m4a", ".mp4", ".webm", ".amr", ".awb", ".3gp", ".3g2", ".aac", ".mkv", ".mka", ".mov", ".wma"}

# FFmpeg would follow a playlist to other files and to the network: only formats that hold sound themselves.
_FFMPEG_OPTIONS = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,amr,amrnb,amrwb,aac,mp3,ogg,flac,wav,w64,aiff,caf,asf",
    "protocol_whitelist": "file",
}

_MAX_FFMPEG_CHANNELS = 7  # from 8 on, PyAV (14 to 18) reads beyond the list of planes and may crash

_UNKNOWN_BYTES = 0x7FFF_0000  # writers that cannot go back leave a size like 0x7FFFFFFF or 0xFFFFFFFF in the header
_UNKNOWN_SAMPLES = 2**40
_TOLERATED_SECONDS = 0.1  # encoders pad, so a header may promise a little more than there is

_LARGEST_SAMPLE = 1e5  # int16 numbers kept as floats reach 32768; beyond this it is damage, not sound
_SILENCE = 1e-4  # a swing of 3 steps of 16 bits, -80 dBFS: no microphone in a room is that quiet
_CORRELATED = 0.5
_CLIPPED_SHARE = 0.001
_AUDIBLE_OFFSET = 0.01

Source = str | os.PathLike[str] | tuple[Any, float]
"""A file, a folder, or `(samples, sample_rate)`."""


@dataclass(frozen=True, eq=False)
class Recording:
    """One noisy recording of the user, ready to work with."""

    samples: np.ndarray  # [T] mono float32 in [-1, 1] at STFT.sample_rate
    name: str  # for messages only
    notes: tuple[str, ...] = ()  # what was mended, in plain words

    @property
    def seconds(self) -> float:
        return len(self.samples) / STFT.sample_rate


def read_recordings(sources: Source | Iterable[Source], *, max_seconds: float = 4 * 3600.0,
                    on_bad: Literal["raise", "skip"] = "raise") -> list[Recording]:
    """Read what a user gives as mono float32 at 16 kHz. What can be mended is mended, and noted.

    Args:
        sources: one of, or several of: a file (WAV, FLAC, OGG, Opus, MP3, AIFF; with PyAV also M4A, MP4, WebM,
            AMR, 3GP, AAC, MKV, MOV), a folder (searched with its subfolders for such suffixes, sorted, hidden
            files left out), or `(samples, sample_rate)` with samples as `as_float32` takes them.
        max_seconds: reading stops when the recordings last this long together.
        on_bad: "raise" refuses everything when one recording is bad; "skip" leaves bad ones out, logs a warning
            for each, and lists them in the notes of the last recording.

    Mended: channels become their average where they agree with the loudest one, so that neither opposite phase
    nor a dead channel harms it; a constant offset (DC) is removed; NaN, Inf and impossible numbers become 0;
    what goes beyond full scale is scaled down to it; the same content given twice is used once. Noted, not
    mended: clipping, and a file that ends early.

    Memory is that of the result and one block. Every file is decoded twice, first to look, then to convert.

    Raises:
        AudioError: a file that is missing, empty, not audio, or damaged so that nothing can be read; a recording
            that is silent or shorter than 0.2 s; a folder without audio; nothing given or nothing left.
        MissingDependencyError: a phone's recording, and PyAV is not installed. Raised with "skip", too.
        SettingsError: `max_seconds`, `on_bad` or a sample rate that cannot be.

    >>> tone = np.sin(np.arange(48_000) / 20)
    >>> [recording] = read_recordings((tone, 48_000))
    >>> recording.seconds
    1.0
    """
    if on_bad not in ("raise", "skip"):
        raise SettingsError(f"expected on_bad='raise' or 'skip', got {on_bad!r}")
    if not max_seconds >= SHORTEST_SECONDS:
        raise SettingsError(f"expected max_seconds of at least {SHORTEST_SECONDS}, got {max_seconds!r}")

    recordings: dict[bytes, Recording] = {}  # by content
    remarks: list[str] = []

    def leave_out(error: AudioError) -> None:
        if on_bad == "raise":
            raise error
        logger.warning("left out: %s", error)
        remarks.append(f"left out: {error}")

    for open_input in _inputs(sources, leave_out):
        seconds_left = max_seconds - sum(recording.seconds for recording in recordings.values())
        if seconds_left < SHORTEST_SECONDS:
            remarks.append(f"further recordings were not read: max_seconds={max_seconds:g} is reached")
            break
        try:
            with closing(open_input()) as source:
                recording = _read(source, seconds_left)
        except AudioError as error:
            leave_out(error)
            continue
        content = hashlib.sha256(recording.samples.data).digest()
        if content in recordings:
            first = recordings[content]
            recordings[content] = replace(first, notes=(*first.notes, f"given again as {recording.name}: used once"))
        else:
            recordings[content] = recording

    if not recordings:
        shown = "; ".join(remarks[:3]) + (f"; and {len(remarks) - 3} more" if len(remarks) > 3 else "")
        raise AudioError("no recordings to use: " + (shown or "the list of sources is empty"))
    *others, last = recordings.values()
    return [*others, replace(last, notes=(*last.notes, *remarks))]


class AudioReader:
    """One audio file of any length, block by block at its own rate and channels, in constant memory.

    Samples come as the file holds them: float files may hold NaN or go beyond 1.0 (see `replace_non_finite`).

        with AudioReader("talk.flac") as reader:
            for block in reader.blocks(seconds=10):
                ...

    Attributes:
        name: the path, for messages.
        sample_rate, n_channels: as decoded, whatever the header says.
        notes: what was wrong with the file, in plain words ("ends early: ..."); complete after the last block.

    Raises:
        AudioError: missing, empty, not audio, nothing in it can be read, more than 64 channels (7 in a file that
            PyAV reads), or a sample rate outside 4000 to 384000 Hz.
        MissingDependencyError: a phone's recording, and PyAV is not installed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self.name = _printable(self._path)
        self.notes: tuple[str, ...] = ()
        self._passes: list[Generator[np.ndarray, None, None]] = []
        with closing(_open_decoder(self._path)) as decoder:
            self.sample_rate = decoder.sample_rate
            self.n_channels = decoder.n_channels

    def blocks(self, seconds: float = _BLOCK_SECONDS) -> Iterator[np.ndarray]:
        """The file from its start. Every call starts a new pass.

        Shape: each block is [T, n_channels] float32, T as long as asked; less in the last block, and where
        enormous rates or channel counts would need more than 8 MiB per block.
        """
        if not seconds > 0:
            raise SettingsError(f"expected blocks longer than 0 s, got {seconds!r}")
        longest = _NUMBERS_PER_BLOCK // self.n_channels
        a_pass = self._pass(max(1, round(min(seconds * self.sample_rate, longest))))
        self._passes.append(a_pass)
        return a_pass

    def close(self) -> None:
        """End every pass that is under way, which closes the file."""
        while self._passes:
            self._passes.pop().close()

    def __enter__(self) -> "AudioReader":  # noqa: PYI034  typing.Self needs Python 3.11
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def _pass(self, block_length: int) -> Generator[np.ndarray, None, None]:
        n_read = 0
        with closing(_open_decoder(self._path)) as decoder:
            for block in _regroup(decoder.pieces(), block_length):
                n_read += len(block)
                yield block
            self.notes = tuple(decoder.problems(n_read))


# From sources to inputs, each of which is one recording.


class _Samples:
    """Samples in memory, behind the face of an `AudioReader`."""

    notes: tuple[str, ...] = ()

    def __init__(self, name: str, samples: object, sample_rate: float) -> None:
        self.name = name
        self.sample_rate = check_sample_rate(sample_rate)
        try:
            array = as_float32(samples)
        except AudioError as error:
            raise AudioError(f"{name}: {error}") from error
        self._samples = array if array.ndim == 2 else array[:, np.newaxis]
        self.n_channels = self._samples.shape[1]

    def blocks(self) -> Iterator[np.ndarray]:
        length = max(1, _NUMBERS_PER_BLOCK // self.n_channels)
        return (self._samples[start:start + length] for start in range(0, len(self._samples), length))

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
        raise AudioError(f"expected {wanted}, or several of them, got a {type(sources).__name__}; "
                         "samples need their rate: (samples, 16000)")
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
        else:
            raise AudioError(f"recording {position}: expected {wanted}, got a {type(source).__name__}; "
                             "samples need their rate: (samples, 16000)")


def _is_pair(source: object) -> bool:
    return isinstance(source, tuple) and len(source) == 2 and isinstance(source[1], (int, float, np.number))


def audio_files(source: str | os.PathLike[str]) -> list[Path]:
    """The file itself, or the files with a known suffix below a folder, in the order of their paths."""
    if not os.fspath(source):
        raise AudioError("expected the path of a file or folder, got an empty one")
    root = Path(source)
    if not root.is_dir():
        return [root]

    def refuse(error: OSError) -> None:
        raise AudioError(f"{_printable(error.filename)}: this folder cannot be read: {error.strerror}") from error

    files = []
    for folder, subfolders, names in os.walk(root, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        files += [Path(folder, name) for name in names
                  if not name.startswith(".") and Path(name).suffix.lower() in _SOUNDFILE_SUFFIXES | _PHONE_SUFFIXES]
    if not files:
        raise AudioError(f"{_printable(root)}: this folder holds no audio files (such as .wav, .flac, .mp3, .m4a)")
    return sorted(files)


def _printable(path: str | os.PathLike[str]) -> str:
    """The path on one line, whatever its bytes are."""
    return "".join(character if character.isprintable() else "?" for character in str(path))


# From an input to a recording: look at all of it, decide, convert.


@dataclass(frozen=True)
class _Look:
    """What one pass over all samples tells. Arrays are per channel."""

    n_samples: int
    was_cut: bool
    n_replaced: int
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
    if look.swing.max() < _SILENCE:
        not_sound = f" and {look.n_replaced} samples that are no numbers" if look.n_replaced else ""
        raise AudioError(f"{source.name} holds only digital silence{not_sound}; "
                         "check that the microphone is connected, allowed and not muted")

    weights = _channel_weights(look.covariance)
    mono = (_mend(block)[0] - look.mean.astype(np.float32) for block in _at_most(source.blocks(), look.n_samples))
    samples = np.zeros(resampled_length(look.n_samples, rate, STFT.sample_rate), dtype=np.float32)
    filled = 0
    for part in resample_blocks((block @ weights for block in mono), rate, STFT.sample_rate):
        samples[filled:filled + len(part)] = part
        filled += len(part)
    peak = max(samples.max(), -samples.min())
    if peak > 1:
        samples /= peak
    return Recording(samples, source.name, (*source.notes, *_notes(look, weights, peak, seconds)))


def _look(blocks: Iterable[np.ndarray], n_channels: int, max_samples: int) -> _Look:
    n_samples = n_replaced = 0
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
        block, n = _mend(np.ascontiguousarray(whole_block.T))
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
    return _Look(n_samples, was_cut, n_replaced, mean, products / max(n_samples, 1) - np.outer(mean, mean),
                 swing=peaks.sum(axis=0), n_clipped=n_clipped.sum(axis=0))


def _at_most(blocks: Iterable[np.ndarray], n_samples: int) -> Iterator[np.ndarray]:
    for block in blocks:
        yield block[:n_samples]
        n_samples -= len(block)
        if n_samples <= 0:
            return


def _mend(block: np.ndarray) -> tuple[np.ndarray, int]:
    """The block with 0 for NaN, Inf and numbers that no microphone delivers, and how many there were."""
    return replace_non_finite(np.where(np.abs(block) > _LARGEST_SAMPLE, np.float32(np.nan), block))


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


def _notes(look: _Look, weights: np.ndarray, peak: float, seconds: float) -> Iterator[str]:
    used = weights > 0
    if look.was_cut:
        yield f"only the first {seconds:.1f} s were read: max_seconds is reached"
    if look.n_replaced:
        yield f"{look.n_replaced} samples were NaN, infinite or impossibly large: replaced by 0"
    if not used.all():
        kept = " and ".join(str(channel + 1) for channel in np.flatnonzero(used))
        yield f"used channel {kept} of {len(used)}: the rest is silent, in opposite phase or another sound"
    if abs(look.mean @ weights) > _AUDIBLE_OFFSET * max(1.0, peak):
        yield f"a constant offset of {look.mean @ weights:.3f} was removed"
    if peak > 2:
        yield f"samples reached {peak:.0f} where 1.0 is full scale: scaled down"
    clipped = look.n_clipped[used].sum() / (look.n_samples * used.sum())
    if clipped > _CLIPPED_SHARE:
        yield f"clipped: {clipped:.1%} of the samples sit at the peak; turn the input level down next time"


# Decoders: one pass over one file, by libsndfile or by FFmpeg. A decoder has `sample_rate`, `n_channels`, `pieces()`
# (arrays [T, n_channels] up to the end of the file, or to damage), `problems(n_read)` and `close()`. Once it is made,
# a first piece is decoded, so it is sure to be able to.


class _Unreadable(Exception):
    """A decoder gets no sound out of a file. The message is empty if it does not even know the format."""


class _ForwardOnly(soundfile.SoundFile):  # type: ignore[misc]
    """Reads on and on. An ordinary SoundFile seeks after every read, and so trusts the length in the header."""

    def seekable(self) -> bool:
        return False


# Damaged bytes make decoders raise more than their own errors. What a wrong call raises (TypeError, AttributeError) is
# not among them: a mistake of ours must not read as a damaged file.
_DAMAGE = (OSError, ValueError, RuntimeError, MemoryError)
_LIBSNDFILE_ERRORS = (soundfile.SoundFileError, *_DAMAGE)


class _SoundfileDecoder:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._error: Exception | None = None
        if path.suffix.lower() == ".raw":
            raise _Unreadable  # soundfile takes this suffix for samples without a header, whatever the file holds
        try:
            self._file = _ForwardOnly(str(path))
        except _LIBSNDFILE_ERRORS as error:
            raise _Unreadable from error
        try:
            self.sample_rate: int = self._file.samplerate
            self.n_channels: int = self._file.channels
            self._first = self._read()
            if len(self._first) == 0:
                raise _Unreadable("holds no samples; the recording may have stopped before it began")
        except _LIBSNDFILE_ERRORS as error:
            self.close()
            raise _Unreadable from error
        except _Unreadable:
            self.close()
            raise

    def pieces(self) -> Iterator[np.ndarray]:
        piece = self._first
        while len(piece):
            yield piece
            try:
                piece = self._read()
            except _LIBSNDFILE_ERRORS as error:
                self._error = error
                return

    def problems(self, n_read: int) -> Iterator[str]:
        n_promised = self._n_promised()
        if n_promised - n_read > _TOLERATED_SECONDS * self.sample_rate:
            yield _ends_early(n_read / self.sample_rate, n_promised / self.sample_rate)
        elif self._error is not None or (self._file.format == "OGG" and _lacks_last_ogg_page(self._path)):
            yield _ends_early(n_read / self.sample_rate)

    def close(self) -> None:
        self._file.close()

    def _read(self) -> np.ndarray:
        return np.asarray(self._file.read(_PIECE, dtype="float32", always_2d=True))

    def _n_promised(self) -> int:
        """Samples that the header speaks of, 0 if it does not know."""
        n_samples = int(self._file.frames)
        # libsndfile corrects a WAV or AIFF that is shorter than its header says, and tells so only in its log.
        correction = re.search(r"^ *(?:data|SSND) : (\d+) \(should be (\d+)\)", self._file.extra_info, re.MULTILINE)
        if correction:
            n_bytes, n_bytes_held = int(correction[1]), int(correction[2])
            return n_samples * n_bytes // n_bytes_held if n_bytes < _UNKNOWN_BYTES and n_bytes_held else 0
        return n_samples if n_samples < _UNKNOWN_SAMPLES else 0


class _FfmpegDecoder:
    def __init__(self, path: Path) -> None:
        av = _import_av()
        self._errors = (av.error.FFmpegError, *_DAMAGE)
        self._stopped = False
        self._n_damaged = 0
        # Up to PyAV 18, a title in an old code page would be an error; from 19 on it never is.
        tolerance = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
        try:
            self._container = av.open(f"file:{path}", options=_FFMPEG_OPTIONS, **tolerance)
        except self._errors as error:
            raise _Unreadable from error
        try:
            self._frames = self._decode()
            self._first = next(self._frames, None)
            if self._first is None:
                raise _Unreadable("holds no sound that can be decoded; it is empty or damaged")
            self.sample_rate: int = self._first.sample_rate
            self.n_channels: int = self._first.layout.nb_channels
            if self.n_channels > _MAX_FFMPEG_CHANNELS:
                raise _Unreadable(f"has {self.n_channels} channels, at most {_MAX_FFMPEG_CHANNELS} can be read from "
                                  "this kind of file; export it as WAV")
        except self._errors as error:
            self.close()
            raise _Unreadable from error
        except _Unreadable:
            self.close()
            raise

    def pieces(self) -> Iterator[np.ndarray]:
        frame = self._first
        while frame is not None:
            if (frame.sample_rate, frame.layout.nb_channels) != (self.sample_rate, self.n_channels):
                self._stopped = True
                return
            samples = frame.to_ndarray()  # planar: [channels, T], packed: [1, T * channels]
            yield as_float32(samples.T if frame.format.is_planar else samples.reshape(-1, self.n_channels))
            try:
                frame = next(self._frames, None)
            except self._errors:
                self._stopped = True
                return

    def problems(self, n_read: int) -> Iterator[str]:
        seconds, seconds_promised = n_read / self.sample_rate, self._seconds_promised()
        if seconds_promised - seconds > _TOLERATED_SECONDS:
            yield _ends_early(seconds, seconds_promised)
        elif self._stopped:
            yield _ends_early(seconds)
        elif self._n_damaged:
            yield f"damaged: {self._n_damaged} pieces could not be decoded and were left out"

    def close(self) -> None:
        self._container.close()

    def _decode(self) -> Iterator[Any]:
        if not self._container.streams.audio:
            raise _Unreadable("has no sound track")
        self._stream = self._container.streams.audio[0]
        if self._stream.codec_context is None:  # PyAV 14 would crash on decoding it
            raise _Unreadable("holds sound in a coding that this FFmpeg does not know; export it as WAV")
        for packet in self._container.demux(self._stream):
            try:
                frames = packet.decode()
            except self._errors:
                self._n_damaged += 1  # one bad packet is a few milliseconds; the next one may be good
                continue
            yield from frames

    def _seconds_promised(self) -> float:
        """Length by the header, 0 if it does not know. Other formats than these two only guess."""
        name = self._container.format.name
        if "mp4" in name and self._stream.duration is not None:
            return float(self._stream.duration * self._stream.time_base)
        if "matroska" in name and self._container.duration is not None and not self._container.streams.video:
            return float(self._container.duration) / 1e6
        return 0.0


def _open_decoder(path: Path) -> _SoundfileDecoder | _FfmpegDecoder:
    """The decoder that gets sound out of the file."""
    name = _printable(path)
    head = _first_bytes(path, name)
    reason: _Unreadable | None = None
    for decoder_type in (_SoundfileDecoder, _FfmpegDecoder):
        try:
            return _within_limits(decoder_type(path), name)
        except MissingDependencyError as error:
            if _is_phone_audio(head, path.suffix):
                raise MissingDependencyError(f"{name} is of a kind that needs PyAV: pip install 'pse_sdk[phone]', "
                                             "or convert it to WAV") from error
        except _Unreadable as error:
            # the first decoder that knows the format knows best what is wrong
            reason = reason if reason and str(reason) else error
    if reason and str(reason):
        raise AudioError(f"{name} {reason}") from reason
    raise AudioError(f"{name} is not audio that can be read (WAV, FLAC, OGG, Opus, MP3, AIFF, M4A, MP4, WebM, AMR, "
                     "3GP, AAC, MKV), or it is cut short or damaged; export it as WAV from the program that made it"
                     ) from reason


def _within_limits(decoder: _SoundfileDecoder | _FfmpegDecoder, name: str) -> _SoundfileDecoder | _FfmpegDecoder:
    rate, n_channels = decoder.sample_rate, decoder.n_channels
    if LOWEST_SAMPLE_RATE <= rate <= HIGHEST_SAMPLE_RATE and 1 <= n_channels <= MAX_CHANNELS:
        return decoder
    decoder.close()
    raise AudioError(f"{name} claims {rate} Hz and {n_channels} channels, expected {LOWEST_SAMPLE_RATE} to "
                     f"{HIGHEST_SAMPLE_RATE} Hz and 1 to {MAX_CHANNELS} channels; its header may be damaged")


def _first_bytes(path: Path, name: str) -> bytes:
    if not os.path.exists(path):
        raise AudioError(f"there is no file {name}; check the path")
    if not os.path.isfile(path):
        raise AudioError(f"{name} is not a file; give an audio file")
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise AudioError(f"{name} cannot be opened: {error.strerror}") from error
    if not head:
        raise AudioError(f"{name} is empty (0 bytes); record or copy it again")
    return head


def _is_phone_audio(head: bytes, suffix: str) -> bool:
    """Whether the first bytes (MP4 family, Matroska and WebM, AMR) or the suffix speak of what only FFmpeg reads."""
    return (head[4:8] == b"ftyp" or head.startswith((b"\x1aE\xdf\xa3", b"#!AMR"))
            or suffix.lower() in _PHONE_SUFFIXES)


def _import_av() -> Any:
    try:
        import av
        import av.error
    except ImportError as error:
        raise MissingDependencyError("PyAV is not installed: pip install 'pse_sdk[phone]'") from error
    return av


def _regroup(pieces: Iterable[np.ndarray], length: int) -> Iterator[np.ndarray]:
    """The same samples in blocks of `length`, the last one shorter."""
    held: list[np.ndarray] = []
    n_held = 0
    for piece in pieces:
        held.append(piece)
        n_held += len(piece)
        if n_held >= length:
            joined = np.concatenate(held)
            n_whole = n_held - n_held % length
            yield from (joined[start:start + length] for start in range(0, n_whole, length))
            held, n_held = [joined[n_whole:].copy()], n_held - n_whole
    if n_held:
        yield np.concatenate(held)


def _lacks_last_ogg_page(path: Path) -> bool:
    """Whether the Ogg file stops before the end of a page that is marked as the last one. Source: RFC 3533, 6."""
    longest_page = 65_307
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - longest_page))
        tail = file.read()
    page = tail[max(tail.rfind(b"OggS"), 0):]
    if len(page) < 27 or not page[5] & 4:
        return True
    segment_lengths = page[27:27 + page[26]]
    return len(page) < 27 + page[26] + sum(segment_lengths)


def _ends_early(seconds: float, seconds_promised: float | None = None) -> str:
    of_promised = "" if seconds_promised is None else f" of {seconds_promised:.1f} s in its header"
    return f"ends early: {seconds:.1f} s{of_promised} could be read"
