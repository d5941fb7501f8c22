import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pse_sdk.config import STFT
from pse_sdk.errors import AudioError

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import demo  # noqa: E402
import sample_user as su  # noqa: E402

RATE = STFT.sample_rate
TINY = {"seconds": 6.0, "n_clips": 4, "clip_seconds": 1.0}


@pytest.fixture
def no_apt(monkeypatch):
    monkeypatch.setattr(su.shutil, "which", lambda tool: None)


def write_prompt(path, hz, seconds=1.5):
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = (8000 * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)).astype(np.int16)
    with av.open(str(path), "w", format="g722") as container:
        stream = container.add_stream("g722", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


@pytest.fixture
def sounds(tmp_path):
    """A folder of prompts where every speaker, and what is held out, has a tone of its own."""
    for folder, name, hz in (("en_a", "hello", 500), ("en_a", "demo-hello", 1000), ("en_a", "beep", 1500),
                             ("en_a/silence", "9", 1750), ("fr_b", "bonjour", 2000), ("it_c", "ciao", 2500),
                             ("ru_d", "privet", 3000), ("es_a", "hola", 3500)):
        write_prompt(tmp_path / folder / f"{name}.g722", hz)
    write_prompt(tmp_path / "en_a" / "digit.g722", 1250, seconds=0.5)
    return tmp_path


def tones_in(samples):
    """Which multiples of 250 Hz stand out."""
    power = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) ** 2
    bands = {hz: power[int((hz - 50) * len(samples) / RATE):int((hz + 50) * len(samples) / RATE)].sum()
             for hz in range(500, 4000, 250)}
    return {hz for hz, energy in bands.items() if energy > 0.01 * max(bands.values())}


def test_without_apt_the_talker_is_synthetic_and_says_so(no_apt, tmp_path):
    user = su.sample_user(tmp_path, **TINY)
    assert "synthetic" in user.description
    assert "no apt-get" in user.description


def test_same_seed_same_user(no_apt, tmp_path):
    first, again, other = (su.sample_user(tmp_path, seed, **TINY) for seed in (3, 3, 4))
    np.testing.assert_array_equal(np.concatenate(first.recordings), np.concatenate(again.recordings))
    assert not np.array_equal(first.recordings[0], other.recordings[0])


def test_the_user_has_the_asked_sizes(no_apt, tmp_path):
    user = su.sample_user(tmp_path, **TINY)
    assert [len(recording) for recording in user.recordings] == [2 * RATE] * len(su.PLACES)
    assert [len(clip.noisy) for clip in user.clips] == [len(clip.clean) for clip in user.clips] == [RATE] * 4


def test_one_clip_comes_from_a_place_that_was_never_recorded(no_apt, tmp_path):
    titles = [clip.title for clip in su.sample_user(tmp_path, **TINY).clips]
    assert ["never recorded" in title for title in titles] == [False, False, False, True]


def test_nothing_leaves_full_scale(no_apt, tmp_path):
    user = su.sample_user(tmp_path, **TINY)
    assert max(np.abs(samples).max() for samples in [*user.recordings, *(clip.noisy for clip in user.clips)]) <= 0.901


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 12.0])
def test_the_asked_snr_is_measured_on_the_mixture(snr_db):
    rng = np.random.default_rng(0)
    speech, noise = 0.1 * rng.standard_normal(RATE), rng.standard_normal(RATE)
    noisy, clean = su.mix(speech, noise, snr_db)
    assert 10 * np.log10(np.mean(clean**2) / np.mean((noisy - clean) ** 2)) == pytest.approx(snr_db, abs=0.1)


def test_pauses_do_not_change_the_snr():
    rng = np.random.default_rng(0)
    speech, noise = 0.1 * rng.standard_normal(RATE), 0.1 * rng.standard_normal(2 * RATE)
    noisy, clean = su.mix(np.concatenate([speech, np.zeros(RATE)]), noise, 6.0)
    speaking = slice(0, RATE)
    measured = 10 * np.log10(np.mean(clean[speaking] ** 2) / np.mean((noisy - clean)[speaking] ** 2))
    assert measured == pytest.approx(6.0, abs=0.3)      # the noise of one half differs from that of both


