"""The microphone through an enhancer to the loudspeaker as it happens, and the microphone to a file.

    microphone --callback--> blocks --worker: the stream--> queue --callback--> loudspeaker

Two separate device streams: one duplex stream through PulseAudio lost samples without a flag in every trial. The
callbacks only copy. Nothing here trusts the sound library's own flags, which stay silent when a callback is slow: samples
are counted against the wall clock on both sides, and every sample of silence put in or of sound left out is counted.
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
from typing import Any, Protocol

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
    return ", ".join(f"{device.index}: {device.name} ({device.host_api})" for device in candidates) or "no device at all"


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
    missing_samples: int
    """Sound that the wall clock says the microphone should have sent, or the loudspeaker should have asked for."""
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

    Args:
        enhancer: an `Enhancer`.
        input_device, output_device: see `find_device`.
        sample_rate: of both devices, by default the first of 48,000, 44,100 and 16,000 Hz that both can do.
        block_ms: sound that a device hands over at a time.
        latency_ms: enhanced sound kept waiting before the loudspeaker. More of it survives a busier machine.
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
    devices_open = _DevicePair(find_device(input_device, "input"), find_device(output_device, "output"),
                               sample_rate, block_ms)
    rate = devices_open.sample_rate
    with contextlib.ExitStack() as cleanup:
        recorder = cleanup.enter_context(_TwoFiles(Path(record), rate)) if record is not None else None
        stream = cleanup.enter_context(enhancer.stream(sample_rate=rate, channels=1))
        session = _Session(stream, rate, round(latency_ms * rate / 1000), control, recorder)
        cleanup.callback(session.stop)
        cleanup.callback(devices_open.close)
        session.start()
        devices_open.open(session)
        try:
            while not control.wait(TICK_SECONDS) and (seconds is None or session.seconds < seconds):
                session.check()
                if devices_open.gone():
                    devices_open.reopen(session, control)
                    session.reopened += 1
                if recorder is not None:
                    recorder.write()
                if on_status is not None:
                    on_status(session.status())
        except KeyboardInterrupt:       # the way in which a person ends it
            log.debug("stopped by the keyboard")
        status = session.status()
        devices_open.close()
        session.stop()
        session.check()
        if recorder is not None:
            recorder.finish(stream)
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
    _check_writable(target)
    control = control or Control()
    microphone = _DevicePair(find_device(device, "input"), None, sample_rate, block_ms=10)
    session = _RecordSession(microphone.sample_rate)
    with _WavFile(target, microphone.sample_rate) as file:
        try:
            microphone.open(session)
            while not control.wait(TICK_SECONDS) and (seconds is None or session.seconds < seconds):
                session.write_to(file)
                if microphone.gone():
                    raise DeviceError(f"the microphone {microphone.names} went away after {session.seconds:.1f} s; "
                                      f"what it sent is in {target}")
                if on_status is not None:
                    on_status(session.status())
        except KeyboardInterrupt:
            log.debug("stopped by the keyboard")
        finally:
            microphone.close()
            session.write_to(file, seconds)
    return session.status()


# ---------------------------------------------------------------------------------------- counting, without a device

class SampleClock:
    """Finds samples that never came, by the wall clock.

    How far the samples lag behind the clock jitters from callback to callback, but its minimum over a second stands still
    within a fraction of a millisecond. When that minimum steps up, sound was lost; a clock that is off by some 100 ppm
    moves it by far less than a step.
    """

    WINDOW_SECONDS = 1.0
    STEP_SECONDS = 0.005

    def __init__(self, sample_rate: int) -> None:
        self._rate = sample_rate
        self.missing_samples = 0
        self.restart()

    def restart(self) -> None:
        """The device was opened anew; what is missing until now is not its fault."""
        self._origin: float | None = None
        self._counted = 0
        self._before = self._least = math.inf
        self._window = -1       # in the first window a device may still be finding its pace

    def add(self, n_samples: int, now: float) -> None:
        """`n_samples` changed hands at the time `now`, in seconds of any steady clock."""
        if self._origin is None:
            self._origin = now
        self._counted += n_samples
        elapsed = now - self._origin
        if elapsed >= (self._window + 2) * self.WINDOW_SECONDS:
            step = self._least - self._before
            if self._window >= STARTING_SECONDS / self.WINDOW_SECONDS and step > self.STEP_SECONDS:
                self.missing_samples += round(step * self._rate)
            self._before, self._least = self._least, math.inf
            self._window = int(elapsed / self.WINDOW_SECONDS) - 1
        self._least = min(self._least, elapsed - self._counted / self._rate)


class OutputQueue:
    """Samples that wait for the loudspeaker. One thread appends, another fills blocks from it; neither ever waits.

    At the start, and again whenever it ran empty, the queue plays silence until `target` samples are waiting, so that one
    late block makes one gap and not many. If more than `limit` wait, it drops the oldest down to `target`.
    """

    def __init__(self, target: int, limit: int) -> None:
        self.target, self.limit = target, limit
        self.gaps = self.gap_samples = self.dropped_samples = 0
        self.position = 0           # index of the next sample to play, of all that were ever appended
        self._appended = 0
        self._pieces: deque[np.ndarray] = deque()
        self._offset = 0            # of the next sample in the first piece
        self._filling = True

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
            self._filling = False
        n = 0 if self._filling else self._take(len(block), block)
        block[n:] = 0
        if n < len(block) and self.position:        # silence before the first sample is no gap
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

    It starts when the queue's mean is half the target off and ends when it is back: some 60 samples a second, while clocks
    that differ by 200 ppm need 10.
    """

    SMOOTHING = 0.01        # of the mean, per block

    def __init__(self, target: int) -> None:
        self._target = self._mean = float(target)
        self._correcting = 0
        self.adjusted_samples = 0

    def restart(self) -> None:
        """The queue was emptied or cut by others; what it held before says nothing any more."""
        self._mean, self._correcting = self._target, 0

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
        n = len(samples)
        places = np.linspace(0, n - 1, n + self._correcting)
        return np.interp(places, np.arange(n), samples).astype(np.float32)


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


