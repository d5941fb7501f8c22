"""The microphone through an enhancer to the loudspeaker as it happens, and the microphone to a file.

    microphone --callback--> blocks --worker: the stream--> queue --callback--> loudspeaker

Two separate device streams: one duplex stream through PulseAudio lost samples without a flag in every trial. The
callbacks only copy. The sound library's own flags stay silent when a callback is slow, so nothing rests on them:
samples are counted against the wall clock on both sides, and so is every sample of silence put in or sound left out.
"""

import atexit
import contextlib
import importlib
import logging
import math
import os
import queue
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import soundfile

from .errors import DeviceError, MissingDependencyError, SettingsError

log = logging.getLogger(__name__)

Kind = str      # "input" or "output"

TICK_SECONDS = 0.05             # of the thread that called: status, recording, watchdog
SILENT_DEVICE_SECONDS = 0.5     # without a callback, then the device counts as gone
STARTING_SECONDS = 3.0          # after opening, in which a device may take its time
GIVE_UP_SECONDS = 5.0           # of trying to reopen
NO_SIGNAL = "the microphone sends nothing but zeros: is it muted, or has this program no permission to use it?"
PREFERRED_RATES = (48_000, 44_100, 16_000)
FLOOR_DBFS = -120.0
MAX_BLOCKS_FOR_DISK = 3000      # half a minute of usual blocks


# ------------------------------------------------------------------------------------------------------ devices

@dataclass(frozen=True)
class DeviceInfo:
    """A sound device as the system lists it."""

    index: int
    name: str
    host_api: str
    n_inputs: int
    n_outputs: int
    default_sample_rate: float
    is_default_input: bool
    is_default_output: bool

    def channels(self, kind: Kind) -> int:
        return self.n_inputs if kind == "input" else self.n_outputs

    def is_default(self, kind: Kind) -> bool:
        return self.is_default_input if kind == "input" else self.is_default_output


def devices() -> list[DeviceInfo]:
    """All sound devices of this machine, as they were when the sound library was first used; it may be none.

    Raises:
        MissingDependencyError: sounddevice or the PortAudio library is not installed.
    """
    sd = _sounddevice()
    apis = sd.query_hostapis()
    default_input, default_output = sd.default.device
    return [DeviceInfo(index=index, name=device["name"], host_api=apis[device["hostapi"]]["name"],
                       n_inputs=device["max_input_channels"], n_outputs=device["max_output_channels"],
                       default_sample_rate=device["default_samplerate"],
                       is_default_input=index == default_input, is_default_output=index == default_output)
            for index, device in enumerate(sd.query_devices())]


def find_device(text: str | int | None, kind: Kind) -> DeviceInfo:
    """The one device that is meant.

    Args:
        text: its number, its name, or a part of its name (case does not matter); None for the system's default. Where
            several sound systems list the same device, the one of the default device's system is taken.
        kind: "input" or "output".

    Raises:
        DeviceError: none or several are meant; the message lists the candidates.
    """
    usable = [device for device in devices() if device.channels(kind) > 0]
    word = {"input": "microphone", "output": "loudspeaker"}[kind]
    if not usable:
        raise DeviceError(f"this machine has no {word}: the sound system lists {_listed(devices())}")
    standard = next((device for device in usable if device.is_default(kind)), None)
    if text is None:
        if standard is None:
            raise DeviceError(f"the sound system has no default {word}; choose one of {_listed(usable)}")
        return standard
    wanted = str(text).strip().casefold()
    numbered = [device for device in usable if wanted == str(device.index)]
    named = [device for device in usable if device.name.casefold() == wanted]
    found = numbered or named or [device for device in usable if wanted and wanted in device.name.casefold()]
    if len(found) > 1 and standard is not None:
        found = [device for device in found if device.host_api == standard.host_api] or found
    if not found:
        raise DeviceError(f"no {word} is called {text!r}; there is {_listed(usable)}")
    if len(found) > 1:
        raise DeviceError(f"{text!r} may be {_listed(found)}; give the number or more of the name")
    return found[0]


def _listed(candidates: list[DeviceInfo]) -> str:
    return ", ".join(f"{device.index}: {device.name} ({device.host_api})" for device in candidates) or "no device"


