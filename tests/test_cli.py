import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pse_sdk import Enhancer, Progress, Report
from pse_sdk.cli import _ProgressLine, main
from pse_sdk.empty_model import empty_model

RATE = 48_000
ROOT = Path(__file__).parent.parent


@pytest.fixture
def wav(tmp_path, noisy):
    path = tmp_path / "in.wav"
    soundfile.write(path, np.stack([noisy, noisy[::-1]], axis=1), RATE)
    return path


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def program(*arguments, stdout=subprocess.PIPE, **environment):
    """`pse` as a process of its own."""
    return subprocess.run([sys.executable, "-m", "pse_sdk", *map(str, arguments)], stdout=stdout,
                          stderr=subprocess.PIPE, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(ROOT), **environment})


def test_enhance_writes_the_same_length_rate_and_channels(capsys, wav, tiny_model):
    code, out, _ = run(capsys, "enhance", wav, "--model", tiny_model, "--json")
    [row] = json.loads(out)
    enhanced, rate = soundfile.read(row["target"])
    assert (code, rate, enhanced.shape) == (0, RATE, soundfile.read(wav)[0].shape)


def test_enhance_writes_what_the_library_returns(capsys, wav, tiny_model, enhancer, tmp_path):
    run(capsys, "enhance", wav, "--model", tiny_model, "--out", tmp_path / "out.wav")
    expected = enhancer.enhance(*soundfile.read(wav, dtype="float32"))
    written = soundfile.read(tmp_path / "out.wav", dtype="float32")[0]
    np.testing.assert_allclose(written, expected.clip(-1, 1), atol=1.1 / 32768)


@pytest.mark.parametrize("option", ["--strength", "--max-reduction"])
def test_enhance_lowers_noise_no_further_than_asked(capsys, wav, tiny_model, tmp_path, option):
    code, _, _ = run(capsys, "enhance", wav, "--model", tiny_model, "--out", tmp_path / "out.wav", option, "0")
    assert code == 0
    np.testing.assert_allclose(soundfile.read(tmp_path / "out.wav")[0], soundfile.read(wav)[0], atol=1.1 / 32768)


@pytest.mark.parametrize("options", [["--strength", "2"], ["--max-reduction", "-1"], ["--strength", "nan"]])
def test_a_strength_that_makes_no_sense_is_refused(capsys, wav, tiny_model, options):
    code, _, err = run(capsys, "enhance", wav, "--model", tiny_model, *options)
    assert code == 2 and options[0].strip("-").replace("-", "_") in err


def test_enhance_takes_folders_and_makes_the_output_folder(capsys, wav, tiny_model, tmp_path):
    code, _, _ = run(capsys, "enhance", wav.parent, "--model", tiny_model, "--out", tmp_path / "new" / "folder")
    assert code == 0 and (tmp_path / "new" / "folder" / "in.wav").exists()


def test_two_inputs_of_one_name_do_not_overwrite_each_other(capsys, wav, tiny_model, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "in.wav").write_bytes(wav.read_bytes())
    code, _, err = run(capsys, "enhance", wav, tmp_path / "other", "--model", tiny_model, "--out", tmp_path / "out")
    assert code == 2 and "in.wav" in err


def bad_inputs(tmp_path):
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("not audio at all, only words")
    (tmp_path / "nothing").mkdir()
    soundfile.write(tmp_path / "zero.wav", np.zeros(0), 16_000)
    return {"empty": tmp_path / "empty.wav", "text": tmp_path / "text.wav", "folder": tmp_path / "nothing",
            "missing": tmp_path / "missing.wav", "zero": tmp_path / "zero.wav"}


