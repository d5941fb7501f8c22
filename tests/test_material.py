"""What recordings give to a personalization, and what is said about them."""

import time

import numpy as np
import pytest

from pse_sdk.noise import foreign_noise
from pse_sdk.purification import FrameAnalysis
from pse_sdk.segments import Stretch
from pse_sdk.talkers import Talkers

pytest.importorskip("torch")
from pse_sdk.training import material  # noqa: E402
from pse_sdk.training.advice import advice_on  # noqa: E402
from pse_sdk.training.job import Job, NoSpecialist, WorkClock  # noqa: E402

RATE = 16_000


def test_advice_begins_with_what_kept_speech_from_being_heard(monkeypatch):
    monkeypatch.setattr(material, "is_narrow", lambda stretch: stretch.seconds < 12)
    monkeypatch.setattr(material, "holds_music", lambda stretch: True)
    hum, clock = foreign_noise(30.0, np.random.default_rng(0), "hum"), WorkClock()
    clipped = Job([hum, hum[:10 * RATE]], deadline=clock.now() + 100, clock=clock, notes=("recording 1: clipped: 2 %",))
    with pytest.raises(NoSpecialist) as refused:
        material._heard(clipped, {}, lambda *_: None)
    advice = refused.value.verdict["advice"]
    assert [next(word for word in ("level", "telephone", "music", "minutes") if word in line) for line in advice] == [
        "level", "telephone", "music", "minutes"]


class Heard:
    """What `_heard` makes of recordings that are all speech at 10 dB, as long as they say."""

    def __init__(self, monkeypatch, *seconds: float, clean: float = 0.0, **flags):
        def stretch(samples, predictor, estimate=None):
            whole = samples[:len(samples) // 256 * 256]
            snr_db = 30.0 if whole[0] > 0.4 else 10.0
            return Stretch(whole, FrameAnalysis(*(np.full(len(whole) // 256, value) for value in (1.0, 0.9, snr_db))))

        monkeypatch.setattr(material, "_stretch", stretch)
        for name in ("is_narrow", "holds_music"):
            monkeypatch.setattr(material, name, lambda stretch, name=name: flags.get(name, 0) * RATE ==
                                len(stretch.samples))
        given = [np.full(round(length * RATE), level, np.float32) for length, level in
                 [*((one, 0.1) for one in seconds), *([(clean, 0.5)] if clean else [])]]
        job = Job(given[:len(seconds)], clean=given[len(seconds):], deadline=np.inf)
        self.facts = {}
        self.noisy, self.clean = material._heard(job, self.facts, lambda *_: None)


@pytest.mark.parametrize("flag, words", [("is_narrow", "telephone"), ("holds_music", "music")])
def test_what_is_no_plain_speech_of_the_user_is_left_out(monkeypatch, flag, words):
    found = Heard(monkeypatch, 16, 32, clean=16, **{flag: 16})
    assert [len(stretch.samples) for stretch in found.noisy] == [32 * RATE] and not found.clean
    about_clean, about_noisy = found.facts["notes"]
    assert about_clean.startswith("1 of 1 recordings given as clean hold ") and words in about_clean
    assert about_noisy.startswith("1 of 2 pieces of the recordings hold ") and "left out" in about_noisy
    assert (found.facts["seconds_recorded"], found.facts["seconds_of_speech"]) == (48.0, 32.0)
    assert any(words in line for line in advice_on({**found.facts, "seconds_of_noise": 60}))


def test_seconds_of_speech_are_of_recordings_and_clean_speech(monkeypatch):
    found = Heard(monkeypatch, 16, clean=32)
    assert [found.facts[f"seconds_{what}"] for what in ("recorded", "of_clean", "of_speech")] == [16.0, 32.0, 48.0]
    with pytest.raises(NoSpecialist, match="Only 16 s of speech that can be used in 16 s of recordings"):
        Heard(monkeypatch, 8, clean=8)


def test_many_short_messages_have_an_snr(monkeypatch):
    assert Heard(monkeypatch, *[0.8] * 40).facts["snr_db"] == pytest.approx(10.0, abs=0.1)


@pytest.mark.parametrize("several, together, words", [
    ([True, False, True], True, "2 of 3 pieces of the recordings seem to hold several talkers"),
    ([False] * 3, True, "the recordings seem to be of several talkers"), ([False] * 3, False, None)])
def test_where_several_talk_the_report_says_so_and_the_specialist_is_doubted(monkeypatch, several, together, words):
    answers = iter([*several, together])
    monkeypatch.setattr(material, "pieces_of", lambda stretch, embedding: stretch)
    monkeypatch.setattr(material, "talkers_in", lambda pieces: Talkers(overlap=float(next(answers))))
    samples = np.random.default_rng(0).standard_normal(32 * RATE).astype(np.float32) * 0.1
    frames = np.tile(np.repeat([1.0, 0.0], 50), 20)     # speech and pauses of 0.8 s each
    frames = FrameAnalysis(frames, frames, np.full(len(frames), 20.0))
    monkeypatch.setattr(material, "_stretch", lambda samples, *_: Stretch(samples, frames, samples * 0.9))
    job = Job([samples] * 3, deadline=time.monotonic() + 100)
    facts = {}
    found = material.prepare(job, facts)
    assert found.guard.are_doubtful == found.validation.are_doubtful == bool(words)
    assert [note for note in facts["notes"] if words and note.startswith(words)] == list(facts["notes"])
    assert any("alone" in advice for advice in advice_on(facts)) == bool(words)


@pytest.mark.parametrize("notes, words", [(("recording 1: clipped: 47.1% of the samples",), "input level"),
                                          (("noise 1: clipped: 47.1% of the samples",), "closer to the microphone"),
                                          ((), "closer to the microphone")])
def test_clipped_recordings_are_not_told_to_come_closer(notes, words):
    [advice] = advice_on({"seconds_of_speech": 300, "seconds_of_noise": 60, "snr_db": 2.0, "notes": notes})
    assert words in advice
