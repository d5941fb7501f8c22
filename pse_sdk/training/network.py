"""The denoiser: one network, one forward, for training (N frames) and streaming (N = 1).

    spectrum -> band energies, relative to a running level -> two GRU layers -> band gains for every bin
                                                                             -> 3-tap complex filter for the lowest bins

The running level is the debiased average power of the last seconds, so that a clip at -45 dBFS and the same clip at
-10 dBFS give the same features and the same gains. The filter head follows the multi-frame idea of DeepFilterNet
(Schroeter et al., ICASSP 2022, eq. 5) and is added to the gains, so that it starts as no filter at all.

The teacher is the same network with its eyes open to what comes next: layers in both directions, taps on both sides and
the level of the whole clip. It cannot stream.

Nothing outside this file knows what is inside: callers use `build_network`, `NETWORKS`, `initial_state` and `forward`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ..config import STFT
from ..errors import ModelFileError, SettingsError
from .filtering import filtered
from .recurrence import gru, gru_both_ways

State = dict[str, Tensor]
Network = TypeVar("Network", bound=nn.Module)

LEVEL_SECONDS = 2.0     # time constant of the running level
LEVEL_FLOOR = 1e-9      # power of a frame's bin below which input counts as silence: about -120 dBFS
LEVEL_DECAY = 1.0 - STFT.hop_seconds / LEVEL_SECONDS
NO_WEIGHT = 1e-12       # of silence in the running level: it counts where there was nothing else
FEATURE_FLOOR = 1e-5    # 50 dB below the running level: what lies deeper is not heard
FEATURE_SCALE, FEATURE_OFFSET = 0.25, 1.0


@dataclass(frozen=True)
class NetworkConfig:
    """Widths of one size. `n_filter_bins` are the lowest bins that get a `n_taps`-frame complex filter."""

    n_bands: int
    hidden: int
    n_filter_bins: int
    n_layers: int = 2
    n_taps: int = 3
    looks_ahead: bool = False


NETWORKS = {
    "tiny": NetworkConfig(n_bands=64, hidden=44, n_filter_bins=20),
    "small": NetworkConfig(n_bands=64, hidden=80, n_filter_bins=40),
    "medium": NetworkConfig(n_bands=96, hidden=160, n_filter_bins=56),
    "large": NetworkConfig(n_bands=96, hidden=288, n_filter_bins=64),
    "teacher": NetworkConfig(n_bands=128, hidden=256, n_filter_bins=96, n_taps=5, looks_ahead=True),
}


def build_network(size: str) -> "Denoiser":
    """A new network of the named size, with random weights from torch's own generator."""
    if size not in NETWORKS:
        raise SettingsError(f"no network of size {size!r}; choose one of {', '.join(NETWORKS)}")
    return Denoiser(NETWORKS[size])


def load_network(size: str, weights: Path) -> "Denoiser":
    """A network of the named size with weights from a safetensors file, of whatever precision, ready to be asked.

    Raises:
        SettingsError: see `build_network`. ModelFileError: there is no such file, or it holds something else.
    """
    return load_weights(build_network(size), weights, size)


def load_weights(network: Network, weights: Path, name: str) -> Network:
    """As `load_network`, into a network that is there; `name` is for messages."""
    if not weights.exists():
        raise ModelFileError(f"no weights of the {name} network at {weights}; install the package anew, or train one "
                             "(README, 'Train your own generalist')")
    try:
        set_weights(network, load_file(weights))
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelFileError(f"{weights} does not hold the weights of a {name} network: "
                             f"{' '.join(str(error).split())[:200]}") from error
    return network.eval()


