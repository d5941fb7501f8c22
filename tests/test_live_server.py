"""Live enhancement on a real sound server: tests/with_virtual_audio.sh python -m pytest tests/test_live_server.py

What is spoken into the virtual microphone is known to the sample, and so is what the virtual loudspeaker plays. The
machine may be busy: sound may be lost, but none that was not counted.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fake_stream import Delay

from pse_sdk import live
from pse_sdk.devices import find_device
from pse_sdk.errors import DeviceError, ModelFileError, PseError
from pse_sdk.live_counting import DriftControl
from pse_sdk.record import record

RATE = 48_000
MICROPHONE, SPEAKER = "pse_mic", "pse_speaker"
ROUNDING = 2e-7         # of a 24-bit file, and of float32
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
RAW = ["--rate=48000", "--channels=1", "--format=float32le", "--raw"]

pytestmark = [
    pytest.mark.skipif(os.environ.get("PSE_SOUND_SERVER") != "1", reason="needs tests/with_virtual_audio.sh"),
    pytest.mark.timeout(180),
]


def denoiser():
    """The generalist that ships, or the smallest one."""
    from pse_sdk import Enhancer
    for size in (None, "tiny"):
        with contextlib.suppress(ModelFileError):
            return Enhancer(size=size)
    pytest.skip("no generalist in this checkout")


def speech_like(seconds, seed=0):
    """Noise in syllables, never exactly zero, so that silence put in by others shows."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * RATE)) / RATE
    noise = 0.1 * rng.standard_normal(len(t)) * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * t))
    noise = np.round(noise.clip(-0.9, 0.9) * 2 ** 22) / 2 ** 22
    noise[noise == 0] = 2.0 ** -22
    return noise.astype(np.float32)


