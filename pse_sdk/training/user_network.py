"""A denoiser that is told about its user, and what becomes of it when there is only one: an ordinary denoiser.

Two encoders hear the user's voice and the noise around, each gives a direction. Of their coordinates, and of whether
other voices are to stay, matrices make what the recurrent layers hear beside their input, and how they weigh it. For
one user these are constants, which belong to biases and weights: `folded`. So a specialist begins with what many users
taught, knows whom to listen to from its first step on, and has no input more at run time.

Source of a denoiser beside a talker's embedding: Wang et al., "VoiceFilter-Lite", Interspeech 2020; of weights that a
low rank changes: Hu et al., "LoRA", ICLR 2022.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from ..config import MODELS, STFT
from .losses import power, spectrogram
from .mixing import GROUP, Batch, active_rms, exchanged
from .network import NETWORKS, Denoiser, NetworkConfig, State, load_weights
from .recurrence import gru
from .speaker_network import N_DIMENSIONS, SoundEncoder

USER = "_user"                  # after the size, in names of files and of what is trained
HEARD_SECONDS = 5.12            # of voice or noise, at once
N_TOLD = 2 * N_DIMENSIONS + 1   # about a user: his voice, his noise, whether others are kept
RANK = 16                       # of what a user changes in the weights of a layer's input
VOICE_SNRS_DB = (-5.0, 15.0)    # of the talker against the other one
NOISE_IN_VOICE, VOICE_IN_NOISE = 0.3, 0.1   # of a mixture: so much of the other stays in what an encoder hears
GOLDEN = 0.618034               # its multiples' fractions spread evenly, however many they are
LEAST_LEVEL = 0.3               # of the median level: pieces below it hold too little speech to tell a voice by
SILENCE = 1e-5                  # RMS below which there is nothing to hear
N_AT_ONCE = 16


class ToldLayer(nn.Module):
    """What a user changes in the input of one recurrent layer: its bias, and by a low rank its weights."""

    def __init__(self, n_in: int, hidden: int) -> None:
        super().__init__()
        self.shift = nn.Linear(N_TOLD, 3 * hidden, bias=False)
        self.strength = nn.Linear(N_TOLD, RANK, bias=False)
        self.heard = nn.Linear(n_in, RANK, bias=False)
        self.said = nn.Linear(RANK, 3 * hidden, bias=False)
        nn.init.normal_(self.shift.weight, std=0.01)
        nn.init.normal_(self.strength.weight, std=0.1)
        nn.init.zeros_(self.said.weight)

    def forward(self, inputs: Tensor, told: Tensor) -> Tensor:
        """To the gates, beside what the layer itself makes of `inputs` [B, N, I]: [B, N, 3 H]."""
        return self.shift(told)[:, None] + self.said(self.heard(inputs) * self.strength(told)[:, None])

    def fold_into(self, layer: nn.GRU, told: Tensor) -> None:
        """`told` [N_TOLD] is what it is told from now on."""
        layer.bias_ih_l0 += self.shift(told)
        layer.weight_ih_l0 += self.said.weight @ (self.strength(told)[:, None] * self.heard.weight)


class UserDenoiser(Denoiser):
    """A `Denoiser` that is told about its user. Weights of a denoiser of this size fit, and leave the rest unset."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        self._about: Tensor | None = None   # while `forward` runs
        self.voice_encoder, self.noise_encoder = SoundEncoder(), SoundEncoder(hears_colour=True)
        self.told = nn.ModuleList(ToldLayer(config.n_bands if i == 0 else config.hidden, config.hidden)
                                  for i in range(config.n_layers))

    def about(self, voice: Tensor, noise: Tensor, keeps_others: Tensor) -> Tensor:
        """What the network is told [B, N_TOLD] of users whose voices and noises sound like this [B, T], about
        `HEARD_SECONDS` long (silence: not known), and who want other voices kept or not [B]."""
        return torch.cat([_directions(self.voice_encoder, voice), _directions(self.noise_encoder, noise),
                          torch.where(keeps_others, 1.0, -1.0)[:, None]], 1)

    def forward(self, noisy: Tensor, state: State, about: Tensor | None = None) -> tuple[Tensor, State]:
        """As a `Denoiser`, told `about` [B, N_TOLD] the user."""
        assert about is not None
        self._about = about
        try:
            return super().forward(noisy, state)
        finally:
            self._about = None

    def _layer(self, i: int, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        layer = self.layers[i]
        assert isinstance(layer, nn.GRU)
        return gru(layer, inputs, state, self.told[i](inputs, self._about))

    def not_of_a_denoiser(self) -> dict[str, Tensor]:
        """The weights that a `Denoiser` has not."""
        return {name: value for name, value in self.state_dict().items()
                if name.startswith(("voice_encoder.", "noise_encoder.", "told."))}

    @torch.no_grad()
    def folded(self, about: Tensor) -> Denoiser:
        """A denoiser that does what this one does when it is told `about` [N_TOLD] a user."""
        network, own = Denoiser(self.config), self.not_of_a_denoiser()
        network.load_state_dict({name: value for name, value in self.state_dict().items() if name not in own})
        for layer, told in zip(network.layers, self.told, strict=True):
            told.fold_into(layer, about)    # type: ignore[operator]
        return network.eval()

    @torch.no_grad()
    def for_user(self, speech: Sequence[np.ndarray], noise: Sequence[np.ndarray], *, keeps_others: bool) -> Denoiser:
        """`folded` for whoever speaks in all of `speech`, in noises like `noise`: each [T], at the model's rate. What
        is too short tells nothing."""
        spoken = _pieces(speech)
        levels = np.array([np.sqrt(np.mean(np.square(piece))) for piece in spoken])
        least = LEAST_LEVEL * np.median(levels) if len(levels) else 0.0
        return self.folded(torch.cat([
            _mean_direction(self.voice_encoder, [spoken[i] for i in np.flatnonzero(levels >= least)]),
            _mean_direction(self.noise_encoder, _pieces(noise)), torch.tensor([1.0 if keeps_others else -1.0])]))


def _directions(encoder: SoundEncoder, sounds: Tensor) -> Tensor:
    """Of sounds [B, T]: directions [B, D], their coordinates' mean square one; zero of silence."""
    is_heard = sounds.square().mean(1, keepdim=True) > SILENCE**2
    return torch.where(is_heard, encoder.direction(power(spectrogram(sounds))) * N_DIMENSIONS**0.5, 0.0)


def _mean_direction(encoder: SoundEncoder, sounds: Sequence[np.ndarray]) -> Tensor:
    """Of all sounds [T] together, [D]; zero of none."""
    if not sounds:
        return torch.zeros(N_DIMENSIONS)
    directions = torch.cat([_directions(encoder, torch.from_numpy(np.stack(sounds[i:i + N_AT_ONCE])).float())
                            for i in range(0, len(sounds), N_AT_ONCE)])
    return nn.functional.normalize(directions.mean(0), dim=0) * N_DIMENSIONS**0.5


def _pieces(sounds: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Of sounds [T]: all stretches of `HEARD_SECONDS` that begin at every half of them."""
    length = round(HEARD_SECONDS * STFT.sample_rate)
    return [sound[start:start + length] for sound in sounds
            for start in range(0, len(sound) - length + 1, length // 2)]


def build_user_network(what: str) -> UserDenoiser:
    """A new one, such as "small_user". Its encoders begin as the speaker embeddings that ship, if they are there."""
    network = UserDenoiser(NETWORKS[what.removesuffix(USER)])
    shipped = MODELS / "speaker_embedding.onnx"
    if shipped.exists():
        found = {weight.name: torch.from_numpy(onnx.numpy_helper.to_array(weight).copy())
                 for weight in onnx.load(shipped).graph.initializer}
        with torch.no_grad():
            for encoder in (network.voice_encoder, network.noise_encoder):
                for name, value in encoder.named_parameters():
                    if name in found:
                        value.copy_(found[name])
    return network


def load_user_network(size: str) -> UserDenoiser | None:
    """The one that ships for this size; None where none does.

    Raises:
        ModelFileError: its file is damaged.
    """
    path = MODELS / f"{size}{USER}.safetensors"
    return load_weights(UserDenoiser(NETWORKS[size]), path, f"{size}{USER}") if path.exists() else None


@dataclass(frozen=True)
class UserItems:
    """What a `UserDenoiser` learns from. Shape: `batch` as ever; `voice`, `noise` [B, T], which the encoders hear; all
    else [B]: whether other voices are to be kept, whether one is heard, whether noise is, and whether voice and noise
    are those that the encoders heard."""

    batch: Batch
    voice: Tensor
    noise: Tensor
    keeps_others: Tensor
    beside_voice: Tensor
    in_noise: Tensor
    is_own: Tensor


def user_items(batch: Batch) -> UserItems:
    """Of mixtures whose neighbours are of one user (`MixingConfig.takes`, `noise_takes`): the encoders hear what the
    neighbour says, and its noise, in one item of four somebody else's.

    In every second group other voices are to be kept: in one item of four the encoder hears another one than the
    mixture holds. In the others they are to be removed: two thirds of the items have that of the item two places
    further added, half of these instead of the noise, and one in sixteen instead of the talker.
    """
    index = torch.arange(len(batch.noisy), device=batch.noisy.device)
    neighbour = index ^ 1
    noise = batch.noisy - batch.target
    voice_heard = torch.where(batch.has_speech[:, None], batch.target + NOISE_IN_VOICE * noise, 0.0)[neighbour]
    has_noise = noise.square().mean(1, keepdim=True) > SILENCE**2
    noise_heard = torch.where(has_noise, noise + VOICE_IN_NOISE * batch.target, 0.0)[neighbour]
    in_own_noise = index % 4 != 3
    noise_heard = torch.where(in_own_noise[:, None], noise_heard, exchanged(noise_heard, GROUP // 2))

    keeps_others = (index // GROUP) % 2 == 1
    in_own_voice = ~keeps_others | (index % 4 != 1)
    voice_heard = torch.where(in_own_voice[:, None], voice_heard, exchanged(voice_heard, GROUP // 2))
    other = exchanged(batch.target, GROUP // 2)
    both_speak = batch.has_speech & exchanged(batch.has_speech, GROUP // 2)
    beside = ~keeps_others & (index % 3 != 2) & both_speak
    in_noise = ~beside | (index % 2 == 1)
    absent = (index % 16 == 10) & beside
    low, high = VOICE_SNRS_DB
    snr_db = low + (high - low) * (index * GOLDEN % 1)
    voice = other * (active_rms(batch.target) / active_rms(other) * 10 ** (-snr_db[:, None] / 20))
    target = torch.where(absent[:, None], 0.0, batch.target)
    mixture = target + torch.where(in_noise[:, None], noise, 0.0) + torch.where(beside[:, None], voice, 0.0)
    scale = 1.0 / mixture.square().mean(1, keepdim=True).add(1e-10).sqrt()
    return UserItems(Batch(mixture * scale, target * scale, batch.has_speech & ~absent), voice_heard, noise_heard,
                     keeps_others, beside & ~absent, in_noise, in_own_voice & in_own_noise)
