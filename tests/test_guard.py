import argparse
import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from pse_sdk.config import STFT
from pse_sdk.errors import ModelFileError
from pse_sdk.purification import FrameAnalysis
from pse_sdk.report import Check
from pse_sdk.segments import Stretch
from pse_sdk.training import guard, specialist
from pse_sdk.training.corpus import Bank
from pse_sdk.training.fit import Fit, FitConfig, fit, items_loss
from pse_sdk.training.guard import (
    HeldOut,
    Score,
    enhance_batch,
    held_out,
    judge,
    lower_bound,
    perceived_gains,
    si_sdr_db,
)
from pse_sdk.training.job import Job, NoSpecialist
from pse_sdk.training.material import Material, _moods, _voices, noise_banks
from pse_sdk.training.network import build_network
from pse_sdk.training.pseudo_mixtures import Items, Method, NoiseBank, NoiseBanks, Pair
from pse_sdk.training.specialist import judge_retreating

N_FRAMES = 1200


def voice(n: int, seed: int) -> np.ndarray:
    """A gliding buzz in syllables."""
    rng = np.random.default_rng(seed)
    pitch = 120 + 40 * np.sin(np.arange(n) / 16_000 * 2 * np.pi * 0.9 + rng.uniform(0, 6))
    phase = np.cumsum(2 * np.pi * pitch / 16_000)
    syllables = np.clip(np.sin(np.arange(n) / 16_000 * 2 * np.pi * 2), 0.05, 1)
    return (0.1 * syllables * sum(np.sin(k * phase) / k for k in range(1, 20))).astype(np.float32)


@pytest.fixture(scope="module")
def material() -> HeldOut:
    speech = voice(N_FRAMES * STFT.hop_length, seed=0)
    ones = np.ones(N_FRAMES)
    pair = Pair(Stretch(speech, FrameAnalysis(ones, ones * 0.9, ones * 20)), speech)
    rng = np.random.default_rng(1)
    banks = [Bank.of([rng.standard_normal(100_000).astype(np.float32)], [1.0]) for _ in "ab"]
    noises = [NoiseBanks((NoiseBank(bank, 1.0),)) for bank in banks]
    return held_out([pair], *noises, most_segments=4, seed=0)


@pytest.fixture(scope="module")
def start():
    torch.manual_seed(0)
    return build_network("tiny").eval()


