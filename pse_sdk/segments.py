"""From recordings to stretches that are learnt from, stretches that only judge, and the noise of the pauses."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .config import STFT
from .purification import FrameAnalysis
from .stft import frame_power

PARTS = ("training", "validation", "guard")
SHARES = (0.7, 0.15, 0.15)
GAP_FRAMES = 31                 # half a second between parts, so that no sound is in two of them
SHORTEST_SPLIT_SECONDS = 20.0   # shorter recordings go whole into one part
LEAST_JUDGED_FRAMES = 200       # 3.2 s in the parts that judge: shorter ones hold nothing to judge with
PAUSE_PROBABILITY = 0.3         # below it a frame is a pause
PAUSE_COLLAR = 3                # frames next to speech that are not harvested
SHORTEST_PAUSE = 10             # frames, 0.16 s
FADE = STFT.hop_length


@dataclass(frozen=True)
class Stretch:
    """A piece of a recording with what is known of its frames. `samples` has `hop_length` samples a frame.

    `estimate` is what a teacher takes for the speech in it, as many samples.
    """

    samples: np.ndarray
    frames: FrameAnalysis
    estimate: np.ndarray | None = None

    @property
    def n_frames(self) -> int:
        return len(self.frames.speech)

    @property
    def seconds(self) -> float:
        return self.n_frames * STFT.hop_seconds

    @property
    def seconds_of_speech(self) -> float:
        return float((self.frames.speech > 0.5).sum()) * STFT.hop_seconds

    @property
    def snr_db(self) -> float:
        """Of the stretch's speech: the SNR of its frames, averaged with their energy; NaN without speech."""
        speech = self.frames.speech > 0.5
        if not speech.any():
            return float("nan")
        power = frame_power(self.samples)[speech]
        noise = power / (1 + 10 ** (self.frames.snr_db[speech] / 10))
        return float(10 * np.log10((power.sum() - noise.sum() + 1e-20) / (noise.sum() + 1e-20)))


def join_short(stretches: Sequence[Stretch]) -> list[Stretch]:
    """Messages shorter than `LEAST_JUDGED_FRAMES` end to end, so that they can be learnt from and judged with."""
    found, waiting = list[Stretch](), list[Stretch]()
    for stretch in stretches:
        if stretch.n_frames >= LEAST_JUDGED_FRAMES:
            found.append(stretch)
            continue
        waiting.append(stretch)
        if sum(one.n_frames for one in waiting) >= LEAST_JUDGED_FRAMES:
            found.append(_end_to_end(waiting))
            waiting = []
    return [*found, _end_to_end(waiting)] if waiting else found


def _end_to_end(stretches: Sequence[Stretch]) -> Stretch:
    """One stretch of several, each fading in and out over 16 ms."""
    estimates = [stretch.estimate for stretch in stretches if stretch.estimate is not None]
    return Stretch(np.concatenate([_faded(stretch.samples) for stretch in stretches]),
                   FrameAnalysis(*(np.concatenate([getattr(stretch.frames, name) for stretch in stretches])
                                   for name in ("speech", "share", "snr_db"))),
                   np.concatenate([_faded(estimate) for estimate in estimates]) if estimates else None)


def _faded(samples: np.ndarray) -> np.ndarray:
    ramp = np.minimum(1.0, (np.arange(len(samples)) + 0.5) / FADE).astype(samples.dtype)
    return np.asarray(samples * ramp * ramp[::-1])


def split(recordings: Sequence[Stretch]) -> dict[str, list[Stretch]]:
    """Training, validation and guard parts: 70, 15 and 15 % of every long recording, short ones whole, in turn.

    No sample is in two parts, and half a second lies between neighbours.
    """
    parts: dict[str, list[Stretch]] = {name: [] for name in PARTS}
    filled = dict.fromkeys(PARTS, 0)
    for i, recording in enumerate(recordings):
        if recording.seconds < SHORTEST_SPLIT_SECONDS:
            total = sum(filled.values()) + recording.n_frames
            name = max(PARTS, key=lambda part: SHARES[PARTS.index(part)] * total - filled[part])
            parts[name].append(recording)
            filled[name] += recording.n_frames
            continue
        # the judged parts lie at the end of one recording, at the start of the next
        order = PARTS if i % 2 == 0 else (PARTS[2], PARTS[1], PARTS[0])
        judged = max(int(SHARES[1] * recording.n_frames), LEAST_JUDGED_FRAMES)
        most = recording.n_frames - judged - LEAST_JUDGED_FRAMES - 2 * GAP_FRAMES
        lengths = {PARTS[0]: min(int(SHARES[0] * recording.n_frames), most), PARTS[1]: judged, PARTS[2]: judged}
        start = 0
        for name in order:
            stop = min(start + lengths[name], recording.n_frames)
            part = cut(recording, start, stop)
            parts[name].append(part)
            filled[name] += part.n_frames
            start = stop + GAP_FRAMES
    return parts


def cut(stretch: Stretch, start: int, stop: int) -> Stretch:
    """The frames from `start` to `stop`."""
    place = slice(start * STFT.hop_length, stop * STFT.hop_length)
    return Stretch(stretch.samples[place], stretch.frames.part(start, stop),
                   None if stretch.estimate is None else stretch.estimate[place])


def pauses(frames: FrameAnalysis) -> np.ndarray:
    """Which frames [N] surely hold no speech: they start and end a collar away from it."""
    if not len(frames.speech):
        return np.zeros(0, bool)
    speech = np.pad(frames.speech >= PAUSE_PROBABILITY, PAUSE_COLLAR)
    return np.asarray(~np.lib.stride_tricks.sliding_window_view(speech, 2 * PAUSE_COLLAR + 1).any(1))


def harvest_pauses(stretches: Sequence[Stretch]) -> list[np.ndarray]:
    """The noise [T] of each stretch: its pauses, joined with short cross-fades. Stretches without pauses give none."""
    found = []
    for stretch in stretches:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], pauses(stretch.frames).astype(int), [0]])))
        pieces = [stretch.samples[a * STFT.hop_length:b * STFT.hop_length]
                  for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a >= SHORTEST_PAUSE]
        if pieces and max(float(np.abs(piece).max()) for piece in pieces) > 1e-5:
            found.append(cross_fade(pieces))
    return found


def cross_fade(pieces: Sequence[np.ndarray]) -> np.ndarray:
    """Pieces [T_i], none shorter than 16 ms, joined so that each fades into the next over 16 ms, at equal power."""
    ramp = np.sin(np.linspace(0, np.pi / 2, FADE)).astype(np.float32)
    joined = np.zeros(sum(map(len, pieces)) - FADE * (len(pieces) - 1), np.float32)
    start = 0
    for i, piece in enumerate(pieces):
        faded = np.array(piece, np.float32)
        if i > 0:
            faded[:FADE] *= ramp
        if i < len(pieces) - 1:
            faded[-FADE:] *= ramp[::-1]
        joined[start:start + len(piece)] += faded
        start += len(piece) - FADE
    return joined
