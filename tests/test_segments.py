import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pse_sdk.config import STFT
from pse_sdk.purification import FrameAnalysis
from pse_sdk.segments import (
    FADE,
    GAP_FRAMES,
    LEAST_JUDGED_FRAMES,
    PARTS,
    PAUSE_COLLAR,
    SHARES,
    SHORTEST_PAUSE,
    SHORTEST_SPLIT_SECONDS,
    Stretch,
    cross_fade,
    cut,
    harvest_pauses,
    join_short,
    split,
)

HOP = STFT.hop_length
LONG = int(SHORTEST_SPLIT_SECONDS / STFT.hop_seconds) + 1


def analysis(speech, snr_db=0.0):
    speech = np.asarray(speech, float)
    share = np.where(speech > 0.5, 1 / (1 + 10 ** (-snr_db / 10)), 0.0)
    return FrameAnalysis(speech, share, np.full(len(speech), snr_db))


def numbered(n_frames, first=0):
    """A recording whose samples are all different numbers, and the SNR of a frame is its index."""
    samples = np.arange(first, first + n_frames * HOP, dtype=np.float64)
    return Stretch(samples, FrameAnalysis(np.ones(n_frames), np.ones(n_frames), np.arange(n_frames, dtype=float)))


def recordings(lengths):
    starts = np.cumsum([0, *lengths]) * HOP
    return [numbered(n, start) for n, start in zip(lengths, starts, strict=False)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 4000), max_size=6))
def test_no_sample_is_in_two_parts_and_none_is_made_up(lengths):
    parts = split(recordings(lengths))
    samples = np.concatenate([stretch.samples for part in parts.values() for stretch in part] or [np.zeros(0)])
    assert len(np.unique(samples)) == len(samples)
    assert not len(samples) or 0 <= samples.min() <= samples.max() < sum(lengths) * HOP


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 4000), max_size=6))
def test_half_a_second_lies_between_parts_of_one_recording(lengths):
    parts = [stretch.samples for part in split(recordings(lengths)).values() for stretch in part]
    ends = np.cumsum([0, *lengths]) * HOP           # where one recording ends and the next begins
    parts.sort(key=lambda samples: samples[0])
    for one, next_one in zip(parts, parts[1:], strict=False):
        gap = next_one[0] - one[-1] - 1
        assert gap >= GAP_FRAMES * HOP or one[-1] + 1 in ends


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 4000), max_size=6))
def test_frames_stay_with_their_samples(lengths):
    for part in split(recordings(lengths)).values():
        for stretch in part:
            assert len(stretch.samples) == stretch.n_frames * HOP > 0
            start = stretch.samples[0] // HOP - np.cumsum([0, *lengths])
            assert stretch.frames.snr_db[0] in start
            np.testing.assert_array_equal(np.diff(stretch.frames.snr_db), 1)


@pytest.mark.parametrize("n_frames", [1800, 5000, 20_000])
def test_a_long_recording_is_shared_out_among_all_parts(n_frames):
    parts = split([numbered(n_frames)])
    for name, share in zip(PARTS, SHARES, strict=True):
        n_given = sum(stretch.n_frames for stretch in parts[name])
        assert n_given == pytest.approx(share * n_frames, abs=2 * GAP_FRAMES + 2)


@pytest.mark.parametrize("n_frames", range(LONG, 1800, 20))
def test_the_shortest_recordings_that_are_split_leave_enough_to_judge_with(n_frames):
    for i in range(2):      # judged parts at the end, judged parts at the start
        parts = split(recordings([n_frames] * 2))
        assert min(parts[name][i].n_frames for name in ("validation", "guard")) >= LEAST_JUDGED_FRAMES
        assert parts["training"][i].n_frames > n_frames / 2


def test_the_parts_lie_in_turn_at_the_start_and_at_the_end():
    parts = split(recordings([LONG, LONG]))
    first, second = parts["training"]
    assert first.samples[0] == 0 and second.samples[-1] > 1.8 * LONG * HOP


def test_short_recordings_go_whole_into_one_part_until_the_shares_are_right():
    parts = split(recordings([300] * 40))
    n_whole = {name: len(part) for name, part in parts.items()}
    assert all(stretch.n_frames == 300 for part in parts.values() for stretch in part)
    assert n_whole == {"training": 28, "validation": 6, "guard": 6}


def test_messages_are_joined_until_they_are_long_enough():
    lengths = [90, 300, 90, 90, 199, 1]
    joined = join_short(recordings(lengths))
    assert [stretch.n_frames for stretch in joined] == [300, 90 + 90 + 90, 199 + 1]
    starts = np.cumsum([0, *lengths])
    middle = joined[1].samples.reshape(-1, HOP)[1:89]
    np.testing.assert_array_equal(middle, numbered(90).samples.reshape(-1, HOP)[1:89])
    np.testing.assert_array_equal(joined[1].frames.snr_db, np.tile(np.arange(90), 3))
    assert joined[1].samples[90 * HOP] < 0.01 * starts[2] * HOP     # fades in
    assert join_short([]) == [] and [one.n_frames for one in join_short(recordings([90]))] == [90]


