"""Whatever a user gives becomes 16 kHz speech to work with, or one line that says what is wrong with it."""

import builtins
import logging
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pse_sdk import recordings as recordings_module
from pse_sdk.audio import dbfs
from pse_sdk.audio_file import AudioReader
from pse_sdk.errors import AudioError, MissingDependencyError, PseError, SettingsError
from pse_sdk.recordings import Recording, read_recordings

EDGE = 800  # 50 ms at 16 kHz, where resampling still sees the silence around a recording

FORMATS = {  # what libsndfile writes: suffix and arguments
    "WAV": (".wav", {"subtype": "PCM_16"}), "WAV float": (".wav", {"subtype": "FLOAT"}),
    "WAV mu-law": (".wav", {"subtype": "ULAW"}), "FLAC": (".flac", {}), "Vorbis": (".ogg", {"subtype": "VORBIS"}),
    "Opus": (".opus", {"format": "OGG", "subtype": "OPUS"}), "MP3": (".mp3", {}), "AIFF": (".aiff", {}),
}
PHONE_FORMATS = {  # what FFmpeg writes: file name, codec, rate
    "M4A": ("a.m4a", "aac", 44_100), "MP4": ("a.mp4", "aac", 48_000), "AAC": ("a.aac", "aac", 16_000),
    "WebM": ("a.webm", "libopus", 48_000), "MKV": ("a.mkv", "pcm_s16le", 16_000), "MOV": ("a.mov", "aac", 22_050),
    "AMR": ("a.amr", "libopencore_amrnb", 8_000), "3GP": ("a.3gp", "libopencore_amrnb", 8_000),
}


def white_noise(seconds: float = 1.0, rate: int = 16_000, seed: int = 0) -> np.ndarray:
    noise = 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate))
    return (noise - noise.mean() if len(noise) else noise).astype(np.float32)


def tone(seconds: float = 1.0, rate: int = 16_000, hz: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write(path: Path, samples: np.ndarray, rate: int = 16_000, **options: str) -> Path:
    soundfile.write(path, samples, rate, **options)
    return path


def write_with_ffmpeg(path: Path, codec: str, rate: int, samples: np.ndarray, **options: str) -> Path:
    av = pytest.importorskip("av", reason="PyAV writes this format")
    try:
        av.Codec(codec, "w")
    except ValueError:
        pytest.skip(f"this FFmpeg has no encoder {codec}")
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[np.newaxis], format="fltp", layout="mono")
        frame.sample_rate = rate
        fifo = av.AudioFifo()
        for converted in av.AudioResampler(stream.codec_context.format.name, "mono", rate).resample(frame):
            fifo.write(converted)
        length = stream.codec_context.frame_size or 1024
        while (frame := fifo.read(length, partial=True)) is not None:
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[:int(len(data) * share)])
    return path


def only(sources) -> Recording:
    [recording] = read_recordings(sources)
    return recording


def refusal(sources) -> str:
    """The one line with which the sources are refused."""
    with pytest.raises(AudioError) as raised:
        read_recordings(sources)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# Formats, rates and channels


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_sounds_as_it_was_written(tmp_path, kind):
    suffix, options = FORMATS[kind]
    recording = only(write(tmp_path / f"a{suffix}", tone(hz=1_000), **options))
    assert recording.name == str(tmp_path / f"a{suffix}")
    assert recording.notes == ()
    assert recording.samples.dtype == np.float32
    assert recording.seconds == 1.0
    assert dbfs(recording.samples[EDGE:-EDGE] - tone(hz=1_000)[EDGE:-EDGE]) < -40


@pytest.mark.parametrize("kind", PHONE_FORMATS)
def test_a_phones_file_holds_the_tone_that_was_recorded(tmp_path, kind):
    name, codec, rate = PHONE_FORMATS[kind]
    recording = only(write_with_ffmpeg(tmp_path / name, codec, rate, tone(1.0, rate)))
    assert recording.notes == ()
    assert recording.seconds == pytest.approx(1.0, abs=0.15)  # the padding of the encoder
    spectrum = np.abs(np.fft.rfft(recording.samples[4_000:12_000]))
    assert np.argmax(spectrum) * 2 == pytest.approx(440, abs=4)
    assert dbfs(recording.samples[4_000:12_000]) == pytest.approx(dbfs(tone()), abs=3)  # AMR is no friend of tones


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000, 96_000])
def test_any_rate_becomes_16_khz(tmp_path, rate):
    recording = only(write(tmp_path / "a.wav", tone(1.0, rate), rate, subtype="FLOAT"))
    assert len(recording.samples) == 16_000
    np.testing.assert_allclose(recording.samples[EDGE:-EDGE], tone()[EDGE:-EDGE], atol=1e-3)


