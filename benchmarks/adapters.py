"""Low-rank adapters: of every weight matrix W of a network only a correction B A of few ranks is trained.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, eq. 3.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pse_sdk.training.network import Denoiser


class LowRank(nn.Module):
    """A correction [rows, columns] of rank `rank` to a weight that stays as it is; zero to begin with."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.right = nn.Parameter(torch.randn(rank, columns) / columns**0.5)
        self.left = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.left @ self.right


def with_adapters(network: Denoiser, rank: int) -> Denoiser:
    """The network, changed in place: its matrices are frozen and get adapters; its biases are trained as before."""
    for module in [module for module in network.modules() if isinstance(module, nn.GRU | nn.Linear)]:
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight.ndim == 2:
                weight.requires_grad_(False)
                parametrize.register_parametrization(module, name, LowRank(weight, rank))
    return network


def without_adapters(network: Denoiser) -> Denoiser:
    """A network like any other, with the adapters of `network` added to its matrices. `network` is used up."""
    for module in list(network.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):
                parametrize.remove_parametrizations(module, name)
    plain = Denoiser(network.config)        # whose parameters are in their usual order
    plain.load_state_dict(network.state_dict())
    return plain.eval()
