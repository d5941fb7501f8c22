import threading
import time
import tracemalloc

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from pse_sdk.errors import AudioError, SettingsError
from pse_sdk.stream import FADE_SECONDS

RATES = [8_000, 16_000, 44_100, 48_000, 96_000]
ODD_RATES = [4_000, 8_001, 11_025, 22_050, 44_101, 384_000]
CHUNKING_TOLERANCE = 1e-6   # converters and network add the same numbers, not always in the same order
NULL_DB = -60.0             # what is left of the input after both rate converters
NULL_AT_16K = 1e-5          # no converters: float32 rounding of the transforms


def white_noise(*shape, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def band_limited_noise(n_samples, rate, below_hz, seed=0):
    """Noise below a frequency, faded in and out so that its edges are inside the band too."""
    spectrum = np.fft.rfft(white_noise(n_samples, seed=seed))
    spectrum[np.fft.rfftfreq(n_samples, 1 / rate) > below_hz] = 0
    edge = np.clip(np.arange(n_samples) / (0.05 * rate), 0, 1)
    fade = np.sin(np.pi / 2 * np.minimum(edge, edge[::-1])) ** 2
    return (np.fft.irfft(spectrum, n_samples) * fade).astype(np.float32)


def joined(stream, chunks):
    """All that the stream makes of the chunks."""
    return np.concatenate([*(stream.process(chunk) for chunk in chunks), stream.flush()])


def cut(samples, lengths):
    """`samples` in chunks of the given lengths, and the rest."""
    return np.split(samples, np.cumsum(lengths))


@settings(max_examples=40, deadline=None)
@given(rate=st.sampled_from(RATES), channels=st.sampled_from([1, 3]), seed=st.integers(0, 1000),
       lengths=st.lists(st.sampled_from([0, 1, 7, 441, 480, 4096]) | st.integers(0, 5000), max_size=12))
def test_chunking_does_not_change_the_output(enhancer, rate, channels, seed, lengths):
    samples = white_noise(sum(lengths) + 100, channels, seed=seed)
    samples = samples[:, 0] if channels == 1 else samples
    whole = joined(enhancer.stream(rate, channels), [samples])
    np.testing.assert_allclose(joined(enhancer.stream(rate, channels), cut(samples, lengths)), whole,
                               rtol=0, atol=CHUNKING_TOLERANCE)


@pytest.mark.parametrize("length", [1, 7, 441, 480])
@pytest.mark.parametrize("rate", RATES)
def test_blocks_of_a_sound_card_give_what_the_whole_gives(enhancer, rate, length):
    samples = white_noise(min(rate // 4, 1000 * length))
    chunks = cut(samples, [length] * (len(samples) // length))
    np.testing.assert_allclose(joined(enhancer.stream(rate), chunks), joined(enhancer.stream(rate), [samples]),
                               rtol=0, atol=CHUNKING_TOLERANCE)


@pytest.mark.parametrize("n_samples", [0, 1, 255, 256, 257, 5000])
@pytest.mark.parametrize("rate", RATES + ODD_RATES)
def test_the_output_is_delay_samples_longer_than_the_input(enhancer, rate, n_samples):
    stream = enhancer.stream(rate)
    assert len(joined(stream, [white_noise(n_samples)])) == n_samples + stream.delay_samples


@pytest.mark.parametrize("n_samples", [0, 1, 255, 256, 257, 5000])
@pytest.mark.parametrize("rate", RATES + ODD_RATES)
def test_enhance_keeps_the_length(enhancer, rate, n_samples):
    assert enhancer.enhance(white_noise(n_samples), rate).shape == (n_samples,)
    assert enhancer.enhance(white_noise(n_samples, 2), rate).shape == (n_samples, 2)


def test_without_rate_conversion_gains_of_one_return_the_input_delayed(unity):
    samples = white_noise(5000)
    stream = unity.stream(16_000)
    np.testing.assert_allclose(joined(stream, [samples])[stream.delay_samples:], samples, rtol=0, atol=NULL_AT_16K)


@pytest.mark.parametrize("rate", RATES + ODD_RATES)
def test_the_output_lags_the_input_by_exactly_delay_samples(unity, rate):
    samples = band_limited_noise(rate // 2, rate, below_hz=0.8 * min(rate, unity.sample_rate) / 2)
    stream = unity.stream(rate)
    left = joined(stream, [samples])[stream.delay_samples:] - samples
    assert 10 * np.log10(np.mean(left**2) / np.mean(samples**2)) < NULL_DB


@pytest.mark.parametrize("rate", RATES)
def test_enhance_is_the_stream_without_its_delay(enhancer, noisy, rate):
    stream = enhancer.stream(rate)
    np.testing.assert_allclose(enhancer.enhance(noisy, rate), joined(stream, [noisy])[stream.delay_samples:],
                               rtol=0, atol=CHUNKING_TOLERANCE)


@pytest.mark.parametrize("rate", RATES + ODD_RATES)
def test_a_sample_comes_out_within_the_latency(enhancer, rate):
    stream = enhancer.stream(rate)
    waiting = stream.latency_seconds * rate - stream.delay_samples
    n_in = n_out = 0
    for length in np.random.default_rng(0).integers(1, rate // 40, 60):
        n_out += len(stream.process(white_noise(length)))
        n_in += length
        assert n_in - n_out <= waiting + 1     # both rate converters round to whole samples


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_after_a_flush_the_stream_is_a_new_one(enhancer, rate):
    first, second = white_noise(7000, seed=1), white_noise(7000, seed=2)
    used = enhancer.stream(rate)
    joined(used, [first])
    np.testing.assert_array_equal(joined(used, [second]), joined(enhancer.stream(rate), [second]))


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_reset_forgets_everything_bit_for_bit(enhancer, rate):
    used = enhancer.stream(rate)
    used.process(white_noise(7001, seed=1))
    used.reset()
    samples = white_noise(7000, seed=2)
    np.testing.assert_array_equal(joined(used, [samples]), joined(enhancer.stream(rate), [samples]))


@pytest.mark.parametrize("rate", RATES)
def test_a_bypassed_stream_returns_the_input_delayed(enhancer, rate):
    samples = white_noise(rate // 4)
    stream = enhancer.stream(rate)
    stream.bypass = True
    out = joined(stream, cut(samples, [441] * 20))
    faded = stream.delay_samples + round(FADE_SECONDS * rate)
    np.testing.assert_array_equal(out[faded:], samples[faded - stream.delay_samples:])


def test_switching_the_bypass_does_not_click(enhancer):
    tone = (0.3 * np.sin(2 * np.pi * 50 * np.arange(48_000) / 16_000)).astype(np.float32)
    wet_stream, dry_stream, switched = (enhancer.stream(16_000) for _ in range(3))
    dry_stream.bypass = True
    dry_stream.reset()
    wet, dry, out = [], [], []
    for i, chunk in enumerate(cut(tone, [480] * 99)):
        switched.bypass = i % 7 in (3, 4)
        for pieces, stream in ((wet, wet_stream), (dry, dry_stream), (out, switched)):
            pieces.append(stream.process(chunk))
    wet, dry, out = (np.concatenate(pieces) for pieces in (wet, dry, out))
    difference = np.abs(wet - dry).max()
    steepest_alone = max(np.abs(np.diff(wet)).max(), np.abs(np.diff(dry)).max())
    assert difference > 10 * steepest_alone             # else a click would drown
    assert np.any(out == dry) and np.any(out == wet)
    assert np.abs(np.diff(out)).max() <= steepest_alone + difference / (FADE_SECONDS * 16_000)


@pytest.mark.parametrize("damage", [np.nan, np.inf, -np.inf, 1e30, -3e38])
@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_damaged_samples_count_as_silence_and_are_counted(enhancer, rate, damage):
    silenced = white_noise(rate, 2)
    silenced[rate // 2:rate // 2 + 5, 1] = 0
    damaged = silenced.copy()
    damaged[rate // 2:rate // 2 + 5, 1] = damage
    stream = enhancer.stream(rate, 2)
    out = stream.process(damaged)
    assert stream.n_replaced == 5
    np.testing.assert_array_equal(out, enhancer.stream(rate, 2).process(silenced))


def test_damage_is_forgotten_within_the_delay_and_a_frame(unity):
    samples = white_noise(16_000)
    damaged = samples.copy()
    damaged[8000:8005] = np.nan
    out = joined(unity.stream(16_000), [damaged])
    assert np.isfinite(out).all()
    after = 8005 + 256 + 512
    np.testing.assert_allclose(out[after:], samples[after - 256:], rtol=0, atol=NULL_AT_16K)


def test_the_given_samples_are_left_as_they_are(enhancer):
    samples = white_noise(1000)
    samples[3] = np.nan
    before = samples.copy()
    samples.flags.writeable = False
    enhancer.stream(16_000).process(samples)
    np.testing.assert_array_equal(samples, before)


@pytest.mark.parametrize("rate", RATES)
def test_silence_stays_silence(enhancer, rate):
    assert not enhancer.enhance(np.zeros(rate // 2, np.float32), rate).any()


@pytest.mark.parametrize("quiet", [1e-20, 1e-38, 1e-40, 1e-45, 0.0])
def test_sound_too_quiet_for_normal_floats_costs_no_more(enhancer, quiet):
    def seconds(samples):
        stream, times = enhancer.stream(16_000), []
        for hop in cut(samples.astype(np.float32), [256] * 60):
            start = time.perf_counter()
            stream.process(hop)
            times.append(time.perf_counter() - start)
        return np.median(times)

    samples = np.random.default_rng(0).standard_normal(61 * 256)
    assert seconds(quiet * samples) < 4 * seconds(samples)      # denormal numbers would cost a hundred times as much


@pytest.mark.parametrize("loud", [np.ones(16_000), np.sign(white_noise(16_000)), np.full(16_000, 10.0)],
                         ids=["constant", "square", "at the limit"])
def test_loud_input_never_makes_the_output_infinite(enhancer, loud):
    assert np.isfinite(enhancer.enhance(loud.astype(np.float32), 16_000)).all()


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_channels_do_not_hear_each_other(enhancer, rate):
    channels = white_noise(rate // 2, 3)
    together = joined(enhancer.stream(rate, 3), [channels])
    for i in range(3):
        np.testing.assert_allclose(together[:, i], joined(enhancer.stream(rate), [channels[:, i]]),
                                   rtol=0, atol=CHUNKING_TOLERANCE)


@pytest.mark.parametrize("channels, shape", [(1, (100, 2)), (2, (100,)), (2, (100, 1)), (2, (100, 3)), (3, (3, 100))])
def test_a_wrong_number_of_channels_is_refused(enhancer, channels, shape):
    stream = enhancer.stream(16_000, channels)
    with pytest.raises(AudioError, match="channels"):
        stream.process(np.zeros(shape, np.float32))


@pytest.mark.parametrize("chunk", [None, ["a"], np.zeros((2, 2, 2), np.float32), np.zeros(3, complex), [[1.0], [1, 2]]],
                         ids=["none", "text", "three axes", "complex", "ragged"])
def test_what_is_not_audio_is_refused_and_leaves_the_stream_usable(enhancer, chunk):
    stream, samples = enhancer.stream(16_000), white_noise(1000)
    with pytest.raises(AudioError):
        stream.process(chunk)
    np.testing.assert_array_equal(joined(stream, [samples]), joined(enhancer.stream(16_000), [samples]))


@pytest.mark.parametrize("rate, channels", [(0, 1), (-1, 1), (3999, 1), (400_000, 1), (16_000.5, 1), ("16000", 1),
                                            (16_000, 0), (16_000, 65), (16_000, 1.0), (16_000, None),
                                            (16_000, True)])
def test_a_stream_that_makes_no_sense_is_refused(enhancer, rate, channels):
    with pytest.raises(SettingsError):
        enhancer.stream(rate, channels)


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_a_closed_stream_says_so_and_holds_no_sound(enhancer, rate):
    with enhancer.stream(rate) as stream:
        stream.process(white_noise(5000))
        delay, latency = stream.delay_samples, stream.latency_seconds
    stream.close()      # twice is as good as once
    for call in (lambda: stream.process(white_noise(100)), stream.flush, stream.reset):
        with pytest.raises(SettingsError, match="closed"):
            call()
    assert (stream.delay_samples, stream.latency_seconds) == (delay, latency)
    assert not any(value.any() for value in vars(stream).values() if isinstance(value, np.ndarray))


def test_a_rate_that_is_a_whole_float_is_a_rate(enhancer):
    samples = white_noise(4410)
    np.testing.assert_array_equal(enhancer.enhance(samples, 44_100.0), enhancer.enhance(samples, 44_100))


def test_16_bit_samples_are_the_floats_they_stand_for(enhancer):
    samples = np.round(white_noise(5000) * 32768).astype(np.int16)
    np.testing.assert_array_equal(enhancer.enhance(samples, 16_000),
                                  enhancer.enhance(samples.astype(np.float32) / 32768, 16_000))


@pytest.mark.parametrize("rate", RATES)
def test_later_samples_never_change_earlier_output(enhancer, rate):
    n_known = rate // 5
    one, other = white_noise(2 * n_known, seed=1), white_noise(2 * n_known, seed=2)
    other[:n_known] = one[:n_known]
    known = len(enhancer.stream(rate).process(one[:n_known]))
    assert known > n_known - rate * 0.03
    np.testing.assert_allclose(enhancer.stream(rate).process(other)[:known], enhancer.stream(rate).process(one)[:known],
                               rtol=0, atol=CHUNKING_TOLERANCE)


def test_a_quiet_clip_is_enhanced_like_a_loud_one(enhancer, noisy):
    loud = noisy * 10 ** (-10 / 20) / np.sqrt(np.mean(noisy**2))
    gain = 10 ** (-35 / 20)
    expected = gain * enhancer.enhance(loud, 16_000)
    left = enhancer.enhance(gain * loud, 16_000) - expected
    assert np.sqrt(np.mean(left**2)) < 1e-3 * np.sqrt(np.mean(expected**2))


@pytest.mark.parametrize("n_threads", [2, 8])
def test_streams_in_many_threads_give_what_they_give_one_after_another(enhancer, n_threads):
    signals = [cut(white_noise(8000, seed=i), [480] * 16) for i in range(n_threads)]
    alone = [joined(enhancer.stream(16_000), chunks) for chunks in signals]
    together = [None] * n_threads
    start = threading.Barrier(n_threads)

    def work(i):
        stream = enhancer.stream(16_000)
        start.wait()
        together[i] = joined(stream, signals[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ours, theirs in zip(together, alone, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_eight_streams_in_turn_give_what_they_give_one_after_another(enhancer):
    signals = [cut(white_noise(5000, seed=i), [441] * 11) for i in range(8)]
    streams = [enhancer.stream(16_000) for _ in signals]
    outs = [[] for _ in signals]
    for chunks in zip(*signals, strict=True):
        for out, stream, chunk in zip(outs, streams, chunks, strict=True):
            out.append(stream.process(chunk))
    for out, stream, chunks in zip(outs, streams, signals, strict=True):
        np.testing.assert_array_equal(np.concatenate([*out, stream.flush()]), joined(enhancer.stream(16_000), chunks))


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_a_long_chunk_needs_little_more_memory_than_itself(enhancer, rate):
    samples = white_noise(10 * rate)
    stream = enhancer.stream(rate)
    tracemalloc.start()
    try:
        stream.process(samples)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * samples.nbytes + 2**22     # copies of the chunk, and the blocks inside


@pytest.mark.parametrize("rate", [16_000, 44_100, 96_000])
def test_a_stream_that_runs_on_does_not_grow(enhancer, rate):
    stream, chunk = enhancer.stream(rate), white_noise(rate // 20)

    def memory_after(n_chunks):
        for _ in range(n_chunks):
            stream.process(chunk)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        early = memory_after(20)
        assert memory_after(100) - early < 3 * chunk.nbytes     # a hundred chunks would be a hundred times as much
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("rate, channels", [(16_000, 1), (44_100, 2)])
def test_a_file_is_enhanced_like_its_samples(enhancer, tmp_path, rate, channels):
    samples = white_noise(rate // 2, channels)
    soundfile.write(tmp_path / "noisy.wav", samples, rate, subtype="FLOAT")
    assert enhancer.enhance_file(tmp_path / "noisy.wav", tmp_path / "enhanced.wav").seconds == 0.5
    enhanced, its_rate = soundfile.read(tmp_path / "enhanced.wav", always_2d=True)
    assert its_rate == rate
    np.testing.assert_allclose(enhanced, enhancer.enhance(samples, rate), rtol=0, atol=1.01 / 2**15)   # 16 bits


def test_a_file_may_be_enhanced_in_place(enhancer, tmp_path):
    soundfile.write(tmp_path / "noisy.wav", white_noise(8000), 16_000)
    enhancer.enhance_file(tmp_path / "noisy.wav", tmp_path / "noisy.wav")
    assert [path.name for path in tmp_path.iterdir()] == ["noisy.wav"]
    assert soundfile.info(tmp_path / "noisy.wav").frames == 8000


@pytest.mark.parametrize("target", ["", ".", "x" * 250, "a\0b", "noisy.wav/enhanced.wav", "missing/e.wav", "folder"])
def test_a_target_that_cannot_be_written_is_an_audio_error_and_leaves_nothing(enhancer, tmp_path, monkeypatch, target):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    soundfile.write("noisy.wav", white_noise(8000), 16_000)
    with pytest.raises(AudioError):
        enhancer.enhance_file("noisy.wav", target)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "noisy.wav"]


@pytest.mark.parametrize("source, target", [(None, "e.wav"), ("noisy.wav", None), (3, "e.wav"), (b"n.wav", "e.wav")])
def test_what_is_no_path_is_refused_before_anything_is_read(enhancer, source, target):
    with pytest.raises(SettingsError, match="give a path"):
        enhancer.enhance_file(source, target)


def test_numbers_of_another_scale_are_refused_with_the_remedy(enhancer):
    with pytest.raises(AudioError, match="32768"):
        enhancer.enhance(20_000 * white_noise(16_000), 16_000)


def test_a_file_of_another_scale_is_refused_with_the_remedy(enhancer, tmp_path):
    soundfile.write(tmp_path / "noisy.wav", 20_000 * white_noise(16_000), 16_000, subtype="FLOAT")
    with pytest.raises(AudioError, match="noisy.wav: .* 32768"):
        enhancer.enhance_file(tmp_path / "noisy.wav", tmp_path / "enhanced.wav")
    assert [path.name for path in tmp_path.iterdir()] == ["noisy.wav"]


@pytest.mark.parametrize("glitch", [11.0, 1e3, 9e4, -1e30, np.nan])
def test_a_damaged_sample_is_counted_and_soon_forgotten(enhancer, glitch):
    clean = 0.1 * white_noise(32_000)
    damaged = clean.copy()
    damaged[8000] = glitch
    silenced = clean.copy()
    silenced[8000] = 0.0
    with enhancer.stream(16_000) as stream:
        out = np.concatenate([stream.process(damaged), stream.flush()])
        assert stream.n_replaced == 1
    np.testing.assert_array_equal(out[stream.delay_samples:], enhancer.enhance(silenced, 16_000))
