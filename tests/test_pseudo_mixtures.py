from dataclasses import replace

import numpy as np
import pytest
import torch

from pse_sdk import job
from pse_sdk.config import STFT
from pse_sdk.purification import FrameAnalysis
from pse_sdk.segments import Stretch
from pse_sdk.training.corpus import Bank
from pse_sdk.training.material import LEAST_CLIP, noise_banks
from pse_sdk.training.pseudo_mixtures import (
    CLEAN_BESIDE_VOICES,
    METHODS,
    SEGMENT_FRAMES,
    Method,
    NoiseBank,
    NoiseBanks,
    Pair,
    PseudoMixtures,
)

N_FRAMES = 3 * SEGMENT_FRAMES


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def pair(rng: np.random.Generator) -> Pair:
    """A recording whose every frame counts as speech at 10 dB, and half of it as the teacher's estimate."""
    samples = rng.standard_normal(N_FRAMES * STFT.hop_length).astype(np.float32) * 0.1
    frames = FrameAnalysis(np.ones(N_FRAMES), np.linspace(0.5, 1.0, N_FRAMES), np.full(N_FRAMES, 10.0))
    return Pair(Stretch(samples, frames), samples * 0.5)


@pytest.fixture
def noises(rng: np.random.Generator) -> NoiseBanks:
    return NoiseBanks((NoiseBank(Bank.of([rng.standard_normal(40_000).astype(np.float32)], [1.0]), 1.0),))


def draw(pair: Pair, noises: NoiseBanks, method: Method, n: int = 64, seed: int = 0):
    return PseudoMixtures([pair], noises, method, seed).draw(n)


def test_the_target_of_pseudose_is_the_recording_itself(pair, noises):
    items = draw(pair, noises, Method(clean_share=0, noise_share=0))
    recording = torch.from_numpy(pair.stretch.samples)
    for target in items.target[:4]:
        windows = recording.unfold(0, target.numel(), STFT.hop_length)
        likeness = (windows @ target) / (windows.norm(dim=1) * target.norm())
        assert likeness.max() == pytest.approx(1.0, abs=1e-4)


def test_only_purification_weighs_frames(pair, noises):
    assert (draw(pair, noises, METHODS["pseudose"]).weight == 1).all()
    weight = draw(pair, noises, Method(purify=True, noise_share=0)).weight
    assert weight.std() > 0.05 and weight.min() >= 0.25 - 1e-6 and weight.max() <= 1


def test_injected_noise_drowns_the_noise_that_the_recording_holds(pair, noises):
    items = draw(pair, noises, Method(clean_share=0, noise_share=0), n=256)
    added = items.mixture - items.target
    snr_db = 10 * torch.log10(items.target.square().mean(1) / added.square().mean(1))
    assert snr_db.max() < 10.0 - 8.0 + 0.5     # the recording's SNR less the margin
    assert snr_db.min() > -5.5


def test_clean_items_are_their_own_target(pair, noises):
    items = draw(pair, noises, Method(teacher_targets=True, clean_share=1.0, noise_share=0))
    torch.testing.assert_close(items.mixture, items.target)


def test_beside_voices_more_items_are_clean(pair, noises):
    method = Method(teacher_targets=True, clean_share=0.2, noise_share=0)

    def share(voices: NoiseBanks | None) -> float:
        items = PseudoMixtures([pair], noises, method, 0, voices).draw(600)
        return float(((items.mixture - items.target).square().mean(1) < 1e-9).float().mean())

    assert share(None) == pytest.approx(0.2, abs=0.05)
    assert share(noises) == pytest.approx(0.2 * CLEAN_BESIDE_VOICES, abs=0.05) and CLEAN_BESIDE_VOICES > 1


def test_items_of_noise_alone_are_to_be_silenced(pair, noises):
    items = draw(pair, noises, Method(noise_share=1.0))
    assert items.target.abs().max() == 0 and items.mixture.square().mean() > 0.9


def test_remixed_items_do_not_hold_the_recordings_own_noise(pair, noises):
    recording = draw(pair, noises, Method(teacher_targets=True, remix_share=0, clean_share=0, noise_share=0))
    remixed = draw(pair, noises, Method(teacher_targets=True, clean_share=1.0, noise_share=0))
    assert (recording.mixture - recording.target).square().mean() > 0.1
    assert (remixed.mixture - remixed.target).square().mean() < 1e-6


def test_the_same_seed_draws_the_same_items(pair, noises):
    first, second = (draw(pair, noises, METHODS["teacher"], seed=7) for _ in range(2))
    other = draw(pair, noises, METHODS["teacher"], seed=8)
    assert torch.equal(first.mixture, second.mixture)
    assert not torch.equal(first.mixture, other.mixture)


