import csv
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from filelock import FileLock

from pse_sdk.config import STFT
from pse_sdk.errors import ModelFileError, SettingsError

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")
from pse_sdk.training import pretrain  # noqa: E402
from pse_sdk.training.corpus import _held_out  # noqa: E402
from pse_sdk.training.losses import spectrogram  # noqa: E402
from pse_sdk.training.mixing import Mixer, MixingConfig  # noqa: E402
from pse_sdk.training.network import build_network, save_weights, set_weights  # noqa: E402
from pse_sdk.training.snr_network import SnrPredictor  # noqa: E402

RATE = STFT.sample_rate
BATCH = 4
LOSS_TOLERANCE = 2e-3       # between sums in another order, after six large steps


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Speakers who hum, and white noise: a tone for each speaker, three of either, one of them for validation."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    time = np.arange(RATE) / RATE
    room = np.zeros(400)
    room[[0, 150]] = 1.0, 0.3
    files = {f"rir/{i}.wav": ("rir", room)
             for i in (1, next(i for i in range(1000) if _held_out(f"test/rir{i}")))}
    for i in (0, 1, next(i for i in range(1000) if _held_out(f"test/speech{i}"))):
        files[f"speech/{i}.wav"] = ("speech", 0.3 * np.sin(2 * np.pi * (300 + 170 * i % 900) * time))
    for i in (0, 1, next(i for i in range(1000) if _held_out(f"noise/{i}.wav"))):
        files[f"noise/{i}.wav"] = ("noise", 0.1 * rng.standard_normal(RATE))
    for path, (_, samples) in files.items():
        (folder / path).parent.mkdir(exist_ok=True)
        soundfile.write(folder / path, samples, RATE)
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "kind", "split", "corpus", "name", "seconds", "licence"])
        writer.writerows([path, kind, "train", "test", path.replace("/", "")[:-4], 1.0, "CC0-1.0"]
                         for path, (kind, _) in files.items())
    return folder


@pytest.fixture(autouse=True, scope="module")
def _short_mixtures():
    plain = MixingConfig(length=16 * STFT.hop_length, max_speed_change=0.0, equaliser_db=0.0, room_share=0.2)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DENOISING", "SNR_PREDICTION"):
            patch.setattr(pretrain, name, replace(getattr(pretrain, name), mixing=plain))
        yield
    torch.set_flush_denormal(False)     # `main` owns its process, a test does not


def train(corpus, out, what="tiny", steps=9, every=3, **options):
    arguments = {"data": corpus, "what": what, "steps": steps, "out": out, "cache": corpus / "cache", "batch": BATCH,
                 "evaluate-every": every, "device": "cpu", **options}
    words = [str(part) for key, value in arguments.items()
             for part in (f"--{key}", *(value if isinstance(value, tuple) else [value])) if part is not True]
    pretrain.train(pretrain.parse(words))


def test_torchrun_passes_every_option_on(capsys):
    """It would take what begins one of its own for an abbreviation, even behind the name of the program."""
    from torch.distributed.run import get_args_parser
    with pytest.raises(SystemExit):
        pretrain.parse(["--help"])
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help", "--nproc-per-node"}
    assert {"--start-weights", "--data", "--steps"} < options
    for option in options:
        assert get_args_parser().parse_args(["-m", "program", option, "1"]).training_script_args == [option, "1"]


def weights_of(out):
    return safetensors.load_file(out / "weights.safetensors")


