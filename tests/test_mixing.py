import numpy as np
import pytest

from pse_sdk.config import STFT
from pse_sdk.errors import SettingsError

torch = pytest.importorskip("torch")
from pse_sdk.training.corpus import Bank, Corpus  # noqa: E402
from pse_sdk.training.mixing import Mixer, MixingConfig, active_rms  # noqa: E402

RATE = STFT.sample_rate
LENGTH = 32 * STFT.hop_length
PLAIN = MixingConfig(length=LENGTH, clean_share=0, noise_only_share=0, second_noise_share=0, synthetic_noise_share=0,
                     room_share=0, band_limit_share=0, gap_share=0, equaliser_db=0, noise_equaliser_db=0,
                     reversed_noise_share=0, max_speed_change=0)
SNR_TOLERANCE_DB = 0.1
SHARE_TOLERANCE = 0.05      # of 600 draws


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


@pytest.mark.parametrize("n_parts", [2, 4])
def test_a_part_of_a_batch_is_the_same_whoever_makes_the_rest(corpus, n_parts):
    config = MixingConfig(length=LENGTH, synthetic_noise_share=0.5, room_share=0.5)
    mixers = [Mixer(corpus, config, seed=3) for _ in range(n_parts)]
    length = 16 // n_parts
    for step in range(4):
        whole = Mixer(corpus, config, seed=3).batch(step, 16)
        parts = [mixer.batch(step, 16, slice(i * length, (i + 1) * length)) for i, mixer in enumerate(mixers)]
        for name in ("noisy", "target", "has_speech"):
            joined = torch.cat([getattr(part, name) for part in parts])
            np.testing.assert_allclose(joined, getattr(whole, name), atol=1e-5)     # sums of other lengths


def test_a_batch_that_cannot_be_split_into_groups_is_refused(corpus):
    with pytest.raises(SettingsError, match="multiple of 4, got 6"):
        Mixer(corpus, PLAIN, seed=0).batch(0, 6)


def test_the_two_steps_that_share_sources_pair_them_differently(corpus):
    mixer = Mixer(corpus, PLAIN, seed=0)
    noises = [(batch.noisy - batch.target) for batch in (mixer.batch(0, 8), mixer.batch(1, 8))]
    first, second = (torch.nn.functional.normalize(noise) for noise in noises)
    likeness = (first @ second.T).abs()
    assert torch.equal(likeness.argmax(0), torch.tensor([3, 0, 1, 2, 7, 4, 5, 6]))


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


def test_runs_that_change_their_sounds_in_other_ways_are_judged_on_the_same_mixtures(corpus):
    other = MixingConfig(equaliser_db=1.0, noise_equaliser_db=20.0, max_speed_change=0.3, max_noise_speed_change=0.1,
                         reversed_noise_share=1.0)
    first, second = (Mixer(corpus, config.to_judge(), seed=5).batch(0, 8) for config in (MixingConfig(), other))
    assert torch.equal(first.noisy, second.noisy) and torch.equal(first.target, second.target)
    assert not torch.equal(first.noisy, Mixer(corpus, other, seed=5).batch(0, 8).noisy)


@pytest.mark.parametrize("step", [0, 1])
def test_neighbours_may_share_noises_equaliser_and_room(step):
    """Noises are tones of one frequency each, so what was drawn and how it was weighed can be read off a spectrum."""
    place = np.arange(RATE) / RATE
    tones = [np.sin(2 * np.pi * frequency * place).astype(np.float32) for frequency in range(400, 7600, 400)]
    click = np.zeros(RATE, np.float32)
    click[::800] = 1.0
    rooms = [np.concatenate([[1.0], np.zeros(60 + 40 * i), [0.8]]).astype(np.float32) for i in range(8)]
    noise = Bank.of(tones, [1.0] * len(tones))
    corpus = Corpus(Bank.of([click] * 4, [1.0] * 4), noise, Bank.of(rooms, [1.0] * 8), generated=noise)
    config = MixingConfig(**{**vars(PLAIN), "second_noise_share": 0.5, "noise_equaliser_db": 20, "room_share": 0.7,
                             "max_noise_speed_change": 0.0, "takes": 2, "noise_takes": 2, "length": RATE})
    batch = Mixer(corpus, config, seed=0).batch(step, 16)
    noises = torch.fft.rfft(batch.noisy - batch.target).abs()[:, 400::400]
    levels = noises / noises.amax(1, keepdim=True)
    heard = torch.fft.irfft(torch.fft.rfft(batch.target).abs() ** 2)
    echoes = heard[:, 40:400] / heard[:, :1]
    for told in (levels, echoes):
        first, second = told.unflatten(0, (8, 2)).unbind(1)
        torch.testing.assert_close(first, second, rtol=0, atol=0.05)
        assert not torch.allclose(first, second.roll(1, 0), atol=0.2)
    assert ((levels > 0.05).sum(1) > 1).any()       # a second noise as well


def test_neighbours_of_one_noise_hear_it_at_other_places(corpus):
    batch = Mixer(corpus, MixingConfig(**{**vars(PLAIN), "noise_takes": 2}), seed=0).batch(0, 16)
    first, second = (batch.noisy - batch.target).unflatten(0, (8, 2)).unbind(1)
    assert (torch.cosine_similarity(first, second).abs() < 0.5).all()
