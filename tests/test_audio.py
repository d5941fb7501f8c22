"""Samples keep their meaning through every dtype, rate and layout."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pse_sdk.audio import (
    as_float32,
    check_sample_rate,
    dbfs,
    replace_damage,
    resample,
    resample_blocks,
    resampled_length,
)
from pse_sdk.errors import AudioError, SettingsError


def white_noise(n_samples: int, n_channels: int = 0, seed: int = 0) -> np.ndarray:
    shape = (n_samples, n_channels) if n_channels else n_samples
    return (0.1 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def tone(hz: float, rate: int, seconds: float = 1.0) -> np.ndarray:
    return np.sin(2 * np.pi * hz * np.arange(round(rate * seconds)) / rate).astype(np.float32)


# as_float32


@pytest.mark.parametrize(("dtype", "values", "expected"), [
    (np.float32, [0.5, -1], [0.5, -1]),
    (np.float64, [0.5, -1], [0.5, -1]),
    (np.float16, [0.5, -1], [0.5, -1]),
    (np.int16, [-32768, 0, 16384], [-1, 0, 0.5]),
    (">i2", [-32768, 0, 16384], [-1, 0, 0.5]),
    (np.int32, [-2**31, 0, 2**30], [-1, 0, 0.5]),
    (np.uint8, [0, 128, 192], [-1, 0, 0.5]),
])
def test_the_same_sound_has_the_same_samples_whatever_its_dtype(dtype, values, expected):
    np.testing.assert_array_equal(as_float32(np.array(values, dtype=dtype)), np.array(expected, dtype=np.float32))


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint8])
def test_the_largest_integer_stays_below_full_scale(dtype):
    largest = np.array([np.iinfo(dtype).max], dtype=dtype)
    assert 0.99 < as_float32(largest)[0] < 1


def test_a_list_of_numbers_is_samples():
    np.testing.assert_array_equal(as_float32([0.0, 0.5]), np.array([0, 0.5], dtype=np.float32))
    assert as_float32([]).shape == (0,)


@pytest.mark.parametrize("samples", [
    white_noise(10), white_noise(10, 2), white_noise(20)[::2], white_noise(10, 2).T[:1].T, np.zeros((0, 2), np.int16),
    np.asfortranarray(white_noise(10, 2)), white_noise(10).astype(">f4"), white_noise(10, 2).astype(np.float64).T.T,
])
def test_any_layout_becomes_contiguous_float32_of_the_same_shape(samples):
    before = samples.copy()
    samples.flags.writeable = False
    result = as_float32(samples)
    assert result.dtype == np.float32
    assert result.dtype.isnative
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, before.astype(np.float32))


def test_contiguous_float32_is_not_copied():
    samples = white_noise(10)
    assert as_float32(samples) is samples


@pytest.mark.parametrize("samples", [
    np.float32(1), np.zeros((2, 2, 2)), np.zeros((10, 0)), np.zeros((10, 65)),
    np.zeros(4, np.int64), [1, 2, 3], np.zeros(4, bool), np.zeros(4, complex), np.array(["a"]), [None], None,
    "speech.wav", b"RIFF", [[0.0, 1.0], [0.0]], {"samples": 1},
])
def test_other_shapes_and_dtypes_are_refused_in_one_line(samples):
    with pytest.raises(AudioError) as raised:
        as_float32(samples)
    assert "\n" not in str(raised.value)


def test_channels_first_is_told_to_transpose():
    with pytest.raises(AudioError, match=r"\(2, 16000\).*samples\.T"):
        as_float32(np.zeros((2, 16000), np.float32))


def test_a_float64_beyond_float32_becomes_infinite_without_a_warning(recwarn):
    assert np.isinf(as_float32(np.array([1e300]))).all()
    assert not recwarn.list


# check_sample_rate


@pytest.mark.parametrize("rate", [4_000, 16_000, 44_100.0, np.int32(48_000), np.float32(8_000), 384_000])
def test_a_whole_number_of_hertz_in_range_is_a_sample_rate(rate):
    checked = check_sample_rate(rate)
    assert checked == rate
    assert type(checked) is int


@pytest.mark.parametrize("rate", [0, -16_000, 3_999, 384_001, 2**31 - 1, 16_000.5, float("nan"), float("inf"), True,
                                  "16000", None, [16_000], 16_000 + 0j])
def test_anything_else_is_no_sample_rate(rate):
    with pytest.raises(SettingsError, match="4000 to 384000"):
        check_sample_rate(rate)


# replace_damage


def test_what_is_no_sound_becomes_silence_and_is_counted():
    samples = white_noise(100, 2)
    damaged = samples.copy()
    damaged[3, 0], damaged[4, 1], damaged[5, 0], damaged[6, 0] = np.nan, np.inf, -np.inf, -11.0
    mended, n_replaced = replace_damage(damaged)
    assert n_replaced == 4
    assert mended.dtype == np.float32
    assert np.isnan(damaged[3, 0])
    np.testing.assert_array_equal(mended, np.where(damaged == samples, samples, 0))


@pytest.mark.parametrize("n_samples", [0, 1, 100])
def test_good_samples_come_back_as_the_same_object(n_samples):
    samples = white_noise(n_samples)
    mended, n_replaced = replace_damage(samples)
    assert mended is samples
    assert n_replaced == 0


# resample

rates = st.sampled_from([4_000, 8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 384_000])


@given(n_samples=st.integers(0, 3_000), from_rate=rates, to_rate=rates, n_channels=st.integers(0, 3))
def test_the_length_is_the_duration_times_the_rate_with_halves_rounded_up(n_samples, from_rate, to_rate, n_channels):
    resampled = resample(white_noise(n_samples, n_channels), from_rate, to_rate)
    assert resampled.shape[0] == int(np.floor(n_samples * to_rate / from_rate + 0.5))
    assert resampled.shape[0] == resampled_length(n_samples, from_rate, to_rate)
    assert resampled.shape[1:] == ((n_channels,) if n_channels else ())
    assert resampled.dtype == np.float32


def test_the_same_rate_changes_nothing():
    samples = white_noise(100)
    assert resample(samples, 16_000, 16_000) is samples


@pytest.mark.parametrize("from_rate", [8_000, 44_100, 48_000, 96_000])
def test_a_tone_below_the_new_limit_keeps_its_place_and_level(from_rate):
    edge = 800  # 50 ms, where the filter still sees the silence around the tone
    resampled = resample(tone(1_000, from_rate), from_rate, 16_000)
    np.testing.assert_allclose(resampled[edge:-edge], tone(1_000, 16_000)[edge:-edge], atol=1e-4)


def test_a_tone_above_the_new_limit_is_gone():
    assert dbfs(resample(tone(9_000, 48_000), 48_000, 16_000)[800:-800]) < -100


def test_channels_do_not_mix():
    left, right = white_noise(5_000, seed=1), white_noise(5_000, seed=2)
    both = resample(np.stack([left, right], axis=1), 48_000, 16_000)
    np.testing.assert_allclose(both[:, 0], resample(left, 48_000, 16_000), atol=1e-6)
    np.testing.assert_allclose(both[:, 1], resample(right, 48_000, 16_000), atol=1e-6)


@given(cuts=st.lists(st.integers(0, 2_000), max_size=8), from_rate=rates, n_channels=st.integers(0, 2))
def test_where_a_recording_is_cut_into_blocks_does_not_change_it(cuts, from_rate, n_channels):
    samples = white_noise(2_000, n_channels)
    blocks = np.split(samples, sorted(cuts))
    joined = np.concatenate(list(resample_blocks(blocks, from_rate, 16_000)))
    np.testing.assert_allclose(joined, resample(samples, from_rate, 16_000), atol=1e-6)


def test_no_blocks_give_no_blocks():
    assert list(resample_blocks([], 48_000, 16_000)) == []


def test_an_impossible_rate_is_refused():
    with pytest.raises(SettingsError):
        resample(white_noise(10), 0, 16_000)


# dbfs


@pytest.mark.parametrize(("samples", "level"), [
    (np.ones(10), 0.0), (np.full((10, 2), 0.5), -6.0206), (tone(100, 16_000), -3.0103),
    (np.zeros(10), -120.0), (np.zeros(0), -120.0), (np.full(10, 1e-30), -120.0),
])
def test_the_level_is_the_rms_in_decibels(samples, level):
    assert dbfs(samples) == pytest.approx(level, abs=1e-3)
