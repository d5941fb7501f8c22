"""One audio file of any length, as it is: block by block, in constant memory.

`AudioReader` walks through a file; `audio_files` finds those below a folder.
"""

import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from .arguments import as_path
from .config import PHONE_SUFFIXES, SOUNDFILE_SUFFIXES
from .errors import AudioError, SettingsError, printable

if TYPE_CHECKING:
    from .decoders import FfmpegDecoder, SoundfileDecoder

NUMBERS_PER_BLOCK = 2**21  # 8 MiB as float32, whatever rate and channels a damaged header claims
_BLOCK_SECONDS = 10.0


class AudioReader:
    """One audio file of any length, block by block at its own rate and channels, in constant memory.

    Samples come as the file holds them: float files may hold NaN or go beyond 1.0 (see `replace_damage`).

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
        SettingsError: `path` is no path.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = as_path(path, "path")
        self.name = printable(str(self._path))
        self.notes: tuple[str, ...] = ()
        self._passes: list[Generator[np.ndarray, None, None]] = []
        with closing(self._open()) as decoder:
            self.sample_rate = decoder.sample_rate
            self.n_channels = decoder.n_channels

    def blocks(self, seconds: float = _BLOCK_SECONDS) -> Iterator[np.ndarray]:
        """The file from its start. Every call starts a new pass.

        Shape: each block is [T, n_channels] float32, T as long as asked; less in the last block, and where
        enormous rates or channel counts would need more than 8 MiB per block.
        """
        if not seconds > 0:
            raise SettingsError(f"expected blocks longer than 0 s, got {seconds!r}")
        longest = NUMBERS_PER_BLOCK // self.n_channels
        a_pass = self._pass(max(1, round(min(seconds * self.sample_rate, longest))))
        self._passes.append(a_pass)
        return a_pass

    def close(self) -> None:
        """End every pass that is under way, which closes the file."""
        while self._passes:
            self._passes.pop().close()

    def __enter__(self) -> "AudioReader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def _open(self) -> "SoundfileDecoder | FfmpegDecoder":
        from .decoders import open_decoder  # and soundfile with it, which an application that streams never needs
        return open_decoder(self._path, self.name)

    def _pass(self, block_length: int) -> Generator[np.ndarray, None, None]:
        n_read = 0
        with closing(self._open()) as decoder:
            for block in _regroup(decoder.pieces(), block_length):
                n_read += len(block)
                yield block
            self.notes = tuple(decoder.problems(n_read))


ENHANCED_SUFFIX = ".enhanced.wav"


def audio_files(source: str | os.PathLike[str]) -> list[Path]:
    """The file itself, or the files with a known suffix below a folder, in the order of their paths.

    In a folder, hidden files and what `pse enhance` left there are passed over.
    """
    if not os.fspath(source):
        raise AudioError("expected the path of a file or folder, got an empty one")
    root = Path(source)
    if not root.is_dir():
        return [root]

    def refuse(error: OSError) -> None:
        raise AudioError(f"{error.filename}: this folder cannot be read: {error.strerror}") from error

    files = []
    for folder, subfolders, names in os.walk(root, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        files += [Path(folder, name) for name in names
                  if not name.startswith(".") and not name.endswith(ENHANCED_SUFFIX)
                  and Path(name).suffix.lower() in SOUNDFILE_SUFFIXES | PHONE_SUFFIXES]
    if not files:
        raise AudioError(f"{root}: this folder holds no audio files (such as .wav, .flac, .mp3, .m4a)")
    return sorted(files)


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