@pytest.fixture(scope="module")
def better(start, material):
    """Trained on the very voice and noise of the material, for once."""
    class Source:
        method = Method()

        def draw(self, n: int) -> Items:
            pick = torch.randperm(len(material.mixture))[:n]
            weight = torch.ones(len(pick), material.mixture.shape[1] // STFT.hop_length)
            return Items(material.mixture[pick], material.reference[pick], weight)

    torch.manual_seed(2)
    return fit(start, Source(), lambda n: 0.0 if n is start else 1.0, seconds=120, steps=120,      # type: ignore[arg-type]
               config=FitConfig(batch=8, most_validations=1, steps_to_validate=1)).network


def test_a_network_that_learnt_the_noise_passes(better, start, material):
    gain, checks = judge(better, start, material)
    assert gain > 1.0
    assert {check.name for check in checks if not check.passed} <= {"clean_db"}


def test_the_start_itself_is_not_accepted(start, material):
    gain, checks = judge(copy.deepcopy(start), start, material)
    assert gain == 0.0
    assert not all(check.passed for check in checks)


@pytest.mark.parametrize("seed", range(5))
def test_the_start_with_shaken_weights_is_not_accepted(start, material, seed):
    torch.manual_seed(seed)
    shaken = copy.deepcopy(start)
    with torch.no_grad():
        for value in shaken.parameters():
            value.add_(0.02 * value.abs().mean() * torch.randn_like(value))
    assert not all(check.passed for check in judge(shaken, start, material)[1])


def test_a_network_that_mutes_everything_is_not_accepted(start, material):
    mute = copy.deepcopy(start)
    with torch.no_grad():
        mute.gain_head.bias.fill_(-30.0)
        mute.gain_head.weight.zero_()
    assert not all(check.passed for check in judge(mute, start, material)[1])


def test_a_network_that_returns_nan_is_not_accepted(start, material):
    broken = copy.deepcopy(start)
    with torch.no_grad():
        broken.gain_head.bias.fill_(float("nan"))
    assert not all(check.passed for check in judge(broken, start, material)[1])


def test_how_understandable_and_how_pleasant_it_is(material):
    noise = material.mixture - material.reference
    quieter, reference = material.reference + 0.3 * noise, material.reference
    assert all(gain > 0.02 for gain in perceived_gains(quieter, material.mixture, reference))
    assert all(gain < -0.02 for gain in perceived_gains(material.mixture, quieter, reference))
    assert perceived_gains(quieter, quieter, reference) == (0.0, 0.0)


@pytest.mark.parametrize("gains, refusing", [
    ((-0.02, 0.1), {"intelligibility"}), ((0.1, -0.1), {"quality"}), ((-0.001, -0.01), set()),
    ((np.nan, np.nan), {"intelligibility", "quality"})])
def test_more_decibels_are_not_enough(better, start, material, monkeypatch, gains, refusing):
    monkeypatch.setattr(guard, "perceived_gains", lambda *_: gains)
    failed = {check.name for check in judge(better, start, material)[1] if not check.passed}
    assert failed - {"clean_db"} == refusing


@pytest.mark.parametrize("louder_db, cost", [(-3.0, 0.0), (0.4, 0.0), (1.5, 1.0)])
def test_louder_pauses_cost_in_validation_what_decibels_gain(better, start, material, monkeypatch, louder_db, cost):
    def score(level_db):
        levels = iter((torch.tensor(-40.0), torch.tensor(-40.0 + level_db)))
        monkeypatch.setattr(guard, "_level_db", lambda samples: next(levels))
        return Score(start, material)(better)

    assert score(0.0) - score(louder_db) == pytest.approx(cost, abs=1e-4)


def test_of_references_that_may_hold_other_voices_more_is_asked(better, start, material):
    gain, checks = judge(better, start, replace(material, are_doubtful=True))
    [check] = [check for check in checks if check.name == "mean_gain_db"]
    assert "where several talk" in check.meaning
    assert check.limit == 1.0 and check.passed == (gain >= 1.0)


@pytest.fixture(scope="module")
def beside_voices(material) -> HeldOut:
    """The same, where another voice is to be removed as well."""
    n, length = material.reference.shape
    other = torch.from_numpy(np.stack([voice(length, seed) for seed in range(n)]))
    return replace(material, beside_voices=material.reference + other / other.square().mean(1, keepdim=True).sqrt())


def test_where_voices_are_to_be_removed_what_helps_beside_them_counts_to_its_full_height(start, better, beside_voices,
                                                                                           monkeypatch):
    scores = []
    for gain_db in (3.0, 6.0, 60.0):
        order: list[int] = []

        def si_sdr(estimate, target, gain_db=gain_db, order=order):
            order.append(len(order))        # the start: noise, elsewhere, voices; then the network, in that order
            return torch.full((len(estimate),), gain_db if order[-1] == 5 else 0.0)

        monkeypatch.setattr(guard, "si_sdr_db", si_sdr)
        scores.append(Score(start, beside_voices)(better))
    assert scores[1] - scores[0] == pytest.approx(1.5, abs=1e-4)       # half of the items are beside voices
    assert scores[2] - scores[0] == pytest.approx((guard.MOST_VOICES_GAIN_DB - 3) / 2, abs=1e-4)


def test_where_voices_are_to_be_removed_more_is_forgiven(start, better, material, beside_voices):
    limits = [{check.name: check.limit for check in judge(better, start, held)[1]}
              for held in (material, beside_voices)]
    assert limits[0]["worst_tenth_db"] == -1 and limits[1]["worst_tenth_db"] == -2
    assert limits[0]["pauses_db"] == -1 and limits[1]["pauses_db"] == -2
    assert all(limits[1][name] == limit for name, limit in limits[0].items()
               if name not in ("worst_tenth_db", "pauses_db"))
    assert limits[1]["voices_db"] == guard.LEAST_VOICES_GAIN_DB


@pytest.mark.parametrize("passing, heard, share", [
    ((1.0,), [1.0], 1.0), ((0.75, 0.5), [1.0, 0.75], 0.75), ((0.5,), [1.0, 0.75, 0.5], 0.5),
    ((0.25,), [1.0, 0.75, 0.5, 0.25], 0.25), ((), [1.0, 0.75, 0.5, 0.25], None)])
def test_a_refused_candidate_is_heard_again_nearer_to_the_start(start, better, material, monkeypatch, passing, heard,
                                                                share):
    """The share of the way is read off the weights themselves."""
    def share_of(network) -> float:
        whole, gone = ([(a - b).detach() for a, b in zip(end.parameters(), start.parameters(), strict=True)]
                       for end in (better, network))
        return round(float(sum((a * b).sum() for a, b in zip(whole, gone, strict=True))
                           / sum(a.square().sum() for a in whole)), 3)

    shares = []

    def judge(network, *_):
        shares.append(share_of(network))
        return 1.0, (Check("mean_gain_db", shares[-1] in passing, 1.0, 0.2, ""),)

    monkeypatch.setattr(specialist, "judge", judge)
    judged = judge_retreating(better, start, material, 0)
    assert shares == heard
    assert (judged.accepted, judged.share) == (share is not None, share or 1.0)
    assert share_of(judged.network) == judged.share


@pytest.mark.parametrize("settings, share", [({}, 0.85), ({"others": "remove"}, 1.0),
                                             ({"method": "pseudose-from-random"}, 1.0)])
def test_a_specialist_goes_most_of_the_way_to_the_trained_weights(start, better, material, monkeypatch, settings,
                                                                  share):
    monkeypatch.setattr(specialist, "judge", lambda *_: (1.0, (Check("mean_gain_db", True, 1.0, 0.3, ""),)))
    facts = {}

    def score(network):
        return float(next(network.parameters()).sub(next(start.parameters())).abs().sum())

    chosen = specialist.choose(Job([], size="tiny", **settings), Material(None, material, material), score,
                               start, Fit(better, 1.0, 5, 1.0, ()), facts)
    assert facts["mix"] == share
    for value, a, b in zip(chosen.parameters(), start.parameters(), better.parameters(), strict=True):
        assert torch.allclose(value, a.lerp(b, share), atol=1e-6)


@pytest.mark.parametrize("exported_from, accepted_from, share", [(1, 1, 1.0), (2, 1, 0.75), (1, 2, 1.0), (2, 2, 0.5),
                                                                 (3, 1, 0.5), (4, 1, 0.25), (5, 1, None), (2, 9, None)])
def test_what_cannot_be_exported_is_tried_nearer_to_the_start(start, better, monkeypatch, exported_from, accepted_from,
                                                              share):
    """Which attempt can be exported, and which retreat the guard accepts: all later ones too."""
    tried, heard = [], []

    def export_model(network, info):
        tried.append(network)
        if len(tried) < exported_from:
            raise ModelFileError("differs by 7e-4")
        return info.scores["held_out_gain_db"]

    def judge(network, *_):
        heard.append(network)
        return float(len(heard)), (Check("mean_gain_db", len(heard) >= accepted_from, 1.0, 0.2, ""),)

    monkeypatch.setattr(specialist, "export_model", export_model)
    monkeypatch.setattr(specialist, "judge", judge)
    facts = {"gain_db": 0.0, "mix": 0.7, "checks": (), "seconds_recorded": 60.0}
    args = Job([], size="tiny"), argparse.Namespace(guard=None), start, better, facts
    if share is None:
        with pytest.raises(NoSpecialist, match="could not be exported .*7e-4"):
            specialist._export(*args)
        return
    assert specialist._export(*args) == facts["gain_db"] == len(heard)
    assert facts["mix"] == pytest.approx(0.7 * share, abs=1e-3)
    for value, a, b in zip(tried[-1].parameters(), start.parameters(), better.parameters(), strict=True):
        assert torch.allclose(value, a.lerp(b, share), atol=1e-6)


def test_some_of_the_voices_that_are_given_only_judge():
    rng = np.random.default_rng(0)
    voices = [np.full(16_000, i + 1, np.float32) for i in range(10)]
    job = Job([], others="remove", voices=voices)
    ones = np.ones(N_FRAMES)
    pair = Pair(Stretch(voice(N_FRAMES * STFT.hop_length, 0), FrameAnalysis(ones, ones, ones)), voices[0])
    heard = {name: _voices(job, name, [pair], rng) for name in ("training", "validation", "guard")}
    found = {name: sorted({int(v) for v in voices.banks[-1].clips.samples.unique() if v})
             for name, voices in heard.items()}
    assert found == {"training": [1, 2, 3, 6, 7, 8], "validation": [4, 9], "guard": [5, 10]}


def test_where_voices_are_removed_the_users_own_in_another_mood_is_to_be_kept():
    ones, rng = np.ones(N_FRAMES), np.random.default_rng(0)
    pair = Pair(Stretch(np.zeros(N_FRAMES * STFT.hop_length, np.float32), FrameAnalysis(ones, ones, ones)),
                voice(N_FRAMES * STFT.hop_length, 0))
    assert _moods(Job([]), [pair], rng) == []
    moods = _moods(Job([], others="remove"), [pair], rng)
    assert moods and all(np.abs(mood).max() > 0 for mood in moods)
    noises = noise_banks(([rng.standard_normal(16_000).astype(np.float32)], 1.0))
    with_moods, without = (held_out([pair], noises, noises, noises, some, most_segments=4, seed=0)
                           for some in (moods, ()))
    whole = [mood for mood in moods if len(mood) >= with_moods.clean.shape[1]]
    assert len(with_moods.clean) == len(without.clean) + len(whole) > len(without.clean)
    torch.testing.assert_close(with_moods.mixture, without.mixture)


def test_the_score_of_the_start_is_zero_and_the_better_network_has_more(start, better, material):
    score = Score(start, material)
    assert score(start) == pytest.approx(0.0, abs=1e-5)
    assert score(better) > 0.5


def test_items_of_one_segment_are_not_counted_as_independent():
    rng = np.random.default_rng(0)
    gains = np.repeat(rng.standard_normal(6) + 0.4, 50)
    together = lower_bound(gains, np.repeat(np.arange(6), 50), np.random.default_rng(1))
    alone = lower_bound(gains, np.arange(300), np.random.default_rng(1))
    assert together < alone < gains.mean()


def test_si_sdr_ignores_scale_and_offset():
    target = torch.from_numpy(voice(16_000, 3))[None]
    estimate = target + 0.01 * torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0))
    assert si_sdr_db(3 * estimate + 0.2, target) == pytest.approx(float(si_sdr_db(estimate, target)), abs=1e-2)


def test_batches_are_enhanced_as_a_stream_would(start):
    from pse_sdk.model_format import ModelInfo
    from pse_sdk.onnx_denoiser import OnnxDenoiser
    from pse_sdk.stream import EnhancementStream
    from pse_sdk.training.onnx_export import export_model, round_weights
    noisy = voice(50 * STFT.hop_length, seed=4)
    model = export_model(start, ModelInfo("tiny", 0, 0, 0, 0, 0))
    stream = EnhancementStream(OnnxDenoiser(model), 16_000)
    streamed = np.concatenate([stream.process(noisy), stream.flush()])[STFT.delay:]
    batch = enhance_batch(round_weights(start), torch.from_numpy(noisy)[None])[0].numpy()
    np.testing.assert_allclose(streamed, batch, atol=1e-5)


def test_the_loss_of_items_falls_when_the_estimate_is_right(start, better, material):
    weight = torch.ones(len(material.mixture), material.mixture.shape[1] // STFT.hop_length)
    items = Items(material.mixture, material.reference, weight)
    with torch.no_grad():
        assert items_loss(better, items) < items_loss(start, items)