def set_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into the network's own float32.

    Raises:
        ValueError: they are those of another network; says by which of them that is seen.
    """
    own = network.state_dict()
    for name in sorted({*own, *weights}):
        found, expected = (tuple(some[name].shape) if name in some else None for some in (weights, own))
        if found != expected:
            raise ValueError(f"{name} is {'not there' if found is None else found}, expected "
                             f"{'none of that name' if expected is None else expected}")
    network.load_state_dict(weights)


def save_weights(network: nn.Module, path: Path) -> None:
    """The parameters as safetensors, written whole or not at all."""
    partial = path.with_suffix(".partial")
    # not `save_file`, whose files nobody else may read
    partial.write_bytes(save({name: value.detach().contiguous() for name, value in network.state_dict().items()}))
    partial.replace(path)


def band_matrix(n_bands: int, n_bins: int) -> Tensor:
    """Triangular bands [n_bins, n_bands] that add up to one in every bin.

    Centres lie at i + a i^2: one bin apart at the bottom, where harmonics can be told apart, and wider above.
    """
    i = torch.arange(n_bands, dtype=torch.float64)
    centre = i + (n_bins - n_bands) / (n_bands - 1) ** 2 * i**2
    left = torch.cat([centre[:1] - 1, centre[:-1]])
    right = torch.cat([centre[1:], centre[-1:] + 1])
    bins = torch.arange(n_bins, dtype=torch.float64)[:, None]
    return torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clamp(0, 1).float()


class Denoiser(nn.Module):
    band_mean: Tensor
    band_spread: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        bands = band_matrix(config.n_bands, STFT.n_bins)
        self.register_buffer("band_mean", bands / bands.sum(0), persistent=False)
        self.register_buffer("band_spread", bands.T.contiguous(), persistent=False)
        width = config.hidden * (2 if config.looks_ahead else 1)
        self.layers = nn.ModuleList(
            nn.GRU(config.n_bands if i == 0 else width, config.hidden, batch_first=True,
                   bidirectional=config.looks_ahead)
            for i in range(config.n_layers)
        )
        self.gain_head = nn.Linear(width, config.n_bands)
        self.filter_head = nn.Linear(width, config.n_taps * 2 * config.n_filter_bins)
        self.precision = torch.float32      # of the layers, while training
        with torch.no_grad():
            self.gain_head.bias.fill_(1.0)
            self.filter_head.weight.mul_(0.1)
            self.filter_head.bias.zero_()

    @property
    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def initial_state(self, batch: int = 1) -> State:
        """Zeros for every state: {name: [batch, ...]}."""
        config = self.config
        like = next(self.parameters())
        state = {f"gru_{i}": like.new_zeros(batch, config.hidden) for i in range(config.n_layers)}
        state["past"] = like.new_zeros(batch, config.n_taps - 1, 2, config.n_filter_bins)
        state["level"] = like.new_zeros(batch, 2)   # running sums: of weighted power, of the weights
        return state

    def forward(self, noisy: Tensor, state: State) -> tuple[Tensor, State]:
        """Enhance spectra. `state` is left as it is; give the returned one to the next call.

        Shape: `noisy` and the result are [B, N, 2, F] (real, imaginary); N = 1 when streaming.
        """
        config = self.config
        batch, n_frames = noisy.shape[:2]
        power = noisy.square().sum(2)
        level, next_level = self._running_level(power.mean(2), state["level"])
        bands = (power @ self.band_mean) / (level + LEVEL_FLOOR).unsqueeze(2)
        features = torch.log(bands + FEATURE_FLOOR) * FEATURE_SCALE + FEATURE_OFFSET

        next_state: State = {"level": next_level}
        with torch.autocast(noisy.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            gains, taps = self._decide(features, state, next_state)
        n_low = config.n_filter_bins
        history = torch.cat([state["past"], noisy[..., :n_low]], dim=1)
        next_state["past"] = history[:, history.shape[1] - (config.n_taps - 1):]
        if config.looks_ahead:
            ahead = config.n_taps // 2
            history = torch.nn.functional.pad(history[:, ahead:], (0, 0, 0, 0, 0, ahead))
        taps = taps.to(noisy.dtype).view(batch, n_frames, config.n_taps, 2, n_low)
        bin_gains = torch.sigmoid(gains.to(noisy.dtype)) @ self.band_spread
        return filtered(noisy, bin_gains, taps, history), next_state

    def _decide(self, features: Tensor, state: State, next_state: State) -> tuple[Tensor, Tensor]:
        """Gains before their sigmoid [B, N, bands] and filter taps [B, N, ...]. Fills in `next_state`."""
        hidden, total = features, None
        for i in range(len(self.layers)):
            name = f"gru_{i}"
            hidden, next_state[name] = self._layer(i, hidden, state[name])
            total = hidden if total is None else total + hidden
        return self.gain_head(total), self.filter_head(total)

    def _layer(self, i: int, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The hidden states [B, N, H] of one layer, and the last of them [B, H]."""
        layer = self.layers[i]
        assert isinstance(layer, nn.GRU)
        written_out = self.training and inputs.device.type == "cpu" and self.precision == torch.float32
        if self.config.looks_ahead:     # a whole clip at once: there is nothing to go on from
            return gru_both_ways(layer, inputs) if written_out else layer(inputs)[0], state
        if written_out:
            return gru(layer, inputs, state)
        hidden, last = layer(inputs, state.unsqueeze(0))
        return hidden, last.squeeze(0)

    def _running_level(self, power: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Debiased exponential average of `power` [B, N] over the frames that hold a signal, and its new state [B, 2].

        Digital silence (a muted microphone) counts for next to nothing: the level is still known when sound comes back.
        """
        heard = torch.where(power > LEVEL_FLOOR, 1.0, NO_WEIGHT)
        if self.config.looks_ahead:
            level = (power * heard).sum(1, keepdim=True) / heard.sum(1, keepdim=True)
            return level.expand_as(power), state
        n_frames = power.shape[1]
        age = torch.arange(n_frames, device=power.device)
        kernel = torch.where(age[:, None] >= age, LEVEL_DECAY ** (age[:, None] - age).clamp_min(0).to(power.dtype), 0.0)
        fading = LEVEL_DECAY ** (age + 1).to(power.dtype)
        inputs = torch.stack([power * heard, heard], dim=2) * (1.0 - LEVEL_DECAY)   # [B, N, 2]
        sums = kernel @ inputs + fading[:, None] * state.unsqueeze(1)
        return sums[..., 0] / sums[..., 1], sums[:, -1]