@pytest.mark.parametrize("kind", ["empty", "text", "folder", "missing", "zero"])
@pytest.mark.parametrize("command", ["enhance", "personalize"])
def test_a_bad_input_is_one_line_and_exit_code_2(capsys, tmp_path, tiny_model, command, kind):
    options = ["--model", tiny_model] if command == "enhance" else ["--size", "tiny"]
    code, out, err = run(capsys, command, bad_inputs(tmp_path)[kind], *options)
    if (command, kind) == ("enhance", "zero"):
        assert code in (0, 2)       # nothing to enhance: an empty file or a refusal, both are an answer
        return
    assert (code, out) == (2, "")
    assert err.startswith("pse: ") and err.count("\n") == 1 and "Traceback" not in err


def test_a_flipped_byte_in_a_model_file_is_refused(capsys, wav, tiny_model, tmp_path):
    damaged = bytearray(tiny_model.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "damaged.onnx").write_bytes(damaged)
    code, _, err = run(capsys, "enhance", wav, "--model", tmp_path / "damaged.onnx")
    assert code == 2 and "damaged" in err


def test_errors_are_json_for_programs(capsys):
    code, out, err = run(capsys, "enhance", "no/such.wav", "--json", "--size", "tiny")
    assert code == 2 and "no/such.wav" in json.loads(out)["error"] and err == ""


