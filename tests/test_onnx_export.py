import copy

import numpy as np
import pytest

from pse_sdk.config import SIZES, STFT
from pse_sdk.errors import ModelFileError
from pse_sdk.model_format import ModelInfo
from pse_sdk.onnx_denoiser import OnnxDenoiser

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
from pse_sdk.training import onnx_export  # noqa: E402
from pse_sdk.training.dft import RealDft  # noqa: E402
from pse_sdk.training.losses import spectrogram, waveform  # noqa: E402
from pse_sdk.training.network import build_network  # noqa: E402

INFO = ModelInfo("tiny", 0, 0, 0, 0, 0, method="teacher+dp", seconds_of_audio=61.5, seed=3, created="2026-01-31",
                 generalist="ab" * 32, scores={"gain_db": 1.25})
PARITY_TOLERANCE = 1e-5     # torch against onnxruntime
DFT_TOLERANCE = 1e-4        # of spectra that reach 100: two float32 products against an FFT


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(onnx_export, "PARITY_STEPS", 50)


@pytest.fixture(scope="module")
def graph(tiny_model):
    return onnx.load(tiny_model)


def frames(n, seed=0):
    return torch.randn(n, 1, STFT.n_fft, generator=torch.Generator().manual_seed(seed))


def test_the_dft_is_rfft():
    dft = RealDft()
    for frame in frames(5):
        expected = torch.view_as_real(torch.fft.rfft(frame[0])).T
        torch.testing.assert_close(dft(frame), expected, rtol=0, atol=DFT_TOLERANCE)


def test_the_inverse_dft_is_irfft():
    dft = RealDft()
    for i in range(5):
        spectrum = torch.randn(2, STFT.n_bins, generator=torch.Generator().manual_seed(i))
        expected = torch.fft.irfft(torch.complex(*spectrum), STFT.n_fft)[None]
        torch.testing.assert_close(dft.inverse(spectrum), expected, rtol=0, atol=1e-6)