def test_a_file_and_its_samples_give_the_same_recording(tmp_path):
    samples = white_noise(12.0, 48_000)  # longer than a block
    from_file = only(write(tmp_path / "a.wav", samples, 48_000, subtype="FLOAT"))
    from_memory = only((samples, 48_000))
    np.testing.assert_allclose(from_file.samples, from_memory.samples, atol=1e-6)
    assert from_memory.name == "recording 1"


def test_samples_in_memory_are_left_as_they_were():
    samples = np.full((16_000, 2), np.nan, dtype=np.float32)
    samples[:, 0] = white_noise() + 3
    before = samples.copy()
    read_recordings((samples, 16_000))
    np.testing.assert_array_equal(samples, before)


def test_stereo_that_agrees_is_averaged():
    voice = white_noise(seed=1)
    left, right = voice + 0.3 * white_noise(seed=2), voice + 0.3 * white_noise(seed=3)
    recording = only((np.stack([left, right], axis=1), 16_000))
    np.testing.assert_allclose(recording.samples, (left + right) / 2, atol=1e-4)
    assert recording.notes == ()


def test_stereo_in_opposite_phase_does_not_cancel():
    recording = only((np.stack([white_noise(), -0.9 * white_noise()], axis=1), 16_000))
    np.testing.assert_allclose(recording.samples, white_noise(), atol=1e-3)
    assert "used channel 1 of 2" in recording.notes[0]


def test_a_dead_channel_costs_no_level():
    recording = only((np.stack([np.zeros(16_000), white_noise()], axis=1), 16_000))
    np.testing.assert_allclose(recording.samples, white_noise(), atol=1e-3)
    assert "used channel 2 of 2" in recording.notes[0]


def test_of_two_sounds_the_louder_is_kept():
    recording = only((np.stack([0.5 * white_noise(seed=1), white_noise(seed=2)], axis=1), 16_000))
    np.testing.assert_allclose(recording.samples, white_noise(seed=2), atol=1e-3)


# What is mended, what is noted


def test_nan_and_impossible_numbers_become_silence_and_are_counted(tmp_path):
    samples = tone()
    samples[[100, 200, 300, 400]] = [np.nan, np.inf, -np.inf, 1e30]
    recording = only(write(tmp_path / "a.wav", samples, subtype="FLOAT"))
    samples[[100, 200, 300, 400]] = 0
    np.testing.assert_allclose(recording.samples, samples, atol=1e-3)
    assert recording.notes == ("4 samples were NaN, infinite or impossibly large: replaced by 0",)


def test_a_constant_offset_is_removed(tmp_path):
    recording = only(write(tmp_path / "a.wav", tone(1.0, 48_000) + 0.4, 48_000))
    assert abs(recording.samples.mean()) < 1e-4
    assert np.abs(recording.samples).max() < 0.31  # nor does its edge ring
    assert "offset of 0.400" in recording.notes[0]


def test_numbers_beyond_full_scale_are_scaled_to_it():
    recording = only((tone() * 30, 16_000))
    assert np.abs(recording.samples).max() == 1
    assert "samples reached 9 where" in recording.notes[0]


@pytest.mark.parametrize("glitch", [11.0, 1e3, 9e4])
def test_one_damaged_sample_does_not_hide_the_rest(glitch):
    samples = tone()
    samples[100] = glitch
    recording = only((samples, 16_000))
    assert np.abs(recording.samples).max() == pytest.approx(np.abs(tone()).max(), abs=1e-3)


