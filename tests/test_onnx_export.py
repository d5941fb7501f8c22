import copy
from contextlib import nullcontext

import numpy as np
import onnxruntime
import pytest

from pse_sdk.batch import ANY_NUMBER, DATA_BATCH, with_any_batch
from pse_sdk.config import SIZES, STFT
from pse_sdk.empty_model import empty_model
from pse_sdk.errors import ModelFileError
from pse_sdk.model_format import ModelInfo, seal
from pse_sdk.onnx_denoiser import OnnxDenoiser, join_states, session_options, slice_state

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
from pse_sdk.training import onnx_export  # noqa: E402
from pse_sdk.training.graph import network_of  # noqa: E402
from pse_sdk.training.losses import spectrogram, waveform  # noqa: E402
from pse_sdk.training.network import Denoiser, NetworkConfig, build_network  # noqa: E402
from pse_sdk.training.nodes import Nodes  # noqa: E402

INFO = ModelInfo("tiny", 0, 0, 0, 0, 0, method="teacher", seconds_of_audio=61.5, seed=3, created="2026-01-31",
                 generalist="ab" * 32, scores={"gain_db": 1.25})
PARITY_TOLERANCE = 1e-5     # torch against onnxruntime
LEVEL_TOLERANCE = 1e-4      # the same, as a share of the input
TOGETHER_TOLERANCE = 1e-6   # many rows in a product against one
ROUNDING_TOLERANCE = 1e-2   # float16 weights against float32, of samples that reach 1


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(onnx_export, "PARITY_STEPS", 50)


@pytest.fixture(scope="module")
def graph(tiny_model):
    return onnx.load(tiny_model)