def test_estimates_are_joined_as_their_recordings_are():
    both = [Stretch(one.samples, one.frames, one.samples * 0.5) for one in recordings([90, 150])]
    [joined] = join_short(both)
    np.testing.assert_array_equal(joined.estimate, joined.samples * 0.5)


def test_nothing_makes_empty_parts():
    assert split([]) == {name: [] for name in PARTS}


@pytest.mark.parametrize("start, stop", [(0, 5), (3, 9), (4, 4)])
def test_cut_keeps_what_is_known_of_the_frames(start, stop):
    stretch = cut(numbered(10), start, stop)
    np.testing.assert_array_equal(stretch.samples, np.arange(start * HOP, stop * HOP))
    np.testing.assert_array_equal(stretch.frames.snr_db, np.arange(start, stop))
    assert len(stretch.frames.speech) == len(stretch.frames.share) == stop - start


@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 20.0])
def test_the_snr_is_that_of_the_speech_frames_together(snr_db):
    speech = np.arange(100) % 2 == 0
    samples = np.random.default_rng(0).standard_normal(100 * HOP) * np.repeat(np.where(speech, 0.1, 3.0), HOP)
    stretch = Stretch(samples, analysis(speech, np.where(speech, snr_db, 35.0)))
    assert stretch.snr_db == pytest.approx(snr_db, abs=0.01)
    assert stretch.seconds_of_speech == pytest.approx(50 * HOP / 16_000)


def test_without_speech_there_is_no_snr():
    assert np.isnan(Stretch(np.zeros(HOP), analysis([0.0])).snr_db)


def heard(is_speech):
    """A recording that is 1 where somebody speaks and quiet noise elsewhere, and what a predictor should hear in it.

    Frame i holds hop i and the one before, so it hears speech in either.
    """
    is_speech = np.asarray(is_speech, bool)
    noise = 0.01 * np.random.default_rng(0).uniform(-1, 1, len(is_speech) * HOP)
    samples = np.where(np.repeat(is_speech, HOP), 1.0, noise).astype(np.float32)
    in_frame = is_speech | np.concatenate([[False], is_speech[:-1]])
    return Stretch(samples, analysis(in_frame * 0.98 + 0.01))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 120)), max_size=12))
def test_harvested_pauses_hold_no_speech(runs):
    is_speech = np.repeat([spoken for spoken, _ in runs], [n for _, n in runs]) if runs else []
    for noise in harvest_pauses([heard(is_speech)]):
        assert np.abs(noise).max() < 0.03       # two fading noises of 0.01 add up to no more


def test_a_pause_is_harvested_but_for_its_collars():
    is_speech = np.zeros(300, bool)
    is_speech[100:150] = True
    noise, = harvest_pauses([heard(is_speech)])
    n_taken = (100 - PAUSE_COLLAR) + (149 - PAUSE_COLLAR)       # the frame after the last of speech overlaps it
    assert len(noise) == n_taken * HOP - FADE


@pytest.mark.parametrize("n_frames, n_found", [(0, 0), (1, 0), (SHORTEST_PAUSE - 1, 0), (SHORTEST_PAUSE, 1), (500, 1)])
def test_a_pause_that_is_too_short_is_left(n_frames, n_found):
    assert len(harvest_pauses([heard([False] * n_frames)])) == n_found


def test_speech_without_pauses_gives_no_noise():
    assert harvest_pauses([heard([True] * 500)]) == []


def test_digital_silence_is_no_noise():
    assert harvest_pauses([Stretch(np.zeros(500 * HOP, np.float32), analysis(np.zeros(500)))]) == []


def test_a_cross_fade_keeps_the_level_of_noise():
    rng = np.random.default_rng(0)
    joints = []
    for _ in range(300):
        whole = cross_fade(list(rng.standard_normal((2, 4 * FADE)).astype(np.float32)))
        assert whole.shape == (7 * FADE,)
        joints.append(whole[3 * FADE:4 * FADE])
    assert np.mean(np.square(joints)) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("lengths", [[FADE], [FADE, FADE], [FADE, 2 * FADE, 5 * FADE + 1], [5000, 513, 5000]])
def test_a_cross_fade_costs_one_fade_a_joint(lengths):
    joined = cross_fade([np.ones(n, np.float32) for n in lengths])
    assert len(joined) == sum(lengths) - (len(lengths) - 1) * FADE
    assert joined.max() <= np.sqrt(2) + 1e-6 and joined.min() >= 1 - 1e-6       # sine and cosine add to that


def test_cross_fading_leaves_the_pieces_as_they_are():
    pieces = [np.ones(1000, np.float32) for _ in range(3)]
    cross_fade(pieces)
    assert all((piece == 1).all() for piece in pieces)


def test_a_teachers_estimate_is_cut_with_its_recording():
    whole = numbered(LONG)
    taught = Stretch(whole.samples, whole.frames, -whole.samples)
    for part in split([taught]).values():
        for stretch in part:
            np.testing.assert_array_equal(stretch.estimate, -stretch.samples)