def test_numbers_of_another_scale_are_refused_with_the_remedy():
    assert "divide 16-bit numbers kept as floats by 32768" in refusal((tone() * 32768, 16_000))


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT", "PCM_U8"])
def test_clipping_is_noted(tmp_path, subtype):
    clipped = np.clip(6 * tone(25.0), -1, 1)  # over block borders
    recording = only(write(tmp_path / "a.wav", clipped, subtype=subtype))
    assert recording.notes[0].startswith("clipped: 6")  # beyond asin(1 / 1.8): 63 %
    assert np.abs(recording.samples).max() <= 1


@pytest.mark.parametrize("samples", [tone(hz=100), white_noise(), tone(hz=4_000)])
def test_sound_that_is_not_clipped_is_not_called_so(samples):
    assert only((samples / np.abs(samples).max(), 16_000)).notes == ()


def test_flat_tops_below_the_peak_are_not_clipping():
    flat = np.clip(6 * tone(30.0), -0.5, 0.5)  # the clicks come blocks later
    assert "clipped" in only((flat, 16_000)).notes[0]
    assert only((np.concatenate([flat, [0.9, -0.9]]), 16_000)).notes == ()


# Damage


@pytest.mark.parametrize("kind", ["WAV", "WAV float", "FLAC", "MP3", "AIFF", "Vorbis", "Opus"])
def test_what_is_left_of_a_file_that_was_cut_is_kept_and_noted(tmp_path, kind):
    suffix, options = FORMATS[kind]
    whole = write(tmp_path / f"a{suffix}", white_noise(4.0), **options)
    before = only(whole).samples
    recording = only(cut(whole, 0.5))
    assert 0.8 < recording.seconds < 3.0  # a page of Ogg is up to 1 s
    assert recording.notes[0].startswith("ends early: ")
    same = len(recording.samples) - 2 * EDGE
    assert dbfs(recording.samples[:same] - before[:same]) < -60


@pytest.mark.parametrize(("name", "codec", "options"), [
    ("a.m4a", "aac", {"movflags": "faststart"}), ("a.webm", "libopus", {})])
def test_what_is_left_of_a_phones_file_is_kept_and_noted(tmp_path, name, codec, options):
    recording = only(cut(write_with_ffmpeg(tmp_path / name, codec, 48_000, white_noise(4.0, 48_000), **options), 0.5))
    assert 1.0 < recording.seconds < 3.0
    assert recording.notes[0].startswith("ends early: ")


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "MP3", "AIFF", "Vorbis", "Opus"])
@pytest.mark.parametrize("n_bytes", [1, 3, 12, 30, 44, 60])
def test_a_file_cut_within_its_header_is_refused(tmp_path, kind, n_bytes):
    suffix, options = FORMATS[kind]
    path = write(tmp_path / f"a{suffix}", white_noise(), **options)
    path.write_bytes(path.read_bytes()[:n_bytes])
    assert path.name in refusal(path)


def test_a_phones_file_without_its_index_is_refused(tmp_path):
    path = cut(write_with_ffmpeg(tmp_path / "a.m4a", "aac", 16_000, white_noise()), 0.5)
    assert "cut short or damaged" in refusal(path)


def forge_flac_length(path: Path, n_samples: int) -> Path:
    """Write another total into STREAMINFO: 36 bits, the low half of byte 13 and bytes 14 to 17 of its body."""
    data = bytearray(path.read_bytes())
    assert data[:4] == b"fLaC"
    data[21] = data[21] & 0xF0 | n_samples >> 32
    data[22:26] = (n_samples & 0xFFFF_FFFF).to_bytes(4, "big")
    path.write_bytes(data)
    return path


def test_a_flac_that_claims_49_days_is_read_for_what_it_holds(tmp_path):
    path = write(tmp_path / "a.flac", white_noise())
    honest = only(path).samples
    tracemalloc.start()
    recording = only(forge_flac_length(path, 2**36 - 1))
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    np.testing.assert_array_equal(recording.samples, honest)
    assert recording.notes == ("ends early: 1.0 s of 4294967.3 s in its header could be read",)


def test_a_flac_that_does_not_know_its_length_is_whole(tmp_path):
    recording = only(forge_flac_length(write(tmp_path / "a.flac", white_noise()), 0))
    assert recording.seconds == 1.0
    assert recording.notes == ()


