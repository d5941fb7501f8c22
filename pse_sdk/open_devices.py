"""A microphone, with or without a loudspeaker, while sound runs: opened at one rate, watched, reopened by name.

Each device has a sound stream of its own: one for both through PulseAudio lost samples without a flag in every trial.
"""

import atexit
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .audio import check_sample_rate
from .devices import WORDS, DeviceInfo, Kind, devices, sound_library
from .errors import DeviceError
from .live_counting import STARTING_SECONDS
from .quiet import quiet_libraries

log = logging.getLogger(__name__)

PREFERRED_RATES = (48_000, 44_100, 16_000)
SILENT_DEVICE_SECONDS = 0.5     # without a callback, then the device counts as gone
GIVE_UP_SECONDS = 5.0           # of trying to reopen

InputCallback = Callable[[np.ndarray, float], None]
OutputCallback = Callable[[np.ndarray, float, bool], None]


class OpenDevices:
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
        """Open and start. `on_open` is called first, now and when a device is opened anew; see `listen`'s `Session`."""
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
        with quiet_libraries():
            while self._streams:
                self._streams.popitem()[1].close()

    def gone(self) -> bool:
        """A device stopped, or its callback has not come for too long."""
        now = time.monotonic()
        patience = STARTING_SECONDS if now - self._opened < STARTING_SECONDS else SILENT_DEVICE_SECONDS
        return any(not stream.active or now - self._called[kind] > patience
                   for kind, stream in self._streams.items())

    def reopen(self, wait: Callable[[float], bool]) -> None:
        """Close what is left and, while they are needed, try with growing pauses to open the devices of the same names.

        Args:
            wait: waits up to so many seconds; True if nobody needs the devices any more.

        Raises:
            DeviceError: they did not come back, or the sound system does not even answer.
        """
        log.info("%s went away; trying to reopen", self.names)
        outcome: queue.SimpleQueue[DeviceError | None] = queue.SimpleQueue()
        # in a thread of its own: a sound server that hangs must not hang us
        threading.Thread(target=self._reopen, args=(wait, outcome), daemon=True, name="pse-reopen").start()
        try:
            error = outcome.get(timeout=GIVE_UP_SECONDS + 2)
        except queue.Empty:
            self._given_up = True
            self._streams.clear()
            atexit.unregister(sound_library()._exit_handler)      # it would wait for the same server
            raise DeviceError(f"{self.names} went away, and the sound system does not answer") from None
        if error is not None:
            raise DeviceError(f"{self.names} went away and did not come back within {GIVE_UP_SECONDS:g} s") from error

    def _reopen(self, wait: Callable[[float], bool], outcome: "queue.SimpleQueue[DeviceError | None]") -> None:
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
                if wait(pause):         # nobody wants them back
                    outcome.put(None)
                    return
                if time.monotonic() > deadline:
                    outcome.put(error)
                    return
                pause = min(2 * pause, 1.0)

    def _find_again(self) -> None:
        """The same names may have other numbers now, and the sound library only looks when it starts."""
        sd = sound_library()
        try:
            with quiet_libraries():
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
        rates = list(PREFERRED_RATES) if wanted is None else [check_sample_rate(wanted)]
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
        sd = sound_library()
        make, callback = ((sd.InputStream, self._input_callback) if kind == "input" else
                          (sd.OutputStream, self._output_callback))
        try:
            with quiet_libraries():
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
    sd = sound_library()
    check = sd.check_input_settings if kind == "input" else sd.check_output_settings
    failure: Exception | None = None
    for n_channels in (1, 2):
        try:
            with quiet_libraries():
                check(device=device.index, channels=n_channels, dtype="float32", samplerate=sample_rate)
            return n_channels
        except (sd.PortAudioError, ValueError) as error:
            failure = failure or error
    assert failure is not None
    raise _cannot_open(device, kind, failure, sample_rate) from failure


def _cannot_open(device: DeviceInfo, kind: Kind, error: Exception, sample_rate: int | None = None) -> DeviceError:
    rate = f" at {sample_rate} Hz" if sample_rate else ""
    return DeviceError(f"cannot open the {WORDS[kind]} {device.name!r}{rate}: {str(error).splitlines()[0]}")


def _plausible(reported: float, least: float, announced: float) -> float:
    """What a device says of one block where that can be true, else what it announced when it was opened; seconds."""
    return reported if least <= reported < 2.0 else max(least, announced)
