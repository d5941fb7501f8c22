"""Whether one person talks in recordings, or several, in turn or at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnxruntime

from .config import MODELS
from .model_format import read_model
from .onnx_denoiser import open_session
from .segments import Stretch
from .stft import power_spectrogram

PIECE_FRAMES, PIECE_STEP = 192, 64      # 3.07 s, what the embeddings learnt from; a new piece every second
LEAST_SPEECH_SHARE, FEWEST_PIECES = 0.5, 12
FARTHEST_APART = 0.24           # of one person's pieces; see `groups_apart`
MOST_OVERLAP = 0.4              # of one person's pieces, as a mean probability; in a living room it comes near to that
N_ROUNDS = 20
N_AT_ONCE = 64                  # pieces, which take 0.2 MB each


class SpeakerEmbedding:
    """The network that ships with the package: a direction for each piece of speech, near for one person's, and how
    likely two people talk in it at once.

    Raises:
        ModelFileError: its file is missing or damaged.
    """

    @cached_property
    def _session(self) -> onnxruntime.InferenceSession:
        return open_session(read_model(MODELS / "speaker_embedding.onnx"))

    def embed(self, power: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of power spectra [K, N, F], as `power_spectrogram` makes them: unit vectors [K, D], and probabilities [K]."""
        found, odds = self._session.run(["embedding", "overlap"], {"power": power})
        return found, 1 / (1 + np.exp(-odds))


@dataclass(frozen=True)
class Talkers:
    """What tells one talker from several in recordings."""

    apart: float = 0.0      # of pieces: `groups_apart`
    overlap: float = 0.0    # mean probability that two talk in a piece at once

    @property
    def several(self) -> bool:
        """A hint: two voices that are alike are taken for one, and somebody among many others for several
        (benchmarks/several_talkers.py)."""
        return self.apart > FARTHEST_APART or self.overlap > MOST_OVERLAP


@dataclass(frozen=True)
class Pieces:
    """Three seconds of speech each. Shape: `directions` [K, D], `overlap` [K], `starts` [K] in frames."""

    directions: np.ndarray
    overlap: np.ndarray
    starts: np.ndarray


def pieces_of(stretch: Stretch, embedding: SpeakerEmbedding) -> Pieces:
    """Of what the teacher takes for its speech, where there is such an estimate: noise hides who talks, and the voices
    in it are not the talker's."""
    power = power_spectrogram(stretch.samples if stretch.estimate is None else stretch.estimate)
    speech = stretch.frames.speech > 0.5
    starts = [start for start in range(0, len(speech) - PIECE_FRAMES + 1, PIECE_STEP)
              if speech[start:start + PIECE_FRAMES].mean() >= LEAST_SPEECH_SHARE]
    if not starts:
        return Pieces(np.empty((0, 1), np.float32), np.empty(0, np.float32), np.empty(0, int))
    found = [embedding.embed(np.stack([power[start:start + PIECE_FRAMES] for start in starts[i:i + N_AT_ONCE]]))
             for i in range(0, len(starts), N_AT_ONCE)]
    directions, overlap = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Pieces(directions, overlap, np.array(starts))


def talkers_in(recordings: Sequence[Pieces]) -> Talkers:
    """In all of them together; as of one where there is too little speech to say."""
    some = [pieces for pieces in recordings if len(pieces.starts)]
    if sum(len(pieces.starts) for pieces in some) < FEWEST_PIECES:
        return Talkers()
    ends = np.cumsum([pieces.starts[-1] + PIECE_FRAMES for pieces in some])
    starts = [pieces.starts + base for pieces, base in zip(some, [0, *ends], strict=False)]
    return Talkers(groups_apart(np.concatenate([pieces.directions for pieces in some]), np.concatenate(starts)),
                   float(np.concatenate([pieces.overlap for pieces in some]).mean()))


def groups_apart(embeddings: np.ndarray, starts: np.ndarray) -> float:
    """How much more alike pieces [K, D] are within two groups than across, as a mean cosine, parted in two by k-means.

    Pieces that overlap, by where they start [K] in frames, are alike anyway and do not count.
    """
    likeness = embeddings @ embeddings.T
    counts = np.abs(np.subtract.outer(starts, starts)) >= PIECE_FRAMES
    centred = embeddings - embeddings.mean(0)
    first = centred @ np.linalg.svd(centred, full_matrices=False)[2][0] > 0
    for _ in range(N_ROUNDS):
        if first.all() or not first.any():
            return 0.0
        centres = np.stack([embeddings[group].mean(0) for group in (first, ~first)])
        nearer = embeddings @ (centres / np.linalg.norm(centres, axis=1, keepdims=True)).T
        before, first = first, nearer[:, 0] > nearer[:, 1]
        if np.array_equal(before, first):
            break
    together = np.equal.outer(first, first)
    if not (together & counts).any() or not (~together & counts).any():
        return 0.0
    return float(likeness[together & counts].mean() - likeness[~together & counts].mean())