def rows_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def identical(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def uninterrupted(corpus, tmp_path_factory):
    """Weights and log of nine steps in one go."""
    out = tmp_path_factory.mktemp("uninterrupted")
    train(corpus, out)
    return weights_of(out), rows_of(out)


@pytest.fixture(scope="module")
def checkpoint(corpus, tmp_path_factory):
    """Of a run of three steps."""
    out = tmp_path_factory.mktemp("checkpoint")
    train(corpus, out, steps=3)
    return out / "checkpoint.pt"


@pytest.fixture
def dies_at(monkeypatch):
    """Makes training die when it asks for the mixtures of a step."""
    draw = Mixer.batch

    def set_up(fatal_step):
        def batch(self, step, size, *rows):
            if size == BATCH and step == fatal_step:
                raise KeyboardInterrupt
            return draw(self, step, size, *rows)
        monkeypatch.setattr(Mixer, "batch", batch)

    yield set_up


@pytest.mark.parametrize("fatal_step", [0, 4, 8])
def test_a_run_that_died_goes_on_to_the_same_weights(corpus, tmp_path, uninterrupted, dies_at, fatal_step):
    dies_at(fatal_step)
    with pytest.raises(KeyboardInterrupt):
        train(corpus, tmp_path)
    dies_at(None)
    train(corpus, tmp_path)
    weights, rows = uninterrupted
    assert identical(weights_of(tmp_path), weights)
    assert [(row["step"], row["loss"]) for row in rows_of(tmp_path)] == [(row["step"], row["loss"]) for row in rows]


def test_with_muon_as_well(corpus, tmp_path, uninterrupted, dies_at):
    train(corpus, tmp_path / "whole", optimizer="muon")
    dies_at(5)
    with pytest.raises(KeyboardInterrupt):
        train(corpus, tmp_path / "parts", optimizer="muon")
    dies_at(None)
    train(corpus, tmp_path / "parts", optimizer="muon")
    assert identical(weights_of(tmp_path / "parts"), weights_of(tmp_path / "whole"))
    assert not identical(weights_of(tmp_path / "whole"), uninterrupted[0])


def test_mixing_ahead_changes_nothing(corpus, tmp_path, uninterrupted, dies_at):
    dies_at(5)
    with pytest.raises(KeyboardInterrupt):
        train(corpus, tmp_path, **{"mix-ahead": True})
    dies_at(None)
    train(corpus, tmp_path, **{"mix-ahead": True})
    assert identical(weights_of(tmp_path), uninterrupted[0])


@pytest.mark.parametrize("change, told", [({"seed": 1}, "--seed 0, not 1"), ({"batch": 8}, "--batch 4, not 8"),
                                          ({"seconds": 0.64}, "--seconds 0.256, not 0.64"),
                                          ({"snrs": (0, 5)}, "--snrs -10 15, not 0 5"),
                                          ({"optimizer": "muon"}, "--optimizer adamw, not muon"),
                                          ({"generated-noise": 0.01}, "--generated-noise 0.0, not 0.01"),
                                          ({"speech-share": "test=0.5"}, "--speech-share none, not test 0.5"),
                                          ({"what": "snr_predictor"}, "--what tiny, not snr_predictor")])
def test_a_run_is_not_continued_with_other_settings(corpus, tmp_path, checkpoint, change, told):
    shutil.copy(checkpoint, tmp_path)
    with pytest.raises(SettingsError, match=told):
        train(corpus, tmp_path, **change)
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["checkpoint.pt"]


def test_a_run_may_become_longer_and_change_its_precision(corpus, tmp_path, checkpoint):
    shutil.copy(checkpoint, tmp_path)
    train(corpus, tmp_path, steps=6, precision="bfloat16")
    assert [row["step"] for row in rows_of(tmp_path)] == [6]


def test_a_mixture_lasts_as_long_as_asked(corpus, tmp_path):
    train(corpus, tmp_path, steps=1, seconds=1.28)
    assert rows_of(tmp_path)[0]["hours"] == pytest.approx(BATCH * 1.28 / 3600, abs=5e-3)


def test_a_run_begins_with_given_weights(corpus, tmp_path, checkpoint):
    begun_with = build_network("tiny")
    start = tmp_path / "start.safetensors"
    save_weights(begun_with, start)
    train(corpus, tmp_path / "out", steps=1, **{"start-weights": start, "peak-rate": 1e-9})
    weights = weights_of(tmp_path / "out")
    for name, value in begun_with.state_dict().items():
        torch.testing.assert_close(weights[name], value, atol=1e-6, rtol=0)


def test_a_run_that_goes_on_says_that_it_has_its_own_weights(corpus, tmp_path, checkpoint, uninterrupted, capsys):
    shutil.copy(checkpoint, tmp_path)
    save_weights(build_network("tiny"), tmp_path / "start.safetensors")
    train(corpus, tmp_path, **{"start-weights": tmp_path / "start.safetensors"})
    assert "--start-weights counted when it was begun" in capsys.readouterr().out
    assert identical(weights_of(tmp_path), uninterrupted[0])


def test_a_run_that_begins_anew_keeps_no_rows_of_the_one_before(corpus, tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 3, "hours": 1.0}\n{"step": 600, "hours": 99.0}\n')
    train(corpus, tmp_path, steps=3)
    assert [row["step"] for row in rows_of(tmp_path)] == [3]


def test_what_there_is_to_learn_from_is_said(corpus, tmp_path, capsys):
    train(corpus, tmp_path, steps=0)
    assert re.search(r"training: [\d.e-]+ h of speech in \d+ files \(test \d+\), .* of noise .* of rooms .*; valid",
                     capsys.readouterr().out)


def test_more_threads_than_cores_are_refused(corpus, tmp_path):
    with pytest.raises(SettingsError, match="--threads 5000: this machine has"):
        train(corpus, tmp_path / "out", threads=5000)
    assert not (tmp_path / "out").exists()


def test_generated_noise_is_heard_and_made_once(corpus, tmp_path, uninterrupted):
    for attempt in ("first", "second"):
        train(corpus, tmp_path / attempt, cache=tmp_path / "cache", **{"generated-noise": 0.01})
    assert len(list((tmp_path / "cache").glob("generated-*.int16"))) == 1
    first, second = (weights_of(tmp_path / attempt) for attempt in ("first", "second"))
    assert identical(first, second) and not identical(first, uninterrupted[0])


@pytest.mark.parametrize("value", ["librispeech", "=0.5", "librispeech=2", "librispeech=much"])
def test_shares_that_are_none_are_refused(capsys, value):
    with pytest.raises(SystemExit):
        pretrain.parse(["--data", "x", "--what", "tiny", "--steps", "1", "--out", "y", "--speech-share", value])
    assert value.rpartition("=")[2] in capsys.readouterr().err


def test_a_share_for_a_corpus_that_is_not_there_is_refused(corpus, tmp_path):
    with pytest.raises(SettingsError, match="'librispeech'.*got test"):
        train(corpus, tmp_path, **{"speech-share": "librispeech=0.85"})


@pytest.mark.parametrize("content", [None, b"no weights", "small"])
def test_weights_that_do_not_fit_are_refused(corpus, tmp_path, content):
    start = tmp_path / "start.safetensors"
    if content == "small":
        save_weights(build_network(content), start)
    elif content:
        start.write_bytes(content)
    why = "of another network: .* expected .*; give those of the same" if content == "small" else "cannot be read"
    with pytest.raises(SettingsError, match=f"--start-weights .*start.safetensors .*{why}"):
        train(corpus, tmp_path / "out", **{"start-weights": start})
    assert not (tmp_path / "out").exists()


def test_what_disturbs_counts_as_much_as_asked(corpus, tmp_path, uninterrupted):
    train(corpus, tmp_path, **{"disturbance-weight": 0.5})
    assert rows_of(tmp_path)[0]["training_loss"] > uninterrupted[1][0]["training_loss"] + 0.1
    with pytest.raises(SettingsError, match="--disturbance-weight 0.5, not 0.15"):
        train(corpus, tmp_path, steps=12)
    with pytest.raises(SettingsError, match="speaker_embedding has another"):
        train(corpus, tmp_path / "other", what="speaker_embedding", **{"disturbance-weight": 0.5})


PEERS = """
import numpy as np
import torch

class Peer:
    def __init__(self, name):
        self.name = name
        if name == "many":
            self.enhance_batch = lambda noisy: np.zeros_like(noisy)

    def enhance(self, noisy):
        assert noisy.dtype == np.float32 and noisy.std() < 0.12     # as loud as people speak
        if self.name == "fails":
            raise RuntimeError("out of order")
        if self.name == "careless":
            torch.manual_seed(len(noisy))
            noisy[:] = 0
            return torch.from_numpy(noisy)
        return {"silent": np.zeros_like(noisy), "short": noisy[1:], "broken": noisy * np.nan,
                "integer": noisy.astype(np.int16), "huge": noisy.astype(float) + 1e300, "none": None,
                "words": ["a"] * len(noisy)}[self.name]

def make(name):
    if name == "unknown":
        raise KeyError(name)
    if name == "careless":
        torch.set_grad_enabled(False)
    return Peer(name)
"""


@pytest.fixture
def peers(tmp_path):
    (tmp_path / "my.peers.py").write_text(PEERS)     # no name that could be imported
    return f"{tmp_path / 'my.peers.py'}"


def test_teachers_are_learnt_from(corpus, tmp_path, uninterrupted, peers):
    """One that says nothing teaches to be silent."""
    def level_after(name, **options):
        train(corpus, tmp_path / name, **{"peak-rate": 0.2}, **options)
        network = build_network("tiny")
        set_weights(network, safetensors.load_file(tmp_path / name / "weights.safetensors"))
        noise = torch.randn(2, 16 * STFT.hop_length, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            return network(spectrogram(noise), network.initial_state(2))[0].square().mean().item()

    alone = level_after("alone")
    silenced = level_after("silent", teacher=f"{peers}:silent", **{"teacher-share": 1.0})
    assert silenced < 0.9 * alone
    for name in ("many", "careless"):
        assert level_after(name, teacher=f"{peers}:{name}", **{"teacher-share": 1.0}) == silenced
    assert level_after("unheard", teacher=f"{peers}:silent", **{"teacher-share": 0.0}) == pytest.approx(alone, rel=1e-3)
    assert [(row["teachers"], row["teacher_share"]) for row in rows_of(tmp_path / "silent")] == (
        [(["my.peers.py:silent"], 1.0)] * 3)
    with pytest.raises(SettingsError, match=r"with --teacher my.peers.py:silent, not none"):
        train(corpus, tmp_path / "silent", steps=12)


def test_the_package_teaches_what_it_makes_of_a_mixture(uninterrupted):
    from pse_sdk.training.distillation import Teachers
    from pse_sdk.training.teacher import Teacher
    noisy = torch.randn(2, 64 * STFT.hop_length, generator=torch.Generator().manual_seed(0))
    own = Teacher()
    with torch.no_grad():
        spectra = spectrogram(noisy)
        wanted = sum(network(spectra, network.initial_state(2))[0] for network in own.networks) / 2
    torch.testing.assert_close(Teachers(["package"]).estimate(noisy), wanted)


def test_weights_that_pre_training_left_teach(tmp_path):
    from pse_sdk.training.distillation import Teachers
    network = build_network("tiny")
    save_weights(network, tmp_path / "weights.safetensors")
    noisy = torch.randn(2, 64 * STFT.hop_length, generator=torch.Generator().manual_seed(0))
    spectra = spectrogram(noisy)
    with torch.no_grad():
        wanted, _ = network(spectra, network.initial_state(2))
    torch.testing.assert_close(Teachers([f"{tmp_path / 'weights.safetensors'}:tiny"]).estimate(noisy), wanted)
    with pytest.raises(ModelFileError, match="does not hold the weights of a small network"):
        Teachers([f"{tmp_path / 'weights.safetensors'}:small"])


def test_files_of_one_name_are_two_teachers(tmp_path):
    from pse_sdk.training.distillation import Teachers
    for name, gain in (("a", 1.0), ("b", 0.5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "peers.py").write_text(f"""
class Peer:
    def enhance(self, noisy):
        return noisy * {gain}

def make(name):
    return Peer()
""")
    noisy = torch.randn(2, 64 * STFT.hop_length, generator=torch.Generator().manual_seed(0))
    found = Teachers([f"{tmp_path / name / 'peers.py'}:x" for name in "ab"]).estimate(noisy)
    torch.testing.assert_close(found, 0.75 * spectrogram(noisy))


@pytest.mark.parametrize(("name", "why"), [
    ("unknown", "no peer 'unknown' can be made here"), ("fails", "it failed .RuntimeError: out of order"),
    ("short", r"it made \(2, 15871\) of \(2, 15872\)"), ("broken", "expected finite floats"),
    ("integer", "it made int16 that are no samples"), ("huge", "expected finite floats"),
    ("none", r"it made \(2,\) of"), ("words", "it failed .ValueError"), (None, "expected package, FILE"),
    ("x.py:", "expected package, FILE"), ("gone.py:x", "there is no such file")])
def test_teachers_that_cannot_teach_are_refused_before_anything_is_read(tmp_path, peers, name, why):
    teacher = "packages" if name is None else name if ":" in name else f"{peers}:{name}"
    with pytest.raises(SettingsError, match=f"--teacher .*{why}"):
        train(tmp_path / "no corpus", tmp_path / "out", teacher=teacher)
    assert not (tmp_path / "out").exists()


def test_a_share_of_no_teacher_is_refused(corpus, tmp_path):
    with pytest.raises(SettingsError, match="--teacher-share: there is no --teacher"):
        train(corpus, tmp_path / "out", **{"teacher-share": 0.3})


def test_only_denoisers_have_teachers(corpus, tmp_path):
    with pytest.raises(SettingsError, match="speaker_embedding has another"):
        train(corpus, tmp_path / "out", what="speaker_embedding", teacher="package")


@pytest.mark.parametrize("seconds", ["0", "x", "1e9", "nan"])
def test_mixtures_of_no_useful_length_are_refused(capsys, seconds):
    with pytest.raises(SystemExit):
        pretrain.parse(["--data", ".", "--what", "tiny", "--steps", "1", "--out", "out", "--seconds", seconds])
    assert "expected 0.64 to 64 s" in capsys.readouterr().err


def test_a_batch_that_cannot_be_shared_out_is_refused(corpus, tmp_path):
    with pytest.raises(SettingsError, match="multiple of 4"):
        train(corpus, tmp_path, batch=6)


@pytest.mark.parametrize("option, value", [
    ("steps", "-1"), ("steps", "1.5"), ("batch", "-4"), ("threads", "0"), ("seed", "-1"), ("seed", str(2**70)),
    ("evaluate-every", "0"), ("disturbance-weight", "-1"), ("peak-rate", "nan"), ("peak-rate", "-1"),
    ("peak-rate", "inf"), ("snrs", "x")])
def test_settings_out_of_range_are_refused_before_anything_is_read(capsys, option, value):
    with pytest.raises(SystemExit):
        pretrain.parse(["--data", ".", "--what", "tiny", "--out", "out", "--steps", "1", f"--{option}", value, "5"][
            :None if option == "snrs" else -1])
    assert f"argument --{option}: {value}: expected" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused(corpus, tmp_path):
    with pytest.raises(SettingsError, match="no GPU"):
        train(corpus, tmp_path, device="cuda")


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_what_was_there(corpus, tmp_path, monkeypatch):
    train(corpus, tmp_path, steps=3)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    broken = replace(pretrain.DENOISING, loss=lambda network, batch: pretrain.denoising_loss(network, batch) * np.nan)
    monkeypatch.setattr(pretrain, "DENOISING", broken)
    with pytest.raises(SettingsError, match="between steps 3 and 6 the loss became nan.*--peak-rate"):
        train(corpus, tmp_path, steps=9)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def zeroed(content):
    return content[:2000] + bytes(400) + content[2400:]


@pytest.mark.parametrize("spoil", [lambda content: b"", lambda content: content[:5000], zeroed,
                                   lambda content: b"x" * 99])
def test_a_damaged_checkpoint_is_refused_and_stays(corpus, tmp_path, checkpoint, spoil):
    damaged = spoil(checkpoint.read_bytes())
    (tmp_path / "checkpoint.pt").write_bytes(damaged)
    with pytest.raises(SettingsError, match="no checkpoint to go on from.*--start-weights"):
        train(corpus, tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == damaged


def test_a_checkpoint_of_something_else_is_refused(corpus, tmp_path):
    torch.save({"network": {}}, tmp_path / "checkpoint.pt")
    with pytest.raises(SettingsError, match="holds no average"):
        train(corpus, tmp_path)


def test_a_run_is_not_continued_with_other_sounds(corpus, tmp_path, checkpoint):
    shutil.copytree(corpus, tmp_path / "other")
    with (tmp_path / "other" / "manifest.csv").open("a") as file:
        file.write("speech/0.wav,speech,train,test,another,1.0,CC0-1.0\n")
    (tmp_path / "out").mkdir()
    shutil.copy(checkpoint, tmp_path / "out")
    with pytest.raises(SettingsError, match="other sounds"):
        train(tmp_path / "other", tmp_path / "out")
    shutil.copytree(corpus, tmp_path / "moved")
    train(tmp_path / "moved", tmp_path / "out", steps=3)        # the same ones elsewhere


@pytest.mark.parametrize("lost", ["weights.safetensors", "log.jsonl"])
def test_weights_and_log_are_mended_from_the_checkpoint(corpus, tmp_path, uninterrupted, dies_at, lost):
    """Killed between the two, or after half a row."""
    dies_at(7)
    with pytest.raises(KeyboardInterrupt):
        train(corpus, tmp_path)
    if lost == "log.jsonl":
        with (tmp_path / lost).open("a") as file:
            file.write(json.dumps({"step": 9}) + '\n{"step": 12, "ho')
    else:
        (tmp_path / lost).unlink()
    dies_at(None)
    train(corpus, tmp_path)
    assert identical(weights_of(tmp_path), uninterrupted[0])
    assert [row["step"] for row in rows_of(tmp_path)] == [3, 6, 9]


def test_a_finished_run_has_its_weights(corpus, tmp_path, uninterrupted):
    train(corpus, tmp_path)
    (tmp_path / "weights.safetensors").unlink()
    train(corpus, tmp_path)
    assert identical(weights_of(tmp_path), uninterrupted[0])


def test_a_disk_that_is_full_is_said_in_one_line(corpus, tmp_path, monkeypatch, checkpoint):
    shutil.copy(checkpoint, tmp_path)

    def fail(state, path):
        path.write_bytes(b"half")
        raise RuntimeError("unexpected pos 64\nvs 0")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(SettingsError, match="could not be written to: unexpected pos 64 vs 0"):
        train(corpus, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["checkpoint.pt", "log.jsonl", "weights.safetensors"]
    assert (tmp_path / "checkpoint.pt").read_bytes() == checkpoint.read_bytes()


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_a_folder_that_cannot_be_written_is_refused(corpus, tmp_path, out):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="nothing can be written there"):
        train(corpus, tmp_path / out)


def test_two_runs_into_one_folder_are_refused(corpus, tmp_path):
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(SettingsError, match="another run"):
        train(corpus, tmp_path / "out")
    train(corpus, tmp_path / "out")
    assert (tmp_path / "out" / "weights.safetensors").exists()


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_weights_may_be_read_by_everybody_the_umask_lets(tmp_path):
    save_weights(torch.nn.Linear(2, 2), tmp_path / "weights.safetensors")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "weights.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_program_says_what_is_wrong_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["pretrain", "--data", str(tmp_path), "--what", "tiny", "--steps", "1", "--out",
                                      str(tmp_path)])
    with pytest.raises(SystemExit, match="no layout that is known; expected a manifest.csv"):
        pretrain.main()


def test_a_row_says_how_fast_it_was_and_where_the_time_went(uninterrupted):
    for row in uninterrupted[1]:
        assert row["mixing_share"] + row["network_share"] + row["rest_share"] == pytest.approx(1, abs=2e-3)
        assert row["mixing_share"] > 0 and row["network_share"] > 0 and row["hours_per_hour"] > 0


PROGRAM = """
import sys
from dataclasses import replace
import torch
from pse_sdk.config import STFT
from pse_sdk.training import pretrain, processes
from pse_sdk.training.mixing import MixingConfig

mixing = MixingConfig(length=16 * STFT.hop_length, noise_only_share=0.3)
pretrain.DENOISING = replace(pretrain.DENOISING, mixing=mixing)
pretrain.SNR_PREDICTION = replace(pretrain.SNR_PREDICTION, mixing=mixing)
corpus, out = sys.argv[1:]
with processes.joined(torch.device("cpu")):
    for what in ("tiny", "snr_predictor"):
        pretrain.train(pretrain.parse(
            ["--data", corpus, "--cache", f"{corpus}/cache", "--out", f"{out}/{what}", "--what", what, "--device",
             "cpu", "--steps", "6", "--evaluate-every", "3", "--batch", "8", "--peak-rate", "0.05"]))
"""


def test_two_processes_learn_what_one_with_the_whole_batch_learns(monkeypatch, corpus, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launch, program, corpus, tmp_path / "two"], env={**os.environ, "OMP_NUM_THREADS": "1"},
                   check=True, timeout=100)
    for name in ("DENOISING", "SNR_PREDICTION"):        # as the program above does
        monkeypatch.setattr(pretrain, name, getattr(pretrain, name))
    monkeypatch.setattr(sys, "argv", ["program", str(corpus), str(tmp_path / "one")])
    exec(PROGRAM, {})
    for what, new in (("tiny", lambda: build_network("tiny")), ("snr_predictor", SnrPredictor)):
        one, two = (rows_of(tmp_path / name / what) for name in ("one", "two"))
        assert [row["step"] for row in one] == [row["step"] for row in two] == [3, 6]
        for mine, theirs in zip(one, two, strict=True):
            for score in ("training_loss", "loss"):
                assert theirs[score] == pytest.approx(mine[score], abs=LOSS_TOLERANCE), (what, score)
        torch.manual_seed(0)
        start = new().state_dict()
        ours, theirs = (weights_of(tmp_path / name / what) for name in ("one", "two"))
        moved = sum((ours[name] - start[name]).square().sum() for name in ours).sqrt()
        apart = sum((ours[name] - theirs[name]).square().sum() for name in ours).sqrt()
        assert apart < 0.02 * moved, what


def test_dying_while_a_checkpoint_is_written_costs_only_the_steps_since_the_last(monkeypatch, corpus, tmp_path,
                                                                                 uninterrupted):
    save, calls = torch.save, []

    def save_half(state, path):
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        save(state, path)

    monkeypatch.setattr(torch, "save", save_half)
    with pytest.raises(KeyboardInterrupt):
        train(corpus, tmp_path)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 3
    train(corpus, tmp_path)
    assert identical(weights_of(tmp_path), uninterrupted[0])


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(corpus, tmp_path, uninterrupted):
    for seed, same in ((0, True), (1, False)):
        train(corpus, tmp_path / str(seed), seed=seed)
        assert identical(weights_of(tmp_path / str(seed)), uninterrupted[0]) is same


def test_a_finished_run_that_is_started_again_changes_nothing(corpus, tmp_path, uninterrupted):
    for _ in range(2):
        train(corpus, tmp_path)
    assert identical(weights_of(tmp_path), uninterrupted[0]) and len(rows_of(tmp_path)) == len(uninterrupted[1])


def test_the_weights_fit_the_network_they_are_named_after(uninterrupted):
    build_network("tiny").load_state_dict(uninterrupted[0])


@pytest.mark.parametrize("what", ["tiny", "tiny_user", "snr_predictor", "speaker_embedding"])
def test_the_loss_falls_on_tones_in_noise(corpus, tmp_path, what):
    train(corpus, tmp_path, what, steps=60, every=15, **{"peak-rate": 2e-2})
    first, *_, last = rows_of(tmp_path)
    assert last["training_loss"] < first["training_loss"] - 0.05
    if what == "snr_predictor":
        SnrPredictor().load_state_dict(weights_of(tmp_path))


@pytest.mark.parametrize("n_steps", [1000, 40_000])
def test_the_learning_rate_warms_up_stays_and_falls_to_a_hundredth(n_steps):
    rates = [pretrain.learning_rate(step, n_steps, peak=2.0) for step in range(n_steps)]
    assert rates[0] == 2.0 / 500 and rates[500] == rates[int(0.69 * n_steps)] == 2.0
    assert np.all(np.diff(rates[:500]) > 0) and np.all(np.diff(rates[int(0.71 * n_steps):]) <= 0)
    assert rates[-1] == pytest.approx(0.02, rel=0.01)


def test_saving_weights_fails_without_losing_the_old_ones(monkeypatch, tmp_path):
    network, path = torch.nn.Linear(2, 2), tmp_path / "weights.safetensors"
    save_weights(network, path)

    def fail(path, content):
        with path.open("wb") as file:
            file.write(content[:4])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "write_bytes", fail)
    with pytest.raises(OSError, match="No space"):
        save_weights(torch.nn.Linear(2, 2), path)
    assert identical(safetensors.load_file(path), dict(network.state_dict()))
