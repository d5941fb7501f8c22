import importlib
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pse_sdk.audio import dbfs
from pse_sdk.noise import synthetic_voice

RATE = 16_000
PROGRAMS = Path(__file__).parent.parent / "benchmarks"

pytest.importorskip("pesq")
pytest.importorskip("pystoi")


@pytest.fixture
def robustness(monkeypatch):
    monkeypatch.syspath_prepend(str(PROGRAMS))
    return importlib.import_module("robustness")


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    folder = tmp_path_factory.mktemp("users") / "ada"
    clean = 0.1 * synthetic_voice(3 * RATE, np.random.default_rng(1))
    noisy = clean + 0.05 * np.random.default_rng(0).standard_normal(len(clean))
    for name in ("clean", "noise"):
        (folder / "tests" / name).mkdir(parents=True)
        soundfile.write(folder / "tests" / name / "00.clean.wav", clean, RATE, "FLOAT")
        soundfile.write(folder / "tests" / name / "00.noisy.wav", noisy if name == "noise" else clean, RATE, "FLOAT")
    return folder


def test_a_system_that_changes_nothing_harms_nobody(robustness, user):
    rows = list(robustness.tested(user, "input", robustness.System("", lambda noisy: noisy), 1, seed=0))
    clean, noisy = rows[:3], rows[3:]
    assert all(row.pesq > 4.6 and row.n_lowered == 0 and row.n_stretches > 5 for row in clean)
    assert [row.estoi_gain for row in noisy] == pytest.approx([0, 0], abs=1e-6)


def test_a_system_that_swallows_words_is_found_out(robustness, user):
    def swallow(noisy):
        return np.where(np.arange(len(noisy)) // (RATE // 2) % 2, noisy, 0.1 * noisy)

    rows = list(robustness.tested(user, "swallow", robustness.System("", swallow), 1, seed=0))
    assert all(row.n_lowered > 3 and row.most_lowered_db == pytest.approx(20, abs=0.1) for row in rows[:3])
    assert all(row.estoi_gain < 0 for row in rows[3:])
    head, *table = robustness.cells(rows)
    assert len(table) == 1 and len(table[0]) == len(head)
    assert table[0][-1] == "1 of 1"


def test_what_is_lost_is_lost_in_decibels_and_silence_does_not_count(robustness):
    clean = np.concatenate([np.ones(RATE), np.zeros(RATE), np.ones(RATE)])
    enhanced = np.concatenate([np.ones(RATE), np.ones(RATE), 0.5 * np.ones(RATE)])
    losses, _ = robustness.lost_db(enhanced, clean)
    np.testing.assert_allclose(losses, [0] * 10 + [20 * np.log10(2)] * 10, atol=1e-6)
    assert (losses > robustness.LOWERED_DB).sum() == 10


def test_what_is_no_louder_than_the_noise_of_a_clean_recording_is_told_apart(robustness):
    level_db = np.repeat([-28.0, 0.0, -20.0, 0.0], RATE)
    clean = 10 ** (level_db / 20) * np.sign(np.random.default_rng(0).standard_normal(4 * RATE))
    losses, standing_out = robustness.lost_db(np.where(level_db < 0, 0.1 * clean, clean), clean)
    assert (losses > robustness.LOWERED_DB).tolist() == [True] * 10 + [False] * 10 + [True] * 10 + [False] * 10
    assert standing_out.tolist() == [False] * 10 + [True] * 30


def test_conditions_are_what_they_are_called(robustness):
    rng = np.random.default_rng(0)
    clean, noise = 0.1 * rng.standard_normal((2, RATE)).astype(np.float32)
    assert dbfs(robustness.at_level(clean, -45.0)) == pytest.approx(-45, abs=0.01)
    noisy, reverberant = robustness.in_room(clean + noise, clean, seed=0)
    np.testing.assert_allclose(noisy - reverberant, noise, atol=1e-6)
    assert dbfs(reverberant) == pytest.approx(dbfs(clean) + 3, abs=0.5)     # the room is as loud as the direct sound
    limited = np.abs(np.fft.rfft(robustness.telephone(clean)))
    assert limited[4200:].max() < 0.01 * limited[:3500].mean()
