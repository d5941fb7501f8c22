import pytest

torch = pytest.importorskip("torch")
from pse_sdk.training.network import build_network  # noqa: E402
from pse_sdk.training.recurrence import gru, gru_both_ways  # noqa: E402


def inputs_and_layer(batch, n_frames, width, hidden, dtype=torch.float64):
    torch.manual_seed(0)
    layer = torch.nn.GRU(width, hidden, batch_first=True).to(dtype)
    return (torch.randn(batch, n_frames, width, dtype=dtype, requires_grad=True),
            torch.randn(batch, hidden, dtype=dtype, requires_grad=True), layer)


@pytest.mark.parametrize("batch, n_frames, width, hidden", [(1, 1, 3, 2), (3, 7, 5, 4), (16, 40, 64, 44)])
def test_states_and_gradients_are_those_of_torch(batch, n_frames, width, hidden):
    inputs, start, layer = inputs_and_layer(batch, n_frames, width, hidden)
    wanted = [inputs, start, *layer.parameters()]
    weights = torch.randn(batch, n_frames, hidden, dtype=torch.float64)

    def outcome(states, last):
        return torch.autograd.grad((states * weights).sum() + last.square().sum(), wanted), states, last

    gradients, states, last = outcome(*gru(layer, inputs, start))
    theirs, last_of_theirs = layer(inputs, start[None])
    expected, their_states, their_last = outcome(theirs, last_of_theirs[0])
    torch.testing.assert_close(states, their_states)
    torch.testing.assert_close(last, their_last)
    for found, right in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, right)


def test_both_directions_are_those_of_torch():
    inputs, _, _ = inputs_and_layer(3, 7, 5, 4)
    layer = torch.nn.GRU(5, 4, batch_first=True, bidirectional=True).double()
    weights = torch.randn(3, 7, 8, dtype=torch.float64)
    found, expected = ((states, *torch.autograd.grad((states * weights).sum(), [inputs, *layer.parameters()]))
                       for states in (gru_both_ways(layer, inputs), layer(inputs)[0]))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_is_said_to_the_gates_all_the_time_is_a_bias_of_each_item():
    inputs, start, layer = inputs_and_layer(2, 6, 5, 4)
    shift = torch.randn(2, 12, dtype=torch.float64)
    states, _ = gru(layer, inputs, start, shift[:, None].expand(2, inputs.shape[1], 12))
    bias = layer.bias_ih_l0.detach().clone()
    for i in range(2):
        with torch.no_grad():
            layer.bias_ih_l0.copy_(bias + shift[i])
        torch.testing.assert_close(states[i], layer(inputs[i:i + 1], start[None, i:i + 1])[0][0])


def test_a_network_in_training_is_the_one_that_is_exported():
    torch.manual_seed(0)
    network = build_network("tiny").train()
    spectra = torch.randn(2, 30, 2, 257)
    state = {name: torch.rand_like(value) for name, value in network.initial_state(2).items()}
    trained, trained_state = network(spectra, state)
    exported, exported_state = network.eval()(spectra, state)
    torch.testing.assert_close(trained, exported)
    assert trained_state.keys() == exported_state.keys()
    for name, value in trained_state.items():
        torch.testing.assert_close(value, exported_state[name])


def test_only_what_wants_a_gradient_gets_one():
    inputs, start, layer = inputs_and_layer(2, 4, 3, 2)
    layer.weight_ih_l0.requires_grad_(False)
    states, _ = gru(layer, inputs.detach(), start.detach())
    states.sum().backward()
    assert layer.weight_ih_l0.grad is None and layer.weight_hh_l0.grad is not None and inputs.grad is None