def _sounddevice() -> Any:
    try:
        with quiet_sound_library():
            return importlib.import_module("sounddevice")
    except ModuleNotFoundError as error:
        raise MissingDependencyError("live audio needs the package sounddevice: pip install 'pse_sdk[live]'") from error
    except OSError as error:
        raise MissingDependencyError("live audio needs the PortAudio library: apt install libportaudio2 (or your "
                                     "system's package of that library)") from error


@contextlib.contextmanager
def quiet_sound_library() -> Iterator[None]:
    """Keep what C libraries write to the terminal (ALSA and PortAudio do) off it; `sys.stderr` goes on working."""
    try:
        terminal = os.dup(2)
    except OSError:             # no stderr at all, as in a windowed program
        yield
        return
    python_stderr, moved = sys.stderr, None
    with contextlib.suppress(AttributeError, OSError, ValueError):
        python_stderr.flush()
        if python_stderr.fileno() == 2:
            moved = os.fdopen(os.dup(terminal), "w", buffering=1, encoding=python_stderr.encoding, errors="replace")
            sys.stderr = moved
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        if moved is not None:
            if sys.stderr is moved:
                sys.stderr = python_stderr
            moved.close()


# --------------------------------------------------------------------------------------------------- what is told

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


class Control:
    """A hand on a running `listen`. Every method may be called from any thread."""

    def __init__(self) -> None:
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
    delay_samples: int

    def reset(self) -> None: ...
    def process(self, chunk: np.ndarray) -> np.ndarray: ...
    def flush(self) -> np.ndarray: ...


class StreamMaker(Protocol):
    """What `listen` needs of an `Enhancer`."""

    def stream(self, sample_rate: int, channels: int = 1) -> Any: ...


# ------------------------------------------------------------------------------------------------------- programs

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
        block_ms: sound that a device hands over at a time.
        latency_ms: sound kept waiting, once in the loudspeaker's own buffer, in case its callback is late, and once
            before it, in case enhancement is late. More of it survives a busier machine. `latency_ms` in the status is
            what all parts add up to.
        record: a folder for `microphone.wav` and `enhanced.wav`, aligned with each other sample for sample.
        on_status: called about 20 times a second from the calling thread. Should be back within a few milliseconds.
        control: for another thread to stop this or to switch between before and after.

    Returns:
        The last status.

    Raises:
        DeviceError: a device is missing, refuses to open, or is gone and did not come back within 5 seconds.
        SettingsError: an argument outside its range, or a folder that cannot be written.
        MissingDependencyError: sounddevice or PortAudio is not installed.
    """
    if not 1 <= block_ms <= 100:
        raise SettingsError(f"block_ms={block_ms}; a block is 1 to 100 ms long")
    if not 2 * block_ms <= latency_ms <= 2000:
        raise SettingsError(f"latency_ms={latency_ms}; choose from two blocks ({2 * block_ms:g} ms) to 2000 ms")
    control = control or Control()
    devices_ = _Devices(find_device(input_device, "input"), find_device(output_device, "output"), sample_rate, block_ms,
                       latency_ms)
    rate = devices_.sample_rate
    with contextlib.ExitStack() as cleanup:
        stream = cleanup.enter_context(enhancer.stream(sample_rate=rate, channels=1))
        stream.process(np.zeros(rate // 10, np.float32))        # the first step of a model is a slow one
        stream.reset()
        files = _TwoFiles(Path(record), rate, stream.delay_samples) if record else None
        if files is not None:
            cleanup.callback(files.close)
        session = _Session(stream, rate, round(latency_ms * rate / 1000), control, files)
        cleanup.callback(session.stop)
        cleanup.callback(devices_.close)
        devices_.open(session.on_open, session.on_input, session.on_output)
        try:
            while not control.wait(TICK_SECONDS) and (seconds is None or session.seconds < seconds):
                session.check()
                if devices_.gone():
                    devices_.reopen(control)
                    session.reopened += 1
                if files is not None:
                    files.write()
                if on_status is not None:
                    on_status(session.status())
        except KeyboardInterrupt:       # the way in which a person ends it
            log.debug("stopped by the keyboard")
        status = session.status()
        devices_.close()
        session.stop()
        session.check()
        if files is not None:
            files.finish(stream)
    return status


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
        SettingsError: the file cannot be written. This is found out before the microphone opens.
        DeviceError: the microphone is missing, refuses to open, or went away.
        MissingDependencyError: sounddevice or PortAudio is not installed.
    """
    target = Path(path)
    control = control or Control()
    with contextlib.closing(_WavFile(target)) as file:
        microphone = _Devices(find_device(device, "input"), None, sample_rate)
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