def wav(data: bytes, *, data_size: int | None = None, riff_size: int | None = None, rate: int = 16_000,
        n_channels: int = 1, coding: int = 1) -> bytes:
    size = len(data) if data_size is None else data_size
    return (b"RIFF" + struct.pack("<I", 36 + size if riff_size is None else riff_size) + b"WAVEfmt "
            + struct.pack("<IHHIIHH", 16, coding, n_channels, rate, 2 * n_channels * rate % 2**32, 2 * n_channels, 16)
            + b"data" + struct.pack("<I", size) + data)


PCM = (32767 * white_noise()).astype("<i2").tobytes()


@pytest.mark.parametrize(("data_size", "riff_size"), [
    (0xFFFF_FFFF, 0xFFFF_FFFF), (0xFFFF_FFF0, 0xFFFF_FFFF), (0x7FFF_FFFF, 0), (0, 0), (len(PCM), 0)])
def test_a_wav_whose_writer_never_filled_in_the_size_is_whole(tmp_path, data_size, riff_size):
    (tmp_path / "a.wav").write_bytes(wav(PCM, data_size=data_size, riff_size=riff_size))
    recording = only(tmp_path / "a.wav")
    assert recording.seconds == 1.0
    assert recording.notes == ()


def test_an_odd_last_byte_is_no_harm(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav(PCM[:-1]))
    assert len(only(tmp_path / "a.wav").samples) == 15_999


@pytest.mark.parametrize("fields", [
    {"rate": 0}, {"rate": 2**31 - 1}, {"rate": 3_999}, {"n_channels": 0}, {"n_channels": 65}, {"n_channels": 1_024}])
def test_impossible_rates_and_channels_are_refused(tmp_path, fields):
    (tmp_path / "a.wav").write_bytes(wav(PCM, **fields))
    assert "a.wav" in refusal(tmp_path / "a.wav")


def test_a_coding_that_nobody_knows_is_refused(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav(PCM, coding=0x7777))
    assert "a.wav" in refusal(tmp_path / "a.wav")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), min_size=1, max_size=6),
       kind=st.sampled_from(["WAV", "AIFF", "FLAC"]))
def test_a_damaged_header_gives_recordings_or_one_of_our_errors(tmp_path, changes, kind):
    suffix, options = FORMATS[kind]
    path = write(tmp_path / f"a{suffix}", white_noise(0.5), **options)
    data = bytearray(path.read_bytes())
    for position, value in changes:
        data[position] = value
    path.write_bytes(data)
    try:
        recording = only(path)
    except PseError as error:
        assert "\n" not in str(error)  # noqa: PT017  either outcome is right
    else:
        assert np.isfinite(recording.samples).all()
        assert np.abs(recording.samples).max() <= 1


@pytest.mark.parametrize("kind", ["M4A", "WebM", "MP3", "Opus"])
@pytest.mark.parametrize("seed", range(5))
def test_a_damaged_middle_gives_recordings_or_one_of_our_errors(tmp_path, kind, seed):
    if kind in PHONE_FORMATS:
        name, codec, rate = PHONE_FORMATS[kind]
        path = write_with_ffmpeg(tmp_path / name, codec, rate, white_noise(2.0, rate))
    else:
        path = write(tmp_path / f"a{FORMATS[kind][0]}", white_noise(2.0), **FORMATS[kind][1])
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    rng = np.random.default_rng(seed)
    data[rng.integers(0, len(data), 20)] = rng.integers(0, 256, 20)
    path.write_bytes(data.tobytes())
    try:
        assert np.isfinite(only(path).samples).all()
    except PseError as error:
        assert "\n" not in str(error)  # noqa: PT017  either outcome is right


# Content, not suffix


@pytest.mark.parametrize(("kind", "name"), [("MP3", "a.wav"), ("WAV", "a.mp3"), ("FLAC", "a.raw"), ("Opus", "speech")])
def test_the_content_decides_and_not_the_suffix(tmp_path, kind, name):
    suffix, options = FORMATS[kind]
    written = write(tmp_path / f"written{suffix}", tone(), **options)
    expected = only(written).samples
    written.rename(tmp_path / name)
    np.testing.assert_allclose(only(tmp_path / name).samples, expected, atol=1e-4)


