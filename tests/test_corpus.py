import csv
import os

import numpy as np
import pytest
import soundfile

from pse_sdk.config import STFT
from pse_sdk.errors import AudioError, SettingsError

torch = pytest.importorskip("torch")
from pse_sdk.training import corpus  # noqa: E402
from pse_sdk.training.corpus import HELD_OUT_SHARE, Bank, _held_out, load_corpus  # noqa: E402

RATE = STFT.sample_rate
SHARE_TOLERANCE = 0.05      # of 1000 draws
HELD_OUT_SPEAKER = next(i for i in range(1000) if _held_out(f"test/speech{i}"))
HELD_OUT_NOISE = next(i for i in range(1000) if _held_out(f"noise/{i}.wav"))
HELD_OUT_ROOM = next(i for i in range(1000) if _held_out(f"test/rir{i}"))


def test_speech_may_be_played_faster_but_stays_the_same_clip():
    ramp = np.arange(4 * RATE, dtype=np.float32)        # the value of a sample is its place
    bank = Bank.of([ramp], [1.0])
    drawn = bank.draw(200, 1000, torch.Generator().manual_seed(0), max_speed_change=0.1)
    speed = drawn.diff(dim=1).mean(1)
    assert 0.89 < speed.min() < 0.95 and 1.05 < speed.max() < 1.11
    assert ((speed - 1).abs() < 1e-3).float().mean().item() == pytest.approx(0.5, abs=0.15)
    assert drawn.diff(dim=1).gt(0).all()                # a long clip never starts over


def test_a_short_clip_starts_over():
    bank = Bank.of([np.arange(10, dtype=np.float32)], [1.0])
    drawn = bank.draw(5, 25, torch.Generator().manual_seed(0))
    assert torch.equal((drawn[:, 1:] - drawn[:, :-1]) % 10, torch.ones(5, 24))


def test_clips_that_never_start_over_are_drawn_as_those_that_do():
    clip = np.random.default_rng(0).standard_normal(500).astype(np.float32)
    bank = Bank.of([clip], [1.0])
    beside_a_short_one = Bank.of([clip, np.ones(3, np.float32)], [1.0, 0.0])
    drawn, also = (bank.draw(20, 100, torch.Generator().manual_seed(0), max_speed_change=0.1)
                   for bank in (bank, beside_a_short_one))
    assert torch.equal(drawn, also)


def test_clips_are_drawn_as_often_as_their_weights_say():
    bank = Bank.of([np.full(50, value, np.float32) for value in (0.0, 1.0, 2.0)], [1.0, 0.0, 3.0])
    drawn = bank.draw(1000, 1, torch.Generator().manual_seed(0)).squeeze(1)
    assert not (drawn == 1).any() and (drawn == 2).float().mean().item() == pytest.approx(0.75, abs=SHARE_TOLERANCE)


def test_neighbours_may_be_takes_of_one_clip_which_no_others_are():
    bank = Bank.of([np.full(500, level, np.float32) for level in (0.1, 0.2, 0.3, 0.4)], [1.0] * 4)
    for seed in range(5):
        drawn = bank.draw(8, 100, torch.Generator().manual_seed(seed), takes=2)[:, 0].view(4, 2)
        assert torch.equal(drawn[:, 0], drawn[:, 1]) and len(drawn[:, 0].unique()) == 4
    assert bank.draw(12, 100, torch.Generator().manual_seed(0), takes=2).shape == (12, 100)      # more than there are


def test_takes_of_one_clip_are_played_at_one_speed():
    bank = Bank.of([np.linspace(0, 1, 5000, dtype=np.float32)], [1.0])
    drawn = bank.draw(64, 100, torch.Generator().manual_seed(0), max_speed_change=0.2, takes=2)
    speed = ((drawn[:, 50] - drawn[:, 0]) / 50 * 4999).view(-1, 2)
    torch.testing.assert_close(speed[:, 0], speed[:, 1], rtol=1e-3, atol=1e-3)
    changed = (speed[:, 0] - 1).abs() > 1e-2
    assert 8 < int(changed.sum()) < 24 and speed.max() <= 1.21 and speed.min() >= 0.79


