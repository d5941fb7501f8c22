"""The microphone through an enhancer to the loudspeaker, as it happens.

    microphone --callback--> blocks --worker: the stream--> queue --callback--> loudspeaker

The callbacks only copy: whatever takes time is done by the worker, or by the thread that called.
"""

import contextlib
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .arguments import as_number, as_path, check_function
from .devices import find_device
from .live_counting import NO_SIGNAL, DriftControl, Level, OutputQueue, SampleClock
from .live_files import TwoFiles
from .open_devices import OpenDevices

log = logging.getLogger(__name__)

TICK_SECONDS = 0.05     # of the thread that called: status, recording, watchdog


@dataclass(frozen=True)
class LiveStatus:
    """How live enhancement is going; counters since its start."""

    seconds: float
    input_dbfs: float
    """Level at the microphone over about the last third of a second."""
    output_dbfs: float
    reduction_db: float
    """Input level less output level."""
    latency_ms: float
    """From microphone to loudspeaker: devices as they report themselves, waiting sound and the stream's delay."""
    queue_ms: float
    """Enhanced sound that waits for the loudspeaker."""
    cpu_percent: float
    """Of one core, spent on enhancing."""
    gaps: int
    """Times that there was nothing to play."""
    gap_samples: int
    """Silence that was played instead."""
    dropped_samples: int
    """Sound left out because too much of it was waiting."""
    adjusted_samples: int
    """Single samples left out or put in between two others, so that two devices' clocks may differ."""
    missing_input_samples: int
    """Sound that the microphone should have sent by now, going by the wall clock."""
    missing_output_samples: int
    """Sound that the loudspeaker should have asked for."""
    device_gaps: int
    """Times that the loudspeaker was served so late that its own buffer may have run empty."""
    late_steps: int
    """Blocks that took longer to enhance than to speak."""
    reopened: int
    """Times that a device was gone and came back."""
    bypassed: bool
    all_zero_input: bool

    @property
    def note(self) -> str:
        """What the user should know, or nothing."""
        return NO_SIGNAL if self.all_zero_input else ""