def test_a_phones_file_may_be_called_wav(tmp_path):
    write_with_ffmpeg(tmp_path / "a.m4a", "aac", 16_000, tone()).rename(tmp_path / "a.wav")
    assert only(tmp_path / "a.wav").seconds == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("content", [
    b"These are my notes.\n" * 100, b"\x89PNG\r\n\x1a\n" + bytes(1_000), bytes(10_000),
    np.random.default_rng(0).bytes(100_000), b"RIFF", b"#EXTM3U\n#EXTINF:1,\na.aac\n#EXT-X-ENDLIST\n"])
@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.m4a", "a.m3u8"])
def test_what_is_not_audio_is_refused(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    message = refusal(tmp_path / name)
    # FFmpeg takes noise called a.mp3 for an MP3 until it finds nothing in it.
    assert f"{name} is not audio that can be read" in message or f"{name} holds no sound" in message


def test_a_playlist_is_not_followed(tmp_path):
    write_with_ffmpeg(tmp_path / "a.aac", "aac", 16_000, tone())
    playlist = tmp_path / "a.m3u8"
    playlist.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\na.aac\n#EXT-X-ENDLIST\n")
    assert "is not audio" in refusal(playlist)


def test_a_name_that_looks_like_a_protocol_is_a_file(tmp_path):
    if os.name == "nt":
        pytest.skip("Windows has no colon in file names")
    path = write_with_ffmpeg(tmp_path / "a.m4a", "aac", 16_000, tone())
    assert only(path.rename(tmp_path / "http:a.m4a")).seconds > 0.9


@pytest.fixture
def without_av(monkeypatch):
    really_import = builtins.__import__

    def refuse_av(name, *arguments, **options):
        if name.split(".")[0] == "av":
            raise ModuleNotFoundError("No module named 'av'", name="av")
        return really_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse_av)


@pytest.mark.parametrize("name", ["a.m4a", "a.wav"])
def test_without_pyav_a_phones_file_says_what_to_install(tmp_path, without_av, name):
    (tmp_path / name).write_bytes(b"\0\0\0\x20ftypM4A " + bytes(1_000))
    with pytest.raises(MissingDependencyError, match=r"pip install 'pse_sdk\[phone\]'"):
        read_recordings(tmp_path / name, on_bad="skip")


def test_without_pyav_everything_else_works(tmp_path, without_av):
    assert only(write(tmp_path / "a.flac", tone())).seconds == 1.0
    (tmp_path / "b.wav").write_bytes(b"no audio at all")
    assert "is not audio" in refusal(tmp_path / "b.wav")


# Refused


def test_a_missing_file_is_named(tmp_path):
    assert f"there is no file {tmp_path / 'a.wav'}" in refusal(tmp_path / "a.wav")


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "a.wav").touch()
    assert "is empty" in refusal(tmp_path / "a.wav")


@pytest.mark.parametrize("kind", ["WAV", "AIFF"])
def test_a_file_without_samples_is_refused(tmp_path, kind):
    suffix, options = FORMATS[kind]
    assert "holds no samples" in refusal(write(tmp_path / f"a{suffix}", white_noise(0), **options))


def test_a_video_without_sound_is_refused(tmp_path):
    av = pytest.importorskip("av", reason="PyAV writes this format")
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    assert "has no sound track" in refusal(tmp_path / "a.mp4")


@pytest.mark.parametrize("samples", [np.zeros(16_000), np.full(16_000, 0.5), np.full((16_000, 2), np.nan)])
def test_digital_silence_is_refused(samples):
    assert "holds only digital silence" in refusal((samples.astype(np.float32), 16_000))


def test_of_thirty_hours_only_what_is_read_becomes_floats():
    """As bytes of zero strides, for the test's own sake."""
    hours = np.broadcast_to(np.int16(0), (30 * 3600 * 16_000,))
    tracemalloc.start()
    try:
        with pytest.raises(AudioError, match="only digital silence in its first 10 minutes, and more is not read"):
            read_recordings((hours, 16_000), max_seconds=600)
        assert tracemalloc.get_traced_memory()[1] < 2e8
    finally:
        tracemalloc.stop()