def test_empty_clips_are_left_out_of_a_bank():
    bank = Bank.of([np.zeros(0, np.float32), np.ones(5, np.float32)], [1.0, 1.0], ("empty", "full"))
    assert bank.n_clips == 1 and bank.names == ("full",)


def write_corpus(folder, speech=(0, 1, HELD_OUT_SPEAKER), noise=(0, 1, HELD_OUT_NOISE), rir=(1, HELD_OUT_ROOM),
                 level=0.1, rate=RATE):
    """A corpus of short clips, two for each speaker. All samples of a clip are one value, which says whose it is."""
    rows = []
    for kind, numbers in (("speech", speech), ("noise", noise), ("rir", rir)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for i in numbers:
            for path in (f"{kind}/{i}.wav", f"{kind}/{i}-again.wav")[:2 if kind == "speech" else 1]:
                soundfile.write(folder / path, np.full(200, level + i * 1e-3), rate, subtype="FLOAT")
                rows.append({"path": path, "kind": kind, "split": "train", "corpus": "test", "name": f"{kind}{i}",
                             "seconds": 200 / rate, "licence": "CC0-1.0"})
    write_manifest(folder, rows)
    return rows


def write_manifest(folder, rows):
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "kind", "split", "corpus", "name", "seconds", "licence"])
        writer.writeheader()
        writer.writerows(rows)


def values(bank):
    """Which values the clips of a bank hold."""
    return {round(bank.samples[start:start + length].float().mean().item() / 32767, 4)
            for start, length in zip(bank.starts.tolist(), bank.lengths.tolist(), strict=True)}


@pytest.fixture
def folder(tmp_path):
    write_corpus(tmp_path / "corpus")
    return tmp_path / "corpus"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def test_a_speaker_noise_or_room_of_validation_is_never_trained_on(folder, cache):
    training, validation = load_corpus([folder], cache)
    assert set(training.speech.names) == {"test/speech0", "test/speech1"}
    assert set(validation.speech.names) == {f"test/speech{HELD_OUT_SPEAKER}"}
    assert (training.speech.n_clips, validation.speech.n_clips) == (4, 2)
    assert not values(training.speech) & values(validation.speech)
    assert not values(training.noise) & values(validation.noise)
    assert not values(training.rooms) & values(validation.rooms)


def test_about_six_in_a_hundred_are_held_out():
    assert np.mean([_held_out(f"corpus/{i}") for i in range(5000)]) == pytest.approx(HELD_OUT_SHARE, abs=0.01)


def test_who_is_held_out_does_not_change_when_audio_is_added(folder, cache):
    before = load_corpus([folder], cache)
    write_corpus(folder, speech=(*range(5), HELD_OUT_SPEAKER))
    after = load_corpus([folder], cache)
    for ours, theirs in zip(before, after, strict=True):
        assert set(ours.speech.names) <= set(theirs.speech.names)


def test_only_the_training_split_is_read(folder, cache):
    rows = write_corpus(folder)
    rows[0]["split"] = "test"
    write_manifest(folder, rows)
    assert load_corpus([folder], cache)[0].speech.n_clips == 3


def test_the_cache_gives_what_the_files_gave(folder, cache):
    first, again = (load_corpus([folder], cache)[0].speech for _ in range(2))
    assert torch.equal(first.samples, again.samples) and torch.equal(first.weights, again.weights)
    assert first.names == again.names


def test_the_cache_of_one_folder_is_not_taken_for_another(folder, cache, tmp_path):
    write_corpus(tmp_path / "other", level=0.5)
    one, other = (load_corpus([path], cache)[0].speech for path in (folder, tmp_path / "other"))
    assert not values(one) & values(other)


def test_the_cache_is_renewed_when_a_file_changes(folder, cache):
    before = values(load_corpus([folder], cache)[0].speech)
    write_corpus(folder, level=0.5)
    assert not before & values(load_corpus([folder], cache)[0].speech)


@pytest.mark.parametrize("missing", ["speech", "noise", "rir"])
def test_a_corpus_without_one_kind_of_file_is_refused(folder, cache, missing):
    write_corpus(folder, **{missing: ()})
    with pytest.raises(AudioError, match=f"no files of kind '{missing}'"):
        load_corpus([folder], cache)


