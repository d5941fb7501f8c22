import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pse_sdk import purification
from pse_sdk.config import MODELS, STFT
from pse_sdk.errors import ModelFileError
from pse_sdk.purification import FrameAnalysis, FramePredictor
from pse_sdk.stft import power_spectrogram

HOP = STFT.hop_length
SHIPPED = MODELS / "snr_predictor.onnx"
shipped = pytest.mark.skipif(not SHIPPED.exists(), reason="the predictor is not in this checkout")
shares = st.lists(st.floats(0, 1), min_size=1, max_size=20).map(np.array)


def voice(n_samples, seed=0):
    """A buzz through two moving resonances, in syllables of a third of a second."""
    time = np.arange(n_samples) / STFT.sample_rate
    pitch = 120 + 15 * np.sin(2 * np.pi * 0.7 * time + seed)
    phase = 2 * np.pi * np.cumsum(pitch) / STFT.sample_rate
    buzz = np.zeros(n_samples)
    for harmonic in range(1, 30):
        centres = (600 + 200 * np.sin(9 * time), 1700 - 400 * np.cos(7 * time))
        buzz += sum(np.exp(-((harmonic * pitch - hz) / 250) ** 2) for hz in centres) * np.sin(harmonic * phase)
    return (0.1 * np.clip(2 * np.sin(2 * np.pi * 1.5 * time), 0, 1) * buzz).astype(np.float32)


def noise(n_samples, seed=0):
    return (0.05 * np.random.default_rng(seed).standard_normal(n_samples)).astype(np.float32)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    """A predictor with random weights in place of the shipped one."""
    torch = pytest.importorskip("torch")
    from pse_sdk.training.snr_network import SnrPredictor, export_predictor
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("package")
    (folder / "models").mkdir()
    model = export_predictor(SnrPredictor().eval(), {"snr_error_db": 3.5})
    (folder / "models" / "snr_predictor.onnx").write_bytes(model)
    predictor = FramePredictor()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(purification, "MODELS", folder / "models")
        assert predictor.calibration == {"snr_error_db": 3.5}       # it keeps what it loaded
    return predictor


@given(shares)
def test_weights_lie_between_zero_and_one_and_grow_with_the_share_of_speech(share):
    weight = FrameAnalysis(share, np.sort(share), share).weight
    assert weight.min() >= 0 and weight.max() <= 1 and np.all(np.diff(weight) >= 0)


def test_a_frame_half_of_whose_energy_is_speech_weighs_a_quarter():
    np.testing.assert_allclose(FrameAnalysis(np.ones(3), np.array([0.0, 0.5, 1.0]), np.zeros(3)).weight, [0, 0.25, 1])


@pytest.mark.parametrize("start, stop", [(0, 5), (2, 2), (7, 99)])
def test_a_part_keeps_its_frames(start, stop):
    whole = FrameAnalysis(*np.random.default_rng(0).uniform(size=(3, 10)))
    part = whole.part(start, stop)
    for name in ("speech", "share", "snr_db", "weight"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[start:stop])


@pytest.mark.parametrize("n_samples", [0, 1, HOP - 1, HOP, HOP + 1, *(HOP * n for n in (64, 320, 321, 576, 577, 900))])
def test_every_hop_is_judged_whatever_the_length(predictor, n_samples):
    found = predictor.analyse(noise(n_samples))
    for values, low, high in ((found.speech, 0, 1), (found.share, 0, 1), (found.weight, 0, 1), (found.snr_db, -15, 35)):
        assert values.shape == (n_samples // HOP,)
        assert np.all((values >= low) & (values <= high))


def test_frames_of_a_long_recording_are_judged_once_and_in_their_place(monkeypatch, predictor):
    class Echo:
        """Says of each frame how loud it is."""

        def run(self, names, inputs):
            return [inputs["power"].sum(2)] * len(names)

    monkeypatch.setitem(predictor.__dict__, "_session", Echo())
    samples = noise(2000 * HOP)
    found = predictor.analyse(samples)
    np.testing.assert_allclose(found.snr_db, power_spectrogram(samples).sum(1), rtol=1e-6)


def test_a_frame_inside_is_judged_with_half_a_second_on_both_sides(monkeypatch, predictor):
    class Edges:
        """Says of each frame how many came before it, and how many after it, in the same run."""

        def run(self, names, inputs):
            before = np.arange(inputs["power"].shape[1], dtype=np.float32)[None]
            return [before, before[:, ::-1], before]

    monkeypatch.setitem(predictor.__dict__, "_session", Edges())
    found = predictor.analyse(noise(2000 * HOP))
    place = np.arange(2000)
    assert np.all(found.speech >= np.minimum(place, 31)) and np.all(found.share >= np.minimum(place[::-1], 31))


@pytest.mark.parametrize("gain_db", [-30, 20])
def test_the_level_of_a_recording_does_not_matter(predictor, gain_db):
    samples = voice(200 * HOP) + noise(200 * HOP)
    ours, theirs = predictor.analyse(samples), predictor.analyse(samples * np.float32(10 ** (gain_db / 20)))
    np.testing.assert_allclose(ours.share, theirs.share, atol=1e-3)


def test_digital_silence_holds_no_speech(predictor):
    samples = noise(100 * HOP)
    samples[30 * HOP:60 * HOP] = 0
    found = predictor.analyse(samples)
    assert not found.speech[31:60].any() and not found.weight[31:60].any() and found.speech[:30].all()


def test_a_package_without_the_predictor_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(purification, "MODELS", tmp_path / "models")
    with pytest.raises(ModelFileError, match="snr_predictor"):
        FramePredictor().analyse(noise(HOP))


def test_a_damaged_predictor_is_refused(monkeypatch, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "snr_predictor.onnx").write_bytes(b"damaged" * 100)
    monkeypatch.setattr(purification, "MODELS", tmp_path / "models")
    with pytest.raises(ModelFileError):
        FramePredictor().analyse(noise(HOP))


@shipped
def test_the_shipped_predictor_trusts_a_voice_more_the_less_noise_there_is():
    predictor = FramePredictor()
    weights = [predictor.analyse(voice(400 * HOP) + level * noise(400 * HOP)).weight.mean()
               for level in (10.0, 1.0, 0.1)]
    assert np.all(np.diff(weights) > 0) and weights[0] < 0.2 and weights[-1] > 0.4


@shipped
def test_the_shipped_predictor_hears_no_speech_in_noise_alone():
    assert (FramePredictor().analyse(noise(400 * HOP)).speech > 0.5).mean() < 0.1


@shipped
@settings(max_examples=5, deadline=None)
@given(st.integers(0, 100))
def test_the_shipped_predictor_judges_a_long_recording_like_its_pieces(seed):
    samples = voice(700 * HOP, seed) + noise(700 * HOP, seed)
    predictor = FramePredictor()
    whole, piece = predictor.analyse(samples), predictor.analyse(samples[300 * HOP:600 * HOP])
    # the level is that of other frames, and memory reaches back: alike, not the same
    assert np.abs(whole.weight[340:560] - piece.weight[40:260]).mean() < 0.03


@shipped
def test_the_shipped_predictor_says_how_well_it_does():
    calibration = FramePredictor().calibration
    assert calibration["speech_accuracy"] > 0.8
    assert abs(calibration["snr_bias_db"]) < 3 and calibration["snr_error_db"] < 8
    assert calibration["share_calibration_error"] < 0.05
