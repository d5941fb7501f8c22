"""Personalization from the outside: the child process, what it refuses, what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from pse_sdk import Enhancer, arguments, checkpoint_file, child, job
from pse_sdk.enhancer import generalist
from pse_sdk.errors import (
    AudioError,
    MissingDependencyError,
    ModelFileError,
    PersonalizationCancelled,
    PersonalizationError,
    SettingsError,
)
from pse_sdk.noise import foreign_noise
from pse_sdk.report import Check, Report

RATE = 16_000


def shipped(*sizes: str) -> bool:
    try:
        return all(generalist(size).with_suffix(".safetensors").exists() for size in sizes)
    except ModelFileError:
        return False


needs_models = pytest.mark.skipif(not shipped("tiny"), reason="this checkout has no tiny generalist")
data = os.environ.get("PSE_DATA")


@pytest.fixture
def hum() -> tuple[np.ndarray, int]:
    """Half a minute without a word."""
    return foreign_noise(30.0, np.random.default_rng(0), "hum"), RATE


@pytest.fixture(autouse=True)
def temporary_files(tmp_path, monkeypatch):
    """Job folders go below the test's own folder, so that what is left of them can be seen."""
    folder = tmp_path / "jobs"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not list(folder.iterdir()), "a job folder was left behind"


@pytest.fixture
def written(monkeypatch) -> list[str]:
    """Names of the sounds that the child process was given, call after call."""
    names, run = [], job.run_child
    monkeypatch.setattr(job, "run_child", lambda folder, *rest: (
        names.extend(sorted(path.name for path in folder.glob("*-*.npy"))), run(folder, *rest)))
    return names


@pytest.fixture(scope="module")
def reader_recordings() -> list[tuple[np.ndarray, int]]:
    """Two recordings of a reader in an office hum, made from real speech."""
    if not data:
        pytest.skip("needs the audio that PSE_DATA names")
    rng = np.random.default_rng(0)
    speaker = sorted((Path(data) / "speech" / "users").iterdir())[0]
    clips = [soundfile.read(path, dtype="float32")[0] for path in sorted(speaker.iterdir())[:16]]
    recordings = []
    for part in (clips[:8], clips[8:]):
        speech = np.concatenate([piece for clip in part for piece in (np.zeros(RATE, np.float32), clip)])
        noise = foreign_noise(len(speech) / RATE, rng, "coloured")[:len(speech)]
        recordings.append(((speech + noise * np.sqrt(np.mean(speech**2) / np.mean(noise**2) / 5)).astype(np.float32),
                           RATE))
    return recordings


@needs_models
def test_recordings_without_speech_leave_the_generalist(hum):
    enhancer = Enhancer.personalize([hum], size="tiny", budget_seconds=30)
    assert enhancer.report.status == "insufficient_data"
    assert enhancer.digest == Enhancer(size="tiny").digest
    assert enhancer.report.advice


