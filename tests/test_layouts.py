import csv

import numpy as np
import pytest
import soundfile

from pse_sdk.config import STFT
from pse_sdk.errors import AudioError

torch = pytest.importorskip("torch")
from pse_sdk.training.corpus import load_corpus  # noqa: E402
from pse_sdk.training.layouts import LAYOUTS, find_clips  # noqa: E402

FILES = {
    "LibriSpeech": [f"LibriSpeech/{path}-0000.flac" for path in ("train-clean-100/19/198/19-198",
                                                                 "train-clean-100/19/227/19-227",
                                                                 "train-other-500/20/205/20-205",
                                                                 "test-clean/61/70968/61-70968")],
    "VCTK": ["VCTK-Corpus-0.92/wav48_silence_trimmed/p225/p225_001_mic1.flac",
             "VCTK-Corpus-0.92/wav48_silence_trimmed/p225/p225_001_mic2.flac",
             "VCTK-Corpus-0.92/wav48_silence_trimmed/p226/p226_001_mic1.flac"],
    "DNS challenge": [f"datasets_fullband/{path}.wav" for path in (
        "clean_fullband/read_speech/book_00000_chp_0009_reader_06709_0_seg_1",
        "clean_fullband/read_speech/book_00001_chp_0001_reader_00012_0_seg_1",
        "clean_fullband/vctk_wav48_silence_trimmed/p225/p225_001_mic1",
        "noise_fullband/door_1",
        "impulse_responses/SLR26/simulated_rirs_48k/smallroom/Room001/Room001-00001",
        "impulse_responses/SLR28/RIRS_NOISES/real_rirs_isotropic_noises/air_type1_air_binaural_aula_1")],
    "MUSAN": ["musan/speech/librivox/speech-librivox-0000.wav", "musan/noise/free-sound/noise-free-sound-0000.wav",
              "musan/music/fma/music-fma-0000.wav", "musan/music/fma/music-fma-0001.wav"],
    "DEMAND": [f"DEMAND/{place}/ch{channel:02}.wav" for place in ("DKITCHEN_16k", "OOFFICE") for channel in (1, 2, 16)],
    "FSD50K": [f"FSD50K/FSD50K.dev_audio/{i}.wav" for i in (10, 11, 12)] + ["FSD50K/FSD50K.eval_audio/20.wav"],
    "RIRS_NOISES": ["RIRS_NOISES/simulated_rirs/smallroom/Room001/Room001-00001.wav",
                    "RIRS_NOISES/simulated_rirs/smallroom/Room001/Room001-00002.wav",
                    "RIRS_NOISES/real_rirs_isotropic_noises/RVB2014_type1_rir_largeroom1_near_angla.wav",
                    "RIRS_NOISES/real_rirs_isotropic_noises/RVB2014_type1_rir_largeroom1_far_anglb.wav",
                    "RIRS_NOISES/real_rirs_isotropic_noises/RVB2014_type1_noise_largeroom1_1.wav",
                    "RIRS_NOISES/pointsource_noises/noise-free-sound-0000.wav"],
}
RATES = {"VCTK": 48_000, "DNS challenge": 48_000, "FSD50K": 44_100}