@pytest.mark.parametrize("kind, numbers", [("speech", (0, 1)), ("speech", (HELD_OUT_SPEAKER,)), ("noise", (0, 1)),
                                           ("rir", (1,))])
def test_a_corpus_that_leaves_one_part_empty_is_refused(folder, cache, kind, numbers):
    write_corpus(folder, **{kind: numbers})
    with pytest.raises(AudioError, match="add more"):
        load_corpus([folder], cache)


def test_silent_files_are_left_out(folder, cache, caplog):
    before = load_corpus([folder], cache)[0].noise
    soundfile.write(folder / "noise/0.wav", np.zeros(200), RATE)
    after = load_corpus([folder], cache)[0].noise
    assert before.n_clips == 2 and after.names == ("noise/1.wav",)
    assert "0.wav is silent" in caplog.text


def test_other_rates_and_channels_become_mono_at_the_rate_of_the_model(folder, cache):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000)
    soundfile.write(folder / "noise/0.wav", np.stack([tone, -tone], axis=1), 48_000)
    noise = load_corpus([folder], cache)[0].noise
    assert noise.lengths.max().item() == RATE
    start = noise.starts[noise.lengths.argmax()]
    decoded = noise.samples[start:start + RATE].float() / 32768
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    np.testing.assert_allclose(decoded[500:-500], expected[500:-500], atol=1e-3)


def no_audio(path):
    path.write_bytes(b"no audio")


def no_numbers(path):
    soundfile.write(path, np.full(200, np.nan), RATE, subtype="FLOAT")


def low_rate(path):
    soundfile.write(path, np.ones(200), 8000)


@pytest.mark.parametrize("spoil, told", [(no_audio, "cannot be decoded"), (no_numbers, "no numbers"),
                                         (low_rate, "8000 Hz")])
def test_one_bad_file_is_left_out_and_many_are_refused(folder, cache, caplog, spoil, told):
    spoil(folder / "noise/0.wav")
    assert load_corpus([folder], cache)[0].noise.names == ("noise/1.wav",)
    assert told in caplog.text and "0.wav" in caplog.text
    spoil(folder / "noise/1.wav")
    with pytest.raises(AudioError, match=f"2 of the first 3 files of kind 'noise' are bad.*{told}"):
        load_corpus([folder], cache)
    assert not list(cache.glob("*.partial"))


def test_what_is_silent_in_sixteen_bits_is_silent(folder, cache):
    soundfile.write(folder / "rir/1.wav", np.full(200, 1e-6), RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match="without rir .1 of 2 files are silent"):
        load_corpus([folder], cache)


def test_the_first_channel_that_is_not_silent_counts(folder, cache):
    soundfile.write(folder / "noise/0.wav", np.stack([np.zeros(200), np.full(200, 0.7)], axis=1), RATE)
    assert 0.7 in values(load_corpus([folder], cache)[0].noise)


@pytest.mark.parametrize("damage", ["cut", "empty", "index", "gone"])
def test_a_damaged_cache_is_made_again(folder, cache, damage):
    before = values(load_corpus([folder], cache)[0].noise)
    (samples,), (index,) = cache.glob("noise-*.int16"), cache.glob("noise-*.json")
    if damage == "gone":
        samples.unlink()
    elif damage == "index":
        index.write_text("[200, 2")
    else:
        samples.write_bytes(samples.read_bytes()[:101 if damage == "cut" else 0])
    assert values(load_corpus([folder], cache)[0].noise) == before


def test_a_cache_that_cannot_be_written_is_refused(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="--cache"):
        load_corpus([folder], tmp_path / "file")


def test_what_a_killed_run_left_is_removed_after_a_while(folder, cache):
    cache.mkdir()
    old, new = cache / "noise-a.partial", cache / "noise-b.partial"
    for path in (old, new):
        path.write_text("")
    os.utime(old, (0, 0))
    load_corpus([folder], cache)
    assert not old.exists() and new.exists()


