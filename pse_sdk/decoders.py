"""One pass over one audio file, by libsndfile (soundfile) or by FFmpeg (PyAV, for what phones record).

A file is judged by its content, never by its suffix or by the lengths in its header: libsndfile tries it first,
FFmpeg second, and only samples that were really decoded count.

A decoder has `sample_rate`, `n_channels`, `pieces()` (arrays [T, n_channels] up to the end of the file, or to damage),
`problems(n_read)` and `close()`. Once it is made, a first piece is decoded, so it is sure to be able to.

libsndfile's MP3 decoder writes to the terminal about damaged files and has no switch for it; `quiet.py` says why that
is left to programs.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from .audio import HIGHEST_SAMPLE_RATE, LOWEST_SAMPLE_RATE, MAX_CHANNELS, as_float32
from .config import PHONE_SUFFIXES
from .errors import AudioError, MissingDependencyError

_PIECE = 4096  # samples per call of libsndfile: an error loses no more than this

# FFmpeg would follow a playlist to other files and to the network: only formats that hold sound themselves.
_FFMPEG_OPTIONS = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,amr,amrnb,amrwb,aac,mp3,ogg,flac,wav,w64,aiff,caf,asf",
    "protocol_whitelist": "file",
}

_MAX_FFMPEG_CHANNELS = 7  # from 8 on, PyAV (14 to 18) reads beyond the list of planes and may crash

_UNKNOWN_BYTES = 0x7FFF_0000  # writers that cannot go back leave a size like 0x7FFFFFFF or 0xFFFFFFFF in the header
_UNKNOWN_SAMPLES = 2**40
_TOLERATED_SECONDS = 0.1  # encoders pad, so a header may promise a little more than there is


class _Unreadable(Exception):
    """A decoder gets no sound out of a file. The message is empty if it does not even know the format."""


@contextlib.contextmanager
def _unreadable_if(damage: tuple[type[Exception], ...], close: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Turn errors that mean damage into `_Unreadable`; whatever the error, `close` first."""
    try:
        yield
    except damage as error:
        close()
        raise _Unreadable from error
    except BaseException:
        close()
        raise


class _ForwardOnly(soundfile.SoundFile):  # type: ignore[misc]
    """Reads on and on. An ordinary SoundFile seeks after every read, and so trusts the length in the header."""

    def seekable(self) -> bool:
        return False


# Damaged bytes make decoders raise more than their own errors. What a wrong call raises (TypeError, AttributeError) is
# not among them: a mistake of ours must not read as a damaged file.
_DAMAGE = (OSError, ValueError, RuntimeError, MemoryError)
_LIBSNDFILE_ERRORS = (soundfile.SoundFileError, *_DAMAGE)


class SoundfileDecoder:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._error: Exception | None = None
        if path.suffix.lower() == ".raw":
            raise _Unreadable  # soundfile takes this suffix for samples without a header, whatever the file holds
        with _unreadable_if(_LIBSNDFILE_ERRORS):
            self._file = _ForwardOnly(str(path))
        with _unreadable_if(_LIBSNDFILE_ERRORS, self.close):
            self.sample_rate: int = self._file.samplerate
            self.n_channels: int = self._file.channels
            self._first = self._read()
            if len(self._first) == 0:
                raise _Unreadable("holds no samples; the recording may have stopped before it began")

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


class FfmpegDecoder:
    def __init__(self, path: Path) -> None:
        av = _import_av()
        self._errors = (av.error.FFmpegError, *_DAMAGE)
        self._stopped = False
        self._n_damaged = 0
        # Up to PyAV 18, a title in an old code page would be an error; from 19 on it never is.
        tolerance = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
        with _unreadable_if(self._errors):
            self._container = av.open(f"file:{path}", options=_FFMPEG_OPTIONS, **tolerance)
        with _unreadable_if(self._errors, self.close):
            self._frames = self._decode()
            self._first = next(self._frames, None)
            if self._first is None:
                raise _Unreadable("holds no sound that can be decoded; it is empty or damaged")
            self.sample_rate: int = self._first.sample_rate
            self.n_channels: int = self._first.layout.nb_channels
            if self.n_channels > _MAX_FFMPEG_CHANNELS:
                raise _Unreadable(f"has {self.n_channels} channels, at most {_MAX_FFMPEG_CHANNELS} can be read from "
                                  "this kind of file; export it as WAV")

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


def open_decoder(path: Path, name: str) -> SoundfileDecoder | FfmpegDecoder:
    """The decoder that gets sound out of the file, which messages call `name`.

    Raises:
        AudioError: missing, empty, not audio, or outside the limits of rate and channels.
        MissingDependencyError: a phone's recording, and PyAV is not installed.
    """
    head = _first_bytes(path, name)
    reason: _Unreadable | None = None
    for decoder_type in (SoundfileDecoder, FfmpegDecoder):
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


def _within_limits(decoder: SoundfileDecoder | FfmpegDecoder, name: str) -> SoundfileDecoder | FfmpegDecoder:
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
            or suffix.lower() in PHONE_SUFFIXES)


def _import_av() -> Any:
    try:
        import av
        import av.error
    except ImportError as error:
        raise MissingDependencyError("PyAV is not installed: pip install 'pse_sdk[phone]'") from error
    return av


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
