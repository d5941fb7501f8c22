import threading
import time
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from pse_sdk import Enhancer
from pse_sdk import stream as stream_module
from pse_sdk.audio import resample
from pse_sdk.errors import AudioError, SettingsError
from pse_sdk.noise import synthetic_voice
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


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000, 192_000])
def test_a_hundred_random_chunkings_give_the_output_of_one_call(enhancer, rate):
    rng = np.random.default_rng(rate)
    samples = white_noise(rate // 8, seed=rate)
    whole = enhancer.enhance(samples, rate)
    for _ in range(100):
        lengths = rng.choice([0, 1, 2, 63, 256, 441, 480, rng.integers(1, len(samples))], rng.integers(1, 40))
        stream = enhancer.stream(rate)
        np.testing.assert_allclose(joined(stream, cut(samples, lengths))[stream.delay_samples:], whole,
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


@pytest.mark.parametrize("settings", [{}, {"strength": 0.5, "max_reduction_db": 12.0}, {"full_band": False}])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_reset_forgets_everything_bit_for_bit(enhancer, rate, settings):
    used = enhancer.stream(rate, 2, **settings)
    used.process(white_noise(7001, 2, seed=1))
    used.bypass = True
    used.process(white_noise(100, 2, seed=1))      # in the middle of a fade
    used.bypass = False
    used.reset()
    samples = white_noise(7000, 2, seed=2)
    np.testing.assert_array_equal(joined(used, [samples]), joined(enhancer.stream(rate, 2, **settings), [samples]))


@pytest.mark.parametrize("rate", [16_000, 48_000])
@pytest.mark.parametrize("name, value", [("bypass", True), ("strength", 0.3), ("max_reduction_db", 6.0)])
def test_what_is_set_before_the_first_sample_holds_from_the_first_sample(enhancer, rate, name, value):
    noise = white_noise(rate // 2)
    used, new = enhancer.stream(rate), enhancer.stream(rate)
    setattr(used, name, value)
    used.process(noise)
    used.reset()
    setattr(new, name, value)
    np.testing.assert_array_equal(used.process(noise), new.process(noise))


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_an_interrupted_call_leaves_a_stream_that_is_reset(enhancer, rate, monkeypatch):
    noise, stream = white_noise(rate // 2), enhancer.stream(rate)
    stream.process(noise)
    with monkeypatch.context() as patch:
        patch.setattr(stream._steps, "step", lambda *hops: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            stream.process(noise)
    np.testing.assert_array_equal(stream.process(noise), enhancer.stream(rate).process(noise))


def test_above_the_models_band_noise_is_lowered_from_the_beginning():
    noise = white_noise(48_000)
    enhanced = Enhancer().enhance(noise, 48_000)[:2400]

    def top(samples):
        return np.square(np.abs(np.fft.rfft(samples * np.hanning(len(samples))))[len(samples) * 9 // 48:]).sum()
    assert 10 * np.log10(top(enhanced) / top(noise[:2400])) < -15


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


@pytest.mark.parametrize("rate", RATES)
def test_at_strength_zero_the_input_comes_out_delayed(enhancer, rate):
    samples = white_noise(rate // 4, 2)
    stream = enhancer.stream(rate, 2, strength=0)
    np.testing.assert_array_equal(joined(stream, [samples])[stream.delay_samples:], samples)


@pytest.mark.parametrize("strength", [0.25, 0.9])
@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_strength_is_the_share_of_the_enhanced_sound(enhancer, rate, strength):
    samples = white_noise(rate // 2)
    expected = strength * enhancer.enhance(samples, rate) + (1 - strength) * samples
    np.testing.assert_allclose(enhancer.enhance(samples, rate, strength=strength), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("limit_db", [0.0, 6.0, 20.0])
@pytest.mark.parametrize("rate", RATES)
def test_noise_is_lowered_by_no_more_than_the_limit(mute, rate, limit_db):
    samples = white_noise(rate)
    out = mute.enhance(samples, rate, max_reduction_db=limit_db)
    settled = slice(rate // 4, None)        # until then the gain for the band above the model's comes down
    np.testing.assert_allclose(out[settled], 10 ** (-limit_db / 20) * samples[settled], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name, values", [("bypass", [False, True]), ("strength", [1.0, 0.2, 0.7, 0.0]),
                                          ("max_reduction_db", [np.inf, 3.0, 12.0, 0.0])])
def test_settings_that_change_while_it_runs_fade_without_a_click(mute, name, values):
    stream, out = mute.stream(16_000), []
    for i, chunk in enumerate(cut(np.full(20_000, 0.5, np.float32), [480] * 40)):
        setattr(stream, name, values[i % len(values)])
        out.append(stream.process(chunk))
    heard = np.concatenate(out)[stream.delay_samples:]
    assert np.ptp(heard) > 0.49
    assert np.abs(np.diff(heard)).max() <= 1.001 * 0.5 / (FADE_SECONDS * 16_000)


@pytest.mark.parametrize("settings", [{"strength": -0.1}, {"strength": 1.1}, {"strength": np.nan}, {"strength": "1"},
                                      {"strength": None}, {"max_reduction_db": -1}, {"max_reduction_db": np.nan},
                                      {"max_reduction_db": "6"}])
def test_settings_that_make_no_sense_are_refused_and_leave_the_stream_as_it_is(enhancer, settings):
    for call in (enhancer.stream, lambda rate, **options: enhancer.enhance(white_noise(0), rate, **options)):
        with pytest.raises(SettingsError, match=next(iter(settings))):
            call(16_000, **settings)
    stream = enhancer.stream(16_000)
    [(name, value)] = settings.items()
    before = getattr(stream, name)
    with pytest.raises(SettingsError):
        setattr(stream, name, value)
    assert getattr(stream, name) == before


def test_a_file_is_enhanced_as_strongly_as_asked(mute, tmp_path):
    soundfile.write(tmp_path / "noisy.wav", white_noise(8000), 16_000)
    mute.enhance_file(tmp_path / "noisy.wav", tmp_path / "same.wav", strength=0)
    mute.enhance_file(tmp_path / "noisy.wav", tmp_path / "lower.wav", max_reduction_db=20)
    noisy, same, lower = (soundfile.read(tmp_path / f"{name}.wav")[0] for name in ("noisy", "same", "lower"))
    np.testing.assert_allclose(same, noisy, rtol=0, atol=1.01 / 2**15)
    np.testing.assert_allclose(lower, 0.1 * noisy, rtol=0, atol=1.01 / 2**15)


@pytest.mark.parametrize("rate", [rate for rate in RATES + ODD_RATES if rate != 16_000])
def test_a_model_that_changes_nothing_leaves_the_whole_band_as_it_is(unity, rate):
    samples = white_noise(rate // 2)
    left = unity.enhance(samples, rate) - samples
    assert 10 * np.log10(np.mean(left**2) / np.mean(samples**2)) < -80


@pytest.mark.parametrize("rate", [44_100, 48_000, 96_000])
def test_a_sweep_passes_the_end_of_the_models_band_without_a_notch_or_a_peak(halving, rate):
    seconds = 4.0
    time = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * (4000 * time + 8000 / seconds * time**2 / 2)        # 4 to 12 kHz
    out = halving.enhance((0.5 * np.sin(phase)).astype(np.float32), rate)
    levels = 10 * np.log10([np.mean(piece**2) for piece in np.array_split(out[rate // 2:], 100)])  # from 5 kHz
    np.testing.assert_allclose(levels, 10 * np.log10(0.25**2 / 2), atol=0.5)


def above(samples, lower_rate):
    """48 kHz samples without what fits into a lower rate."""
    return samples - resample(resample(samples, 48_000, lower_rate), lower_rate, 48_000)[:len(samples)]


def band_db(samples, rate, low_hz, high_hz):
    power = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) ** 2
    hz = np.fft.rfftfreq(len(samples), 1 / rate)
    return 10 * np.log10(power[(hz >= low_hz) & (hz < high_hz)].sum())


def test_white_noise_is_lowered_above_the_models_band_as_it_is_below():
    samples = white_noise(4 * 48_000)
    out = Enhancer(size="tiny").enhance(samples, 48_000)[48_000:]
    below, higher = (band_db(samples[48_000:], 48_000, *band) - band_db(out, 48_000, *band)
                     for band in ((4000, 7000), (9000, 20_000)))
    assert below > 6 and abs(higher - below) < 3


@pytest.mark.parametrize("seed", [0, 2, 5])
def test_a_voice_without_noise_keeps_what_it_has_above_the_models_band(seed):
    voice = resample(synthetic_voice(4 * 16_000, np.random.default_rng(seed)), 16_000, 48_000)
    voice *= 0.5 / np.abs(voice).max()
    loudness = np.sqrt(np.convolve(above(voice, 8000) ** 2, np.ones(960) / 960, "same"))    # of 4 to 8 kHz, over 20 ms
    voice += (10 * loudness * above(white_noise(len(voice)), 16_000)).astype(np.float32)
    out = Enhancer(size="tiny").enhance(voice, 48_000)
    below, higher = (band_db(voice, 48_000, *band) - band_db(out, 48_000, *band)
                     for band in ((4000, 7000), (9000, 20_000)))
    assert below < 3 and higher < below + 1


@pytest.mark.parametrize("rate", [44_100, 48_000, 96_000])
def test_without_the_full_band_nothing_comes_out_above_the_models(enhancer, rate):
    samples = white_noise(rate // 2)
    out = enhancer.enhance(samples, rate, full_band=False)
    assert band_db(out, rate, 8200, rate / 2) < band_db(samples, rate, 8200, rate / 2) - 60
    out = enhancer.enhance(samples, rate)
    assert band_db(out, rate, 8200, rate / 2) > band_db(samples, rate, 8200, rate / 2) - 40


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


@pytest.mark.parametrize("dtype, full_scale", [("int16", 2**15), ("int32", 2**31), ("float64", 1), ("float16", 1)])
def test_samples_of_any_type_are_the_floats_they_stand_for(enhancer, dtype, full_scale):
    samples = (white_noise(5000).astype(np.float64) * full_scale).astype(dtype)
    floats = (samples.astype(np.float64) / full_scale).astype(np.float32)
    out = joined(enhancer.stream(48_000), cut(samples, [0, 1, 480, 441]))
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, joined(enhancer.stream(48_000), cut(floats, [0, 1, 480, 441])))


def test_chunks_that_take_longer_than_they_last_are_counted(enhancer, monkeypatch):
    stream = enhancer.stream(48_000)
    clock = iter([0.0, 0.011, 1.0, 1.009, 2.0, 3.0, 3.5])
    monkeypatch.setattr(stream_module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    for length in (480, 480, 0, 480):      # late, in time, nothing to be late with, late
        stream.process(white_noise(length))
    assert stream.n_late == 2
    stream.flush()
    assert stream.n_late == 2
    stream.reset()
    assert stream.n_late == 0


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


@pytest.mark.parametrize("n_threads, rate", [(2, 16_000), (8, 16_000), (8, 48_000)])
def test_streams_in_many_threads_give_what_they_give_one_after_another(enhancer, n_threads, rate):
    signals = [cut(white_noise(8000, seed=i), [480] * 16) for i in range(n_threads)]
    alone = [joined(enhancer.stream(rate), chunks) for chunks in signals]
    together = [None] * n_threads
    start = threading.Barrier(n_threads)

    def work(i):
        stream = enhancer.stream(rate)
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
