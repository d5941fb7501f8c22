"""The microphone to a WAV file, until somebody ends it."""

import contextlib
import logging
import math
import os
import queue
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .arguments import as_number, as_path, check_function
from .devices import find_device
from .errors import DeviceError
from .live import TICK_SECONDS, Control
from .live_counting import NO_SIGNAL, Level, SampleClock
from .live_files import MAX_BLOCKS_FOR_DISK, WavFile, all_of
from .open_devices import OpenDevices

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecordStatus:
    """How a recording is going."""

    seconds: float
    input_dbfs: float
    dropped_samples: int
    """Sound that was lost because the disk was too slow, or that the wall clock says never came."""
    all_zero_input: bool

    @property
    def note(self) -> str:
        """What the user should know, or nothing."""
        return NO_SIGNAL if self.all_zero_input else ""


def record(
    path: str | os.PathLike[str],
    *,
    device: str | int | None = None,
    seconds: float | None = None,
    sample_rate: int | None = None,
    on_status: Callable[[RecordStatus], object] | None = None,
    control: Control | None = None,
) -> RecordStatus:
    """Record the microphone to a WAV file (mono, 24 bits) until `seconds` are over, `control.stop()` or Ctrl-C.

    The file appears under its name when the recording ends, however it ends; until then it grows under a hidden name in
    the same folder. What was recorded before a device failed is kept.

    Args:
        device: see `find_device`.
        sample_rate: by default the first of 48,000, 44,100 and 16,000 Hz that the device can do.
        on_status: called about 20 times a second from the calling thread.

    Raises:
        SettingsError: an argument outside its range, or the file cannot be written. This is found out before the
            microphone opens.
        DeviceError: the microphone is missing, refuses to open, or went away.
        MissingDependencyError: sounddevice or PortAudio is not installed.
    """
    target = as_path(path, "path")
    if seconds is not None:
        as_number(seconds, "seconds", 0)
    check_function(on_status, "on_status")
    control = control or Control()
    with contextlib.closing(WavFile(target)) as file:
        microphone = OpenDevices(find_device(device, "input"), None, sample_rate)
        file.open(microphone.sample_rate)
        session = _RecordSession(microphone.sample_rate)
        microphone.open(session.on_open, session.on_input)
        try:
            while not control.wait(TICK_SECONDS) and (seconds is None or session.seconds < seconds):
                session.write_to(file)
                if microphone.gone():
                    raise DeviceError(f"{microphone.names} went away; the {session.seconds:.1f} s until then are kept "
                                      f"in {target}")
                if on_status is not None:
                    on_status(session.status())
        except KeyboardInterrupt:       # the way in which a person ends it
            log.debug("stopped by the keyboard")
        finally:
            microphone.close()
            session.write_to(file, seconds)
    return session.status()


class _RecordSession:
    """One `record`: a callback, the blocks that wait for the disk, and the counters."""

    def __init__(self, sample_rate: int) -> None:
        self._rate = sample_rate
        self._blocks: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()
        self._n_received = self._n_written = self._n_dropped = 0
        self._clock, self._level = SampleClock(sample_rate), Level(sample_rate)

    @property
    def seconds(self) -> float:
        return self._n_received / self._rate

    def on_open(self) -> None:
        self._clock.restart()

    def on_input(self, block: np.ndarray, age: float) -> None:
        self._clock.add(len(block), time.monotonic())
        if self._blocks.qsize() >= MAX_BLOCKS_FOR_DISK:
            self._n_dropped += len(block)
            return
        self._n_received += len(block)
        self._blocks.put(block)

    def write_to(self, file: WavFile, seconds: float | None = None) -> None:
        """Write what came, but not more than `seconds` from the start."""
        limit = math.inf if seconds is None else round(seconds * self._rate)
        for block in all_of(self._blocks):
            self._level.add(block)
            block = block[:int(max(0, min(len(block), limit - self._n_written)))]
            file.write(block)
            self._n_written += len(block)

    def status(self) -> RecordStatus:
        return RecordStatus(seconds=self._n_written / self._rate, input_dbfs=self._level.dbfs,
                            dropped_samples=self._n_dropped + self._clock.missing_samples,
                            all_zero_input=self._level.all_zero)
