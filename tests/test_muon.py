from functools import partial

import pytest

torch = pytest.importorskip("torch")
from pse_sdk.training.muon import Muon, optimizers, orthogonal  # noqa: E402
from pse_sdk.training.network import build_network  # noqa: E402


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (8, 8), (1, 5)])
def test_all_directions_of_a_step_count_alike_and_none_is_turned(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape) * 1e-4
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    seen = left.t() @ orthogonal(matrix) @ right.t()
    values = seen.diagonal()
    assert values.min() > 0.6 and values.max() < 1.25
    assert (seen - values.diag()).abs().max() < 1e-4


def test_no_gradient_is_no_step():
    assert torch.equal(orthogonal(torch.zeros(3, 4)), torch.zeros(3, 4))


STRENGTHS = torch.tensor([1.0, 0.2, 0.04])


def trained(n_steps, weight, optimizer, wanted):
    """How far the weight still is from what was wanted, after steps in directions of different strength."""
    for _ in range(n_steps):
        ((weight - wanted) * STRENGTHS).square().sum().backward()
        optimizer.step()
        weight.grad = None
    return (weight - wanted).detach()


@pytest.mark.parametrize("make, most, least", [(Muon, 0.1, 0.0), (partial(torch.optim.SGD, momentum=0.95), 1.1, 0.8)])
def test_faint_directions_are_learnt_as_fast_as_strong_ones(make, most, least):
    weight = torch.zeros(3, 3, requires_grad=True)
    missing = trained(150, weight, make([weight], lr=0.01), torch.eye(3))
    assert least <= missing.abs().max() <= most


def test_it_goes_on_where_its_state_was_kept():
    torch.manual_seed(0)
    wanted = torch.randn(3, 3)
    weights = [torch.zeros(3, 3, requires_grad=True) for _ in range(2)]
    learners = [Muon([weight], 0.01) for weight in weights]
    whole = trained(6, weights[0], learners[0], wanted)
    trained(3, weights[1], learners[1], wanted)
    other = Muon([weights[1]], 0.01)
    other.load_state_dict(learners[1].state_dict())
    assert torch.equal(trained(3, weights[1], other, wanted), whole)


def test_weights_decay_by_the_rate_times_the_decay():
    weights = [torch.eye(3, requires_grad=True) for _ in range(2)]
    for weight, decay in zip(weights, (0.0, 0.5), strict=True):
        trained(1, weight, Muon([weight], 0.01, decay), torch.zeros(3, 3))
    torch.testing.assert_close(weights[0] - weights[1], 0.005 * torch.eye(3))


def test_every_parameter_is_learnt_by_one_optimizer_and_matrices_by_muon():
    network = build_network("tiny")
    muon, adam = optimizers(network, 0.01)
    taken = [[value for group in optimizer.param_groups for value in group["params"]] for optimizer in (muon, adam)]
    assert {value.ndim for value in taken[0]} == {2} and {value.ndim for value in taken[1]} == {1}
    assert sorted(map(id, taken[0] + taken[1])) == sorted(map(id, network.parameters()))
