"""The study of `benchmarks/study.py`, with a personalization that trains nothing."""

import importlib
import importlib.util
import json
import os
import time
from dataclasses import replace
from functools import partial
from math import isnan, nan
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pse_sdk.empty_model import empty_model
from pse_sdk.enhancer import Enhancer
from pse_sdk.errors import MissingDependencyError, PersonalizationError, SettingsError
from pse_sdk.report import ACCEPTED, KEPT, Report

RATE = 16_000
PROGRAMS = Path(__file__).parent.parent / "benchmarks"


def program(monkeypatch, name):
    monkeypatch.syspath_prepend(str(PROGRAMS))
    return importlib.import_module(name)


@pytest.fixture
def engines(monkeypatch):
    return program(monkeypatch, "engines")


@pytest.fixture
def study(monkeypatch, tmp_path):
    """The program, where scoring and personalizing cost nothing: a specialist gains as many dB as it has minutes."""
    pytest.importorskip("scipy")
    model = tmp_path / "empty.onnx"
    model.write_bytes(empty_model())
    program_ = program(monkeypatch, "study")

    def personalize(recordings, *, clean, **arguments):
        seconds = sum(len(samples) for samples, _ in recordings) / RATE
        calls.append({"seconds": seconds, "clean": clean, **arguments})
        if seconds < 1:
            raise PersonalizationError(f"{tmp_path / 'users' / 'ann'}: ended without a result")
        mine = Enhancer(model)
        if arguments["budget_seconds"] < 1:
            mine.report = Report(KEPT, "too little of the budget is left")
            return mine
        mine.report = Report(ACCEPTED, "better", n_steps=7, gain_db=0.25, snr_db=12.0)
        mine.gain_db = seconds / 60
        return mine

    def scores(enhancer, user, settings):
        gain_db = getattr(enhancer, "gain_db", 0.0)
        return {"noise": {"si_sdr_improvement": 5.0 + gain_db, "pesq": nan, "estoi": 0.5}}

    calls = program_.calls = []
    monkeypatch.setattr(program_.Enhancer, "personalize", personalize)
    monkeypatch.setattr(program_, "scores", scores)
    return program_