def test_a_very_quiet_recording_is_not_silence():
    assert only((0.002 * white_noise(), 16_000)).seconds == 1.0


@pytest.mark.parametrize("rate", [8_000, 48_000])
def test_less_than_a_fifth_of_a_second_is_refused(rate):
    assert "lasts 0.199 s" in refusal((white_noise(0.199, rate), rate))
    assert only((white_noise(0.2, rate), rate)).seconds == 0.2


@pytest.mark.parametrize("source", [
    white_noise(), [white_noise()], [[white_noise(), 16_000]], None, 3, b"a.wav", {"a": 1}, [None], "", [],
    (np.zeros((3, 3, 3)), 16_000), (white_noise().astype(np.int64), 16_000), (None, 16_000), (white_noise(0), 16_000),
])
def test_sources_of_another_kind_are_refused(source):
    assert refusal(source)


def test_samples_without_their_rate_are_told_what_is_missing():
    assert "(samples, 16000)" in refusal(white_noise())


def test_a_wrong_rate_is_a_setting_of_the_caller():
    with pytest.raises(SettingsError):
        read_recordings((white_noise(), 0), on_bad="skip")


@pytest.mark.parametrize("settings", [{"max_seconds": 0}, {"max_seconds": float("nan")}, {"on_bad": "ignore"}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(SettingsError):
        read_recordings((white_noise(), 16_000), **settings)


def test_a_device_is_not_a_file():
    if not os.path.exists("/dev/zero"):
        pytest.skip("no /dev/zero here")
    assert "is not a file" in refusal("/dev/zero")


def test_a_name_with_a_line_break_is_told_in_one_line(tmp_path):
    if os.name == "nt":
        pytest.skip("Windows has no such file names")
    (tmp_path / "a\nb.wav").touch()
    assert "a?b.wav is empty" in refusal(tmp_path / "a\nb.wav")


# Several sources


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    write(tmp_path / "b.WAV", white_noise(seed=1))
    write(tmp_path / "a.flac", white_noise(seed=2))
    write(tmp_path / "sub" / "c.wav", white_noise(seed=3))
    write(tmp_path / ".d.wav", white_noise(seed=4))
    write(tmp_path / ".hidden" / "e.wav", white_noise(seed=5))
    (tmp_path / "notes.txt").write_text("not audio")
    return tmp_path


def names(found: list[Recording], folder: Path) -> list[str]:
    return [Path(recording.name).relative_to(folder).as_posix() for recording in found]


def test_a_folder_is_searched_in_order_without_hidden_files(folder):
    assert names(read_recordings(folder), folder) == ["a.flac", "b.WAV", "sub/c.wav"]
    assert names(read_recordings(str(folder)), folder) == ["a.flac", "b.WAV", "sub/c.wav"]


def test_sources_keep_their_order(folder):
    found = read_recordings([folder / "sub", (white_noise(seed=9), 16_000), folder / "a.flac"])
    assert [recording.name for recording in found] == [
        str(folder / "sub" / "c.wav"), "recording 2", str(folder / "a.flac")]


def test_two_paths_in_a_tuple_are_two_sources(folder):
    assert len(read_recordings((folder / "a.flac", folder / "b.WAV"))) == 2


def test_a_folder_without_audio_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("not audio")
    assert "this folder holds no audio files" in refusal(tmp_path)


def test_the_same_content_is_used_once(folder):
    first, second, third = read_recordings([folder, folder / "a.flac", (white_noise(seed=7), 16_000),
                                            (white_noise(seed=7), 16_000)])[:3]
    assert first.notes == ("given more than once: used once",)
    assert second.notes == third.notes == ()
    assert len(read_recordings([(white_noise(), 16_000)] * 3)) == 1
    louder = read_recordings([(white_noise(seed=7), 16_000), (0.3 * white_noise(seed=7), 16_000)])
    assert len(louder) == 1 and "used once" in louder[0].notes[0]


def spoken(seconds: float, seed: int) -> np.ndarray:
    """Noise in syllables and pauses."""
    rng = np.random.default_rng(seed)
    syllables = np.repeat(rng.random(int(seconds * 5)) ** 4, 3200)
    return (0.1 * syllables * rng.standard_normal(len(syllables))).astype(np.float32)


def test_one_take_cut_or_encoded_in_another_way_is_used_once(tmp_path):
    take = spoken(30, seed=1)
    soundfile.write(tmp_path / "take.mp3", take, 16_000)
    [kept] = read_recordings([(take, 16_000), (take[1:], 16_000), (0.5 * take[20_000:], 16_000), tmp_path])
    assert kept.notes == ("given more than once: used once",)


def test_two_takes_are_two():
    takes = [spoken(seconds, seed) for seed, seconds in enumerate((30, 30, 29.5, 60, 5, 5))]
    babble = spoken(30, seed=9)
    in_one_noise = [(take[:len(babble)] + babble[:len(take)], 16_000) for take in takes[:3]]
    assert len(read_recordings([*((take, 16_000) for take in takes), *in_one_noise])) == len(takes) + 3


def test_single_words_in_silence_are_no_copies_of_each_other():
    def word(seed: int) -> np.ndarray:
        silence = np.zeros(10 * 16_000, np.float32)
        return np.concatenate([silence, spoken(6, seed), silence])

    assert len(read_recordings([(word(seed), 16_000) for seed in range(4)])) == 4
    assert len(read_recordings([(word(1), 16_000), (word(1)[3:], 16_000)])) == 1


def test_one_bad_file_among_good_ones_is_named(folder):
    (folder / "broken.wav").write_bytes(b"nothing that sounds")
    assert "broken.wav is not audio" in refusal(folder)


def test_bad_files_can_be_left_out_but_not_in_silence(folder, caplog):
    (folder / "broken.wav").write_bytes(b"nothing that sounds")
    with caplog.at_level(logging.WARNING, logger="pse_sdk.recordings"):
        found = read_recordings([folder, folder / "missing.wav", folder / ".hidden" / "nowhere"], on_bad="skip")
    assert names(found, folder) == ["a.flac", "b.WAV", "sub/c.wav"]
    assert [note for recording in found[:-1] for note in recording.notes] == []
    assert [note.startswith("left out: ") for note in found[-1].notes] == [True] * 3
    assert "broken.wav" in found[-1].notes[0]
    assert len(caplog.records) == 3


def test_when_all_are_left_out_nothing_is_not_an_answer(tmp_path):
    for name in "abcde":
        (tmp_path / f"{name}.wav").touch()
    with pytest.raises(AudioError, match=r"no recordings to use: .*a\.wav is empty.*and 2 more"):
        read_recordings(tmp_path, on_bad="skip")


def test_reading_stops_at_the_limit_in_total(folder):
    first, second = read_recordings(folder, max_seconds=1.5)
    assert (first.seconds, second.seconds) == (1.0, 0.5)
    assert first.notes == ()
    assert second.notes == ("only the first 0.5 s were read: more is not taken",
                            "further recordings were not read: 1.5 s in all are the most")


def test_where_time_is_shared_the_first_recording_does_not_take_the_place_of_others(monkeypatch):
    monkeypatch.setattr(recordings_module, "LEAST_SHARE_SECONDS", 1.0)
    rng = np.random.default_rng(0)
    given = [(rng.standard_normal(seconds * 16_000).astype(np.float32) * 0.1, 16_000) for seconds in (30, 2, 3)]
    assert [recording.seconds for recording in read_recordings(given, max_seconds=12, evenly=True)] == [4, 2, 3]
    assert [recording.seconds for recording in read_recordings(given, max_seconds=12)] == [12]
    assert [recording.seconds for recording in read_recordings(given, max_seconds=2.5, evenly=True)] == [1, 1, 0.5]


@pytest.mark.parametrize("max_seconds", [3.0, 3.1, float("inf")])
def test_a_limit_that_is_not_exceeded_is_not_mentioned(folder, max_seconds):
    assert [recording.notes for recording in read_recordings(folder, max_seconds=max_seconds)] == [()] * 3


@pytest.mark.parametrize("max_seconds", [10.0, 12.0, 25.0])
def test_a_long_file_is_cut_where_the_limit_says(tmp_path, max_seconds):
    path = write(tmp_path / "a.wav", white_noise(30.0))
    [recording] = read_recordings(path, max_seconds=max_seconds)
    assert recording.seconds == max_seconds
    assert "more is not taken" in recording.notes[0]


# AudioReader, and what a long file costs


def test_a_reader_gives_the_file_as_it_is(tmp_path):
    samples = np.stack([white_noise(2.5, 44_100), 1.5 * tone(2.5, 44_100)], axis=1)
    samples[7, 1] = np.nan
    with AudioReader(write(tmp_path / "a.wav", samples, 44_100, subtype="FLOAT")) as reader:
        assert (reader.sample_rate, reader.n_channels) == (44_100, 2)
        blocks = list(reader.blocks(seconds=1.0))
        assert [len(block) for block in blocks] == [44_100, 44_100, 22_050]
        np.testing.assert_array_equal(np.concatenate(blocks), samples)
        assert reader.notes == ()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seconds=st.floats(1e-4, 3.0))
def test_the_length_of_blocks_does_not_change_the_samples(tmp_path, seconds):
    path = tmp_path / "a.wav"
    if not path.exists():
        write(path, white_noise(), subtype="FLOAT")
    blocks = list(AudioReader(path).blocks(seconds))
    assert {len(block) for block in blocks[:-1]} <= {max(1, round(seconds * 16_000))}
    np.testing.assert_array_equal(np.concatenate(blocks)[:, 0], white_noise())


def test_a_phones_stereo_keeps_rate_and_channels(tmp_path):
    av = pytest.importorskip("av", reason="PyAV writes this format")
    samples = np.stack([tone(1.0, 48_000), tone(1.0, 48_000, hz=880)])
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=48_000, layout="stereo")
        packed = (32767 * samples).astype(np.int16).T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format="s16", layout="stereo")
        frame.sample_rate = 48_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with AudioReader(tmp_path / "a.mkv") as reader:
        assert (reader.sample_rate, reader.n_channels) == (48_000, 2)
        np.testing.assert_allclose(np.concatenate(list(reader.blocks(0.3))), samples.T, atol=1e-4)