def test_info_says_what_a_model_is(capsys, tiny_model):
    code, out, _ = run(capsys, "info", "--model", tiny_model, "--json")
    facts = json.loads(out)
    assert (code, facts["size"], facts["sample_rate"], facts["delay"]) == (0, "tiny", 16_000, 256)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_personalize_refuses_an_unwritable_target_before_it_trains(capsys, wav, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    code, _, err = run(capsys, "personalize", wav, "--out", tmp_path / "locked" / "me.onnx")
    assert code == 2 and "me.onnx" in err


def test_personalize_refuses_a_missing_folder_before_it_trains(capsys, wav, tmp_path):
    code, _, err = run(capsys, "personalize", wav, "--out", tmp_path / "no" / "folder" / "me.onnx")
    assert code == 2 and "me.onnx" in err


def test_personalize_refuses_a_device_before_it_trains(capsys, wav):
    code, _, err = run(capsys, "personalize", wav, "--out", os.devnull)
    assert code == 2 and f"{os.devnull}: is no regular file" in err


def test_a_specialist_that_cannot_be_written_is_kept_elsewhere(capsys, wav, tmp_path, tiny_model, monkeypatch):
    def fake(cls, recordings, **options):
        enhancer = Enhancer(tiny_model)
        enhancer.report = Report("accepted", "a verdict")
        (tmp_path / "out").rmdir()      # while it trained
        return enhancer
    monkeypatch.setattr(Enhancer, "personalize", classmethod(fake))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "out").mkdir()
    code, _, err = run(capsys, "personalize", wav, "--out", tmp_path / "out" / "me.onnx")
    [kept] = tmp_path.glob("pse-model-*/specialist.onnx")
    assert code == 2 and "cannot be written" in err and f"the specialist is {kept}" in err
    assert Enhancer(kept).info == Enhancer(tiny_model).info


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of a process")
def test_a_disk_that_fills_up_while_enhancing_is_said_in_one_line(tmp_path, tiny_model):
    soundfile.write(tmp_path / "long.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 40 * 16_000), 16_000)
    source = ("import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)); "
              "from pse_sdk.cli import main; sys.exit(main(sys.argv[1:]))")
    ended = subprocess.run([sys.executable, "-c", source, "enhance", tmp_path / "long.wav", "--model", tiny_model,
                            "--out", tmp_path / "out.wav"], capture_output=True, text=True, check=False,
                           env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert ended.returncode == 2 and "out.wav: cannot be written" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1 and [path.name for path in tmp_path.glob("*.wav")] == ["long.wav"]


def test_info_takes_a_model_file_like_every_other_command(capsys, tiny_model):
    assert run(capsys, "info", tiny_model) == run(capsys, "info", "--model", tiny_model)
    assert run(capsys, "info", tiny_model, "--size", "tiny")[0] == 2


def test_a_checkpoint_that_is_the_model_file_as_well_is_refused(capsys, wav, tmp_path):
    both = tmp_path / "me.onnx"
    code, _, err = run(capsys, "personalize", wav, "--out", both, "--checkpoint", both)
    assert code == 2 and "is --out as well" in err and not both.exists()


@pytest.mark.parametrize("status, expected", [("accepted", 0), ("kept", 1), ("insufficient_data", 1)])
def test_a_script_sees_whether_a_specialist_replaced_the_file_that_was_there(capsys, wav, tmp_path, tiny_model,
                                                                             monkeypatch, status, expected):
    def fake(cls, recordings, **options):
        enhancer = Enhancer(tiny_model)
        enhancer.report = Report(status, "a verdict")
        return enhancer
    monkeypatch.setattr(Enhancer, "personalize", classmethod(fake))
    target = tmp_path / "me.onnx"
    before = empty_model()
    target.write_bytes(before)
    code, out, _ = run(capsys, "personalize", wav, "--out", target)
    assert code == expected and "a verdict" in out
    assert (target.read_bytes() == before) == (status != "accepted")
    previous = tmp_path / "me.previous.onnx"
    assert previous.exists() == (str(previous) in out) == (status == "accepted")
    if previous.exists():
        assert previous.read_bytes() == before
        assert run(capsys, "personalize", wav, "--start", previous, "--out", target)[0] == 0
        assert previous.read_bytes() == before
        assert (tmp_path / "me.previous2.onnx").read_bytes() == target.read_bytes()


def test_an_empty_file_is_no_model_that_could_stay_and_a_broken_link_is_left_alone(capsys, wav, tmp_path, tiny_model,
                                                                                   monkeypatch):
    statuses = iter(["kept", "accepted"])

    def fake(cls, recordings, **options):
        enhancer = Enhancer(tiny_model)
        enhancer.report = Report(next(statuses), "a verdict")
        return enhancer
    monkeypatch.setattr(Enhancer, "personalize", classmethod(fake))
    target, link = tmp_path / "me.onnx", tmp_path / "me.previous.onnx"
    target.touch()
    link.symlink_to("nowhere")
    assert run(capsys, "personalize", wav, "--out", target)[0] == 1
    assert Enhancer(target).info == Enhancer(tiny_model).info
    assert run(capsys, "personalize", wav, "--out", target)[0] == 0
    assert link.is_symlink() and (tmp_path / "me.previous2.onnx").exists() and not (tmp_path / "nowhere").exists()


def test_what_is_no_number_in_a_report_is_null_for_programs(capsys, wav, tmp_path, tiny_model, monkeypatch):
    def fake(cls, recordings, **options):
        enhancer = Enhancer(tiny_model)
        enhancer.report = Report("kept", "a verdict", gain_db=float("nan"))
        return enhancer
    monkeypatch.setattr(Enhancer, "personalize", classmethod(fake))
    _, out, _ = run(capsys, "personalize", wav, "--out", tmp_path / "me.onnx", "--json")
    told = json.loads(out, parse_constant=pytest.fail)
    assert told["gain_db"] is None and told["written"] and told["previous"] is None


def test_personalize_passes_on_what_was_asked_for(capsys, wav, tmp_path, tiny_model, monkeypatch):
    asked = {}

    def fake(cls, recordings, **options):
        asked.update(options)
        enhancer = Enhancer(tiny_model)
        enhancer.report = Report("accepted", "a verdict")
        return enhancer
    monkeypatch.setattr(Enhancer, "personalize", classmethod(fake))
    wanted = {"method": "cm", "size": "tiny", "others": "remove", "threads": 3, "nice": 5, "seed": 7, "steps": 40}
    run(capsys, "personalize", wav, "--out", tmp_path / "me.onnx", "--budget", "60", "--voices", "v", "--clean", "c",
        *(word for name, value in wanted.items() for word in (f"--{name}", str(value))))
    wanted |= {"budget_seconds": 60.0, "voices": ["v"], "clean": ["c"], "noise": None, "start": None}
    assert {name: asked[name] for name in wanted} == wanted


def test_personalize_never_replaces_what_is_no_model_file(capsys, wav):
    before = wav.read_bytes()
    code, _, err = run(capsys, "personalize", wav, "--out", wav)
    assert code == 2 and "no model file" in err and wav.read_bytes() == before


@pytest.mark.parametrize("arguments", [
    [], ["sing"], ["enhance"], ["enhance", "a.wav", "--loud"], ["enhance", "a.wav", "--size", "huge"],
    ["personalize", "a.wav", "--budget", "long"], ["personalize", "a.wav", "--budget", "nan"],
    ["record", "me.wav", "--rate", "0"], ["record", "me.wav", "--seconds", "-1"], ["enhance", "no\nsuch.wav"],
    ["enhance", "x" * 300], ["info", "--model", "no\nsuch.onnx"],
])
def test_wrong_words_are_one_line_for_people_and_json_for_programs(capsys, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("pse: ") and err.count("\n") == 1
    code, out, err = run(capsys, *arguments, "--json")
    assert (code, err) == (2, "") and json.loads(out)["error"]


def test_help_tells_the_exit_codes(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0 and "Exit codes" in capsys.readouterr().out


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("json_too", [[], ["--json"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_results_that_cannot_be_written_are_one_line(tiny_model, json_too, unbuffered):
    done = program("info", "--model", tiny_model, *json_too, stdout=open("/dev/full", "w"), PYTHONUNBUFFERED=unbuffered)
    assert (done.returncode, done.stderr) == (2, "pse: standard output: No space left on device\n")


@pytest.mark.skipif(os.name != "posix", reason="POSIX pipes")
def test_a_reader_that_leaves_ends_it_without_a_word(tiny_model):
    for_reading, for_writing = os.pipe()
    os.close(for_reading)
    done = program("info", "--model", tiny_model, stdout=for_writing)
    os.close(for_writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_follows_a_progress_bar_has_a_line_of_its_own(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", screen)
    with _ProgressLine() as show:
        show(Progress("train", 0.5, 60.0, "training"))
    assert "training" in screen.getvalue() and screen.getvalue().endswith("\n")


def test_one_bad_file_does_not_keep_the_others_from_being_enhanced(capsys, wav, tiny_model, tmp_path):
    (tmp_path / "bad.wav").write_text("no audio")
    code, out, err = run(capsys, "enhance", tmp_path, "--model", tiny_model, "--json")
    bad, good = json.loads(out)
    assert code == 2 and "bad.wav" in bad["error"] and "bad.wav" in err
    assert good["target"].endswith("in.enhanced.wav") and os.path.exists(good["target"])


def test_enhancing_a_folder_again_does_not_enhance_what_came_out(capsys, wav, tiny_model, tmp_path):
    for _ in range(2):
        code, out, _ = run(capsys, "enhance", tmp_path, "--model", tiny_model, "--json")
        assert code == 0 and len(json.loads(out)) == 1


def test_what_is_wrong_with_a_source_is_said(capsys, wav, tiny_model, tmp_path):
    wav.write_bytes(wav.read_bytes()[:100_000])
    _, out, _ = run(capsys, "enhance", wav, "--model", tiny_model, "--json")
    assert "ends early" in json.loads(out)[0]["notes"][0]


def test_of_a_damaged_mp3_only_our_own_words_are_seen(tmp_path, tiny_model):
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "a.mp3", 0.1 * rng.standard_normal(5 * 16_000), 16_000)
    damaged = bytearray((tmp_path / "a.mp3").read_bytes())
    for start in range(3000, len(damaged), 700):
        damaged[start:start + 40] = rng.bytes(40)
    (tmp_path / "a.mp3").write_bytes(damaged)
    (tmp_path / "b.wav").write_text("no audio")
    done = program("enhance", tmp_path, "--model", tiny_model)
    assert done.returncode == 2 and "a.enhanced.wav" in done.stdout
    assert done.stderr.startswith("pse: ") and "b.wav" in done.stderr and done.stderr.count("\n") == 1