@torch.no_grad()
def test_hop_by_hop_the_graph_does_what_training_saw(tiny_network, tiny_model, noisy):
    samples = torch.from_numpy(noisy[:len(noisy) // STFT.hop_length * STFT.hop_length])[None]
    spectra, network = spectrogram(samples), onnx_export.round_weights(tiny_network)
    expected = waveform(network(spectra, network.initial_state())[0])[0].numpy()
    denoiser = OnnxDenoiser(tiny_model)
    state, hops = denoiser.initial_state(), []
    for hop in samples.numpy().reshape(-1, 1, STFT.hop_length):
        enhanced, state = denoiser.step(hop, state)
        hops.append(enhanced[0])
    np.testing.assert_allclose(np.concatenate(hops), expected, rtol=0, atol=PARITY_TOLERANCE)


@pytest.mark.parametrize("seed", [1, 2])
def test_torch_and_onnxruntime_agree_over_two_thousand_steps(tiny_network, tiny_model, seed):
    network = onnx_export.round_weights(tiny_network)
    assert onnx_export.PARITY_STEPS == 2000
    assert onnx_export.parity_error(network, OnnxDenoiser(tiny_model), seed) < PARITY_TOLERANCE


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("config", [
    NetworkConfig(n_bands=32, hidden=12, n_filter_bins=20, n_layers=1),
    NetworkConfig(n_bands=33, hidden=12, n_filter_bins=1, n_layers=3, n_taps=1),
    NetworkConfig(n_bands=64, hidden=20, n_filter_bins=17, n_taps=2),
    NetworkConfig(n_bands=64, hidden=20, n_filter_bins=18, n_taps=5),
    NetworkConfig(n_bands=64, hidden=20, n_filter_bins=257),
], ids=str)
def test_the_graph_follows_layers_widths_and_taps(few_steps, config, half):
    torch.manual_seed(0)
    network = Denoiser(config)
    with torch.no_grad():
        network.filter_head.weight.mul_(10)
    onnx_export.export_model(network, INFO, half=half)     # which refuses a graph that differs


@torch.no_grad()
@pytest.mark.parametrize("level", [0.0, 1e-6, 3e-6])
def test_what_is_at_the_edge_of_silence_is_judged_alike(tiny_network, tiny_model, level):
    """Before the first sound, during it, and up to a minute after it."""
    n_hops, sound = 4000, slice(30, 60)
    loudness = np.full(n_hops, level, np.float32)
    loudness[sound] = 1e-2
    noise = np.random.default_rng(0).standard_normal((n_hops, STFT.hop_length), np.float32) * loudness[:, None]
    network, denoiser = onnx_export.round_weights(tiny_network), OnnxDenoiser(tiny_model)
    spectra = spectrogram(torch.from_numpy(noise).view(1, -1))
    expected = waveform(network(spectra, network.initial_state())[0])[0].numpy().reshape(n_hops, -1)
    enhanced, state = np.empty_like(noise), denoiser.initial_state()
    for i in range(n_hops):
        enhanced[i], state = denoiser.step(noise[i:i + 1], state)
    error = np.abs(enhanced - expected).max(1)
    error[sound.stop:sound.stop + 5] = 0.0      # where the sound still rings
    assert (error <= LEVEL_TOLERANCE * loudness).all()


def test_the_weights_are_rounded_no_more_than_said(few_steps, tiny_network, noisy):
    exact, rounded = (OnnxDenoiser(onnx_export.export_model(tiny_network, INFO, half=half)) for half in (False, True))
    assert len(rounded.model) < 0.75 * len(exact.model)
    state, other_state = exact.initial_state(), rounded.initial_state()
    for hop in noisy[:100 * STFT.hop_length].reshape(-1, 1, STFT.hop_length):
        enhanced, state = exact.step(hop, state)
        other, other_state = rounded.step(hop, other_state)
        np.testing.assert_allclose(other, enhanced, rtol=0, atol=ROUNDING_TOLERANCE)


def test_an_export_leaves_the_network_as_it_is(few_steps, tiny_network):
    before = copy.deepcopy(tiny_network.state_dict())
    onnx_export.export_model(tiny_network, INFO)
    for name, value in tiny_network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


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


def slightly_wrong(model, name, first):
    """A copy of the model with every second number of one constant 2 % too large."""
    other = copy.deepcopy(model)
    tensor = next(tensor for tensor in other.graph.initializer if tensor.name == name)
    value = onnx.numpy_helper.to_array(tensor).copy()
    value.reshape(-1)[first::2] *= 1.02
    tensor.CopyFrom(onnx.numpy_helper.from_array(value, name))
    return other


def test_whatever_is_wrong_in_the_graph_the_check_finds_it(few_steps, tiny_network, graph):
    network = onnx_export.round_weights(tiny_network)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    matrices = [name for name, value in constants.items() if value.dtype.kind == "f" and value.size > 3 and value.any()]
    assert len(matrices) > 15
    for name in matrices:
        broken = [OnnxDenoiser(seal(slightly_wrong(graph, name, first).SerializeToString())) for first in (0, 1)]
        errors = [onnx_export.parity_error(network, other) for other in broken]
        assert max(errors) > PARITY_TOLERANCE, constants[name].shape


def test_a_graph_that_does_something_else_is_not_written(few_steps, monkeypatch, tiny_network):
    hop_model = onnx_export.hop_model

    def broken(network, half):
        other = copy.deepcopy(network)
        with torch.no_grad():
            other.gain_head.bias += 0.01
        return hop_model(other, half=half)

    monkeypatch.setattr(onnx_export, "hop_model", broken)
    with pytest.raises(ModelFileError, match="differs from the network"):
        onnx_export.export_model(tiny_network, INFO)


def test_what_rounding_does_to_a_network_is_little(few_steps, tiny_network):
    assert 0 < onnx_export.rounding_error(tiny_network) < 1e-6


@pytest.mark.parametrize("rounding, accepted", [(1e-8, False), (4e-6, False), (1e-5, True)])
def test_a_network_that_makes_much_of_the_last_bit_is_not_refused(monkeypatch, tiny_network, rounding, accepted):
    monkeypatch.setattr(onnx_export, "parity_error", lambda *_: 2e-5)
    monkeypatch.setattr(onnx_export, "rounding_error", lambda *_: rounding)
    with nullcontext() if accepted else pytest.raises(ModelFileError, match="differs from the network"):
        onnx_export.export_model(tiny_network, INFO)


@pytest.mark.parametrize("value", [float("nan"), 7e4])      # the latter is infinite as float16
def test_a_network_that_answers_with_no_number_is_not_written(few_steps, tiny_network, value):
    broken = copy.deepcopy(tiny_network)
    with torch.no_grad():
        broken.gain_head.weight.fill_(value)
    with pytest.raises(ModelFileError, match="differs from the network by inf"):
        onnx_export.export_model(broken, INFO)


@pytest.mark.parametrize("broken", ["nan", "forgets", "mixes up"])
def test_a_graph_whose_states_go_wrong_is_not_written(few_steps, monkeypatch, tiny_network, broken):
    step = OnnxDenoiser.step

    def wrong(self, samples, state):
        enhanced, next_state = step(self, samples, state)
        if broken == "nan":
            return enhanced * np.float32("nan"), next_state
        memory = next_state["state_memory"].copy()
        if broken == "mixes up":
            return enhanced, {"state_memory": memory[::-1]}     # of a stream that is alone, its own
        memory[..., -tiny_network.config.hidden:] = 0.0
        return enhanced, {"state_memory": memory}

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


def for_one_stream(sealed):
    """The file as files were before: its graph does not say that it takes more than one stream."""
    model = onnx.load_from_string(sealed)
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.shape.dim[0].denotation = ""
    return seal(model.SerializeToString())


def test_nothing_but_the_batch_is_changed_on_the_way_to_the_runtime(graph, tiny_model):
    freed = onnx.load_from_string(with_any_batch(tiny_model.read_bytes()))
    for value in [*freed.graph.input, *freed.graph.output]:
        first = value.type.tensor_type.shape.dim[0]
        assert first.dim_param == ANY_NUMBER and not first.HasField("dim_value")
        first.dim_value, first.denotation = 1, DATA_BATCH
    assert freed == graph
    old = for_one_stream(tiny_model.read_bytes())
    assert with_any_batch(old) == old


@pytest.mark.parametrize("batch", [2, 5])
@pytest.mark.parametrize("old", [False, True], ids=["any batch", "a batch of one"])
def test_streams_stepped_together_are_as_if_alone(tiny_model, batch, old):
    sealed = tiny_model.read_bytes()
    denoiser, alone = OnnxDenoiser(for_one_stream(sealed) if old else sealed), OnnxDenoiser(tiny_model)
    hops = np.random.default_rng(0).standard_normal((40, batch, STFT.hop_length)).astype(np.float32)
    hops[:, 1] *= 1e-3
    hops[10:20, 0] = 0.0
    state, states = denoiser.initial_state(batch), [alone.initial_state() for _ in range(batch)]
    for some in hops:
        together, state = denoiser.step(some, state)
        for i in range(batch):
            enhanced, states[i] = alone.step(some[i:i + 1], states[i])
            np.testing.assert_allclose(together[i], enhanced[0], rtol=0, atol=TOGETHER_TOLERANCE)


def test_the_memory_of_streams_can_be_joined_and_taken_apart(tiny_model):
    denoiser = OnnxDenoiser(tiny_model)
    samples = np.random.default_rng(0).standard_normal((3, STFT.hop_length)).astype(np.float32)
    _, state = denoiser.step(samples, denoiser.initial_state(3))
    joined = join_states([slice_state(state, 0, 1), slice_state(state, 1, 3)])
    np.testing.assert_array_equal(joined["state_memory"], state["state_memory"])


def test_one_memory_that_starts_at_zero_is_the_only_state(tiny_model):
    state = OnnxDenoiser(tiny_model).initial_state()
    assert list(state) == ["state_memory"] and not state["state_memory"].any()


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_few_nodes_run(few_steps, tmp_path, size):
    """Every node costs time, so what the runtime does not fold away when it loads the file is counted."""
    options = session_options()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(onnx_export.export_model(build_network(size), INFO), options)
    assert len(onnx.load(tmp_path / "optimized.onnx").graph.node) <= 50


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


def test_a_model_file_may_name_its_states_as_it_likes():
    """Files of before had one input for each memory."""
    nodes = Nodes()
    nodes("Add", "samples", "state_last", output="enhanced")
    nodes("Identity", "samples", output="next_state_last")
    nodes("Add", "state_count", nodes.constant([1.0]), output="next_state_count")
    shapes = {"last": [1, 256], "count": [1, 1]}
    model = nodes.model({"samples": [1, 256]} | {f"state_{name}": shape for name, shape in shapes.items()},
                        {"enhanced": [1, 256]} | {f"next_state_{name}": shape for name, shape in shapes.items()})
    onnx.helper.set_model_props(model, ModelInfo("tiny", 0, 16_000, 256, 512, 256).to_metadata())
    denoiser = OnnxDenoiser(seal(model.SerializeToString()))
    state, ones = denoiser.initial_state(), np.ones((1, 256), np.float32)
    for expected in (1.0, 2.0):
        enhanced, state = denoiser.step(ones, state)
        np.testing.assert_array_equal(enhanced, expected * ones)
    assert state["state_count"] == 2.0
    enhanced, state = denoiser.step(np.outer([1.0, 2.0, 3.0], ones).astype(np.float32), denoiser.initial_state(3))
    np.testing.assert_array_equal(state["state_last"][:, 0], [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(state["state_count"], np.ones((3, 1)))


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_a_model_file_gives_its_network_back(size, few_steps):
    torch.manual_seed(3)
    network = build_network(size).eval()
    sealed = onnx_export.export_model(network, ModelInfo(size, 0, 0, 0, 0, 0))
    expected, found = onnx_export.round_weights(network).state_dict(), network_of(sealed, size).state_dict()
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", ["small", "tiny"])
def test_what_holds_another_network_is_refused(size, tiny_model):
    sealed = tiny_model.read_bytes() if size == "small" else empty_model()
    with pytest.raises(ModelFileError, match="start from"):
        network_of(sealed, size)
