import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pse_sdk.rate_converter import MAX_PHASES, RateConverter

PAIRS = [(48_000, 16_000), (16_000, 48_000), (44_100, 16_000), (16_000, 44_100), (8_000, 16_000), (16_000, 8_000),
         (11_025, 16_000), (22_050, 16_000), (16_000, 22_050), (8_001, 16_000), (16_000, 8_001), (44_101, 16_000),
         (16_000, 44_101), (4_000, 16_000), (384_000, 16_000), (16_000, 384_000), (16_000, 16_000)]
PASSBAND_ERROR_DB = -65.0   # against the exact sine: level, timing and images together
ALIAS_DB = -70.0


def converted(samples, from_rate, to_rate, offset=0):
    """All that is ready, mono."""
    return RateConverter(from_rate, to_rate, 1, offset).process(samples.astype(np.float32)[None])[0]


def sine(hz, rate, n_samples):
    return np.sin(2 * np.pi * hz * np.arange(n_samples) / rate + 0.3)


def without_edge(samples, rate):
    """Without the first 10 ms, where the sine starts suddenly."""
    return samples[rate // 100:]


def db(samples, reference):
    return 10 * np.log10(np.mean(np.square(samples)) / np.mean(np.square(reference)) + 1e-20)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("from_rate, to_rate", PAIRS)
def test_a_sine_in_the_flat_band_comes_out_as_that_sine_in_time(from_rate, to_rate, share):
    hz = share * RateConverter(from_rate, to_rate, 1).pass_hz
    out = converted(sine(hz, from_rate, from_rate // 10), from_rate, to_rate)
    exact = sine(hz, to_rate, len(out))
    assert db(without_edge(out - exact, to_rate), without_edge(exact, to_rate)) < PASSBAND_ERROR_DB


@pytest.mark.parametrize("above", [1.015, 1.1, 1.3, 1.7, 1.99])
@pytest.mark.parametrize("from_rate, to_rate", [pair for pair in PAIRS if pair[0] > pair[1]])
def test_what_lies_above_the_lower_band_does_not_come_back_as_an_alias(from_rate, to_rate, above):
    hz = min(above * to_rate / 2, 0.99 * from_rate / 2)
    samples = sine(hz, from_rate, from_rate // 10)
    assert db(without_edge(converted(samples, from_rate, to_rate), to_rate), samples) < ALIAS_DB


@pytest.mark.parametrize("from_rate, to_rate", PAIRS)
def test_an_offset_moves_the_output_in_time(from_rate, to_rate):
    converter = RateConverter(from_rate, to_rate, 1)
    hz = 0.5 * min(from_rate, to_rate) / 2
    for offset in (-converter.step // 2, 1, 5 * converter.n_phases):
        out = converted(sine(hz, from_rate, from_rate // 10), from_rate, to_rate, offset)
        time = (np.arange(len(out)) * converter.step + offset) / converter.n_phases
        exact = np.sin(2 * np.pi * hz * time / from_rate + 0.3)
        assert db(without_edge(out - exact, to_rate), without_edge(exact, to_rate)) < PASSBAND_ERROR_DB


@pytest.mark.parametrize("from_rate, to_rate", [pair for pair in PAIRS if min(pair) >= 8000])
def test_a_conversion_takes_two_milliseconds_at_most(from_rate, to_rate):
    assert RateConverter(from_rate, to_rate, 1).lookahead / from_rate <= 0.002


@pytest.mark.parametrize("rate, share", [(16_000, 0.82), (8000, 0.73)])
def test_most_of_the_lower_band_is_left_flat(rate, share):
    assert RateConverter(48_000, rate, 1).pass_hz >= share * rate / 2
    assert RateConverter(rate, 48_000, 1).pass_hz >= share * rate / 2


@settings(max_examples=40, deadline=None)
@given(pair=st.sampled_from(PAIRS), lengths=st.lists(st.sampled_from([0, 1, 7, 441, 480]), max_size=12),
       channels=st.sampled_from([1, 2]), seed=st.integers(0, 1000))
def test_chunking_does_not_change_the_output(pair, lengths, channels, seed):
    samples = np.random.default_rng(seed).uniform(-1, 1, (channels, sum(lengths) + 5)).astype(np.float32)
    converter = RateConverter(*pair, channels)
    pieces = [converter.process(chunk) for chunk in np.split(samples, np.cumsum(lengths), axis=1)]
    whole = RateConverter(*pair, channels).process(samples)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("from_rate, to_rate", PAIRS)
def test_an_output_sample_waits_for_lookahead_samples_and_no_more(from_rate, to_rate):
    converter = RateConverter(from_rate, to_rate, 1)
    n_in = n_out = 0
    for length in np.random.default_rng(0).integers(0, 300, 40):
        n_in += length
        n_out += converter.process(np.zeros((1, length), np.float32)).shape[1]
        ready = max(0, n_in - converter.lookahead)      # output times below this, in input samples
        assert n_out == -(-ready * converter.n_phases // converter.step)


@pytest.mark.parametrize("from_rate, to_rate", [(48_000, 16_000), (16_000, 44_100), (44_101, 16_000)])
def test_reset_makes_the_next_sample_the_first(from_rate, to_rate):
    samples = np.random.default_rng(0).standard_normal((1, 3000)).astype(np.float32)
    converter = RateConverter(from_rate, to_rate, 1)
    first = converter.process(samples)
    converter.reset()
    np.testing.assert_array_equal(converter.process(samples), first)


def test_an_hour_does_not_drift():
    converter = RateConverter(44_100, 16_000, 1)
    second = np.zeros((1, 44_100), np.float32)
    n_out = sum(converter.process(second).shape[1] for _ in range(100))
    converter._next += 3500 * 16_000            # an hour, without the wait
    converter._start += 3500 * 44_100
    n_out += converter.process(second).shape[1] + 3500 * 16_000
    assert n_out == -(-(3601 * 44_100 - converter.lookahead) * 160 // 441)


def test_rates_without_a_common_factor_need_no_table_of_all_phases():
    tracemalloc.start()
    try:
        converter = RateConverter(16_000, 383_999, 1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert converter.n_phases > 100 * MAX_PHASES
    assert peak < 2**23
