"""`benchmarks/methods.py`: what its words mean, and rows with and without the guard, where training costs nothing."""

import argparse
import copy
import importlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")

from pse_sdk.config import STFT  # noqa: E402
from pse_sdk.report import KEPT  # noqa: E402
from pse_sdk.training.fit import Fit  # noqa: E402
from pse_sdk.training.job import NoSpecialist  # noqa: E402
from pse_sdk.training.specialist import load_generalist  # noqa: E402

RATE = 16_000


@pytest.fixture
def methods(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    return importlib.import_module("methods")


@pytest.fixture
def user(tmp_path):
    folder = tmp_path / "ann"
    rng = np.random.default_rng(0)
    for name in ("recordings/00", "clean/00", "tests/noise/00.noisy", "tests/noise/00.clean"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"{name}.wav", 0.1 * rng.standard_normal(2 * RATE), RATE, subtype="FLOAT")
    return folder


@pytest.fixture
def settings(methods, tmp_path):
    return methods.Settings(("noise",), tmp_path / "work", 3, 1, 0, None, None)


def task_of(methods, user, settings, words):
    return methods._task(user, "tiny", *methods._method(words), settings)


@pytest.mark.parametrize("words, stages", [
    ("auto", [("auto", "keep", 0.0, "")]),
    ("auto:remove@60^truth", [("auto", "remove", 60.0, "truth")]),
    ("pseudose,finetune@2.5", [("pseudose", "keep", 0.0, ""), ("finetune", "keep", 2.5, "")]),
    ("remixit^self,remixit^self", [("remixit", "keep", 0.0, "self")] * 2),
])
def test_words_for_a_method(methods, words, stages):
    assert methods._method(words) == (words, tuple(methods.Stage(*stage) for stage in stages))


@pytest.mark.parametrize("words", ["magic", "auto:hide", "auto@soon", "auto@-3", "auto@inf", "finetune", ""])
def test_words_for_no_method(methods, words):
    with pytest.raises(argparse.ArgumentTypeError):
        methods._method(words)


def test_what_it_is_taught_by(methods, user, settings, tmp_path, monkeypatch):
    def taught(words, **changes):
        task = task_of(methods, user, settings, words)
        return methods.estimates(task, task.stages, replace(settings, **changes))[0]

    (noisy,), clean = methods._recordings(user), methods.read(user / "clean" / "00.wav")
    assert np.array_equal(taught("auto^truth"), clean)
    assert np.array_equal(taught("remixit^self"), methods.network_system(load_generalist("tiny")).enhance(noisy))
    with pytest.raises(methods.SettingsError, match="--peers"):
        taught("auto^half")
    peers = tmp_path / "halves.py"
    peers.write_text("def make(name):\n    class Half:\n        def enhance(self, noisy):\n"
                     "            return noisy / 2\n    return Half()\n")
    assert np.array_equal(taught("auto^half", peers=peers), noisy / 2)


def test_what_is_trusted_is_the_recording_and_the_rest_the_teachers(methods):
    n, hop = 20, STFT.hop_length
    samples = np.random.default_rng(0).standard_normal(n * hop).astype(np.float32)
    trusted = argparse.Namespace(analyse=lambda _: argparse.Namespace(weight=np.repeat([1.0, 0.25, 0.0], [8, 6, 6])))
    silent = argparse.Namespace(estimate=np.zeros_like)
    found = methods.blended(silent, trusted, samples)
    for frames, share in ((slice(0, 7), 1.0), (slice(9, 13), 0.25), (slice(15, n), 0.0)):
        place = slice(frames.start * hop, frames.stop * hop)
        np.testing.assert_allclose(found[place], share * samples[place], atol=1e-6)


@pytest.mark.parametrize("refused", [False, True])
def test_a_row_holds_what_was_trained_and_what_the_user_gets(methods, user, settings, monkeypatch, refused):
    """Training makes a network that is silent; the guard lets it pass or not."""
    silent = load_generalist("tiny")
    for value in silent.parameters():
        value.data.zero_()
    stages = []

    class Zero:
        def __init__(self, start, _):
            self.start = start

        def __call__(self, network):
            return 1.0

    told = copy.deepcopy(silent)

    def train(job, material, score, first, facts):
        stages.append((job.training_method, score.start, first))
        return Fit(silent, 1.0, 3, 0.5, ((0, 0.0), (3, 1.0)))

    def choose(job, material, score, start, fitted, facts):
        if refused:
            raise NoSpecialist(KEPT, "no gain")
        return fitted.network

    monkeypatch.setattr(methods, "prepare", lambda job, facts: argparse.Namespace(validation=None, told=told))
    monkeypatch.setattr(methods, "train", train)
    monkeypatch.setattr(methods, "choose", choose)
    monkeypatch.setattr(methods, "Score", Zero)
    monkeypatch.setattr(methods, "estimates", lambda *_: [])
    monkeypatch.setattr(methods.torch, "set_flush_denormal", lambda _: True)    # it would stay so for other tests
    generalist, task = (task_of(methods, user, settings, words) if words else
                        methods._task(user, "tiny", "", (), settings) for words in ("", "pseudose,finetune@1"))
    for one in (generalist, task):
        methods.run_task(one, settings)
    [before] = json.loads(generalist.row.read_text())
    without, with_guard = json.loads(task.row.read_text())
    assert [method for method, *_ in stages] == [methods.METHODS["pseudose"], methods.METHODS["finetune"]]
    assert stages[0][2] is told and stages[1][1] is stages[1][2] is silent      # the second goes on from the first
    assert without["system"] == "tiny, pseudose,finetune@1, no guard" and without["sets"] != before["sets"]
    assert with_guard["sets"] == (before if refused else without)["sets"]
    assert (with_guard["status"], with_guard["start"]) == (KEPT if refused else "accepted", "generalist tiny")
    methods.run_task(task, settings)
    assert len(stages) == 2             # what was trained is kept


def test_adapters_change_matrices_by_few_ranks(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    adapters = importlib.import_module("adapters")
    start, rank = load_generalist("tiny"), 3
    noisy = torch.randn((2, 40, 2, STFT.n_bins), generator=torch.Generator().manual_seed(0))

    def heard(network):
        return network(noisy, network.initial_state(2))[0]

    adapted = adapters.with_adapters(copy.deepcopy(start), rank)
    torch.testing.assert_close(heard(adapted), heard(start))
    optimizer = torch.optim.Adam(adapted.parameters(), 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        heard(adapted).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        expected = heard(adapted)
        whole = adapters.without_adapters(adapted)
        torch.testing.assert_close(heard(whole), expected)
    assert (expected - heard(start)).abs().max() > 0.01
    assert list(whole.state_dict()) == list(start.state_dict())
    assert all(value.requires_grad for value in whole.parameters())
    ranks = {int(torch.linalg.matrix_rank(after - before, rtol=1e-4)) for after, before in
             zip(whole.state_dict().values(), start.state_dict().values(), strict=True) if after.ndim == 2}
    assert ranks == {rank}