class Control:
    """A hand on a running `listen` or `record`. Any thread may call its methods and set its attributes.

    Args:
        strength, max_reduction_db: of an `EnhancementStream`.
    """

    def __init__(self, strength: float = 1.0, max_reduction_db: float = math.inf) -> None:
        self.strength, self.max_reduction_db = strength, max_reduction_db
        self.bypass = False
        """Let the microphone through untouched, for a before/after comparison."""
        self._stopped = threading.Event()

    def toggle_bypass(self) -> None:
        self.bypass = not self.bypass

    def stop(self) -> None:
        self._stopped.set()

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait until `stop` is called, at most so long; True if it was."""
        return self._stopped.wait(seconds)


class Stream(Protocol):
    """What `listen` needs of an `EnhancementStream`."""

    bypass: bool
    strength: float
    max_reduction_db: float
    delay_samples: int

    def reset(self) -> None: ...
    def process(self, chunk: np.ndarray) -> np.ndarray: ...
    def flush(self) -> np.ndarray: ...


class StreamMaker(Protocol):
    """What `listen` needs of an `Enhancer`."""

    def stream(self, sample_rate: int, channels: int = 1) -> Any: ...


def listen(
    enhancer: StreamMaker,
    *,
    input_device: str | int | None = None,
    output_device: str | int | None = None,
    sample_rate: int | None = None,
    block_ms: float = 10,
    latency_ms: float = 60,
    seconds: float | None = None,
    record: str | os.PathLike[str] | None = None,
    on_status: Callable[[LiveStatus], object] | None = None,
    control: Control | None = None,
) -> LiveStatus:
    """Play what the microphone hears, enhanced, until `seconds` are over, `control.stop()` or Ctrl-C.

    The callbacks are Python, and any thread of the process may hold them up for a moment. On a Linux machine that is
    busy with other work, `chrt --rr 5` before the program's name keeps the sound whole.

    Args:
        enhancer: an `Enhancer`.
        input_device, output_device: see `find_device`.
        sample_rate: of both devices, by default the first of 48,000, 44,100 and 16,000 Hz that both can do.
        block_ms: sound that a device hands over at a time, 1 to 100.
        latency_ms: sound kept waiting, once in the loudspeaker's own buffer, in case its callback is late, and once
            before it, in case enhancement is late. More of it survives a busier machine. `latency_ms` in the status is
            what all parts add up to. From two blocks to 2000.
        record: a folder for `microphone.wav` and `enhanced.wav`, aligned with each other sample for sample.
        on_status: called about 20 times a second from the calling thread. Should be back within a few milliseconds.
        control: how much to enhance, and for another thread to change that, to stop this or to switch between before
            and after.

    Returns:
        The last status.

    Raises:
        DeviceError: a device is missing, refuses to open, or is gone and did not come back within 5 seconds.
        SettingsError: an argument outside its range, or a folder that cannot be written.
        MissingDependencyError: sounddevice or PortAudio is not installed.
    """
    if seconds is not None:
        as_number(seconds, "seconds", 0)
    check_function(on_status, "on_status")
    as_number(block_ms, "block_ms", 1, 100)
    as_number(latency_ms, "latency_ms", 2 * block_ms, 2000)
    control = control or Control()
    devices = OpenDevices(find_device(input_device, "input"), find_device(output_device, "output"), sample_rate,
                          block_ms, latency_ms)
    rate = devices.sample_rate
    with contextlib.ExitStack() as cleanup:
        stream = cleanup.enter_context(enhancer.stream(sample_rate=rate, channels=1))
        stream.process(np.zeros(rate // 10, np.float32))        # the first step of a model is a slow one
        stream.strength, stream.max_reduction_db = control.strength, control.max_reduction_db
        stream.reset()
        files = TwoFiles(as_path(record, "record"), rate, stream.delay_samples) if record is not None else None
        if files is not None:
            cleanup.callback(files.close)
        session = Session(stream, rate, round(latency_ms * rate / 1000), control, files)
        cleanup.callback(session.stop)
        cleanup.callback(devices.close)
        devices.open(session.on_open, session.on_input, session.on_output)
        try:
            while not control.wait(TICK_SECONDS) and (seconds is None or session.seconds < seconds):
                session.check()
                if devices.gone():
                    devices.reopen(control.wait)
                    session.reopened += not control.wait(0)
                if files is not None:
                    files.write()
                if on_status is not None:
                    on_status(session.status())
        except KeyboardInterrupt:       # the way in which a person ends it
            log.debug("stopped by the keyboard")
        status = session.status()
        devices.close()
        session.stop()
        session.check()
        if files is not None:
            files.write()
            files.write_enhanced(stream.flush())
    return status


class Session:
    """One `listen`: two callbacks, one worker, and the counters between them."""

    def __init__(self, stream: Stream, sample_rate: int, target: int, control: Control,
                 files: TwoFiles | None = None) -> None:
        self._stream, self._rate, self._control, self._files = stream, sample_rate, control, files
        self._limit = 2 * target + sample_rate // 20
        self._blocks: queue.SimpleQueue[np.ndarray | None] = queue.SimpleQueue()
        self._queue = OutputQueue(target, self._limit)
        self._drift = DriftControl(target)
        self._n_received = self._n_processed = self._n_dropped = 0
        self._input_clock, self._output_clock = SampleClock(sample_rate), SampleClock(sample_rate)
        self._input_level, self._output_level = Level(sample_rate), Level(sample_rate)
        self._heard: tuple[int, float] | None = None    # a sample's index, and when the microphone heard it
        self._latency: float | None = None
        self._late_steps = self._device_gaps = self.reopened = 0
        self._was_late = False
        self._output_buffer = target / sample_rate       # seconds that the loudspeaker can do without us
        self._worker_seconds = 0.0
        self._error: Exception | None = None
        self._started = time.monotonic()
        self._worker = threading.Thread(target=self._work, name="pse-live", daemon=True)
        self._worker.start()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def stop(self) -> None:
        self._blocks.put(None)
        self._worker.join(timeout=2)

    def check(self) -> None:
        """Raise what the worker died of."""
        if self._error is not None:
            raise self._error

    def on_open(self) -> None:
        """No callback is running; the next ones belong to freshly opened devices."""
        self._input_clock.restart()
        self._output_clock.restart()
        self._heard = self._latency = None

    def on_input(self, block: np.ndarray, age: float) -> None:
        """The microphone's callback: the first sample of `block` [T] is `age` seconds old."""
        now = time.monotonic()
        self._input_clock.add(len(block), now)
        if self._n_received - self._n_processed > self._limit:      # the worker does not keep up
            self._n_dropped += len(block)
            return
        self._heard = self._n_received, now - age
        self._n_received += len(block)
        self._blocks.put(block)

    def on_output(self, block: np.ndarray, ahead: float, too_late: bool) -> None:
        """The loudspeaker's callback: `block` [T] to fill; its first sample will sound in `ahead` seconds.

        Args:
            too_late: the device says that it ran empty. Many never say so.
        """
        now = time.monotonic()
        self._output_clock.add(len(block), now)
        late = self._output_clock.late_seconds > self._output_buffer and ahead < self._output_buffer / 4
        if self._queue.position:        # nobody misses what comes before the first sound
            self._device_gaps += too_late or (late and not self._was_late)
        self._was_late = late or too_late
        before = self._queue.position
        self._queue.fill(block)
        if self._heard is not None and self._queue.position - before >= len(block):
            first = self._queue.position - len(block) - self._drift.balance - self._stream.delay_samples
            index, heard_at = self._heard
            latency = now + ahead - (heard_at + (first - index) / self._rate)
            self._latency = latency if self._latency is None else self._latency + 0.02 * (latency - self._latency)

    def step(self, block: np.ndarray) -> None:
        """Enhance one block of the microphone."""
        began = time.monotonic()
        self._stream.bypass = self._control.bypass
        self._stream.strength = self._control.strength
        self._stream.max_reduction_db = self._control.max_reduction_db
        enhanced = self._stream.process(block)
        self._n_processed += len(block)
        self._queue.append(self._drift.adjust(enhanced, len(self._queue)))
        self._input_level.add(block)
        self._output_level.add(enhanced)
        if self._files is not None:
            self._files.add(block, enhanced)
        self._late_steps += time.monotonic() - began > len(block) / self._rate

    def status(self) -> LiveStatus:
        seconds = self.seconds
        return LiveStatus(
            seconds=seconds,
            input_dbfs=self._input_level.dbfs,
            output_dbfs=self._output_level.dbfs,
            reduction_db=self._input_level.dbfs - self._output_level.dbfs,
            latency_ms=1000 * (self._latency or 0.0),
            queue_ms=1000 * len(self._queue) / self._rate,
            cpu_percent=100 * self._worker_seconds / max(seconds, 1e-3),
            gaps=self._queue.gaps,
            gap_samples=self._queue.gap_samples,
            dropped_samples=self._n_dropped + self._queue.dropped_samples,
            adjusted_samples=self._drift.adjusted_samples,
            missing_input_samples=self._input_clock.missing_samples,
            missing_output_samples=self._output_clock.missing_samples,
            device_gaps=self._device_gaps,
            late_steps=self._late_steps,
            reopened=self.reopened,
            bypassed=self._control.bypass,
            all_zero_input=self._input_level.all_zero)

    def _work(self) -> None:
        try:
            while (block := self._blocks.get()) is not None:
                self.step(block)
                self._worker_seconds = time.thread_time()
        except Exception as error:          # noqa: BLE001  raised again in the caller's thread, by `check`
            self._error = error
