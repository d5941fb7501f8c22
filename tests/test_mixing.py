import csv

import numpy as np
import pytest
import soundfile

from pse_sdk.config import STFT
from pse_sdk.errors import AudioError

torch = pytest.importorskip("torch")
from pse_sdk.training.corpus import HELD_OUT_SHARE, Bank, Corpus, _held_out, load_corpus  # noqa: E402
from pse_sdk.training.mixing import Mixer, MixingConfig, active_rms  # noqa: E402

RATE = STFT.sample_rate
LENGTH = 32 * STFT.hop_length
PLAIN = MixingConfig(length=LENGTH, clean_share=0, noise_only_share=0, second_noise_share=0, synthetic_noise_share=0,
                     room_share=0, band_limit_share=0, gap_share=0, equaliser_db=0, max_speed_change=0)
SNR_TOLERANCE_DB = 0.1
SHARE_TOLERANCE = 0.05      # of 600 draws
HELD_OUT_SPEAKER = next(i for i in range(1000) if _held_out(f"test/speech{i}"))
HELD_OUT_NOISE = next(i for i in range(1000) if _held_out(f"noise/{i}.wav"))


def clips(n, seconds, seed):
    return list((0.1 * np.random.default_rng(seed).standard_normal((n, int(seconds * RATE)))).astype(np.float32))


@pytest.fixture(scope="module")
def corpus():
    room = np.zeros(400, np.float32)
    room[[0, 100, 300]] = 1.0, 0.5, 0.25
    return Corpus(Bank.of(clips(6, 1.0, seed=1), [1.0] * 6), Bank.of(clips(5, 1.0, seed=2), [1.0] * 5),
                  Bank.of([room], [1.0]))


def measured_snr_db(batch):
    noise = batch.noisy - batch.target
    return 20 * torch.log10(active_rms(batch.target) / noise.square().mean(1, keepdim=True).sqrt()).squeeze(1)


@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 20.0])
def test_the_mixture_has_the_snr_that_was_asked_for(corpus, snr_db):
    config = MixingConfig(**{**vars(PLAIN), "snr_db": (snr_db, snr_db)})
    measured = measured_snr_db(Mixer(corpus, config, seed=0).batch(3, 16))
    np.testing.assert_allclose(measured, snr_db, atol=SNR_TOLERANCE_DB)


def test_snrs_are_drawn_evenly_from_the_range(corpus):
    config = MixingConfig(**{**vars(PLAIN), "snr_db": (-5.0, 15.0)})
    mixer = Mixer(corpus, config, seed=0)
    measured = torch.cat([measured_snr_db(mixer.batch(step, 64)) for step in range(6)])
    assert -5 - SNR_TOLERANCE_DB <= measured.min() < -4 and 14 < measured.max() <= 15 + SNR_TOLERANCE_DB
    assert measured.mean().item() == pytest.approx(5, abs=1)


def test_the_shares_of_clean_and_noise_only_items_are_those_of_the_settings(corpus):
    config = MixingConfig(**{**vars(PLAIN), "clean_share": 0.3, "noise_only_share": 0.2})
    mixer = Mixer(corpus, config, seed=0)
    batches = [mixer.batch(step, 100) for step in range(6)]
    clean = torch.cat([(batch.noisy == batch.target).all(1) for batch in batches])
    silent = torch.cat([(batch.target == 0).all(1) for batch in batches])
    has_speech = torch.cat([batch.has_speech for batch in batches])
    assert silent.float().mean().item() == pytest.approx(0.2, abs=SHARE_TOLERANCE)
    assert clean.float().mean().item() == pytest.approx(0.3 * 0.8, abs=SHARE_TOLERANCE)
    assert torch.equal(has_speech, ~silent)