def test_noise_is_drawn_at_unit_level_whatever_bank_it_comes_from(rng):
    quiet = Bank.of([rng.standard_normal(30_000).astype(np.float32) * 1e-3], [1.0])
    loud = Bank.of([rng.standard_normal(500).astype(np.float32)], [1.0])
    noise = NoiseBanks((NoiseBank(quiet, 0.5), NoiseBank(loud, 0.5))).draw(20, 8000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(noise.square().mean(1), torch.ones(20), rtol=1e-2, atol=0)


def test_foreign_noises_are_of_more_colours_than_the_user_s_own(rng):
    clip = rng.standard_normal(100_000).astype(np.float32)

    def colours(is_foreign: bool) -> torch.Tensor:
        """The level below 1 kHz of forty draws of one white noise against all of it, dB."""
        bank = NoiseBank(Bank.of([clip], [1.0]), 1.0, is_foreign)
        power = torch.fft.rfft(NoiseBanks((bank,)).draw(40, 16_000, torch.Generator().manual_seed(0))).abs().square()
        return 10 * torch.log10(power[:, :1000].sum(1) / power.sum(1))

    assert 2 * colours(False).std() < colours(True).std()


def test_every_method_can_be_asked_for():
    assert (*job.METHODS[:1], *sorted(job.METHODS[1:])) == ("auto", *sorted(METHODS))


def test_contrasts_hold_one_recording_in_two_noises_or_two_recordings_in_one(pair, noises):
    contrasts = PseudoMixtures([pair], noises, METHODS["cm"], 0).draw_contrasts(32)
    first, second, alike = contrasts.first, contrasts.second, contrasts.alike
    torch.testing.assert_close(first.target[alike], second.target[alike])
    assert ((first.target - second.target)[~alike].square().mean(1) > 1e-3).all()
    one, other = first.mixture - first.target, second.mixture - second.target
    likeness = torch.nn.functional.cosine_similarity(one, other)
    assert (likeness[~alike] > 0.999).all() and (likeness[alike].abs() < 0.1).all()


def test_speech_that_is_clean_is_its_own_target_in_every_method(pair, noises, rng):
    speech = 0.2 * rng.standard_normal(N_FRAMES * STFT.hop_length).astype(np.float32)
    clean = Pair.of_clean(Stretch(speech, FrameAnalysis(np.ones(N_FRAMES), np.zeros(N_FRAMES), np.zeros(N_FRAMES))))
    for method in METHODS.values():
        items = PseudoMixtures([clean], noises, replace(method, clean_share=0.0, noise_share=0.0), 0).draw(16)
        windows = torch.from_numpy(speech).unfold(0, items.target.shape[1], STFT.hop_length)
        likeness = (windows @ items.target.T) / windows.norm(dim=1)[:, None] / items.target.norm(dim=1)
        assert likeness.amax(0).min() > 0.999
        assert (items.weight == 1).all()


def test_clean_speech_is_drawn_for_its_share_however_little_there_is(pair, noises):
    short = N_FRAMES // 2
    samples = 10 * pair.stretch.samples[:short * STFT.hop_length]
    clean = Pair.of_clean(Stretch(samples, pair.stretch.frames.part(0, short)))
    items = PseudoMixtures([pair, clean], noises, Method(purify=True, clean_share=0, noise_share=0), 0).draw(600)
    assert (items.weight == 1).all(1).float().mean().item() == pytest.approx(Method().true_share, abs=0.06)


def test_speech_to_be_left_alone_fades(pair, noises):
    items = draw(pair, noises, Method(teacher_targets=True, clean_share=1.0, noise_share=0), n=128)
    level_db = 10 * torch.log10(items.mixture.unflatten(1, (-1, STFT.hop_length)).square().mean(2))
    spread = level_db.amax(1) - level_db.amin(1)
    assert spread.max() < 60 and 0.5 < (spread > 20).float().mean() < 0.9


def test_finetuning_draws_nothing_but_clean_speech(pair, noises):
    clean = Pair.of_clean(Stretch(10 * pair.stretch.samples[:SEGMENT_FRAMES * STFT.hop_length],
                                  pair.stretch.frames.part(0, SEGMENT_FRAMES)))
    method = replace(METHODS["finetune"], clean_share=0, noise_share=0)
    mixtures = PseudoMixtures([pair, clean], noises, method, 0)
    assert mixtures.n_segments == 1
    target = mixtures.draw(20).target
    speech = torch.from_numpy(clean.enhanced)
    assert ((target @ speech) / target.norm(dim=1) / speech.norm()).min() > 0.999
    assert PseudoMixtures([pair], noises, method, 0).n_segments == 0


def test_short_noises_are_repeated_and_count_as_what_they_are():
    short, long = np.arange(1, 1001, dtype=np.float32), np.ones(LEAST_CLIP + 5, np.float32)
    banks = noise_banks(([short, np.zeros(0, np.float32), long], 0.7), ([np.zeros(9, np.float32)], 0.3))
    (kind,) = banks.banks
    bank = kind.clips
    assert kind.share == 0.7
    assert bank.lengths.tolist() == [LEAST_CLIP, LEAST_CLIP + 5] and bank.weights.tolist() == [1000, LEAST_CLIP + 5]
    repeated = bank.samples[:LEAST_CLIP]
    assert torch.equal(repeated[1000:2000], torch.from_numpy(short)) and repeated[-1] == short[LEAST_CLIP % 1000 - 1]