# ---------------------------------------------------------------------------------------- counting, without a device

class SampleClock:
    """Finds samples that never came, by the wall clock.

    How far the samples lag behind the clock jitters from callback to callback, but its minimum over a second stands
    still within a fraction of a millisecond. When that minimum steps up, sound was lost; a clock that is off by some
    100 ppm moves it by far less than a step.
    """

    WINDOW_SECONDS = 1.0
    STEP_SECONDS = 0.008        # less than a block: what is lost is lost in blocks

    def __init__(self, sample_rate: int) -> None:
        self._rate = sample_rate
        self.missing_samples = 0
        self.restart()

    def restart(self) -> None:
        """The device was opened anew; the time it was gone is not counted."""
        self._origin: float | None = None
        self._n_samples = self._window = 0
        self.late_seconds = 0.0         # of the last samples, compared with the most punctual ones of the window before
        self._before = self._least = math.inf

    def add(self, n_samples: int, now: float) -> None:
        """`n_samples` changed hands at the time `now`, in seconds of any steady clock."""
        if self._origin is None:
            self._origin = now
        self._n_samples += n_samples
        elapsed = now - self._origin
        window = int(elapsed / self.WINDOW_SECONDS)
        if window > self._window:
            step = self._least - self._before
            # a device that starts finds its pace first; what was counted too early may still come
            if elapsed > STARTING_SECONDS + self.WINDOW_SECONDS and abs(step) > self.STEP_SECONDS:
                self.missing_samples = max(0, self.missing_samples + round(step * self._rate))
            self._before, self._least, self._window = self._least, math.inf, window
        lag = elapsed - self._n_samples / self._rate
        self._least = min(self._least, lag)
        self.late_seconds = max(0.0, lag - self._before) if elapsed > STARTING_SECONDS else 0.0


class OutputQueue:
    """Samples that wait for the loudspeaker. One thread appends, another fills blocks from it; neither ever waits.

    At the start, and again whenever it ran empty, the queue plays silence until `target` samples are waiting, so that
    one late block makes one gap and not many. If more than `limit` wait, it drops the oldest down to `target`.
    """

    def __init__(self, target: int, limit: int) -> None:
        self.target, self.limit = target, limit
        self.gaps = self.gap_samples = self.dropped_samples = 0
        self.position = 0           # index of the next sample to play, of all that were ever appended
        self._appended = 0
        self._pieces: deque[np.ndarray] = deque()
        self._offset = 0            # of the next sample in the first piece
        self._filling, self._started = True, False

    def __len__(self) -> int:
        return self._appended - self.position

    def append(self, samples: np.ndarray) -> None:
        if len(samples):
            self._pieces.append(samples)
            self._appended += len(samples)

    def fill(self, block: np.ndarray) -> None:
        """Put the next samples into `block` [T]; silence where there are none."""
        waiting = len(self)
        if waiting > self.limit:
            self.dropped_samples += self._take(waiting - self.target, None)
        if self._filling and len(self) >= self.target:
            self._filling, self._started = False, True
        n = 0 if self._filling else self._take(len(block), block)
        block[n:] = 0
        if n < len(block) and self._started:        # silence before the first sample is no gap
            self.gaps += not self._filling
            self.gap_samples += len(block) - n
            self._filling = True

    def _take(self, n_wanted: int, block: np.ndarray | None) -> int:
        """Move on by up to `n_wanted` samples, copying them to `block` if there is one; how many it were."""
        done = 0
        while done < n_wanted and self._pieces:
            piece = self._pieces[0][self._offset:self._offset + n_wanted - done]
            if block is not None:
                block[done:done + len(piece)] = piece
            done += len(piece)
            self._offset += len(piece)
            if self._offset == len(self._pieces[0]):
                self._pieces.popleft()
                self._offset = 0
        self.position += done
        return done