def test_some_items_fall_silent_for_a_while_in_mixture_and_target(corpus):
    config = MixingConfig(**{**vars(PLAIN), "gap_share": 0.5, "gap_seconds": (0.1, 0.4)})
    mixer = Mixer(corpus, config, seed=0)
    batches = [mixer.batch(step, 64) for step in range(4)]
    gap = torch.cat([batch.noisy == 0 for batch in batches]).float().sum(1) / STFT.sample_rate
    assert (gap > 0.03).float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert gap.max() < 0.41
    assert all((batch.target[batch.noisy == 0] == 0).all() for batch in batches)


@pytest.mark.parametrize("config", [PLAIN, MixingConfig(length=LENGTH), MixingConfig(length=LENGTH, room_share=1.0)],
                         ids=["plain", "default", "rooms"])
def test_every_mixture_is_finite_and_has_unit_rms(corpus, config):
    batch = Mixer(corpus, config, seed=0).batch(0, 32)
    assert batch.noisy.shape == batch.target.shape == (32, LENGTH) and batch.has_speech.shape == (32,)
    assert batch.noisy.isfinite().all() and batch.target.isfinite().all()
    np.testing.assert_allclose(batch.noisy.square().mean(1).sqrt(), 1, atol=1e-3)


def same(one, other):
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("noisy", "target", "has_speech"))


def test_the_same_seed_and_step_give_the_same_batch(corpus):
    config = MixingConfig(length=LENGTH)
    assert same(Mixer(corpus, config, seed=4).batch(7, 8), Mixer(corpus, config, seed=4).batch(7, 8))


def test_another_seed_or_another_step_gives_another_batch(corpus):
    config = MixingConfig(length=LENGTH)
    batch = Mixer(corpus, config, seed=4).batch(6, 8)
    assert not same(batch, Mixer(corpus, config, seed=5).batch(6, 8))
    assert not any(same(batch, Mixer(corpus, config, seed=4).batch(step, 8)) for step in (5, 7, 8))


def test_a_step_gives_the_same_batch_whatever_came_before(corpus):
    config, steps = MixingConfig(length=LENGTH), [0, 1, 2, 3, 4, 5]
    mixer = Mixer(corpus, config, seed=1)
    in_order = [mixer.batch(step, 8) for step in steps]
    mixer = Mixer(corpus, config, seed=1)
    for step in (5, 2, 3, 3, 0, 4, 1):
        assert same(mixer.batch(step, 8), in_order[step])


def test_using_a_batch_does_not_change_the_next(corpus):
    mixer, untouched = (Mixer(corpus, PLAIN, seed=1) for _ in range(2))
    first = mixer.batch(0, 8)
    first.noisy.zero_()
    first.target.zero_()
    untouched.batch(0, 8)
    assert same(mixer.batch(1, 8), untouched.batch(1, 8))


def test_the_level_of_speech_is_that_of_its_active_frames():
    speech = torch.zeros(1, 16_000)
    speech[:, :4000] = 0.5
    assert active_rms(speech).item() == pytest.approx(0.5, rel=1e-3)


def test_an_equaliser_colours_the_noise_and_rooms_add_echoes(corpus):
    def target(**changes):
        return Mixer(corpus, MixingConfig(**{**vars(PLAIN), "clean_share": 1.0, **changes}), seed=0).batch(0, 8).target

    for changes in ({"equaliser_db": 8.0}, {"room_share": 1.0}, {"band_limit_share": 1.0}):
        assert (target(**changes) - target()).square().mean() > 0.01, changes


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


def test_clips_are_drawn_as_often_as_their_weights_say():
    bank = Bank.of([np.full(50, value, np.float32) for value in (0.0, 1.0, 2.0)], [1.0, 0.0, 3.0])
    drawn = bank.draw(1000, 1, torch.Generator().manual_seed(0)).squeeze(1)
    assert not (drawn == 1).any() and (drawn == 2).float().mean().item() == pytest.approx(0.75, abs=SHARE_TOLERANCE)