@needs_models
def test_music_alone_trains_nothing():
    time = np.arange(60 * RATE) / RATE
    chords = [220 * 2 ** (np.array(steps) / 12) for steps in ((0, 4, 7), (5, 9, 12), (7, 11, 14), (2, 5, 9))]
    played = [np.sin(2 * np.pi * hz * k * time) / k for chord in chords for hz in chord for k in (1, 2, 3)]
    played = np.stack(played).reshape(4, 9, -1).sum(1)
    music = played[(time // 0.5).astype(int) % 4, np.arange(len(time))] * np.exp(-2 * (time % 0.5))
    report = Enhancer.personalize((music / np.abs(music).max(), RATE), size="tiny", budget_seconds=60).report
    assert report.status == "insufficient_data" and any("music" in line for line in report.advice)


@needs_models
def test_a_short_training_ends_in_a_model_that_is_not_worse_and_a_report(reader_recordings, tmp_path):
    enhancer = Enhancer.personalize(reader_recordings, size="tiny", budget_seconds=110, steps=25, threads=1)
    report = enhancer.report
    assert report.status in ("accepted", "kept")
    assert report.n_steps == 25
    assert 60 < report.seconds_of_speech < report.seconds_recorded
    assert 0 < report.snr_db < 15
    if report.accepted:
        assert all(check.passed for check in report.checks)
        assert enhancer.info.method == "teacher"
        assert enhancer.info.generalist == Enhancer(size="tiny").digest
    else:
        assert enhancer.digest == Enhancer(size="tiny").digest
    enhancer.save(tmp_path / "mine.onnx")
    assert Enhancer(tmp_path / "mine.onnx").digest == enhancer.digest


@needs_models
def test_clean_speech_counts_as_clean_and_noisy_speech_given_as_clean_does_not(reader_recordings):
    speaker = sorted((Path(data) / "speech" / "users").iterdir())[0]
    clean = soundfile.read(sorted(speaker.iterdir())[20], dtype="float32")
    noisy = (reader_recordings[0][0][: 10 * RATE], RATE)
    report = Enhancer.personalize(reader_recordings, clean=[clean, noisy], size="tiny", budget_seconds=110, steps=3,
                                  threads=1).report
    assert report.seconds_of_clean == pytest.approx(len(clean[0]) / RATE, abs=0.1)
    assert any("given as clean" in note for note in report.notes)


@needs_models
def test_finetuning_needs_speech_that_is_clean(reader_recordings):
    with pytest.raises(SettingsError, match="clean="):
        Enhancer.personalize(reader_recordings, method="finetune")
    report = Enhancer.personalize(reader_recordings, clean=reader_recordings[0], method="finetune", size="tiny",
                                  budget_seconds=60, steps=1, threads=1).report
    assert report.status == "insufficient_data" and "clean" in report.summary


@needs_models
def test_a_specialist_for_one_voice_is_judged_beside_others(reader_recordings):
    report = Enhancer.personalize(reader_recordings, others="remove", size="tiny", budget_seconds=170, steps=300,
                                  threads=1, seed=3).report
    assert report.others == "remove"
    checks = {check.name: check.value for check in report.checks}
    assert checks["voices_db"] > 0.2


@needs_models
def test_another_teacher_is_asked_once_for_each_recording(reader_recordings):
    asked = []

    def teacher(samples):
        asked.append(samples.copy())
        samples *= 0.5      # it may spoil what it is given
        return samples

    report = Enhancer.personalize(reader_recordings, teacher=teacher, size="tiny", budget_seconds=110, steps=3,
                                  threads=1).report
    assert report.n_steps == 3
    for samples, (recording, _) in zip(asked, reader_recordings, strict=True):
        np.testing.assert_allclose(samples, recording, atol=1e-3)


@pytest.mark.parametrize("answer", [np.full(30 * RATE, 1e39), [[1.0, 2.0], [3.0]],
                                    np.zeros(3, np.float32), np.zeros(30 * RATE, np.int16), None,
                                    np.full(30 * RATE, np.nan, np.float32)])
def test_a_teacher_that_answers_with_something_else_is_refused(hum, answer):
    wanted = "teacher: expected as many finite floats|480000 of the 480000 samples that it returned are NaN"
    with pytest.raises(SettingsError, match=wanted):
        Enhancer.personalize([hum], teacher=lambda samples: answer)


@pytest.mark.parametrize("wrong, message", [
    (lambda samples: 0 * samples, "hears no speech"), (lambda samples: -samples, "no part of the recordings"),
    (lambda samples: 1e20 * samples, "no part"), (lambda samples: 10 * samples, "no part"),
    (lambda samples: 0.1 * samples, "no part"), (lambda samples: np.roll(samples, 1600), "later or earlier"),
    (lambda samples: np.random.default_rng(7).standard_normal(len(samples)), "no part")])
def test_a_teacher_whose_answer_is_in_no_recording_is_refused(hum, wrong, message):
    samples = np.random.default_rng(0).standard_normal(20 * RATE).astype(np.float32)
    with pytest.raises(SettingsError, match=f"teacher: .*{message}"):
        Enhancer.personalize([(0.1 * samples, RATE)], teacher=wrong)


@needs_models
def test_a_teacher_that_takes_the_whole_budget_is_not_asked_again(monkeypatch, tmp_path):
    monkeypatch.setattr(job, "SHORTEST_BUDGET_SECONDS", 0.1)
    asked, began = [], time.monotonic()
    recordings = [(foreign_noise(2.0, np.random.default_rng(seed), "hum"), RATE) for seed in range(3)]

    def slow(samples):
        asked.append(samples)
        time.sleep(1.0)
        return samples

    report = Enhancer.personalize(recordings, teacher=slow, size="tiny", budget_seconds=0.5).report
    assert len(asked) == 1 and report.status == "kept" and "too little of the budget" in report.summary
    assert time.monotonic() - began < 20


@needs_models
def test_what_is_clipped_hard_is_not_learnt_from(hum, written):
    samples = np.random.default_rng(1).standard_normal(3 * RATE).astype(np.float32).repeat(10)
    hard = [(0.9 * np.clip(level * samples, -1, 1), RATE) for level in (1.0, 2.0)]
    report = Enhancer.personalize([hum, hard[0]], clean=[hard[1]], size="tiny", budget_seconds=30).report
    assert written == ["recording-00000.npy"]
    assert sum("left out: they are clipped so hard" in note for note in report.notes) == 2
    assert report.status == "insufficient_data" and any("level turned down" in advice for advice in report.advice)
    report = Enhancer.personalize(hard[0], size="tiny", budget_seconds=30).report
    assert report.status == "insufficient_data" and report.summary.startswith("Nothing of what was recorded")


@pytest.mark.parametrize("cores, load, threads", [(2, 0.1, 2), (2, 0.9, 1), (2, 7.0, 1), (8, 0.0, 4), (8, 6.2, 2),
                                                  (None, 0.0, 1)])
def test_training_takes_the_cores_that_are_idle(monkeypatch, cores, load, threads):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    assert job._idle_cores() == threads


@pytest.mark.parametrize("given, most", [(None, 3), (1, None), (2, None)])
def test_training_tries_other_numbers_of_threads_unless_one_is_given(monkeypatch, given, most):
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    settings = job._checked("keep", False, "auto", False, "tiny", 60.0, given, 0, None, 0)
    assert settings["most_threads"] == most


def test_a_report_without_numbers_is_json_all_the_same():
    broken = Report(status="kept", summary="it broke", gain_db=float("nan"),
                    checks=(Check("clean_db", False, float("-inf"), -0.5, "fidelity"),))
    text = broken.to_json()
    values = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert values["gain_db"] is None and values["checks"][0]["value"] is None
    read = Report.from_json(text)
    assert np.isnan(read.gain_db) and np.isnan(read.checks[0].value) and read.checks[0].limit == -0.5


def test_a_teacher_that_answers_with_what_torch_still_follows_is_refused(hum):
    torch = pytest.importorskip("torch")
    with pytest.raises(SettingsError, match="teacher: .*requires grad"):
        Enhancer.personalize([hum], teacher=lambda samples: torch.zeros(len(samples), requires_grad=True))


def test_an_error_in_the_callers_own_teacher_reaches_the_caller(hum):
    with pytest.raises(ZeroDivisionError):
        Enhancer.personalize([hum], teacher=lambda samples: 1 / 0)


def test_voices_without_a_word_on_others_are_refused():
    with pytest.raises(SettingsError, match='others="remove"'):
        Enhancer.personalize("no/such/folder", voices="talkers/")


@needs_models
def test_progress_starts_at_nothing_and_never_runs_back(hum):
    seen = []
    Enhancer.personalize([hum], size="tiny", budget_seconds=30, on_progress=lambda progress: seen.append(progress))
    assert seen[0].stage == "read" and seen[-1].stage == "done" and len(seen) > 2
    done = [progress.done for progress in seen]
    assert done == sorted(done)
    assert all(0 <= progress.seconds_left <= 30 for progress in seen)


@needs_models
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to see the child")
def test_training_gives_way_when_asked_to(hum):
    seen = []

    def look(progress):
        children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
        if progress.stage == "analyse":
            seen.extend(os.getpriority(os.PRIO_PROCESS, int(pid)) for pid in children.read_text().split())
    Enhancer.personalize([hum], size="tiny", budget_seconds=30, nice=5, on_progress=look)
    assert max(seen) >= os.nice(0) + 5


@needs_models
def test_returning_false_cancels(hum):
    with pytest.raises(PersonalizationCancelled):
        Enhancer.personalize([hum], size="tiny", budget_seconds=30, on_progress=lambda now: now.stage == "read")


@needs_models
def test_an_error_in_the_callers_own_callback_reaches_the_caller(hum):
    def broken(progress):
        if progress.stage != "read":
            raise RuntimeError("the application's own fault")
    with pytest.raises(RuntimeError, match="own fault"):
        Enhancer.personalize([hum], size="tiny", budget_seconds=30, on_progress=broken)


@needs_models
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_a_killed_training_process_is_one_line_of_our_own(hum, monkeypatch):
    class Killed(subprocess.Popen):
        def __init__(self, *args, **keywords):
            super().__init__(*args, **keywords)
            time.sleep(0.2)
            self.send_signal(signal.SIGKILL)
    monkeypatch.setattr(child.subprocess, "Popen", Killed)
    with pytest.raises(PersonalizationError, match="unchanged"):
        Enhancer.personalize([hum], size="tiny", budget_seconds=30)


@pytest.mark.parametrize("wrong", [
    {"method": "magic"}, {"size": "huge"}, {"budget_seconds": 3}, {"budget_seconds": float("nan")}, {"threads": 0},
    {"steps": 0}, {"seed": -1}, {"seed": 1.5}, {"seed": True}, {"nice": 20}, {"nice": -1},
    {"on_progress": 3}, {"others": "hide"}, {"teacher": 3},
])
def test_a_wrong_setting_is_refused_before_anything_is_read(wrong):
    with pytest.raises(SettingsError) as refusal:
        Enhancer.personalize("no/such/folder", **wrong)
    assert str(next(iter(wrong.values()))) in str(refusal.value)


@needs_models
def test_training_knows_nothing_of_what_lies_in_the_folder_it_was_called_from(hum, monkeypatch, tmp_path):
    for name in ("copy", "json", "torch"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('somebody else s file was run')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep + os.environ.get("PYTHONPATH", ""))
    assert Enhancer.personalize([hum], size="tiny", budget_seconds=30).report.status == "insufficient_data"


@needs_models
def test_a_clock_that_is_set_changes_no_budget(hum, monkeypatch):
    began, real = time.time(), time.time
    monkeypatch.setattr(job.time, "time", lambda: real() + 3600 * (real() > began + 1))
    assert Enhancer.personalize([hum], size="tiny", budget_seconds=30).report.status == "insufficient_data"


def test_a_training_process_that_cannot_start_is_said_in_our_own_words(hum, monkeypatch):
    def full(*_, **__):
        raise OSError(12, "Cannot allocate memory")
    monkeypatch.setattr(child.subprocess, "Popen", full)
    with pytest.raises(PersonalizationError, match="Cannot allocate memory.*unchanged"):
        Enhancer.personalize([hum])


def test_a_packed_application_is_not_started_again(hum, monkeypatch):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(MissingDependencyError, match="packed"):
        Enhancer.personalize([hum])


@pytest.mark.parametrize("line", [b"onednn_verbose,v1,info\n", b"3\n", b"\xff\n", b"null\n", b"\n"])
def test_what_a_library_prints_is_no_message(line):
    assert child._message(line) == {}


def test_a_temporary_folder_that_cannot_be_made_is_said_in_our_own_words(hum, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(PersonalizationError, match="TMPDIR"):
        Enhancer.personalize([hum])


def test_a_full_disk_is_said_in_our_own_words_and_leaves_nothing(hum, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(child.np, "save", full)
    with pytest.raises(PersonalizationError, match="No space left.*TMPDIR"):
        Enhancer.personalize([hum])


def test_a_missing_recording_is_named(tmp_path):
    with pytest.raises(AudioError, match="monday.wav"):
        Enhancer.personalize(tmp_path / "monday.wav")


def test_without_torch_the_error_says_what_to_install(hum, monkeypatch):
    find = job.importlib.util.find_spec
    monkeypatch.setattr(job.importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    with pytest.raises(MissingDependencyError, match=r"pse_sdk\[train\]"):
        Enhancer.personalize([hum])


def test_the_library_prints_nothing(hum, capfd):
    if not shipped("tiny"):
        pytest.skip("this checkout has no tiny generalist")
    Enhancer.personalize([hum], size="tiny", budget_seconds=30)
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err == ""


def test_importing_the_front_door_does_not_import_torch():
    code = "import sys, pse_sdk; sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_is_wrong_with_other_sounds_names_the_argument(hum):
    with pytest.raises(AudioError, match="clean: recording 1 holds no samples"):
        Enhancer.personalize([hum], clean=(np.zeros(0), RATE))
    with pytest.raises(AudioError, match="noise: expected a file"):
        Enhancer.personalize([hum], noise=5)
    for given in ([(hum[0], "16000")], (hum[0], "16000")):
        with pytest.raises(AudioError, match="a number in Hz, got a str"):
            Enhancer.personalize(given)


@pytest.mark.parametrize("content", [b"my diary", b"PK\x03\x04 a torch file of somebody else's"])
def test_a_file_that_is_no_checkpoint_is_never_touched(hum, tmp_path, content):
    diary = tmp_path / "diary"
    diary.write_bytes(content)
    with pytest.raises(SettingsError, match="no checkpoint"):
        Enhancer.personalize([hum], checkpoint=diary)
    assert diary.read_bytes() == content


def test_words_that_are_arrays_are_refused_like_others():
    for name in ("method", "size", "others"):
        with pytest.raises(SettingsError, match="array"):
            Enhancer.personalize("no/such/folder", **{name: np.zeros(2)})


def test_an_empty_list_is_named(hum):
    for name in ("clean", "noise"):
        with pytest.raises(SettingsError, match=name):
            Enhancer.personalize([hum], **{name: []})


@needs_models
def test_a_recording_that_is_given_as_clean_too_is_in_one_part_only(hum, written):
    other = (foreign_noise(30.0, np.random.default_rng(1), "coloured"), RATE)
    report = Enhancer.personalize([hum, other], clean=[other], size="tiny", budget_seconds=30).report
    assert written == ["clean-00000.npy", "recording-00000.npy"]
    assert any("1 of 2 recordings are given as clean, too" in note for note in report.notes)


@needs_models
@pytest.mark.parametrize("name, settings", [("noise", {}), ("voices", {"others": "remove"})])
def test_a_recording_of_the_user_is_no_noise_and_no_other_voice(hum, written, name, settings):
    other = (foreign_noise(30.0, np.random.default_rng(1), "coloured"), RATE)
    report = Enhancer.personalize([hum], **{name: [other, hum]}, **settings, size="tiny", budget_seconds=30).report
    kind = name.removesuffix("s")
    assert sorted(written) == sorted([f"{kind}-00000.npy", "recording-00000.npy"])
    assert any(f"1 of 2 {kind}s are recordings of the user" in note for note in report.notes)


@needs_models
def test_notes_name_recordings_by_their_place_in_what_was_given(hum, monkeypatch):
    monkeypatch.setitem(job.MOST_SECONDS, "keep", 40.0)
    quiet = [(foreign_noise(25.0, np.random.default_rng(seed), "hum"), RATE) for seed in range(3)]
    syllables = np.repeat(np.random.default_rng(0).random(150) > 0.5, RATE // 5)
    clipped = (np.clip(np.random.default_rng(1).standard_normal(30 * RATE), -1, 1) * syllables).astype(np.float32)
    report = Enhancer.personalize([*quiet, (clipped, RATE)], size="tiny", budget_seconds=30).report
    assert [note.split(": ")[0] for note in report.notes if "clipped" in note] == ["recording 4"]


@pytest.mark.skipif(checkpoint_file.fcntl is None, reason="needs locks of files")
def test_two_personalizations_never_share_a_checkpoint(hum, tmp_path):
    checkpoint = tmp_path / "me.checkpoint"
    with (checkpoint_file.alone_at(checkpoint),
          pytest.raises(SettingsError, match="another personalization writes there now")):
        Enhancer.personalize([hum], checkpoint=checkpoint)
    with checkpoint_file.alone_at(checkpoint):
        pass
    assert not list(tmp_path.glob("*me.checkpoint*"))


@pytest.mark.skipif(checkpoint_file.fcntl is None, reason="needs locks of files")
def test_where_files_cannot_be_locked_there_is_no_lock(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(37, "No locks available")
    monkeypatch.setattr(checkpoint_file.fcntl, "flock", no_locks)
    with pytest.raises(OSError, match="of the work itself"), checkpoint_file.alone_at(tmp_path / "me.checkpoint"):
        raise OSError("of the work itself")
    assert not list(tmp_path.glob("*me.checkpoint*"))


def test_a_disk_without_room_for_a_checkpoint_is_noticed_before_training(hum, tmp_path, monkeypatch):
    monkeypatch.setattr(arguments.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**6))
    with pytest.raises(SettingsError, match="me.checkpoint: cannot be written .*1000000 bytes left"):
        Enhancer.personalize([hum], checkpoint=tmp_path / "me.checkpoint")
    assert not list(tmp_path.glob("*me.checkpoint*"))


def test_what_a_teacher_returns_beside_numbers_is_counted(hum):
    def teacher(samples):
        samples[:7] = np.nan
        return samples
    with pytest.raises(SettingsError, match="teacher: 7 of the .* are NaN or infinite"):
        Enhancer.personalize([hum], teacher=teacher)


@needs_models
def test_a_checkpoint_outlives_a_call_that_trained_nothing(hum, tmp_path):
    checkpoint = tmp_path / "me.checkpoint"
    checkpoint.write_bytes(checkpoint_file.CHECKPOINT_HEADER + b"of hours")
    (tmp_path / ".me.checkpoint.1-2.partial").write_bytes(b"half")
    Enhancer.personalize([hum], size="tiny", budget_seconds=30, checkpoint=checkpoint)
    assert checkpoint.read_bytes().endswith(b"of hours") and not list(tmp_path.glob("*.partial"))
    assert not list(tmp_path.glob(".*.partial"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_a_pipe_in_the_place_of_an_abandoned_job_is_left_alone(temporary_files):
    folder = temporary_files / f"{child.FOLDER_PREFIX}x"
    folder.mkdir()
    os.mkfifo(folder / child.IN_USE)
    child.remove_abandoned()
    assert folder.exists()
    (folder / child.IN_USE).unlink()
    folder.rmdir()


@needs_models
def test_many_short_messages_are_learnt_from_and_one_is_too_short(reader_recordings, monkeypatch):
    from pse_sdk.training import material
    from pse_sdk.training.job import Job, NoSpecialist
    length = int(2.5 * RATE)
    messages = [samples[start:start + length] for samples, _ in reader_recordings
                for start in range(0, len(samples) - length, length)]
    found = material.prepare(Job(messages, deadline=time.monotonic() + 100), {})
    assert found.mixtures.n_segments > len(messages) and found.guard.n_segments >= 2
    monkeypatch.setattr(material, "LEAST_SPEECH_SECONDS", 0.5)
    with pytest.raises(NoSpecialist, match="too little speech in one piece"):
        material.prepare(Job(messages[1:2], deadline=time.monotonic() + 100), {})


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX locks")
def test_recordings_of_processes_that_were_all_killed_are_removed_by_the_next_call(hum, temporary_files):
    code = ("import os, signal, sys, tempfile\nfrom pse_sdk import child\ntempfile.tempdir = sys.argv[1]\n"
            "folder, in_use = child.new_folder()\n(folder / 'recording-00000.npy').write_bytes(b'a voice')\n"
            "print('ready', flush=True)\nsys.stdin.read()")
    other = subprocess.Popen([sys.executable, "-c", code, str(temporary_files)], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"ready\n"
    child.remove_abandoned()
    [left] = temporary_files.glob("pse-*/*.npy")        # it is still at work
    other.kill()
    other.communicate()
    child.remove_abandoned()
    assert not left.parent.exists()


@needs_models
@pytest.mark.skipif(os.name != "posix", reason="needs POSIX process numbers")
def test_recordings_do_not_stay_behind_when_the_application_is_killed(tmp_path, temporary_files):
    code = ("import numpy as np, pse_sdk\n"
            "noise = np.random.default_rng(0).standard_normal(60 * 16_000).astype('float32') * 0.1\n"
            "pse_sdk.Enhancer.personalize((noise, 16_000), size='tiny', budget_seconds=60)")
    application = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(temporary_files)})
    for _ in range(200):
        if list(temporary_files.glob("pse-*/job.json")):
            break
        time.sleep(0.05)
    time.sleep(0.3)
    application.kill()
    application.wait()
    for _ in range(200):
        if not list(temporary_files.iterdir()):
            return
        time.sleep(0.05)
    pytest.fail(f"left behind: {[path.name for path in temporary_files.iterdir()]}")


@needs_models
def test_while_it_is_paused_training_rests_and_the_clock_stands_still(reader_recordings):
    seen = []
    rested_from = []

    def paused():
        if seen and seen[-1].stage == "train" and not rested_from:
            rested_from.append(time.monotonic())
        return bool(rested_from) and time.monotonic() - rested_from[0] < 6

    began = time.monotonic()
    mine = Enhancer.personalize(reader_recordings[:1], size="tiny", budget_seconds=25, threads=1, paused=paused,
                                on_progress=lambda progress: seen.append(progress))
    rests = [progress.seconds_left for progress in seen if progress.stage == "rest"]
    assert len(rests) > 10
    assert max(rests) - min(rests) < 0.5
    elapsed = time.monotonic() - began
    assert 5.5 < elapsed - mine.report.seconds_spent < 12 and elapsed < 45      # the rest, and what is not training
    assert mine.report.seconds_spent > 15 and mine.report.n_steps > 20


@needs_models
@pytest.mark.timeout(300)       # three trainings, long enough for a checkpoint on a fast machine
def test_a_killed_personalization_goes_on_from_its_checkpoint(reader_recordings, tmp_path):
    checkpoint, settings = tmp_path / "me.checkpoint", {"size": "tiny", "steps": 200, "threads": 1}
    shares: list[float] = []

    def run(may_go_on=lambda done: True, **more):
        shares.clear()

        def on_progress(progress):
            if progress.stage == "train":
                shares.append(progress.done)
                return may_go_on(progress.done)
            return True
        return Enhancer.personalize(reader_recordings, budget_seconds=240, on_progress=on_progress, **settings, **more)

    expected = run()
    with pytest.raises(PersonalizationCancelled):
        run(lambda done: done < 0.75 or not checkpoint.exists(), checkpoint=checkpoint)
    assert checkpoint.exists()
    mine = run(checkpoint=checkpoint)
    assert shares[0] > 0.2
    assert not checkpoint.exists()
    assert [check.value for check in mine.report.checks] == [check.value for check in expected.report.checks]


@needs_models
def test_a_specialist_goes_on_from_itself_and_stays_where_nothing_better_is_found(reader_recordings, hum, tmp_path):
    first = Enhancer.personalize(reader_recordings[:1], size="tiny", budget_seconds=60, steps=60, threads=1)
    first.save(tmp_path / "me.onnx")
    second = Enhancer.personalize(reader_recordings[1:], start=tmp_path / "me.onnx", budget_seconds=60, steps=60,
                                  threads=1)
    if second.report.accepted:
        assert second.info.generalist == first.digest and second.info.size == "tiny"
    else:
        assert second.digest == first.digest
    kept = Enhancer.personalize([hum], start=first, budget_seconds=30)
    assert kept.report.status == "insufficient_data" and kept.digest == first.digest
    assert "The model it went on from stays in use." in kept.report.summary


@pytest.mark.parametrize("settings, words", [
    ({"start": 3}, "start"), ({"paused": True}, "paused"), ({"checkpoint": 3}, "checkpoint"),
    ({"checkpoint": "/"}, "checkpoint"), ({"checkpoint": "nowhere/at/all"}, "checkpoint"),
])
def test_what_training_cannot_start_from_is_refused_early(hum, settings, words):
    with pytest.raises(SettingsError, match=words):
        Enhancer.personalize([hum], **settings)


@needs_models
def test_a_start_of_another_size_is_refused(hum):
    with pytest.raises(SettingsError, match="size"):
        Enhancer.personalize([hum], size="small", start=Enhancer(size="tiny"))