class DriftControl:
    """Keeps a queue near its target when the two devices' clocks differ, by at most one sample per block.

    It starts when the queue's mean is half the target off and ends when it is back: some 60 samples a second, while
    clocks that differ by 200 ppm need 10.
    """

    SMOOTHING = 0.01        # of the mean, per block

    def __init__(self, target: int) -> None:
        self._target = self._mean = float(target)
        self._correcting = 0
        self.adjusted_samples = 0
        self.balance = 0        # samples put in less samples left out

    def adjust(self, samples: np.ndarray, waiting: int) -> np.ndarray:
        """`samples` [T], or T - 1 or T + 1 of the same shape of sound; `waiting` samples are in the queue."""
        self._mean += (waiting - self._mean) * self.SMOOTHING
        excess = self._mean - self._target
        if abs(excess) > self._target / 2:
            self._correcting = -1 if excess > 0 else 1
        elif self._correcting * excess >= 0:
            self._correcting = 0
        if not self._correcting or len(samples) < 64:
            return samples
        self.adjusted_samples += 1
        self.balance += self._correcting
        n = len(samples)
        places = np.linspace(0, n - 1, n + self._correcting)
        adjusted: np.ndarray = np.interp(places, np.arange(n), samples).astype(np.float32)
        return adjusted


class Level:
    """Mean power of the last third of a second, and whether anything but zeros ever comes."""

    def __init__(self, sample_rate: int) -> None:
        self._rate = sample_rate
        self._power = 0.0
        self._zeros = 0

    def add(self, samples: np.ndarray) -> None:
        if not len(samples):
            return
        keep = math.exp(-len(samples) / (0.3 * self._rate))
        power = float(np.mean(np.square(samples), dtype=np.float64))
        self._power = keep * self._power + (1 - keep) * power
        self._zeros = 0 if power or np.any(samples) else self._zeros + len(samples)

    @property
    def dbfs(self) -> float:
        return max(FLOOR_DBFS, 10 * math.log10(self._power + 1e-30))

    @property
    def all_zero(self) -> bool:
        """Nothing but exact zeros for a second: a muted or forbidden microphone, for even a quiet room makes noise."""
        return self._zeros >= self._rate


# ------------------------------------------------------------------------------------------------ what runs a device

class _Session:
    """One `listen`: two callbacks, one worker, and the counters between them."""

    def __init__(self, stream: Stream, sample_rate: int, target: int, control: Control,
                 files: "_TwoFiles | None" = None) -> None:
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

    def write_to(self, file: "_WavFile", seconds: float | None = None) -> None:
        """Write what came, but not more than `seconds` from the start."""
        limit = math.inf if seconds is None else round(seconds * self._rate)
        for block in _all_of(self._blocks):
            self._level.add(block)
            block = block[:int(max(0, min(len(block), limit - self._n_written)))]
            file.write(block)
            self._n_written += len(block)

    def status(self) -> RecordStatus:
        return RecordStatus(seconds=self._n_written / self._rate, input_dbfs=self._level.dbfs,
                            dropped_samples=self._n_dropped + self._clock.missing_samples,
                            all_zero_input=self._level.all_zero)


InputCallback = Callable[[np.ndarray, float], None]
OutputCallback = Callable[[np.ndarray, float, bool], None]


