"""Whether one person talks in a recording, or several who take turns."""

from functools import cached_property

import numpy as np
import onnxruntime

from .config import MODELS
from .model_format import read_model
from .onnx_denoiser import open_session
from .segments import Stretch

PIECE_FRAMES, PIECE_STEP = 192, 64      # 3.07 s, what the embeddings learnt from; a new piece every second
LEAST_SPEECH_SHARE, FEWEST_PIECES = 0.5, 12
FARTHEST_APART = 0.21           # of one person's pieces; see `groups_apart`
N_ROUNDS = 20


class SpeakerEmbedding:
    """The network that ships with the package: a direction for each piece of speech, near for one person's.

    Raises:
        ModelFileError: its file is missing or damaged.
    """

    @cached_property
    def _session(self) -> onnxruntime.InferenceSession:
        return open_session(read_model(MODELS / "speaker_embedding.onnx"))

    def embed(self, power: np.ndarray) -> np.ndarray:
        """Unit vectors [K, D] of power spectra [K, N, F], as `power_spectrogram` makes them."""
        found: np.ndarray = self._session.run(["embedding"], {"power": power})[0]
        return found


def has_several_talkers(stretch: Stretch, embedding: SpeakerEmbedding) -> bool:
    """Whether two voices or more take turns in it, by its first minutes.

    A hint: of recordings with two voices about a third is missed, those who talk at the same time always; of one
    person's in loud noise, in several rooms or beside music a few in a hundred are taken for two's
    (benchmarks/several_talkers.py).
    """
    return voices_apart(stretch, embedding) > FARTHEST_APART


def voices_apart(stretch: Stretch, embedding: SpeakerEmbedding) -> float:
    """`groups_apart` of the pieces of its first minutes; 0 where there is too little speech to say."""
    power = stretch.first_power
    speech = stretch.frames.speech[:len(power)] > 0.5
    starts = [start for start in range(0, len(speech) - PIECE_FRAMES + 1, PIECE_STEP)
              if speech[start:start + PIECE_FRAMES].mean() >= LEAST_SPEECH_SHARE]
    if len(starts) < FEWEST_PIECES:
        return 0.0
    pieces = np.stack([power[start:start + PIECE_FRAMES] for start in starts])
    return groups_apart(embedding.embed(pieces), np.array(starts))


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
