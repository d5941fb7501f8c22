import numpy as np

from pse_sdk.recordings import Recording
from pse_sdk.selection import at_most

RATE = 16_000


def minutes(n: int, level: float, rng: np.random.Generator) -> np.ndarray:
    """Noise; above a level of 0 in syllables."""
    samples = 0.01 * rng.standard_normal(n * 60 * RATE).astype(np.float32)
    return samples * (1 + level * np.repeat(rng.random(n * 300) > 0.5, RATE // 5)).astype(np.float32)


def test_of_hours_those_minutes_are_used_in_which_something_happens():
    rng = np.random.default_rng(0)
    spoken, steady = minutes(2, 5.0, rng), minutes(9, 0.0, rng)
    recordings = [Recording(np.concatenate([steady, spoken, steady]), "long", ("clipped",)),
                  Recording(minutes(1, 5.0, rng), "short", ("hummed",))]
    (first, second), [note] = at_most(recordings, 180)
    assert np.array_equal(first.samples, spoken) and first.notes == ("clipped",)
    assert second.samples is not recordings[1].samples and second.seconds == 60 and second.notes == ("hummed",)
    assert "of 21.0 minutes of recordings 3.0 were used" in note
    assert at_most(recordings[1:], 180) == (recordings[1:], ())


def test_of_hours_of_speech_minutes_are_used_from_everywhere():
    rng = np.random.default_rng(0)
    recordings = [Recording(minutes(1, 5.0, rng), str(i)) for i in range(20)]
    kept, _ = at_most(recordings, 300)
    assert [recording.seconds for recording in kept] == [60.0] * 5
    assert [int(recording.name) for recording in kept] == [1, 5, 9, 13, 17]
    messages = [Recording(minutes(1, 5.0, rng)[:3 * RATE], str(i)) for i in range(300)]
    kept, [note] = at_most([Recording(minutes(30, 0.0, rng), "steady"), *messages], 600)
    assert sum(recording.seconds for recording in kept) == 600
    assert "of 45.0 minutes of recordings 10.0 were used" in note
    assert {kept[0].name, kept[-1].name} <= {"0", "1", "298", "299"}
    long = Recording(minutes(20, 5.0, rng), "long")
    assert sum(recording.seconds for recording in at_most([long], 290)[0]) <= 290
    silent = Recording(np.zeros(3000 * RATE, np.float32), "silent")
    assert 1 <= sum(recording.seconds for recording in at_most([silent], 290)[0]) <= 290