@pytest.fixture
def users(tmp_path):
    """Ann has six seconds of recordings and two of clean speech, Bob three of recordings."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(6 * RATE)
    for path, seconds in [("ann/recordings/00.wav", 4), ("ann/recordings/01.wav", 2), ("ann/clean/00.wav", 2),
                          ("bob/recordings/00.wav", 3)]:
        (tmp_path / "users" / path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / "users" / path, noise[:seconds * RATE], RATE, subtype="FLOAT")
    for user in ("ann", "bob"):
        (tmp_path / "users" / user / "tests" / "noise").mkdir(parents=True)
    return tmp_path / "users"


@pytest.fixture
def settings(study, tmp_path):
    return study.Settings(("noise",), tmp_path / "work", 60.0, 1, 0)


def tasks_of(study, users, settings, minutes=(0.05, 0.1), clean_seconds=(0.0,)):
    return list(study.tasks_of(study.users_in(users, None), settings, ["tiny"], ["auto"], minutes, clean_seconds))


# What is asked for.


@pytest.mark.parametrize("method, others", [("auto", "keep"), ("auto:remove", "remove")])
def test_a_method_says_what_happens_to_other_voices(study, users, settings, method, others):
    condition = study.Condition("tiny", method, "recordings", 0.1, 0.0)
    study.study(study.Task(users / "ann", condition, users / "row.json"), settings)
    assert (study.calls[-1]["method"], study.calls[-1]["others"]) == ("auto", others)


def test_minutes_are_the_same_share_from_the_beginning_of_each_recording(study, users):
    whole = [soundfile.read(path, dtype="float32")[0] for path in sorted((users / "ann" / "recordings").iterdir())]
    cut = study.first_minutes(users / "ann" / "recordings", 0.05)
    assert [len(samples) for samples, _ in cut] == [2 * RATE, RATE]
    for (samples, rate), recording in zip(cut, whole, strict=True):
        assert rate == RATE
        np.testing.assert_array_equal(samples, recording[:len(samples)])
    assert [len(samples) for samples, _ in study.first_minutes(users / "ann" / "recordings", 9)] == [4 * RATE, 2 * RATE]


def test_clean_speech_starts_where_it_can_be_heard_and_goes_on_in_the_next_file(study, tmp_path):
    for name, silent, loud in [("00", 0.5, 1.0), ("01", 0.0, 2.0)]:
        soundfile.write(tmp_path / f"{name}.wav", np.repeat([0.0, 0.5], [int(silent * RATE), int(loud * RATE)]), RATE)
    lengths = [len(samples) / RATE for samples, _ in study.first_seconds(tmp_path, 2.5)]
    assert lengths == [1.0, 1.5]
    assert study.first_seconds(tmp_path, 0.0) == []
    [(samples, _)] = study.first_seconds(tmp_path, 1.2)
    assert len(samples) == RATE         # 0.2 s more would be no recording


def test_users_are_asked_for_no_more_than_they_have(study, users, settings):
    (users / "ann" / "recordings-0dB").symlink_to(users / "bob" / "recordings")
    found = {(task.user.name, task.condition.recordings, task.condition.minutes, task.condition.clean_seconds)
             for task in tasks_of(study, users, settings, clean_seconds=(0.0, 2.0))}
    assert found == {("ann", "recordings", 0.05, 0.0), ("ann", "recordings", 0.1, 0.0),
                     ("ann", "recordings", 0.05, 2.0), ("ann", "recordings", 0.1, 2.0),
                     ("ann", "recordings-0dB", 0.05, 0.0), ("ann", "recordings-0dB", 0.05, 2.0),
                     ("bob", "recordings", 0.05, 0.0)}
    chosen = study.tasks_of(study.users_in(users, None), settings, ["tiny"], ["auto"], [0.05], [0.0],
                            ["recordings-0dB"])
    assert {(task.user.name, task.condition.recordings) for task in chosen} == {("ann", "recordings-0dB")}


def test_a_row_is_named_after_all_that_determines_it(study, users, settings):
    def rows(changed=settings):
        return {task.row.name for task in tasks_of(study, users, changed)}

    before = rows()
    assert len(before) == 3 and rows() == before
    for change in ({"budget_seconds": 61.0}, {"threads": 2}, {"seed": 1}, {"steps": 5}, {"sets": ("noise", "clean")}):
        assert not rows(study.replace(settings, **change)) & before
    soundfile.write(users / "bob" / "recordings" / "00.wav", np.zeros(3 * RATE), RATE)
    assert len(rows() & before) == 2
    soundfile.write(users / "ann" / "tests" / "noise" / "00.noisy.wav", np.zeros(RATE), RATE)
    assert not rows() & before
    soundfile.write(users / "ann" / "clean" / "00.wav", np.zeros(RATE), RATE)       # that no condition asks for
    assert len({task.row.name for task in tasks_of(study, users, settings)} & rows()) == 3


# What is left.


def test_a_task_leaves_a_row_that_reads_as_it_was_written(study, users, settings):
    task = tasks_of(study, users, settings, clean_seconds=(2.0,))[1]
    study.run_task(task, settings)
    row = study.read_row(task)
    assert (row.user, row.condition, row.status) == ("ann", task.condition, "accepted")
    assert row.scores["noise"]["si_sdr_improvement"] == pytest.approx(5.1) and isnan(row.scores["noise"]["pesq"])
    [call] = study.calls
    assert (call["seconds"], call["method"], call["budget_seconds"]) == (6.0, "auto", 60.0)
    assert [len(samples) for samples, _ in call["clean"]] == [2 * RATE]
    assert not list(settings.work.rglob("*.partial"))


def test_a_failed_task_leaves_a_row_without_paths_and_is_tried_again(study, users, settings):
    [task] = tasks_of(study, users, settings, minutes=(0.01,))[:1]
    study.run_task(task, settings)
    row = study.read_row(task)
    assert row.status == "failed" and row.note == "PersonalizationError: ann: ended without a result"
    assert not study.is_finished(task)


def test_a_task_without_time_to_train_has_no_verdict_and_is_tried_again(study, users, settings):
    task, short = tasks_of(study, users, settings)[0], replace(settings, budget_seconds=0.5)
    study.run_task(task, short)
    row = study.read_row(task)
    assert row.status == "failed" and "too little of the budget" in row.note and not row.scores
    assert not study.is_finished(task)


def run(study, monkeypatch, users, *arguments):
    """The program from its arguments to its figures, with tasks run in this process."""
    monkeypatch.setattr(study, "on_this_machine", lambda function, tasks, _: ((task, function(task)) for task in tasks))
    out = users.parent / "out" / "study"
    monkeypatch.setattr("sys.argv", ["study.py", "--users", str(users), "--work", str(users.parent / "work"),
                                     "--out", str(out), "--sets", "noise", *arguments])
    study.main()
    return out, json.loads(out.with_suffix(".json").read_text())


def test_the_program_writes_means_over_users_and_plots_and_never_repeats_a_row(study, users, monkeypatch):
    arguments = ["--minutes", "0.01", "0.03", "0.05"]
    out, values = run(study, monkeypatch, users, *arguments)
    assert len(study.calls) == 6
    assert [row["status"] for row in values["rows"]].count("failed") == 2
    gain = values["gains"]["noise"]["specialist tiny, auto, recordings, 0.05 min, 0 s clean"]["si_sdr_improvement"]
    assert gain["mean"]["n"] == 2 and gain["mean"]["value"] == pytest.approx(0.05) and gain["n_worse"] == 0
    markdown, page = out.with_suffix(".md").read_text(), out.with_suffix(".html").read_text()
    assert "| specialist tiny, auto, recordings, 0.03 min, 0 s clean | noise | +0.03 ± 0.00 | 0 of 2 |" in markdown
    assert "| specialist tiny, auto, recordings, 0.01 min, 0 s clean | 0 | 0 | 0 | 2 |" in markdown
    assert page.count("<svg ") == 2                         # against minutes and SNR: clean speech was not varied
    assert not any(word in page for word in ("http:", "https:", "src=", "href=", "url("))
    assert str(users) not in markdown + page + out.with_suffix(".json").read_text()

    run(study, monkeypatch, users, *arguments)
    assert len(study.calls) == 8                            # the two that failed


def test_a_task_whose_process_died_has_a_row_and_others_go_on(study, users, monkeypatch):
    def engine(function, tasks, _):
        yield tasks[0], "its process ended with code -9"
        for task in tasks[1:]:
            function(task)
            yield task, ""

    monkeypatch.setattr(study, "on_ray", lambda *arguments, threads, address: engine(*arguments))
    _, values = run(study, monkeypatch, users, "--minutes", "0.05", "--engine", "ray")
    assert [(row["user"], row["status"]) for row in values["rows"]] == [("ann", "failed"), ("bob", "accepted")]
    assert values["rows"][0]["note"] == "its process ended with code -9"


def test_lines_of_a_plot_are_named_by_what_differs(study):
    conditions = [study.Condition("tiny", method, "recordings", minutes, 3.0) for method in ("auto", "cm")
                  for minutes in (1, 2)]
    assert study.label(conditions[0], conditions, "minutes") == "auto"
    assert study.label(conditions[0], conditions, "clean_seconds") == "auto, 1 min"


# Engines.


def leave_a_file(task, folder):
    """Ends badly for the task `bad`."""
    if task == "bad":
        os._exit(3)
    (folder / task).write_text(task)


def wait_long(task):
    time.sleep(60)


def test_a_process_that_dies_takes_no_other_with_it(engines, tmp_path):
    ended = dict(engines.on_this_machine(partial(leave_a_file, folder=tmp_path), ["one", "bad", "two"], 2))
    assert ended == {"one": "", "bad": "its process ended with code 3", "two": ""}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_giving_up_ends_the_processes(engines):
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        def interrupt(_):
            raise KeyboardInterrupt
        engines.wait, before = interrupt, engines.wait
        try:
            list(engines.on_this_machine(wait_long, ["one", "two"], 2))
        finally:
            engines.wait = before
    assert time.monotonic() - began < 30


def test_without_ray_it_is_said_what_to_install(engines, monkeypatch):
    monkeypatch.setitem(importlib.import_module("sys").modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pse_sdk\[study\]"):
        list(engines.on_ray(print, [], 1, threads=1))


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: see pse_sdk[study]")
def test_on_ray_a_task_that_dies_takes_no_other_with_it(engines, tmp_path):
    ended = dict(engines.on_ray(partial(leave_a_file, folder=tmp_path), ["one", "bad", "two"], 1, threads=1))
    assert ended["one"] == ended["two"] == "" and ended["bad"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: see pse_sdk[study]")
def test_a_cluster_that_is_not_there_is_said_at_once(engines):
    began = time.monotonic()
    with pytest.raises(SettingsError, match="no Ray cluster at 127.0.0.1:1:"):
        list(engines.on_ray(print, [], 1, threads=1, address="127.0.0.1:1"))
    assert time.monotonic() - began < 20


def test_recordings_can_be_made_noisier(monkeypatch, users):
    program_ = program(monkeypatch, "recordings_at_snrs")
    rng = np.random.default_rng(1)
    speech, noise = 0.1 * rng.standard_normal((2, 2 * RATE)).astype(np.float32)
    speech[RATE:] = 0.0         # silence does not count
    noisier = program_.at_snr(speech + 0.1 * noise, speech, 5.0)
    share = (noisier @ speech) / (speech @ speech)
    assert 10 * np.log10(2 * np.sum((share * speech) ** 2) / np.sum((noisier - share * speech) ** 2)) == \
        pytest.approx(5, abs=0.2)
    assert np.std(noisier) == pytest.approx(np.std(speech + 0.1 * noise), rel=0.01)

    monkeypatch.setattr("sys.argv", ["recordings_at_snrs.py", "--users", str(users), "--snrs", "0", "12.5"])
    program_.main()     # neither Ann nor Bob has clean speech for every recording
    assert not list(users.glob("*/recordings-*"))
    for name in ("00", "01"):
        samples, _ = soundfile.read(users / "ann" / "recordings" / f"{name}.wav")
        soundfile.write(users / "ann" / "clean" / f"{name}.wav", 0.5 * samples, RATE, subtype="FLOAT")
    program_.main()
    assert {f"{path.parent.name}/{path.name}" for path in users.glob("*/recordings-*/*.wav")} == {
        f"recordings-{snr}dB/{name}.wav" for snr in ("0", "12.5") for name in ("00", "01")}
