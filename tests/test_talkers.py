import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pse_sdk import talkers
from pse_sdk.config import MODELS, STFT
from pse_sdk.errors import ModelFileError
from pse_sdk.purification import FrameAnalysis, FramePredictor
from pse_sdk.segments import Stretch
from pse_sdk.talkers import (
    FARTHEST_APART,
    FEWEST_PIECES,
    PIECE_FRAMES,
    Pieces,
    SpeakerEmbedding,
    Talkers,
    groups_apart,
    pieces_of,
    talkers_in,
)

RATE = STFT.sample_rate
N_PIECES = 40
STARTS = np.arange(N_PIECES) * 64
DATA = os.environ.get("PSE_DATA")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def pieces(rng: np.random.Generator, n_voices: int) -> np.ndarray:
    """Embeddings of voices that take turns of five pieces."""
    voices = unit(rng.standard_normal((n_voices, 64)))
    return unit(voices[np.arange(N_PIECES) // 5 % n_voices] + 0.06 * rng.standard_normal((N_PIECES, 64)))


@pytest.mark.parametrize("n_voices, apart", [(1, False), (2, True), (3, True)])
def test_pieces_of_several_voices_lie_apart(rng, n_voices, apart):
    assert (groups_apart(pieces(rng, n_voices), STARTS) > FARTHEST_APART) == apart


def test_one_other_sentence_is_noticed_and_pieces_that_overlap_do_not_count(rng):
    found = pieces(rng, 1)
    found[30:] = unit(rng.standard_normal((1, 64)) + 0.06 * rng.standard_normal((10, 64)))
    assert groups_apart(found, STARTS) > 0.5
    assert groups_apart(found, np.arange(N_PIECES)) == 0.0       # all of them overlap
    assert groups_apart(np.tile(found[:1], (N_PIECES, 1)), STARTS) == 0.0


class Counting:
    """Two voices, the second one's from piece 13 on, or both in each piece; counts what it was asked."""

    def __init__(self, at_once: bool) -> None:
        self.at_once, self.n_asked = at_once, 0

    def embed(self, power: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert power.shape[1:] == (PIECE_FRAMES, STFT.n_bins)
        second = (self.n_asked + np.arange(len(power)) >= 13) & (not self.at_once)
        self.n_asked += len(power)
        return np.eye(2)[second.astype(int)], np.full(len(power), 0.9 if self.at_once else 0.1)


def stretch(seconds: float, speech: float) -> Stretch:
    n_frames = int(seconds / STFT.hop_seconds)
    samples = np.random.default_rng(0).standard_normal(n_frames * STFT.hop_length).astype(np.float32) * 0.1
    return Stretch(samples, FrameAnalysis(*np.full((2, n_frames), speech), np.full(n_frames, 20.0)))


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("seconds, speech, n_asked", [(8, 1.0, 5), (60, 0.0, 0), (30, 1.0, 27), (300, 1.0, 290)])
def test_every_second_is_looked_at_if_there_is_speech_enough(seconds, speech, n_asked, at_once):
    embedding = Counting(at_once)
    found = talkers_in([pieces_of(stretch(seconds, speech), embedding)])
    assert embedding.n_asked == n_asked
    if n_asked < FEWEST_PIECES:
        assert found == Talkers() and not found.several
    else:
        assert found == Talkers(0.0 if at_once else 1.0, pytest.approx(0.9 if at_once else 0.1)) and found.several


def test_who_talks_is_heard_in_what_the_teacher_takes_for_speech():
    asked = []

    class Hearing(Counting):
        def embed(self, power):
            asked.append(power)
            return super().embed(power)

    one = stretch(30, 1.0)
    for stretch_, scale in ((one, 1.0), (replace(one, estimate=one.samples * 0.5), 0.25)):
        pieces_of(stretch_, Hearing(at_once=False))
        np.testing.assert_allclose(asked[-1], asked[0] * scale, rtol=1e-4)


@pytest.mark.parametrize("voices, several", [([0, 0, 0], False), ([0, 1, 0], True)])
def test_somebody_else_in_another_recording_is_noticed_even_if_all_are_short(rng, voices, several):
    """Five pieces each, of which no two overlap."""
    both = unit(rng.standard_normal((2, 64)))
    recordings = [Pieces(unit(both[[voice] * 5] + 0.06 * rng.standard_normal((5, 64))), np.full(5, 0.1),
                         np.arange(5) * PIECE_FRAMES) for voice in voices]
    assert talkers_in(recordings).several == several
    assert talkers_in([]) == talkers_in(recordings[:2]) == Talkers()


def test_a_package_without_the_network_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(talkers, "MODELS", tmp_path)
    with pytest.raises(ModelFileError, match="speaker_embedding"):
        SpeakerEmbedding().embed(np.ones((1, PIECE_FRAMES, STFT.n_bins), np.float32))


@pytest.mark.skipif(not (MODELS / "speaker_embedding.onnx").exists(), reason="needs the package's models")
def test_the_level_of_a_recording_does_not_matter():
    power = np.random.default_rng(1).random((2, PIECE_FRAMES, STFT.n_bins), np.float32) ** 2 + 0.1
    embedding = SpeakerEmbedding()
    (found, overlap), (softer, softer_overlap) = embedding.embed(power), embedding.embed(power * 1e-3)
    np.testing.assert_allclose(found, softer, atol=1e-3)
    np.testing.assert_allclose(overlap, softer_overlap, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert ((overlap > 0) & (overlap < 1)).all()


@pytest.mark.skipif(not DATA, reason="needs the audio that PSE_DATA names")
def test_two_readers_are_noticed_in_turn_and_at_once_and_one_is_not(rng):
    readers = []
    for folder in sorted((Path(DATA) / "speech" / "users").iterdir()):
        clips = [soundfile.read(path, dtype="float32")[0] for path in sorted(folder.iterdir())[:12]]
        readers.append([clip / np.sqrt(np.mean(np.square(clip))) * 0.05 for clip in clips])
    teacher = pytest.importorskip("pse_sdk.training.teacher").Teacher()
    embedding, predictor = SpeakerEmbedding(), FramePredictor()

    def noticed(sentences: list[np.ndarray], second: list[np.ndarray] | None = None) -> bool:
        speech = np.concatenate(sentences)[:80 * RATE]
        if second is not None:
            speech = speech + np.resize(np.concatenate(second), len(speech))
        samples = (speech + 0.01 * rng.standard_normal(len(speech))).astype(np.float32)[:len(speech) // 256 * 256]
        heard = Stretch(samples, predictor.analyse(samples), teacher.estimate(samples))
        return talkers_in([pieces_of(heard, embedding)]).several

    alone = [noticed(clips) for clips in readers]
    others = readers[1:] + readers[:1]
    turns = [noticed([clip for both in zip(one, other, strict=False) for clip in both])
             for one, other in zip(readers, others, strict=True)]
    at_once = [noticed(one, other) for one, other in zip(readers, others, strict=True)]
    assert sum(alone) == 0 and sum(turns) >= len(readers) - 3 and sum(at_once) >= len(readers) - 2
