import numpy as np
import pytest

from pse_sdk.top_gain import TopGain

HOP = 256


def new_gain(channels=1):
    return TopGain(6600.0, 16_000, HOP, channels)


def hops(n, channels=1, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal((n, channels, HOP))).astype(np.float32)


def tone(hz):
    return np.sin(2 * np.pi * hz * np.arange(HOP) / 16_000).astype(np.float32)[None]


@pytest.mark.parametrize("gain", [0.0, 0.1, 1.0])
def test_it_comes_to_the_gain_of_the_model(gain):
    top = new_gain()
    followed = [top.follow(hop, gain * hop) for hop in hops(20)]
    np.testing.assert_allclose(followed[-1], gain, atol=1e-4)


def test_it_comes_down_in_decibels_and_up_in_amplitude():
    top, (hop,) = new_gain(), hops(1)
    assert top.follow(hop, hop)[0, -1] == pytest.approx(1)
    falling = [top.follow(hop, 0.01 * hop)[0, -1] for _ in range(3)]
    assert falling == pytest.approx([10 ** (-20 / 20), 10 ** (-30 / 20), 10 ** (-35 / 20)], rel=1e-3)
    assert top.follow(hop, hop)[0, -1] == pytest.approx(0.5 + falling[-1] / 2, rel=1e-3)


def test_the_first_sound_and_the_first_after_silence_set_it_at_once():
    top, (hop,) = new_gain(), hops(1)
    np.testing.assert_allclose(top.follow(hop, 0.1 * hop), 0.1, rtol=1e-3)
    top.follow(0 * hop, 0 * hop)
    np.testing.assert_allclose(top.follow(hop, 0.02 * hop), 0.02, rtol=1e-3)


def test_a_model_that_makes_things_louder_gains_no_more_than_one():
    top = new_gain()
    for hop in hops(5):
        np.testing.assert_array_equal(top.follow(hop, 3 * hop), 1)


def test_what_happens_below_the_top_of_the_band_does_not_count():
    top = new_gain()
    for _ in range(10):
        last = top.follow(tone(1000) + 0.01 * tone(5500), 0 * tone(1000) + 0.01 * tone(5500))
    np.testing.assert_allclose(last, 1, atol=0.01)


def test_silence_says_nothing_and_the_gain_stays():
    top, silence = new_gain(), np.zeros((1, HOP), np.float32)
    np.testing.assert_array_equal(top.follow(silence, silence), 1)
    for hop in hops(3):
        before = top.follow(hop, 0.3 * hop)[:, -1]
    np.testing.assert_array_equal(top.follow(silence, silence)[:, -1], before)


def test_channels_have_gains_of_their_own():
    top, noisy = new_gain(2), hops(10, 2)
    for hop in noisy:
        last = top.follow(hop, hop * np.array([[1.0], [0.2]], np.float32))
    np.testing.assert_allclose(last[:, -1], [1, 0.2], atol=0.01)


def test_between_hops_it_is_a_line_and_the_same_line_at_any_rate():
    top, rng = new_gain(2), np.random.default_rng(1)
    lines = [top.follow(hop, hop * np.float32(rng.random())) for hop in hops(8, 2)]
    time = np.arange(8 * HOP)
    np.testing.assert_allclose(top.at(time), np.concatenate(lines, axis=1), atol=1e-6)
    lines.append(top.follow(*hops(2, 2, seed=2)))
    np.testing.assert_allclose(top.at(8 * HOP + np.arange(HOP) + 0.0), lines[-1], atol=1e-6)


def test_it_keeps_no_more_than_is_still_asked_for():
    top = new_gain()
    for i, hop in enumerate(hops(50)):
        top.follow(hop, hop)
        top.at(np.array([i * HOP + 10.0]))
    assert len(top._gains) <= 3