def test_decoding_says_how_far_it_is(folder, cache, monkeypatch):
    monkeypatch.setattr(corpus, "SECONDS_TO_SAY", 0.0)
    said = []
    load_corpus([folder], cache, say=said.append)
    assert said == ["decoded 6 of 6 files of kind 'speech'", "decoded 3 of 3 files of kind 'noise'",
                    "decoded 2 of 2 files of kind 'rir'"]


def test_all_kinds_are_there_before_anything_is_decoded(folder, cache):
    write_manifest(folder, [row for row in write_corpus(folder) if row["kind"] != "rir"])
    with pytest.raises(AudioError, match="'rir'"):
        load_corpus([folder], cache)
    assert not cache.exists()


def test_subsets_of_one_corpus_share_their_speakers(folder, cache):
    rows = write_corpus(folder)
    for row in rows:
        if row["kind"] == "speech":
            row["corpus"] = f"test_{'clean' if 'again' in row['path'] else 'other'}"
    write_manifest(folder, rows)
    training, validation = load_corpus([folder], cache)
    assert set(validation.speech.names) == {f"test/speech{HELD_OUT_SPEAKER}"} and validation.speech.n_clips == 2
    assert training.digest == load_corpus([folder], cache)[0].digest != validation.digest


def test_a_file_that_the_manifest_names_in_vain_is_refused(folder, cache):
    (folder / "noise/0.wav").unlink()
    with pytest.raises(AudioError, match="0.wav"):
        load_corpus([folder], cache)


def test_the_samples_are_mapped_not_read(folder, cache):
    load_corpus([folder], cache)
    path, = cache.glob("noise-*.int16")
    noise = load_corpus([folder], cache)[0].noise
    with path.open("r+b") as file:          # what changes on the disk changes in the bank
        file.write(np.full(200, 77, np.int16).tobytes())
    assert (noise.samples[:200] == 77).all()


def test_a_small_corpus_is_heard_beside_a_large_one(folder, cache, tmp_path):
    write_corpus(tmp_path / "large", speech=range(100), noise=range(100), level=0.3)
    training, _ = load_corpus([folder, tmp_path / "large"], cache)
    of_small = (training.speech.weights[:4].sum() / training.speech.weights.sum()).item()
    assert of_small == pytest.approx(6 ** 0.5 / (6 ** 0.5 + 200 ** 0.5), rel=0.3)       # some are held out
    assert len(training.speech.names) > 150


def test_the_order_of_folders_changes_nothing_but_the_order(folder, cache, tmp_path):
    write_corpus(tmp_path / "other", level=0.3)
    one, other = (load_corpus(folders, cache)[0].noise
                  for folders in ([folder, tmp_path / "other"], [tmp_path / "other", folder]))
    assert values(one) == values(other)


def test_speakers_count_by_their_length_but_not_in_proportion(folder, cache):
    for path, seconds in (("speech/0.wav", 30), ("speech/0-again.wav", 10), ("speech/1.wav", 5),
                          ("speech/1-again.wav", 5)):
        soundfile.write(folder / path, np.full(seconds * RATE, 0.1), RATE)
    speech = load_corpus([folder], cache)[0].speech
    weight = {name: sum(w for n, w in zip(speech.names, speech.weights.tolist(), strict=True) if n == name)
              for name in speech.names}
    assert weight["test/speech0"] / weight["test/speech1"] == pytest.approx(2)      # 40 s and 10 s
    assert speech.weights[speech.lengths.argmax()] / weight["test/speech0"] == pytest.approx(3 / 4)


def test_the_beginnings_of_clips_end_in_zeros():
    bank = Bank.of([np.arange(1, 4, dtype=np.float32), np.full(9, 5, np.float32)], [1.0, 1.0])
    np.testing.assert_array_equal(bank.beginnings(torch.tensor([1, 0]), 5), [[5, 5, 5, 5, 5], [1, 2, 3, 0, 0]])


def test_rows_of_a_draw_are_those_of_the_whole_draw():
    bank = Bank.of([np.arange(1000, dtype=np.float32)], [1.0])
    whole, part = (bank.draw(8, 20, torch.Generator().manual_seed(0), max_speed_change=0.1, rows=rows)
                   for rows in (slice(None), slice(2, 5)))
    assert torch.equal(whole[2:5], part)