def test_empty_clips_are_left_out_of_a_bank():
    bank = Bank.of([np.zeros(0, np.float32), np.ones(5, np.float32)], [1.0, 1.0], ("empty", "full"))
    assert bank.n_clips == 1 and bank.names == ("full",)


def write_corpus(folder, speech=(0, 1, HELD_OUT_SPEAKER), noise=(0, 1, HELD_OUT_NOISE), rir=(0,), level=0.1, rate=RATE):
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


def test_a_speaker_or_noise_of_validation_is_never_trained_on(folder, cache):
    training, validation = load_corpus(folder, cache)
    assert set(training.speech.names) == {"test/speech0", "test/speech1"}
    assert set(validation.speech.names) == {f"test/speech{HELD_OUT_SPEAKER}"}
    assert (training.speech.n_clips, validation.speech.n_clips) == (4, 2)
    assert not values(training.speech) & values(validation.speech)
    assert not values(training.noise) & values(validation.noise)


def test_about_six_in_a_hundred_are_held_out():
    assert np.mean([_held_out(f"corpus/{i}") for i in range(5000)]) == pytest.approx(HELD_OUT_SHARE, abs=0.01)


def test_who_is_held_out_does_not_change_when_audio_is_added(folder, cache):
    before = load_corpus(folder, cache)
    write_corpus(folder, speech=(*range(5), HELD_OUT_SPEAKER))
    after = load_corpus(folder, cache)
    for ours, theirs in zip(before, after, strict=True):
        assert set(ours.speech.names) <= set(theirs.speech.names)


def test_only_the_training_split_is_read(folder, cache):
    rows = write_corpus(folder)
    rows[0]["split"] = "test"
    write_manifest(folder, rows)
    assert load_corpus(folder, cache)[0].speech.n_clips == 3


def test_the_cache_gives_what_the_files_gave(folder, cache):
    first, again = (load_corpus(folder, cache)[0].speech for _ in range(2))
    assert torch.equal(first.samples, again.samples) and torch.equal(first.weights, again.weights)
    assert first.names == again.names


def test_the_cache_of_one_folder_is_not_taken_for_another(folder, cache, tmp_path):
    write_corpus(tmp_path / "other", level=0.5)
    one, other = (load_corpus(path, cache)[0].speech for path in (folder, tmp_path / "other"))
    assert not values(one) & values(other)


def test_the_cache_is_renewed_when_a_file_changes(folder, cache):
    before = values(load_corpus(folder, cache)[0].speech)
    write_corpus(folder, level=0.5)
    assert not before & values(load_corpus(folder, cache)[0].speech)


@pytest.mark.parametrize("missing", ["speech", "noise", "rir"])
def test_a_corpus_without_one_kind_of_file_is_refused(folder, cache, missing):
    write_corpus(folder, **{missing: ()})
    with pytest.raises(AudioError, match=f"no files of kind '{missing}'"):
        load_corpus(folder, cache)


@pytest.mark.parametrize("kind, numbers", [("speech", (0, 1)), ("speech", (HELD_OUT_SPEAKER,)), ("noise", (0, 1))])
def test_a_corpus_that_leaves_one_part_empty_is_refused(folder, cache, kind, numbers):
    write_corpus(folder, **{kind: numbers})
    with pytest.raises(AudioError, match="add more"):
        load_corpus(folder, cache)


@pytest.mark.parametrize("changes, told", [({"rate": 8000}, "8000 Hz"), ({"level": 0.0, "speech": (0,)}, "silence")])
def test_a_file_that_nothing_can_be_learnt_from_is_refused(folder, cache, changes, told):
    write_corpus(folder, **changes)
    with pytest.raises(AudioError, match=told):
        load_corpus(folder, cache)


def test_a_folder_without_a_manifest_is_refused(tmp_path, cache):
    with pytest.raises(AudioError, match="manifest.csv"):
        load_corpus(tmp_path, cache)
