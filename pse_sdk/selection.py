"""Which recordings a personalization learns from, and which parts of them."""

from dataclasses import replace

import numpy as np

from .config import STFT
from .recordings import SHORTEST_SECONDS, Recording, is_copy
from .stft import frame_power

BLOCK = 60 * STFT.sample_rate  # samples that are taken or left together, where not all of them are used
LEAST_SWING_DB = 6.0            # between quiet and loud where somebody speaks; steady noise has half of it
MOST_CLIPPED = 0.1      # with 2 to 5 % two users gained, with 22 to 34 % one lost 0.3 dB in noise and 1.7 dB elsewhere


def without_copies(recordings: list[Recording], others: list[Recording],
                   words: str) -> tuple[list[Recording], tuple[str, ...]]:
    """The recordings that are not among the others, and a note: a sound must not count as two things."""
    kept = [recording for recording in recordings if not any(is_copy(other, recording) for other in others)]
    n_left = len(recordings) - len(kept)
    return kept, (f"{n_left} of {len(recordings)} {words}",) if n_left else ()


def not_too_clipped(recordings: list[Recording]) -> tuple[list[Recording], tuple[str, ...]]:
    """Those that speech can be learnt from, and a note on the others."""
    kept = [recording for recording in recordings if recording.clipped <= MOST_CLIPPED]
    n_left = len(recordings) - len(kept)
    return kept, (f"{n_left} of {len(recordings)} recordings are left out: they are clipped so hard that little of the "
                  "speech is as it was",) if n_left else ()


def at_most(recordings: list[Recording], seconds: float) -> tuple[list[Recording], tuple[str, ...]]:
    """The recordings, or where they are longer together, minutes of them in which something happens, and a note.

    Those minutes come from everywhere, evenly; neighbours stay together. Steady sound and silence are taken only where
    there is nothing else.
    """
    total = sum(recording.seconds for recording in recordings)
    if total <= seconds:
        return recordings, ()
    blocks = [(i, start, min(start + BLOCK, len(recording.samples)))
              for i, recording in enumerate(recordings) for start in range(0, len(recording.samples), BLOCK)]
    swing = np.array([_swing_db(recordings[i].samples[start:stop]) for i, start, stop in blocks])
    lengths = np.array([stop - start for _, start, stop in blocks]) / STFT.sample_rate
    lively = swing > LEAST_SWING_DB
    if lengths[lively].sum() > seconds:
        chosen = _evenly(lengths, lively, seconds)
    else:
        order = np.argsort(-swing, kind="stable")
        chosen = np.sort(order[np.cumsum(lengths[order]) - lengths[order] < seconds])
    places = list[tuple[int, int, int]]()
    for i, start, stop in (blocks[k] for k in chosen):
        if places and places[-1][0] == i and places[-1][2] == start:
            places[-1] = (i, places[-1][1], stop)
        else:
            places.append((i, start, stop))
    kept, left = list[Recording](), round(seconds * STFT.sample_rate)
    for i, start, stop in places:
        samples = recordings[i].samples[start:min(stop, start + left)]
        if len(samples) >= min(SHORTEST_SECONDS * STFT.sample_rate, stop - start):
            kept.append(replace(recordings[i], samples=samples.copy()))
            left -= len(samples)
    used = sum(recording.seconds for recording in kept)
    return kept, (f"of {total / 60:.1f} minutes of recordings {used / 60:.1f} were used, in which most happens",)


def _evenly(lengths: np.ndarray, lively: np.ndarray, seconds: float) -> np.ndarray:
    """Which of the lively blocks to take, so that everywhere the same share of their time is."""
    share, passed, taken, chosen = seconds / lengths[lively].sum(), 0.0, 0.0, list[int]()
    for k in np.flatnonzero(lively):
        passed += lengths[k]
        if taken + lengths[k] / 2 <= share * passed:
            chosen.append(int(k))
            taken += lengths[k]
    return np.array(chosen)


def _swing_db(samples: np.ndarray) -> float:
    """How far the levels of 16 ms lie apart, from the 10th to the 95th of a hundred, silence counting as -80 dBFS."""
    power = frame_power(samples)
    if not len(power):
        return 0.0
    low, high = np.percentile(10 * np.log10(power + 1e-8), [10, 95])
    return float(high - low)