def test_held_out_prompts_are_in_no_recording(sounds):
    voice = su.prompt_voice(sounds, np.random.default_rng(0), 8.0, 8.0)
    assert tones_in(voice.recorded) == {500}
    assert tones_in(voice.held_out) == {1000}
    assert "real speech" in voice.description


def test_the_crowd_has_every_other_speaker_and_not_the_user(sounds):
    voice = su.prompt_voice(sounds, np.random.default_rng(0), 2.0, 2.0)
    crowd = voice.crowd(4.0, np.random.default_rng(1))
    assert len(crowd) == 4 * RATE
    assert tones_in(crowd) == {2000, 2500, 3000}


@pytest.mark.parametrize("failure, said", [
    (subprocess.CalledProcessError(100, "apt-get", stderr="W: a warning\nE: Unable to locate x"), "Unable to locate x"),
    (subprocess.TimeoutExpired("apt-get", 1), "not done after"),
    (OSError("disk full"), "disk full"),
])
def test_a_failed_download_leaves_nothing_and_says_why(monkeypatch, tmp_path, failure, said):
    pytest.importorskip("av")
    monkeypatch.setattr(su.shutil, "which", lambda tool: f"/bin/{tool}")

    def fail(packages, folder):
        (folder / "unpacked").mkdir(parents=True)
        raise failure

    monkeypatch.setattr(su, "_download", fail)
    assert said in su.sample_user(tmp_path, **TINY).description
    assert not list(tmp_path.iterdir())


def test_the_end_of_a_recording_is_held_out(tmp_path):
    samples = (0.1 * np.random.default_rng(0).standard_normal(16 * RATE)).astype(np.float32)
    soundfile.write(tmp_path / "mine.wav", samples, RATE, subtype="FLOAT")
    (learnt,), (clip,) = demo.hold_out([tmp_path])
    assert len(clip.noisy) == 4 * RATE
    assert clip.clean is None and "mine.wav" in clip.title
    np.testing.assert_allclose(np.concatenate([learnt, clip.noisy]), samples, atol=1e-3)


def test_recordings_too_short_to_hold_out_are_refused(tmp_path):
    soundfile.write(tmp_path / "short.wav", 0.1 * np.random.default_rng(0).standard_normal(RATE), RATE)
    with pytest.raises(AudioError, match="a minute or more"):
        demo.hold_out([tmp_path])


def test_a_mistake_is_said_in_one_line(tmp_path, capsys):
    assert demo.main(["--recordings", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("demo: ")


@pytest.mark.parametrize("out", ["file", "file/below", "/dev/null/out"])
def test_a_folder_that_cannot_be_made_is_said_in_one_line(tmp_path, monkeypatch, capsys, out):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("in the way")
    assert demo.main(["--recordings", str(tmp_path), "--out", out]) == 2
    said = capsys.readouterr().err
    assert said.startswith("demo: ") and said.count("\n") == 1 and "--out" in said


def test_clips_of_an_earlier_run_do_not_stay(tmp_path):
    def row(*labels):
        return demo.Row("a clip", [demo.Track(label, np.zeros(RATE, np.float32)) for label in labels], RATE)
    (tmp_path / "mine.wav").write_bytes(b"not ours")
    demo.write_clips(tmp_path, [row("recorded", "clean"), row("recorded", "clean")])
    demo.write_clips(tmp_path, [row("recorded")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1-recorded.wav", "mine.wav"]


def test_half_the_level_is_six_decibels(no_apt, tmp_path):
    clips = su.sample_user(tmp_path, **{**TINY, "clip_seconds": 4.0}).clips
    changes = demo.level_changes([0.5 * clip.noisy for clip in clips], clips)
    assert set(changes) <= {"-6.0", "-"} and "-6.0" in changes


def test_the_untouched_recording_gains_nothing(no_apt, tmp_path):
    clips = su.sample_user(tmp_path, **TINY).clips
    assert demo.scores([clip.noisy for clip in clips], clips)[0] == "0.00"
    assert float(demo.scores([clip.clean for clip in clips], clips)[0]) > 20


def test_a_page_row_has_before_after_and_truth(no_apt, tmp_path):
    clip = su.sample_user(tmp_path, **TINY).clips[0]
    row = demo.page_row(clip, {"specialist": clip.clean})
    assert [track.label for track in row.tracks] == ["recorded", "specialist", "clean"]
    assert row.tracks[1].caption.endswith("dB SI-SDR")
