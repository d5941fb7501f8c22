import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pse_sdk import talkers
from pse_sdk.config import MODELS, STFT
from pse_sdk.errors import ModelFileError
from pse_sdk.purification import FrameAnalysis, FramePredictor
from pse_sdk.segments import Stretch
from pse_sdk.talkers import FARTHEST_APART, PIECE_FRAMES, SpeakerEmbedding, groups_apart, has_several_talkers

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
    """Two voices, the later pieces the second one's; counts what it was asked."""

    n_asked = 0

    def embed(self, power: np.ndarray) -> np.ndarray:
        assert power.shape[1:] == (PIECE_FRAMES, STFT.n_bins)
        self.n_asked += len(power)
        return np.eye(2)[(np.arange(len(power)) >= len(power) // 2).astype(int)]


def stretch(seconds: float, speech: float) -> Stretch:
    n_frames = int(seconds / STFT.hop_seconds)
    samples = np.random.default_rng(0).standard_normal(n_frames * STFT.hop_length).astype(np.float32) * 0.1
    return Stretch(samples, FrameAnalysis(*np.full((3, n_frames), speech)))


@pytest.mark.parametrize("seconds, speech, n_asked", [(8, 1.0, 0), (60, 0.0, 0), (30, 1.0, 27), (600, 1.0, 123)])
def test_only_the_first_minutes_are_looked_at_if_there_is_speech_enough(seconds, speech, n_asked):
    embedding = Counting()
    assert has_several_talkers(stretch(seconds, speech), embedding) == (n_asked > 0)
    assert embedding.n_asked == n_asked


def test_a_package_without_the_network_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(talkers, "MODELS", tmp_path)
    with pytest.raises(ModelFileError, match="speaker_embedding"):
        SpeakerEmbedding().embed(np.ones((1, PIECE_FRAMES, STFT.n_bins), np.float32))


@pytest.mark.skipif(not (MODELS / "speaker_embedding.onnx").exists(), reason="needs the package's models")
def test_the_level_of_a_recording_does_not_matter():
    power = np.random.default_rng(1).random((2, PIECE_FRAMES, STFT.n_bins), np.float32) ** 2 + 0.1
    embedding = SpeakerEmbedding()
    np.testing.assert_allclose(embedding.embed(power), embedding.embed(power * 1e-3), atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(embedding.embed(power), axis=1), 1, atol=1e-5)


@pytest.mark.skipif(not DATA, reason="needs the audio that PSE_DATA names")
def test_two_readers_who_take_turns_are_noticed_and_one_is_not(rng):
    readers = []
    for folder in sorted((Path(DATA) / "speech" / "users").iterdir()):
        clips = [soundfile.read(path, dtype="float32")[0] for path in sorted(folder.iterdir())[:12]]
        readers.append([clip / np.sqrt(np.mean(np.square(clip))) * 0.05 for clip in clips])
    embedding, predictor = SpeakerEmbedding(), FramePredictor()

    def noticed(sentences: list[np.ndarray]) -> bool:
        speech = np.concatenate(sentences)[:80 * RATE]
        samples = (speech + 0.01 * rng.standard_normal(len(speech))).astype(np.float32)[:len(speech) // 256 * 256]
        return has_several_talkers(Stretch(samples, predictor.analyse(samples)), embedding)

    alone = [noticed(clips) for clips in readers]
    turns = [noticed([clip for both in zip(one, other, strict=False) for clip in both])
             for one, other in zip(readers, readers[1:] + readers[:1], strict=True)]
    assert sum(alone) == 0 and sum(turns) >= len(readers) - 3
