"""Optimizers: Muon for the matrices of narrow networks, which learn more from every step than with Adam."""

from collections.abc import Iterable

import torch
from torch import Tensor

MOMENTUM = 0.95
MATRIX_STEP = 0.5       # RMS of a step's elements at a rate of one; Adam's is about one
N_ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Steps of momentum whose directions all count alike, for parameters that are matrices.

    What `torch.optim.Muon` does, in float32: bfloat16, which that is bound to, costs as much as the whole training
    step on processors that have no arithmetic for it.

    Source: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); the scale of a step:
    Liu et al., "Muon is scalable for LLM training", arXiv 2502.16982, eq. 4.
    """

    def __init__(self, matrices: Iterable[Tensor], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:     # type: ignore[override]
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum"] = torch.zeros_like(matrix)
                momentum = state["momentum"].lerp_(matrix.grad, 1 - MOMENTUM)
                direction = orthogonal(matrix.grad.lerp(momentum, MOMENTUM))    # a look ahead, after Nesterov
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(direction, alpha=-group["lr"] * MATRIX_STEP * max(matrix.shape) ** 0.5)


def optimizers(network: torch.nn.Module, rate: float, weight_decay: float = 0.0) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices of a network, Adam for everything else. Only matrices decay."""
    matrices = [value for value in network.parameters() if value.ndim == 2]
    others = [value for value in network.parameters() if value.ndim != 2]
    return Muon(matrices, rate, weight_decay), torch.optim.Adam(others, rate)


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix [m, n] with singular values that are all near one (0.7 to 1.2), by Newton and Schulz's iteration."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.t()
    found = wide / (wide.norm() + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(N_ITERATIONS):
        gram = found @ found.t()
        found = torch.addmm(found, torch.addmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found if wide is matrix else found.t()