@pytest.fixture
def corpora(tmp_path):
    """All of them side by side, each file a tenth of a second of noise."""
    rng = np.random.default_rng(0)
    for layout, paths in FILES.items():
        for path in paths:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            rate = RATES.get(layout, STFT.sample_rate)
            soundfile.write(tmp_path / path, 0.1 * rng.standard_normal(rate // 10), rate)
    (tmp_path / "musan/music/fma/ANNOTATIONS").write_text(
        "music-fma-0000 jazz N somebody\nmusic-fma-0001 rock,pop Y else\n")
    labels = tmp_path / "FSD50K/FSD50K.ground_truth/dev.csv"
    labels.parent.mkdir()
    with labels.open("w", newline="") as file:
        csv.writer(file).writerows([["fname", "labels", "mids", "split"], [10, "Bark,Dog,Animal", "", "train"],
                                    [11, "Male_speech_and_man_speaking,Speech,Human_voice", "", "train"],
                                    [12, "Rain,Water", "", "val"]])
    return tmp_path


def root_of(layout, corpora):
    return corpora / FILES[layout][0].split("/")[0]


def clips_of(layout, corpora):
    clips, = find_clips(root_of(layout, corpora)).values()
    return clips


@pytest.mark.parametrize("layout", FILES)
def test_a_corpus_is_recognised_by_its_folders_whatever_its_name(corpora, layout):
    renamed = root_of(layout, corpora).rename(corpora / "unpacked")
    assert set(find_clips(renamed)) == {layout}


def test_a_folder_of_corpora_holds_them_all(corpora):
    found = find_clips(corpora)
    assert list(found) == list(FILES) == [layout.name for layout in LAYOUTS]
    assert all(clips == clips_of(layout, corpora) for layout, clips in found.items())


@pytest.mark.parametrize("layout, names", [
    ("LibriSpeech", ["19", "19", "20"]),                                # not the test set
    ("VCTK", ["p225", "p226"]),                                         # one microphone
    ("MUSAN", ["speech-librivox-0000"]),
    ("DNS challenge", ["reader_06709", "reader_00012", "clean_fullband/vctk_wav48_silence_trimmed/p225"]),
])
def test_speakers_are_told_apart(corpora, layout, names):
    assert [clip.name for clip in clips_of(layout, corpora) if clip.kind == "speech"] == names


@pytest.mark.parametrize("layout, paths", [
    ("MUSAN", ["music/fma/music-fma-0000.wav", "noise/free-sound/noise-free-sound-0000.wav"]),      # nobody sings
    ("DEMAND", ["DKITCHEN_16k/ch01.wav", "OOFFICE/ch01.wav"]),                                      # one microphone
    ("FSD50K", ["FSD50K.dev_audio/10.wav", "FSD50K.dev_audio/12.wav"]),                             # nobody speaks
    ("DNS challenge", ["noise_fullband/door_1.wav"]),
    ("RIRS_NOISES", ["pointsource_noises/noise-free-sound-0000.wav",
                     "real_rirs_isotropic_noises/RVB2014_type1_noise_largeroom1_1.wav"]),
])
def test_noises_have_no_voices_and_come_once(corpora, layout, paths):
    assert [clip.path for clip in clips_of(layout, corpora) if clip.kind == "noise"] == paths


def test_responses_of_one_room_have_one_name(corpora):
    names = [clip.name for clip in clips_of("RIRS_NOISES", corpora) if clip.kind == "rir"]
    assert names == ["RVB2014_type1_rir_largeroom1"] * 2 + ["simulated_rirs/smallroom/Room001"] * 2
    assert len({clip.name for clip in clips_of("DNS challenge", corpora) if clip.kind == "rir"}) == 2


def test_labels_are_not_needed(corpora):
    (corpora / "FSD50K/FSD50K.ground_truth/dev.csv").unlink()
    (corpora / "musan/music/fma/ANNOTATIONS").unlink()
    assert len(clips_of("FSD50K", corpora)) == 3
    assert len(clips_of("MUSAN", corpora)) == 4


def test_a_corpus_of_test_sets_only_is_read_too(corpora):
    for subset in ("train-clean-100", "train-other-500"):
        (corpora / "LibriSpeech" / subset).rename(corpora / subset)
    assert [clip.name for clip in clips_of("LibriSpeech", corpora)] == ["61"]


def test_what_is_held_out_does_not_depend_on_where_a_corpus_lies(corpora):
    before = [clip.held_out_by for clips in find_clips(corpora).values() for clip in clips]
    moved = [clip.held_out_by for layout in FILES for clip in clips_of(layout, corpora)]
    assert before == moved


def test_a_manifest_says_all_there_is_to_say(corpora):
    (corpora / "manifest.csv").write_text("path,kind,split,corpus,name\nmusan/a.wav,noise,train,mine,street\n")
    assert [clip.name for clips in find_clips(corpora).values() for clip in clips] == ["street"]


def test_an_unknown_folder_is_refused_with_the_layouts_that_are_known(tmp_path):
    soundfile.write(tmp_path / "talk.wav", np.zeros(100), STFT.sample_rate)
    with pytest.raises(AudioError, match="no layout that is known") as told:
        find_clips(tmp_path)
    assert all(layout.name in str(told.value) for layout in LAYOUTS)


@pytest.mark.parametrize("folder, told", [("LibriSpeech/SPEAKERS.TXT", "is no folder"), ("missing", "is no folder")])
def test_what_is_no_folder_is_refused(corpora, folder, told):
    (corpora / "LibriSpeech/SPEAKERS.TXT").write_text("")
    with pytest.raises(AudioError, match=told):
        find_clips(corpora / folder)


def test_a_corpus_without_audio_is_refused(tmp_path):
    (tmp_path / "FSD50K.dev_audio").mkdir()
    with pytest.raises(AudioError, match="looks like FSD50K but holds no audio"):
        find_clips(tmp_path)


def test_a_manifest_without_a_column_is_refused(tmp_path):
    (tmp_path / "manifest.csv").write_text("path,kind,split,corpus\n")
    with pytest.raises(AudioError, match="no column name"):
        find_clips(tmp_path)


def test_all_corpora_train_together(corpora, tmp_path):
    rng = np.random.default_rng(1)
    for i in range(40):         # enough names that some of each kind are held out
        for path in (f"LibriSpeech/train-clean-100/{100 + i}/1/{100 + i}-1-0000.flac",
                     f"FSD50K/FSD50K.dev_audio/{i}.wav",
                     f"RIRS_NOISES/simulated_rirs/smallroom/Room{i:03}/Room{i:03}-00001.wav"):
            (corpora / path).parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(corpora / path, 0.1 * rng.standard_normal(1600), 16_000)
    training, validation = load_corpus([root_of(layout, corpora) for layout in FILES], tmp_path / "cache")
    for kind in ("speech", "noise", "rooms"):
        ours, theirs = (set(getattr(part, kind).names) for part in (training, validation))
        assert ours and theirs and not ours & theirs
    assert {name.split("/")[0] for name in training.speech.names} == {"librispeech", "vctk", "dns", "musan"}
    assert set(training.speech.lengths.tolist()) == {1600}      # whatever the rate was
