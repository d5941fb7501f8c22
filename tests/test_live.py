import importlib
import io
import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import fake_stream
import numpy as np
import pytest
import soundfile

from pse_sdk import live, live_counting, live_files, open_devices
from pse_sdk.devices import devices, find_device
from pse_sdk.errors import AudioError, DeviceError, MissingDependencyError, SettingsError
from pse_sdk.live_counting import DriftControl, Level, OutputQueue, SampleClock
from pse_sdk.record import record

RATE = 48_000
BLOCK = 480
TARGET = 2880           # 60 ms
ROUNDING = 2e-7         # of a 24-bit file


def white_noise(n_samples, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(n_samples)).astype(np.float32)


# ------------------------------------------------------------------------------------- counting, without a device

def clock_after(arrivals):
    """A sample clock that was told of (time, number of samples) pairs."""
    clock = SampleClock(RATE)
    for now, n_samples in arrivals:
        clock.add(n_samples, now)
    return clock


@pytest.mark.parametrize("ppm", [-200, 0, 200])
def test_late_callbacks_and_an_inexact_clock_are_no_missing_samples(ppm):
    rng = np.random.default_rng(0)
    times = np.arange(6000) * BLOCK / RATE * (1 + ppm * 1e-6) + rng.uniform(0, 0.02, 6000)
    assert clock_after((now, BLOCK) for now in np.sort(times)).missing_samples == 0


def test_a_hole_in_the_samples_is_found_to_the_millisecond():
    times = np.arange(1000) * BLOCK / RATE
    times[600:] += 0.05
    clock = clock_after((now, BLOCK) for now in times + np.random.default_rng(0).uniform(0, 0.01, 1000))
    assert clock.missing_samples == pytest.approx(0.05 * RATE, abs=0.001 * RATE)


def test_samples_that_come_late_but_come_are_not_missing():
    times = np.arange(1000) * BLOCK / RATE
    stalled = (times > 6) & (times < 8.5)
    times[stalled] = 8.5        # all at once
    assert clock_after((now, BLOCK) for now in times).missing_samples == 0


def played(queue, n_blocks=1, length=BLOCK):
    """What the loudspeaker gets for its next blocks."""
    blocks = np.full((n_blocks, length), np.nan, np.float32)
    for block in blocks:
        queue.fill(block)
    return blocks.ravel()


def test_a_queue_plays_silence_until_enough_is_waiting_and_counts_none_of_it():
    queue, sound = OutputQueue(target=1000, limit=5000), white_noise(1500)
    assert not played(queue).any()
    queue.append(sound[:999])
    assert not played(queue).any()
    queue.append(sound[999:])
    np.testing.assert_array_equal(played(queue, 3), sound[:1440])
    assert (queue.gaps, queue.gap_samples, queue.dropped_samples) == (0, 0, 0)


def test_one_late_block_makes_one_gap_with_every_silent_sample_counted():
    queue = OutputQueue(target=960, limit=5000)
    queue.append(white_noise(1000))
    assert np.count_nonzero(played(queue, 5)) == 1000
    assert (queue.gaps, queue.gap_samples) == (1, 5 * BLOCK - 1000)
    queue.append(white_noise(960))
    assert played(queue, 2).all()
    assert (queue.gaps, queue.gap_samples) == (1, 5 * BLOCK - 1000)


def test_a_queue_that_grew_too_long_drops_the_oldest_down_to_its_target():
    queue, sound = OutputQueue(target=1000, limit=5000), white_noise(6000)
    queue.append(sound)
    np.testing.assert_array_equal(played(queue, 2), sound[-1000:-40])
    assert (queue.dropped_samples, len(queue)) == (5000, 40)


@pytest.mark.parametrize("seed", range(5))
def test_every_sample_is_played_dropped_or_waiting(seed):
    rng = np.random.default_rng(seed)
    queue, n_in, out = OutputQueue(target=TARGET, limit=3 * TARGET), 0, []
    for _ in range(2000):
        for length in rng.integers(0, 1400, rng.integers(0, 3)):
            queue.append(np.full(length, 0.5, np.float32))
            n_in += length
        out.append(played(queue, length=int(rng.integers(1, 1200))))
        assert len(queue) <= 3 * TARGET + 2800
    out = np.concatenate(out)
    sounding = np.flatnonzero(out)
    assert n_in == np.count_nonzero(out) + queue.dropped_samples + len(queue)
    assert queue.gap_samples == np.count_nonzero(out[sounding[0]:] == 0)
    assert queue.gaps and queue.dropped_samples     # it was a rough ride