class Ear:
    """Writes down what one of the server's sources says, and when its first sample was said."""

    def __init__(self, source):
        self._server_tap = subprocess.Popen(["parec", f"--device={source}", "--latency-msec=10", *RAW],
                                            stdout=subprocess.PIPE)
        self._heard = bytearray()
        self.began = float("inf")
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        while data := os.read(self._server_tap.stdout.fileno(), 65536):
            self._heard += data
            n = len(self._heard) // 4
            if n > RATE:        # the most punctual delivery tells when it began
                self.began = min(self.began, time.monotonic() - n / RATE)

    def stop(self):
        self._server_tap.terminate()
        self._server_tap.wait()
        self._reader.join()
        return np.frombuffer(bytes(self._heard[:len(self._heard) // 4 * 4]), np.float32)


def speak(samples, folder):
    """Say `samples` into the virtual microphone, with half a second of silence before and after."""
    silence = np.zeros(RATE // 2, np.float32)
    np.concatenate([silence, samples, silence]).tofile(folder / "spoken.raw")
    subprocess.run(["pacat", "--playback", "--device=virtmic", *RAW, str(folder / "spoken.raw")], check=True)


def place_of(pattern, sound):
    """Index in `sound` at which `pattern` fits best."""
    n = 1 << (len(sound) + len(pattern)).bit_length()
    return int(np.argmax(np.fft.irfft(np.fft.rfft(sound, n) * np.conj(np.fft.rfft(pattern, n)), n)[:len(sound)]))


@dataclass
class Losses:
    """How a sound differs from what was sent: silence put in, samples left out, places that are neither."""

    gaps: int = 0
    gap_samples: int = 0
    left_out_samples: int = 0
    unexplained: int = 0


def losses(heard, sent, n_look=64):
    """Follow `sent` through `heard`, both from the same sample on, and write down every difference."""
    found = Losses()
    i = j = 0
    while (n := min(len(heard) - i, len(sent) - j)) > n_look:
        same = np.abs(heard[i:i + n] - sent[j:j + n]) <= ROUNDING
        if same.all():
            break
        first = int(np.argmin(same))
        i, j = i + first, j + first
        sounding = np.flatnonzero(heard[i:])
        n_silent = int(sounding[0]) if len(sounding) else len(heard) - i
        found.gaps += n_silent > 0
        found.gap_samples += n_silent
        i += n_silent
        ahead = heard[i:i + n_look]
        candidates = np.flatnonzero(np.abs(sent[j:j + 2 * RATE] - ahead[0]) <= ROUNDING) if len(ahead) == n_look else []
        skip = next((int(c) for c in candidates if len(sent) - j - c >= n_look
                     and np.all(np.abs(sent[j + c:j + c + n_look] - ahead) <= ROUNDING)), None)
        if skip is None:        # altered, as by a drift correction: look again one block later
            found.unexplained += 1
            i, j = i + RATE // 100, j + RATE // 100
        else:
            found.left_out_samples += skip
            j += skip
    return found


@dataclass
class Hearing:
    status: live.LiveStatus
    during: dict                # what the status counted while the words below were on their way
    spoken: np.ndarray
    microphone: np.ndarray      # as the program heard it, from the first spoken sample on
    enhanced: np.ndarray        # as the program made it, aligned with `microphone`
    heard: np.ndarray           # what the loudspeaker played, from the same sample on
    latency_ms: float


def hold_conversation(enhancer, folder, seconds, control=None, toggle_at=None):
    """Run `listen` while somebody speaks; with what everybody heard."""
    control = control or live.Control()
    spoken = speech_like(seconds)
    at_microphone, at_speaker = Ear("virtual_mic"), Ear("virtspk.monitor")
    outcome, history = [], []
    listener = threading.Thread(target=lambda: outcome.append(live.listen(
        enhancer, input_device=MICROPHONE, output_device=SPEAKER, record=folder, control=control,
        on_status=lambda status: history.append((time.monotonic(), status)))))
    listener.start()
    time.sleep(4)       # the wall clock is trusted after that
    toggler = threading.Timer(toggle_at or 0, control.toggle_bypass)
    if toggle_at is not None:
        toggler.start()
    speak(spoken, folder)
    time.sleep(2.5)     # the wall clock needs two seconds to be sure of a loss
    control.stop()
    listener.join(timeout=20)
    assert outcome, "listen did not end"
    entrance, exit_ = at_microphone.stop(), at_speaker.stop()
    microphone = soundfile.read(folder / "microphone.wav", dtype="float32")[0]
    enhanced = soundfile.read(folder / "enhanced.wav", dtype="float32")[0]
    assert len(microphone) == len(enhanced)
    begin = spoken[:RATE // 5]
    start = place_of(begin, microphone)
    said_at, played_at = place_of(begin, entrance), place_of(enhanced[start:start + RATE // 5], exit_)
    heard_at = at_speaker.began + played_at / RATE
    latency = heard_at - at_microphone.began - said_at / RATE
    # a queue counts a gap when the gap goes to the device's buffer, so long before it is heard
    first, last = (asdict(min(history, key=lambda told: abs(told[0] - when + 0.07))[1])
                   for when in (heard_at, heard_at + seconds))
    during = {name: last[name] - first[name] for name in
              ("gaps", "gap_samples", "dropped_samples", "device_gaps", "adjusted_samples")}
    window = slice(start, start + len(spoken))
    print({name: round(value, 1) if isinstance(value, float) else value for name, value in asdict(outcome[0]).items()})
    return Hearing(outcome[0], during, spoken, microphone[window], enhanced[window], exit_[played_at:], 1000 * latency)


def assert_all_losses_were_counted(hearing):
    seen, during = losses(hearing.heard, hearing.enhanced), hearing.during
    seen.left_out_samples += losses(hearing.microphone, hearing.spoken).left_out_samples
    print(f"counted: {during}")
    print(f"seen: {seen}; latency {hearing.latency_ms:.0f} ms measured, {hearing.status.latency_ms:.0f} ms reported")
    if during["device_gaps"] == during["adjusted_samples"] == 0:
        assert seen == Losses(during["gaps"], during["gap_samples"], during["dropped_samples"])
    elif not seen.unexplained:      # what the device's own buffer lost is known by the event, not by the sample
        assert seen.gaps <= during["gaps"] + during["device_gaps"]


@pytest.fixture(autouse=True)
def sound_server():
    """A server that runs, whatever the test before has done to it."""
    if subprocess.run(["pactl", "info"], capture_output=True, timeout=20).returncode != 0:
        subprocess.run([os.environ["PSE_SOUND_SERVER_START"]], check=True)


def server_process():
    return int((Path(os.environ["XDG_RUNTIME_DIR"]) / "pulse" / "pid").read_text())


def test_the_loudspeaker_plays_what_the_microphone_heard_and_every_gap_is_counted(tmp_path):
    hearing = hold_conversation(Delay(), tmp_path, seconds=20)
    np.testing.assert_array_equal(hearing.enhanced, hearing.microphone)
    assert_all_losses_were_counted(hearing)


class Stalling(Delay):
    """Takes 300 ms instead of next to nothing for a block, every three seconds."""

    def process(self, chunk):
        if time.monotonic() > self._next_stall:
            self._next_stall += 3
            time.sleep(0.3)
        return super().process(chunk)

    def reset(self):
        super().reset()
        self._next_stall = time.monotonic() + 6


def test_enhancement_that_stalls_makes_gaps_and_every_one_is_counted(tmp_path, monkeypatch):
    # microphone and loudspeaker have one clock here, and samples that are not bent can be compared
    monkeypatch.setattr(DriftControl, "adjust", lambda self, samples, waiting: samples)
    hearing = hold_conversation(Stalling(), tmp_path, seconds=12)
    # at most 170 ms wait in the queue, so none of the three or four stalls while somebody speaks can hide in it
    assert hearing.during["gaps"] >= 2 and hearing.status.late_steps >= 3
    assert_all_losses_were_counted(hearing)


def test_latency_is_reported_as_it_is_measured(tmp_path):
    hearing = hold_conversation(Delay(), tmp_path, seconds=5)
    # a monitor hears a sample when the server makes it, somewhat before a real loudspeaker would play it
    assert -20 < hearing.status.latency_ms - hearing.latency_ms < 70


def test_a_denoiser_plays_what_it_makes_of_a_file_and_before_after_switches_at_any_moment(tmp_path):
    enhancer, control = denoiser(), live.Control()
    control.bypass = True
    hearing = hold_conversation(enhancer, tmp_path, seconds=20, control=control, toggle_at=10)
    recorded = soundfile.read(tmp_path / "microphone.wav", dtype="float32")[0]
    start = place_of(hearing.spoken[:RATE // 5], recorded)
    offline = enhancer.enhance(recorded, RATE)[start:start + len(hearing.spoken)]
    before, after = slice(0, 8 * RATE), slice(11 * RATE, None)      # toggled at 9.5 s of what is spoken, or later
    np.testing.assert_allclose(hearing.enhanced[before], hearing.spoken[before], rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(hearing.enhanced[after], offline[after], rtol=0, atol=1e-6)
    assert_all_losses_were_counted(hearing)
    assert hearing.status.cpu_percent < 50


def test_a_device_is_chosen_by_name_number_or_part_of_the_name():
    chosen = find_device(MICROPHONE, "input")
    assert chosen.name == MICROPHONE
    assert find_device(str(chosen.index), "input") == find_device("SE_MI", "input") == chosen
    with pytest.raises(DeviceError, match="pse_mic.*pse_speaker"):
        find_device("pse", "input")
    with pytest.raises(DeviceError, match="no loudspeaker is called 'hall'; there is .*pse_speaker"):
        find_device("hall", "output")


def test_a_recording_holds_what_was_spoken(tmp_path):
    spoken, control, outcome = speech_like(5), live.Control(), []
    recorder = threading.Thread(target=lambda: outcome.append(
        record(tmp_path / "me.wav", device=MICROPHONE, control=control)))
    recorder.start()
    time.sleep(1)
    speak(spoken, tmp_path)
    control.stop()
    recorder.join(timeout=20)
    recording, rate = soundfile.read(tmp_path / "me.wav", dtype="float32")
    start = place_of(spoken[:RATE // 5], recording)
    assert rate == RATE and outcome[0].dropped_samples == 0
    np.testing.assert_array_equal(recording[start:start + len(spoken)], spoken)


@contextlib.contextmanager
def listening_program(seconds):
    """A process of its own that has listened for some seconds; in the end it prints its last status or its error."""
    program = subprocess.Popen([sys.executable, __file__, str(seconds)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, env=ENVIRONMENT)
    try:
        for _ in range(3):      # a line a second
            assert "latency" in program.stderr.readline()
        yield program
    finally:
        program.kill()


def test_a_server_that_dies_ends_in_one_line(tmp_path):
    with listening_program(seconds=60) as program:
        os.kill(server_process(), signal.SIGKILL)
        said, complaints = program.communicate(timeout=20)
    assert program.returncode == 2
    assert said.startswith("DeviceError: the microphone 'pse_mic' or the loudspeaker 'pse_speaker' went away")
    assert said.count("\n") == 1 and "ALSA" not in complaints and "Expression" not in complaints


def test_a_server_that_comes_back_is_heard_again(tmp_path):
    with listening_program(seconds=16) as program:
        os.kill(server_process(), signal.SIGKILL)
        time.sleep(0.5)
        subprocess.run([os.environ["PSE_SOUND_SERVER_START"]], check=True)
        ear = Ear("virtspk.monitor")
        time.sleep(4)
        spoken = speech_like(3)
        speak(spoken, tmp_path)
        said, _ = program.communicate(timeout=30)
        heard = ear.stop()
    assert program.returncode == 0, said
    assert json.loads(said)["reopened"] == 1
    pieces = spoken.reshape(30, -1)
    starts = [place_of(piece, heard) for piece in pieces]
    alike = [np.corrcoef(piece, heard[start:start + len(piece)])[0, 1]
             for piece, start in zip(pieces, starts, strict=True) if start + len(piece) <= len(heard)]
    assert np.count_nonzero(np.array(alike) > 0.9) > 20     # of 30; a busy machine may lose some again


def test_a_server_that_hangs_ends_in_one_line_too():
    with listening_program(seconds=60) as program:
        hanging = server_process()
        os.kill(hanging, signal.SIGSTOP)
        try:
            said, _ = program.communicate(timeout=25)
        finally:
            os.kill(hanging, signal.SIGCONT)
    assert program.returncode == 2
    assert said.startswith("DeviceError: ") and said.count("\n") == 1


@pytest.mark.skipif(find_spec("pse_sdk.cli") is None, reason="needs the command line")
def test_pse_listen_tells_its_last_status_as_json(tmp_path):
    denoiser().save(tmp_path / "model.onnx")
    done = subprocess.run([sys.executable, "-m", "pse_sdk.cli", "listen", "--model", str(tmp_path / "model.onnx"),
                           "--input", MICROPHONE, "--output", SPEAKER, "--seconds", "5", "--json"],
                          capture_output=True, text=True, timeout=60, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["seconds"] >= 5


if __name__ == "__main__":
    from pse_sdk.live_screen import run_listen
    try:
        last = run_listen(Delay(), input_device=MICROPHONE, output_device=SPEAKER, seconds=float(sys.argv[1]))
    except PseError as error:
        print(f"{type(error).__name__}: {error}")
        sys.exit(2)
    print(json.dumps(asdict(last)))