def test_the_inverse_dft_undoes_the_dft():
    dft = RealDft()
    for frame in frames(5):
        torch.testing.assert_close(dft.inverse(dft(frame)), frame, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bin_", [0, 1, 15, 16, 128, 255, 256])
def test_a_sine_falls_into_its_bin(bin_):
    frame = torch.cos(2 * torch.pi * bin_ * torch.arange(STFT.n_fft, dtype=torch.float64) / STFT.n_fft).float()[None]
    power = RealDft()(frame).square().sum(0)
    assert power.argmax() == bin_ and power[bin_] > 0.999 * power.sum()


@torch.no_grad()
def test_hop_by_hop_the_graph_does_what_training_saw(tiny_network, tiny_model, noisy):
    samples = torch.from_numpy(noisy[:len(noisy) // STFT.hop_length * STFT.hop_length])[None]
    spectra = spectrogram(samples)
    expected = waveform(tiny_network(spectra, tiny_network.initial_state())[0])[0].numpy()
    denoiser = OnnxDenoiser(tiny_model)
    state, hops = denoiser.initial_state(), []
    for hop in samples.numpy().reshape(-1, 1, STFT.hop_length):
        enhanced, state = denoiser.step(hop, state)
        hops.append(enhanced[0])
    np.testing.assert_allclose(np.concatenate(hops), expected, rtol=0, atol=PARITY_TOLERANCE)


@pytest.mark.parametrize("seed", [1, 2])
def test_torch_and_onnxruntime_agree_over_two_thousand_steps(tiny_network, tiny_model, seed):
    denoiser = onnx_export.HopDenoiser(tiny_network)
    assert onnx_export.PARITY_STEPS == 2000
    assert onnx_export.parity_error(denoiser, OnnxDenoiser(tiny_model), seed) < PARITY_TOLERANCE


@pytest.mark.parametrize("size", SIZES)
def test_every_size_can_be_exported(few_steps, size):
    torch.manual_seed(0)
    network = build_network(size)
    info = OnnxDenoiser(onnx_export.export_model(network, ModelInfo(size, 0, 0, 0, 0, 0))).info
    assert (info.size, info.n_parameters) == (size, network.n_parameters)


def test_the_file_says_what_the_network_is_and_what_the_caller_told(few_steps, tiny_network):
    info = OnnxDenoiser(onnx_export.export_model(tiny_network, INFO)).info
    assert (info.sample_rate, info.n_fft, info.hop_length, info.delay) == (16_000, 512, 256, 256)
    assert info.n_parameters == tiny_network.n_parameters
    for name in ("size", "method", "seconds_of_audio", "seed", "created", "generalist", "scores"):
        assert getattr(info, name) == getattr(INFO, name)


def test_the_same_network_gives_the_same_bytes(few_steps, tiny_network):
    assert onnx_export.export_model(tiny_network, INFO) == onnx_export.export_model(tiny_network, INFO)


@pytest.mark.parametrize("name", ["first", "second", "first_inverse", "second_inverse"])
def test_a_graph_that_does_something_else_is_not_written(few_steps, monkeypatch, tiny_network, name):
    trace = torch.onnx.export

    def broken(flat, *args, **kwargs):
        other = copy.deepcopy(flat)
        getattr(other.denoiser.dft, name).mul_(1.001)
        trace(other, *args, **kwargs)

    monkeypatch.setattr(torch.onnx, "export", broken)
    with pytest.raises(ModelFileError, match="differs from the network"):
        onnx_export.export_model(tiny_network, INFO)


@pytest.mark.parametrize("broken", ["nan", "forgets"])
def test_a_graph_whose_states_go_wrong_is_not_written(few_steps, monkeypatch, tiny_network, broken):
    step = OnnxDenoiser.step

    def wrong(self, samples, state):
        enhanced, next_state = step(self, samples, state)
        if broken == "nan":
            return enhanced * np.float32("nan"), next_state
        return enhanced, {**next_state, "state_gru_0": np.zeros_like(next_state["state_gru_0"])}

    monkeypatch.setattr(OnnxDenoiser, "step", wrong)
    with pytest.raises(ModelFileError, match="differs from the network"):
        onnx_export.export_model(tiny_network, INFO)


def test_the_graph_uses_standard_operators_only(graph):
    assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", 17)]
    assert {node.domain for node in graph.graph.node} == {""} and not graph.functions


def test_inputs_and_outputs_are_as_promised_and_in_the_same_order(graph):
    inputs = [i.name for i in graph.graph.input]
    assert inputs[0] == "samples" and all(name.startswith("state_") for name in inputs[1:])
    assert [o.name for o in graph.graph.output] == ["enhanced"] + [f"next_{name}" for name in inputs[1:]]


def test_every_shape_is_fixed(graph):
    for value in [*graph.graph.input, *graph.graph.output]:
        assert all(dim.dim_value > 0 for dim in value.type.tensor_type.shape.dim), value.name
    assert [dim.dim_value for dim in graph.graph.input[0].type.tensor_type.shape.dim] == [1, STFT.hop_length]


def test_every_state_starts_at_zero(tiny_network, tiny_model):
    ours, theirs = onnx_export.HopDenoiser(tiny_network).initial_state(), OnnxDenoiser(tiny_model).initial_state()
    assert {f"state_{name}": tuple(value.shape) for name, value in ours.items()} == \
        {name: value.shape for name, value in theirs.items()}
    assert not any(value.any() for value in ours.values())


def test_a_step_leaves_the_given_state_as_it_is(tiny_model):
    denoiser = OnnxDenoiser(tiny_model)
    samples = np.random.default_rng(0).standard_normal((1, STFT.hop_length)).astype(np.float32)
    _, state = denoiser.step(samples, denoiser.initial_state())
    before = {name: value.copy() for name, value in state.items()}
    first, _ = denoiser.step(samples, state)
    again, _ = denoiser.step(samples, state)
    np.testing.assert_array_equal(first, again)
    for name in before:
        np.testing.assert_array_equal(state[name], before[name])


def test_weights_too_small_to_matter_are_not_exported_as_denormals(few_steps, tiny_network):
    network = copy.deepcopy(tiny_network)
    with torch.no_grad():
        network.gain_head.weight[0, :] = 1e-40
    exported = onnx.load_from_string(onnx_export.export_model(network, INFO))
    for tensor in exported.graph.initializer:
        values = np.abs(onnx.numpy_helper.to_array(tensor))
        assert not ((values > 0) & (values < 1e-30)).any(), tensor.name