@pytest.mark.parametrize("ppm", [-200, 0, 200])
def test_clocks_that_differ_neither_empty_nor_fill_the_queue(ppm):
    minutes = 15
    queue, drift = OutputQueue(TARGET, 2 * TARGET + RATE // 20), DriftControl(TARGET)
    block, out, waiting = np.zeros(BLOCK, np.float32), np.empty(BLOCK, np.float32), []
    due = 0.0
    for _ in range(minutes * 60 * RATE // BLOCK):
        queue.append(drift.adjust(block, len(queue)))
        due += 1 + ppm * 1e-6       # blocks that a loudspeaker with a faster clock asks for
        while due >= 1:
            queue.fill(out)
            due -= 1
        waiting.append(len(queue))
    settled = np.array(waiting[100:])
    assert (queue.gaps, queue.dropped_samples) == (0, 0)
    assert TARGET * 0.3 < settled.min() and settled.max() < TARGET * 1.7
    assert drift.adjusted_samples <= abs(ppm) * 1e-6 * minutes * 60 * RATE + TARGET
    assert drift.adjusted_samples == abs(drift.balance)


def test_drift_control_bends_a_tone_without_breaking_it():
    drift = DriftControl(TARGET)
    tone = np.sin(2 * np.pi * 300 * np.arange(RATE) / RATE).astype(np.float32)
    bent = np.concatenate([drift.adjust(block, 3 * TARGET) for block in tone.reshape(-1, BLOCK)])
    assert len(bent) == len(tone) + drift.balance < len(tone)
    assert np.abs(np.diff(bent)).max() < 1.2 * np.abs(np.diff(tone)).max()


def test_a_level_is_the_mean_power_in_dbfs():
    level = Level(RATE)
    for _ in range(200):
        level.add(np.full(BLOCK, 0.1, np.float32))
    assert level.dbfs == pytest.approx(-20, abs=0.05)


def test_exact_zeros_for_a_second_are_no_quiet_room():
    level = Level(RATE)
    for _ in range(99):
        level.add(np.zeros(BLOCK, np.float32))
    assert not level.all_zero
    level.add(np.zeros(BLOCK, np.float32))
    assert level.all_zero
    level.add(np.full(BLOCK, 1e-9, np.float32))
    assert not level.all_zero


def test_blocks_that_the_worker_cannot_keep_up_with_are_dropped_and_counted():
    stream, proceed = Delay(), threading.Event()
    stream.before_step = proceed.wait
    session = live.Session(stream, RATE, TARGET, live.Control())
    for _ in range(100):
        session.on_input(np.ones(BLOCK, np.float32), 0.0)
    status = session.status()
    assert 0 < status.dropped_samples < 100 * BLOCK
    proceed.set()
    session.stop()
    assert session.status().queue_ms == 1000 * (100 * BLOCK - status.dropped_samples) / RATE


def test_a_step_that_takes_longer_than_its_block_is_counted():
    stream = Delay()
    session = live.Session(stream, RATE, TARGET, live.Control())
    stream.before_step = lambda: time.sleep(0.03)
    for _ in range(3):
        session.step(np.zeros(BLOCK, np.float32))
    session.stop()
    assert session.status().late_steps == 3


# -------------------------------------------------------------------------------------------- with a pretended device

class Delay(fake_stream.Delay):
    """`enhanced` is the negative of what comes in."""

    def __init__(self):
        super().__init__()
        self.before_step = lambda: None

    def process(self, chunk):
        self.before_step()
        return super().process(chunk if self.bypass else -chunk)


class PortAudioError(Exception):
    pass


class SoundSystem:
    """Stands for the module sounddevice: callbacks every 10 ms from a thread for each open stream."""

    PortAudioError = PortAudioError

    def __init__(self, devices=(("Laptop", 0, 2, 2), ("USB microphone", 0, 1, 0), ("USB headset", 0, 1, 2))):
        self.apis = [{"name": "ALSA"}, {"name": "OSS"}]
        self.list = [{"name": name, "hostapi": api, "max_input_channels": inputs, "max_output_channels": outputs,
                      "default_samplerate": 44_100.0} for name, api, inputs, outputs in devices]
        self.default = SimpleNamespace(device=[0, 0] if devices else [-1, -1])
        self.microphone = white_noise(10 * RATE)
        self.played = []
        self.n_opened = 0
        self.refused_rates, self.min_channels, self.opens = (), 1, True
        self.dead = threading.Event()

    def query_devices(self):
        return self.list

    def query_hostapis(self):
        return self.apis

    def check_input_settings(self, device, channels, dtype, samplerate):
        if samplerate in self.refused_rates:
            raise PortAudioError("Invalid sample rate")
        if channels < self.min_channels:
            raise PortAudioError("Invalid number of channels")

    check_output_settings = check_input_settings

    def InputStream(self, **options):
        return PretendedStream(self, is_input=True, **options)

    def OutputStream(self, **options):
        return PretendedStream(self, is_input=False, **options)

    def _initialize(self):
        pass

    _terminate = _exit_handler = _initialize


class PretendedStream:
    latency = 0.02

    def __init__(self, system, is_input, device, samplerate, channels, blocksize, dtype, latency, callback):
        if not system.opens:
            raise PortAudioError("Device unavailable")
        system.n_opened += 1
        self.system, self.is_input, self.channels, self.callback = system, is_input, channels, callback
        self.block, self.rate = blocksize, samplerate
        self.ended, self.active = threading.Event(), True
        self.thread = threading.Thread(target=self.run, daemon=True)

    def start(self):
        self.thread.start()

    def run(self):
        now = SimpleNamespace(currentTime=1.0, inputBufferAdcTime=0.99, outputBufferDacTime=1.03)
        flags = SimpleNamespace(output_underflow=False)
        began = time.monotonic()
        for i in range(len(self.system.microphone) // self.block):
            while time.monotonic() < began + i * self.block / self.rate:
                time.sleep(0.002)
            if self.ended.is_set() or self.system.dead.is_set():
                return
            samples = np.zeros((self.block, self.channels), np.float32)
            if self.is_input:
                samples[:] = self.system.microphone[i * self.block:(i + 1) * self.block, None]
            self.callback(samples, self.block, now, flags)
            if not self.is_input:
                self.system.played.append(samples)

    def close(self):
        self.active = False
        self.ended.set()
        self.thread.join()


@pytest.fixture
def system(monkeypatch):
    """A machine with sound devices. Patience is short, for the sake of the tests'."""
    pretended = SoundSystem()
    monkeypatch.setitem(sys.modules, "sounddevice", pretended)
    monkeypatch.setattr(open_devices, "SILENT_DEVICE_SECONDS", 0.3)
    for module in (open_devices, live_counting):
        monkeypatch.setattr(module, "STARTING_SECONDS", 0.6)
    monkeypatch.setattr(open_devices, "GIVE_UP_SECONDS", 0.8)
    return pretended


@pytest.fixture
def empty_machine(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", SoundSystem(devices=()))


def test_what_is_heard_is_what_the_stream_makes_of_the_microphone(system, tmp_path):
    status = live.listen(Delay(), seconds=1.5, record=tmp_path)
    microphone, enhanced = (soundfile.read(tmp_path / f"{name}.wav", dtype="float32")[0]
                            for name in ("microphone", "enhanced"))
    np.testing.assert_allclose(microphone, system.microphone[:len(microphone)], rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(enhanced, -microphone, rtol=0, atol=ROUNDING)     # aligned, and just as long
    heard = np.concatenate(system.played)[:, 0]
    heard = heard[np.flatnonzero(heard)[0]:]
    if not (status.gaps or status.dropped_samples):
        np.testing.assert_array_equal(heard, -system.microphone[:len(heard)])
    assert status.input_dbfs == pytest.approx(-20, abs=1) and abs(status.reduction_db) < 1
    assert 60 < status.latency_ms < 200


def test_only_the_named_files_are_left_in_the_folder(system, tmp_path):
    live.listen(Delay(), seconds=0.3, record=tmp_path / "new" / "folder")
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == ["enhanced.wav", "microphone.wav"]


def test_a_disk_that_is_too_slow_is_an_error_and_no_hole_in_the_files(system, tmp_path, monkeypatch):
    monkeypatch.setattr(live_files, "MAX_BLOCKS_FOR_DISK", 10)
    with pytest.raises(SettingsError, match="as fast as sound comes"):
        live.listen(Delay(), seconds=5, record=tmp_path, on_status=lambda _: time.sleep(0.3))


def test_before_after_reaches_the_stream_while_it_runs(system):
    stream, control, seen = Delay(), live.Control(), []

    def on_status(status):
        seen.append((status.bypassed, stream.bypass))
        if len(seen) == 8:
            control.toggle_bypass()

    live.listen(stream, seconds=1, control=control, on_status=on_status)
    assert seen[7] == (False, False) and seen[-1] == (True, True)


def test_the_strength_reaches_the_stream_before_the_first_sound_and_while_it_runs(system):
    stream, control, seen = Delay(), live.Control(strength=0.5, max_reduction_db=12.0), []

    def on_status(status):
        seen.append((stream.strength, stream.max_reduction_db))
        if len(seen) == 8:
            control.strength, control.max_reduction_db = 1.0, 6.0

    live.listen(stream, seconds=1, control=control, on_status=on_status)
    assert seen[0] == (0.5, 12.0) and seen[-1] == (1.0, 6.0)


def test_another_thread_can_end_it(system):
    control = live.Control()
    threading.Timer(0.3, control.stop).start()
    assert live.listen(Delay(), control=control).seconds < 5


def test_ctrl_c_ends_it_with_a_status(system):
    def on_status(status):
        if status.seconds > 0.3:
            raise KeyboardInterrupt

    assert live.listen(Delay(), on_status=on_status).seconds < 5


def test_a_microphone_of_zeros_gets_a_hint_about_permission(system):
    system.microphone[:] = 0
    status = live.listen(Delay(), seconds=1.8)
    assert status.all_zero_input and "permission" in status.note


def test_a_device_without_a_single_channel_is_opened_with_two(system):
    system.min_channels = 2
    status = live.listen(Delay(), seconds=0.8)
    heard = np.concatenate(system.played)
    assert status.input_dbfs == pytest.approx(-20, abs=3)
    assert heard.shape[1] == 2 and heard.any()
    np.testing.assert_array_equal(heard[:, 0], heard[:, 1])


def test_the_rate_is_one_that_both_devices_can_do(system, tmp_path):
    system.refused_rates = (48_000,)
    live.listen(Delay(), seconds=0.3, record=tmp_path)
    assert soundfile.info(tmp_path / "enhanced.wav").samplerate == 44_100
    with pytest.raises(DeviceError, match="microphone 'Laptop' at 48000 Hz: Invalid sample rate"):
        live.listen(Delay(), sample_rate=48_000)


def test_a_device_that_refuses_is_one_line(system):
    system.opens = False
    with pytest.raises(DeviceError, match="^cannot open the loudspeaker 'Laptop': Device unavailable$"):
        live.listen(Delay())


def test_a_device_that_goes_away_for_good_ends_in_an_error_soon(system):
    def on_status(status):
        if status.seconds > 0.5:
            system.dead.set()
            system.opens = False

    began = time.monotonic()
    with pytest.raises(DeviceError, match="went away and did not come back"):
        live.listen(Delay(), on_status=on_status)
    assert time.monotonic() - began < 10


def test_stopping_while_a_device_is_away_ends_well(system):
    control = live.Control()

    def on_status(status):
        if status.seconds > 0.5 and not system.dead.is_set():
            system.dead.set()
            system.opens = False
            threading.Timer(1.0, control.stop).start()

    status = live.listen(Delay(), control=control, on_status=on_status)
    assert status.reopened == 0 and status.seconds < 5


def test_a_device_that_comes_back_is_reopened_by_its_name(system):
    def on_status(status):
        if status.seconds > 0.8 and not status.reopened and not system.dead.is_set():
            system.dead.set()
            system.opens = False
            threading.Timer(0.7, come_back).start()

    def come_back():
        system.list.insert(0, dict(system.list[1], name="a new microphone"))
        system.dead.clear()
        system.opens = True

    status = live.listen(Delay(), input_device="USB mic", output_device="headset", seconds=3, on_status=on_status)
    assert status.reopened == 1
    assert status.input_dbfs > -30


def test_an_error_of_the_stream_reaches_the_caller(system):
    def fail():
        raise AudioError("expected something else")

    stream = Delay()

    def on_status(status):
        stream.before_step = fail

    with pytest.raises(AudioError, match="something else"):
        live.listen(stream, seconds=5, on_status=on_status)
    assert all(thread.name != "pse-live" for thread in threading.enumerate())


@pytest.mark.parametrize("options", [{"block_ms": 0}, {"block_ms": 1000}, {"latency_ms": 5}, {"latency_ms": 10_000},
                                     {"block_ms": "10"}, {"seconds": -1}, {"seconds": float("nan")}, {"on_status": 3}])
def test_an_argument_out_of_range_is_refused(options):
    with pytest.raises(SettingsError, match=next(iter(options))):
        live.listen(Delay(), **options)


# ------------------------------------------------------------------------------------------------------------ devices

def test_a_device_is_found_by_number_name_or_part_of_the_name(system):
    assert find_device(None, "output").name == "Laptop"
    for text in ("1", 1, "usb MIC", "USB microphone"):
        assert find_device(text, "input").name == "USB microphone"


def test_an_exact_name_wins_over_a_longer_one(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", SoundSystem([("Mic", 0, 1, 0), ("Mic 2", 0, 1, 0)]))
    assert find_device("mic", "input").index == 0


def test_of_one_device_in_two_sound_systems_the_default_one_is_meant(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", SoundSystem([("Mic", 0, 1, 0), ("Mic", 1, 1, 0)]))
    assert find_device("mic", "input").host_api == "ALSA"


@pytest.mark.parametrize("text, message", [
    ("USB", r"'USB' may be 1: USB microphone \(ALSA\), 2: USB headset \(ALSA\)"),
    ("hall", r"no microphone is called 'hall'; there is 0: Laptop"),
    ("", "no microphone is called ''"),
    ("7", "no microphone is called '7'"),
])
def test_a_name_that_fits_none_or_several_lists_what_there_is(system, text, message):
    with pytest.raises(DeviceError, match=message):
        find_device(text, "input")


def test_a_microphone_is_no_loudspeaker(system):
    with pytest.raises(DeviceError, match="no loudspeaker is called 'USB microphone'"):
        find_device("USB microphone", "output")


def test_a_machine_without_sound_says_so(empty_machine):
    assert devices() == []
    with pytest.raises(DeviceError, match="this machine has no microphone"):
        live.listen(Delay())


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'pse_sdk\[live\]'"):
        devices()


def test_a_missing_library_is_named_with_its_remedy(monkeypatch):
    def import_module(name):
        raise OSError("PortAudio library not found")

    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(MissingDependencyError, match="libportaudio2"):
        devices()


def test_importing_the_package_opens_no_sound_library():
    code = "import sys, pse_sdk, pse_sdk.live, pse_sdk.record; sys.exit('sounddevice' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_chattering_library_is_kept_off_the_terminal_and_python_is_not():
    code = ("import os, sys; from pse_sdk.quiet import quiet_libraries as quiet\n"
            "with quiet(): os.write(2, b'Expression failed'); print('still here', file=sys.stderr)\n"
            "os.write(2, b'afterwards'); print(' too', file=sys.stderr)")
    said = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True).stderr
    assert said == "still here\nafterwards too\n"


# ---------------------------------------------------------------------------------------------------------- recording

def test_a_recording_is_as_long_as_asked_to_the_sample(system, tmp_path):
    status = record(tmp_path / "me.wav", seconds=0.505)
    recording, rate = soundfile.read(tmp_path / "me.wav", dtype="float32")
    assert (len(recording), rate) == (round(0.505 * RATE), RATE)
    assert status.seconds == 0.505 and status.dropped_samples == 0
    np.testing.assert_allclose(recording, system.microphone[:len(recording)], rtol=0, atol=ROUNDING)


def test_a_recording_appears_whole_and_replaces_the_old_one_only_then(system, tmp_path):
    (tmp_path / "me.wav").write_bytes(b"the old one")
    seen = set()
    record(tmp_path / "me.wav", seconds=0.5, on_status=lambda _: seen.add((tmp_path / "me.wav").read_bytes()))
    assert seen == {b"the old one"}
    assert soundfile.info(tmp_path / "me.wav").duration == 0.5
    assert os.listdir(tmp_path) == ["me.wav"]


def test_ctrl_c_keeps_what_was_recorded(system, tmp_path):
    def on_status(status):
        if status.seconds > 0.2:
            raise KeyboardInterrupt

    status = record(tmp_path / "me.wav", on_status=on_status)
    assert soundfile.info(tmp_path / "me.wav").duration == pytest.approx(status.seconds)
    assert status.seconds > 0.2


def test_a_microphone_that_goes_away_leaves_what_it_sent(system, tmp_path):
    def on_status(status):
        if status.seconds > 0.8:
            system.dead.set()

    with pytest.raises(DeviceError, match="microphone 'Laptop' went away; the .* s until then are kept in"):
        record(tmp_path / "me.wav", on_status=on_status)
    assert soundfile.info(tmp_path / "me.wav").duration > 0.8


def test_an_empty_recording_leaves_the_old_one_alone(system, tmp_path):
    (tmp_path / "me.wav").write_bytes(b"the old one")
    system.opens = False
    with pytest.raises(DeviceError):
        record(tmp_path / "me.wav")
    assert (tmp_path / "me.wav").read_bytes() == b"the old one"
    assert os.listdir(tmp_path) == ["me.wav"]


@pytest.mark.parametrize("name, message", [("nowhere/me.wav", "No such file"), ("folder.wav", "is not a file"),
                                           ("me.mp3", "has to end in .wav")])
def test_a_target_that_cannot_be_written_is_refused_before_the_microphone_opens(system, tmp_path, name, message):
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(SettingsError, match=message):
        record(tmp_path / name)
    assert system.n_opened == 0


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_a_recording_is_for_its_owner_only(system, tmp_path):
    record(tmp_path / "me.wav", seconds=0.1)
    assert (tmp_path / "me.wav").stat().st_mode & 0o777 == 0o600


# ------------------------------------------------------------------------------------------------------------- screen

STATUS = live.LiveStatus(seconds=12.3, input_dbfs=-36.0, output_dbfs=-54.0, reduction_db=18.0, latency_ms=142.4,
                         queue_ms=60.0, cpu_percent=7.4, gaps=1, gap_samples=480, dropped_samples=0,
                         adjusted_samples=0, missing_input_samples=0, missing_output_samples=0, device_gaps=1,
                         late_steps=0, reopened=0, bypassed=False, all_zero_input=False)


@pytest.fixture
def screen():
    pytest.importorskip("rich")
    return importlib.import_module("pse_sdk.live_screen")


def test_a_level_bar_is_full_at_0_dbfs_and_empty_at_its_floor(screen):
    assert [screen.bar(dbfs).count("█") for dbfs in (-200.0, -72.0, -36.0, 0.0, 6.0)] == [0, 0, 20, 40, 40]


def test_the_meter_tells_what_there_is_to_know(screen):
    from rich.console import Console
    console = Console(file=io.StringIO(), width=120)
    console.print(screen.meter(STATUS))
    picture = console.file.getvalue()
    for text in ("-36.0 dBFS", "-54.0 dBFS", "18.0 dB", "142 ms", "7.4 %", "gaps 2", "AFTER", "space", "q: quit"):
        assert text in picture


def test_keys_switch_and_stop(screen):
    control = live.Control()
    for key in " bB":
        screen.press(key, control)
    assert control.bypass and not control.stopped
    screen.press("x", control)
    assert not control.stopped
    screen.press("q", control)
    assert control.stopped


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals")
def test_a_keyboard_is_obeyed_and_left_as_it_was(screen):
    code = ("import sys; from pse_sdk import live; from pse_sdk.live_screen import keys\n"
            "control = live.Control()\n"
            "with keys(control) as readable: print('ready', readable, flush=True); control.wait(20)\n"
            "print(control.bypass, control.stopped)")
    import pty
    import termios
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    run_in_terminal = "import os, sys, fcntl, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    program = subprocess.Popen([sys.executable, "-c", run_in_terminal + code], stdin=theirs, stdout=subprocess.PIPE,
                               text=True)
    assert program.stdout.readline() == "ready True\n"
    os.write(ours, b" q")
    assert program.communicate(timeout=20)[0] == "True True\n"
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


def test_without_a_terminal_there_is_a_line_of_text_a_second(screen, system, capsys):
    system.microphone[:] = 0
    screen.run_listen(Delay(), seconds=1.5)
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert said.out == "" and len(lines) == 3
    assert lines[0].startswith("0 s ") and "latency" in lines[-1] and "permission" in lines[-1]