def test_more_channels_than_pyav_can_count_are_refused_before_it_tries(tmp_path):
    av = pytest.importorskip("av", reason="PyAV writes this format")
    with av.open(str(tmp_path / "a.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=48_000, layout="7.1")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8 * 1_024), np.float32), format="flt", layout="7.1")
        frame.sample_rate = 48_000
        [planar] = av.AudioResampler("fltp", "7.1", 48_000).resample(frame)
        container.mux(stream.encode(planar))
        container.mux(stream.encode(None))
    assert "has 8 channels" in refusal(tmp_path / "a.m4a")


def test_every_pass_starts_at_the_beginning_and_ends_with_the_reader(tmp_path):
    path = write(tmp_path / "a.wav", white_noise())
    with AudioReader(path) as reader:
        first, second = reader.blocks(0.1), reader.blocks(0.1)
        np.testing.assert_array_equal(next(first), next(second))
    assert list(first) == []
    path.unlink()  # no pass holds it open, or Windows would refuse


def test_the_notes_of_a_reader_are_known_after_its_last_block(tmp_path):
    reader = AudioReader(cut(write(tmp_path / "a.flac", white_noise(4.0)), 0.5))
    assert reader.notes == ()
    list(reader.blocks())
    assert reader.notes[0].startswith("ends early: ")


def test_a_reader_refuses_folders_and_impossible_blocks(tmp_path):
    with pytest.raises(AudioError, match="is not a file"):
        AudioReader(tmp_path)
    with pytest.raises(SettingsError):
        AudioReader(write(tmp_path / "a.wav", white_noise())).blocks(0)


def test_ten_minutes_of_stereo_need_little_more_memory_than_their_16_khz_mono(tmp_path):
    path = tmp_path / "long.wav"
    block = np.stack([white_noise(10.0, 48_000)] * 2, axis=1)
    with soundfile.SoundFile(path, "w", 48_000, 2) as file:
        for _ in range(60):
            file.write(block)
    tracemalloc.start()
    recording = only(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert recording.seconds == 600.0
    assert peak < 2 * recording.samples.nbytes  # the file as float32 would be six times as large