class _Devices:
    """A microphone, and a loudspeaker if there is one, with the same sample rate, watched while they are open."""

    def __init__(self, microphone: DeviceInfo, speaker: DeviceInfo | None, sample_rate: int | None,
                 block_ms: float = 10, latency_ms: float = 0) -> None:
        self._wished_latency: dict[Kind, float | str] = {"input": "low", "output": latency_ms / 1000}
        self._microphone, self._speaker = microphone, speaker
        self.names = " or ".join(f"the {word} {device.name!r}" for word, device in
                                 (("microphone", microphone), ("loudspeaker", speaker)) if device is not None)
        self.sample_rate = self._common_rate(sample_rate)
        self._block = round(block_ms * self.sample_rate / 1000)
        self._streams: dict[Kind, Any] = {}
        self._announced: dict[Kind, float] = {}             # latencies in seconds
        self._opened = 0.0
        self._called = {"input": 0.0, "output": 0.0}        # when each callback came last
        self._given_up = False

    def open(self, on_open: Callable[[], None], on_input: InputCallback,
             on_output: OutputCallback | None = None) -> None:
        """Open and start. `on_open` is called first, now and when a device is opened anew; see `_Session`."""
        self._on_open, self._on_input, self._on_output = on_open, on_input, on_output
        on_open()
        self._opened = time.monotonic()
        self._called = dict.fromkeys(self._called, self._opened)
        try:
            if self._speaker is not None:       # first, so that it is ready when the microphone starts to deliver
                self._start(self._speaker, "output")
            self._start(self._microphone, "input")
        except DeviceError:
            self.close()
            raise

    def close(self) -> None:
        with quiet_sound_library():
            while self._streams:
                self._streams.popitem()[1].close()

    def gone(self) -> bool:
        """A device stopped, or its callback has not come for too long."""
        now = time.monotonic()
        patience = STARTING_SECONDS if now - self._opened < STARTING_SECONDS else SILENT_DEVICE_SECONDS
        return any(not stream.active or now - self._called[kind] > patience
                   for kind, stream in self._streams.items())

    def reopen(self, control: Control) -> None:
        """Close what is left and try, with growing pauses, to open the devices of the same names.

        Raises:
            DeviceError: they did not come back, or the sound system does not even answer.
        """
        log.info("%s went away; trying to reopen", self.names)
        outcome: queue.SimpleQueue[DeviceError | None] = queue.SimpleQueue()
        # in a thread of its own: a sound server that hangs must not hang us
        threading.Thread(target=self._reopen, args=(control, outcome), daemon=True, name="pse-reopen").start()
        try:
            error = outcome.get(timeout=GIVE_UP_SECONDS + 2)
        except queue.Empty:
            self._given_up = True
            self._streams.clear()
            atexit.unregister(_sounddevice()._exit_handler)     # it would wait for the same server
            raise DeviceError(f"{self.names} went away, and the sound system does not answer") from None
        if error is not None:
            raise DeviceError(f"{self.names} went away and did not come back within {GIVE_UP_SECONDS:g} s") from error

    def _reopen(self, control: Control, outcome: "queue.SimpleQueue[DeviceError | None]") -> None:
        deadline = time.monotonic() + GIVE_UP_SECONDS
        n_tries, pause = 0, 0.05
        while True:
            try:
                self.close()
                if n_tries:             # not at once: it would end other streams of this process, too
                    self._find_again()
                n_tries += 1
                self.open(self._on_open, self._on_input, self._on_output)
                if self._given_up:
                    self.close()
                outcome.put(None)
                return
            except DeviceError as error:
                log.debug("not yet: %s", error)
                if control.wait(pause) or time.monotonic() > deadline:
                    outcome.put(error)
                    return
                pause = min(2 * pause, 1.0)

    def _find_again(self) -> None:
        """The same names may have other numbers now, and the sound library only looks when it starts."""
        sd = _sounddevice()
        try:
            with quiet_sound_library():
                sd._terminate()
                sd._initialize()
        except sd.PortAudioError as error:
            raise DeviceError(f"the sound system does not start: {error}") from error
        for device in devices():
            if (device.name, device.host_api) == (self._microphone.name, self._microphone.host_api):
                self._microphone = device
            if self._speaker and (device.name, device.host_api) == (self._speaker.name, self._speaker.host_api):
                self._speaker = device

    def _common_rate(self, wanted: int | None) -> int:
        """The rate of the caller, or the first of the usual ones, that every device can do."""
        rates = [wanted] if wanted else list(PREFERRED_RATES)
        failure: DeviceError | None = None
        for rate in rates:
            try:
                self._n_channels = {"input": _channels(self._microphone, "input", rate)}
                if self._speaker is not None:
                    self._n_channels["output"] = _channels(self._speaker, "output", rate)
                return rate
            except DeviceError as error:
                failure = failure or error
        assert failure is not None
        raise failure

    def _start(self, device: DeviceInfo, kind: Kind) -> None:
        sd = _sounddevice()
        make, callback = ((sd.InputStream, self._input_callback) if kind == "input" else
                          (sd.OutputStream, self._output_callback))
        try:
            with quiet_sound_library():
                stream = make(device=device.index, samplerate=self.sample_rate, channels=self._n_channels[kind],
                              blocksize=self._block, dtype="float32", latency=self._wished_latency[kind],
                              callback=callback)
                self._announced[kind] = float(stream.latency)
                self._streams[kind] = stream
                stream.start()
        except sd.PortAudioError as error:
            raise _cannot_open(device, kind, error) from error

    def _input_callback(self, samples: np.ndarray, n: int, time_info: Any, flags: Any) -> None:
        self._called["input"] = time.monotonic()
        block = samples[:, 0].copy() if samples.shape[1] == 1 else samples.mean(axis=1)
        age = time_info.currentTime - time_info.inputBufferAdcTime
        self._on_input(block, _plausible(age, n / self.sample_rate, self._announced["input"]))

    def _output_callback(self, samples: np.ndarray, n: int, time_info: Any, flags: Any) -> None:
        self._called["output"] = time.monotonic()
        assert self._on_output is not None
        ahead = time_info.outputBufferDacTime - time_info.currentTime
        self._on_output(samples[:, 0], _plausible(ahead, 0.0, self._announced["output"]),
                        bool(flags.output_underflow))
        samples[:, 1:] = samples[:, :1]


