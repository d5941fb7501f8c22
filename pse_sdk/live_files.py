"""WAV files that grow while sound comes, written off its callbacks."""

import contextlib
import os
import queue
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import soundfile

from .errors import SettingsError

MAX_BLOCKS_FOR_DISK = 3000      # half a minute of usual blocks

T = TypeVar("T")


class WavFile:
    """A mono WAV file (24 bits) that grows under a hidden name and gets its own on closing, unless it is empty.

    Only its owner may read it: it holds a voice.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if path.suffix.lower() != ".wav":
            raise SettingsError(f"cannot record to {path}: the name has to end in .wav")
        if path.is_dir() or (path.exists() and not os.access(path, os.W_OK)):
            raise SettingsError(f"cannot record to {path}: it exists and is not a file that may be written")
        try:
            handle, self._part = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
            os.close(handle)
        except OSError as error:
            raise SettingsError(f"cannot record to {path}: {error.strerror}") from error
        self._file: soundfile.SoundFile | None = None
        self._n_samples = 0

    def open(self, sample_rate: int) -> None:
        self._file = soundfile.SoundFile(self._part, "w", sample_rate, 1, format="WAV", subtype="PCM_24")

    def write(self, samples: np.ndarray) -> None:
        assert self._file is not None
        if len(samples):
            try:
                self._file.write(samples)
            except soundfile.SoundFileError as error:
                raise SettingsError(f"cannot write more than {self._n_samples} samples of {self._path}: {error}"
                                    ) from error
            self._n_samples += len(samples)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if not self._n_samples:
            os.unlink(self._part)
            return
        try:
            os.replace(self._part, self._path)
        except OSError as error:
            raise SettingsError(f"cannot move the recording to {self._path} ({error.strerror}); it is in {self._part}"
                                ) from error


class TwoFiles:
    """`microphone.wav` and `enhanced.wav`, aligned. One thread adds, another writes."""

    def __init__(self, folder: Path, sample_rate: int, delay_samples: int) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"cannot record to the folder {folder}: {error.strerror}") from error
        self._blocks: queue.SimpleQueue[tuple[np.ndarray, np.ndarray]] = queue.SimpleQueue()
        self._folder, self._too_slow = folder, False
        self._n_early = delay_samples       # output from before the first sample of the microphone
        with contextlib.ExitStack() as unfinished:
            self._microphone = unfinished.enter_context(contextlib.closing(WavFile(folder / "microphone.wav")))
            self._enhanced = unfinished.enter_context(contextlib.closing(WavFile(folder / "enhanced.wav")))
            self._microphone.open(sample_rate)
            self._enhanced.open(sample_rate)
            self._files = unfinished.pop_all()

    def add(self, block: np.ndarray, enhanced: np.ndarray) -> None:
        if self._blocks.qsize() < MAX_BLOCKS_FOR_DISK:      # a disk that hangs must not fill the memory
            self._blocks.put((block, enhanced))
        else:
            self._too_slow = True

    def write(self) -> None:
        """Write what was added."""
        if self._too_slow:
            raise SettingsError(f"cannot write to {self._folder} as fast as sound comes; choose another disk")
        for block, enhanced in all_of(self._blocks):
            self._microphone.write(block)
            self.write_enhanced(enhanced)

    def write_enhanced(self, samples: np.ndarray) -> None:
        """Write `samples` [T] to `enhanced.wav` alone."""
        early = min(self._n_early, len(samples))
        self._n_early -= early
        self._enhanced.write(samples[early:])

    def close(self) -> None:
        self._files.close()


def all_of(waiting: "queue.SimpleQueue[T]") -> Iterator[T]:
    """What is waiting now, without waiting for more."""
    with contextlib.suppress(queue.Empty):
        while True:
            yield waiting.get_nowait()