# ------------------------------------------------------------------------------------------------- what runs a device

class _Session:
    """One `listen`: two callbacks, one worker, and the counters between them."""

    def __init__(self, stream: Stream, sample_rate: int, target: int, control: Control,
                 recorder: "_TwoFiles | None") -> None:
        self._stream, self._rate, self._control, self._recorder = stream, sample_rate, control, recorder
        limit = 2 * target + sample_rate // 20
        self._queue = OutputQueue(target, limit)
        self._drift = DriftControl(target)
        self._blocks: queue.SimpleQueue[np.ndarray | None] = queue.SimpleQueue()
        self._waiting_in = self._limit_in = 0
        self._limit_in = limit
        self._received = self._taken_in = self._dropped_in = 0
        self._input_clock, self._output_clock = SampleClock(sample_rate), SampleClock(sample_rate)
        self._input_level, self._output_level = Level(sample_rate), Level(sample_rate)
        self._captured: tuple[float, int] | None = None     # when the microphone heard the sample of that index
        self._latency = 0.0
        self._late_steps = 0
        self._worker_seconds = 0.0
        self._started = time.monotonic()
        self._error: BaseException | None = None
        self._worker = threading.Thread(target=self._work, name="pse-live", daemon=True)
        self.reopened = 0
        self.input_latency = self.output_latency = 0.0      # what the devices announced, in seconds

    def start(self) -> None:
        self._worker.start()

    def stop(self) -> None:
        self._blocks.put(None)
        self._worker.join(timeout=2)

    def check(self) -> None:
        """Raise what the worker died of."""
        if self._error is not None:
            raise self._error

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def restart(self) -> None:
        """The devices were opened anew."""
        self._input_clock.restart()
        self._output_clock.restart()
        self._captured = None

    def on_input(self, samples: np.ndarray, age: float) -> None:
        """The microphone's callback: `samples` [T], of which the first is `age` seconds old, if the device knows."""
        now = time.monotonic()
        self._input_clock.add(len(samples), now)
        if self._received - self._taken_in > self._limit_in:
            self._dropped_in += len(samples)
            return
        duration = len(samples) / self._rate
        self._captured = now - _plausible(age, duration, self.input_latency), self._received
        self._received += len(samples)
        self._blocks.put(samples)

    def on_output(self, block: np.ndarray, ahead: float) -> None:
        """The loudspeaker's callback: `block` [T] to fill; its first sample will be heard `ahead` seconds from now."""
        now = time.monotonic()
        self._output_clock.add(len(block), now)
        position, captured = self._queue.position, self._captured
        self._queue.fill(block)
        if captured is not None and self._queue.position > position:
            heard_at = now + _plausible(ahead, 0.0, self.output_latency)
            # drift control changes the count by a few samples; they are taken back here
            spoken = position + self._drift.removed_samples - self._stream.delay_samples
            spoken_at = captured[0] + (spoken - captured[1]) / self._rate
            self._latency += (heard_at - spoken_at - self._latency) * (0.02 if self._latency else 1.0)

    def status(self) -> LiveStatus:
        seconds = self.seconds
        return LiveStatus(
            seconds=seconds,
            input_dbfs=self._input_level.dbfs,
            output_dbfs=self._output_level.dbfs,
            reduction_db=self._input_level.dbfs - self._output_level.dbfs,
            latency_ms=1000 * self._latency,
            queue_ms=1000 * len(self._queue) / self._rate,
            cpu_percent=100 * self._worker_seconds / max(seconds, 1e-3),
            gaps=self._queue.gaps,
            gap_samples=self._queue.gap_samples,
            dropped_samples=self._dropped_in + self._queue.dropped_samples,
            adjusted_samples=self._drift.adjusted_samples,
            missing_samples=self._input_clock.missing_samples + self._output_clock.missing_samples,
            late_steps=self._late_steps,
            reopened=self.reopened,
            bypassed=self._control.bypass,
            all_zero_input=self._input_level.all_zero)

    def _work(self) -> None:
        cpu_before = time.thread_time()
        try:
            while (block := self._blocks.get()) is not None:
                self.step(block)
                self._worker_seconds = time.thread_time() - cpu_before
        except BaseException as error:      # handed to the caller's thread by `check`
            self._error = error

    def step(self, block: np.ndarray) -> None:
        """Enhance one block of the microphone."""
        began = time.monotonic()
        self._stream.bypass = self._control.bypass
        enhanced = self._stream.process(block)
        self._taken_in += len(block)
        self._queue.append(self._drift.adjust(enhanced, len(self._queue)))
        self._input_level.add(block)
        self._output_level.add(enhanced)
        if self._recorder is not None:
            self._recorder.add(block, enhanced)
        self._late_steps += time.monotonic() - began > len(block) / self._rate


def _plausible(reported: float, least: float, announced: float) -> float:
    """What a device reports of a block, where it can be true, else what it announced when it was opened."""
    return reported if least <= reported < 2.0 else max(least, announced)