def _channels(device: DeviceInfo, kind: Kind, sample_rate: int) -> int:
    """One channel, or two where the device has no single one."""
    sd = _sounddevice()
    check = sd.check_input_settings if kind == "input" else sd.check_output_settings
    failure: Exception | None = None
    for n_channels in (1, 2):
        try:
            with quiet_sound_library():
                check(device=device.index, channels=n_channels, dtype="float32", samplerate=sample_rate)
            return n_channels
        except (sd.PortAudioError, ValueError) as error:
            failure = failure or error
    assert failure is not None
    raise _cannot_open(device, kind, failure, sample_rate) from failure


def _cannot_open(device: DeviceInfo, kind: Kind, error: Exception, sample_rate: int | None = None) -> DeviceError:
    word = {"input": "microphone", "output": "loudspeaker"}[kind]
    rate = f" at {sample_rate} Hz" if sample_rate else ""
    return DeviceError(f"cannot open the {word} {device.name!r}{rate}: {str(error).splitlines()[0]}")


def _plausible(reported: float, least: float, announced: float) -> float:
    """What a device says of one block where that can be true, else what it announced when it was opened; seconds."""
    return reported if least <= reported < 2.0 else max(least, announced)


# ---------------------------------------------------------------------------------------------------------- files

class _WavFile:
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


class _TwoFiles:
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
            self._microphone = unfinished.enter_context(contextlib.closing(_WavFile(folder / "microphone.wav")))
            self._enhanced = unfinished.enter_context(contextlib.closing(_WavFile(folder / "enhanced.wav")))
            self._microphone.open(sample_rate)
            self._enhanced.open(sample_rate)
            self._files = unfinished.pop_all()

    def add(self, block: np.ndarray, enhanced: np.ndarray) -> None:
        if self._blocks.qsize() < MAX_BLOCKS_FOR_DISK:      # a disk that hangs must not fill the memory
            self._blocks.put((block, enhanced))
        else:
            self._too_slow = True

    def write(self) -> None:
        if self._too_slow:
            raise SettingsError(f"cannot write to {self._folder} as fast as sound comes; choose another disk")
        for block, enhanced in _all_of(self._blocks):
            self._microphone.write(block)
            self._write_enhanced(enhanced)

    def finish(self, stream: Stream) -> None:
        """Write the rest, and what the stream still holds."""
        self.write()
        self._write_enhanced(stream.flush())

    def _write_enhanced(self, samples: np.ndarray) -> None:
        early = min(self._n_early, len(samples))
        self._n_early -= early
        self._enhanced.write(samples[early:])

    def close(self) -> None:
        self._files.close()


T = TypeVar("T")


def _all_of(waiting: "queue.SimpleQueue[T]") -> Iterator[T]:
    """What is waiting now, without waiting for more."""
    with contextlib.suppress(queue.Empty):
        while True:
            yield waiting.get_nowait()
