"""A denoiser that is told whose voice to keep, and what becomes of it when there is only one: an ordinary denoiser.

An encoder hears the talker and gives a direction; of that direction's coordinates a matrix makes what every gate of the
recurrent layers hears beside its input. For one talker these are constants, which belong to the biases: `folded`. So
what somebody else says can be removed without an input more at run time, and from the first step of personalization on.

Source of a denoiser beside a talker's embedding: Wang et al., "VoiceFilter-Lite", Interspeech 2020.
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
from .speaker_network import N_DIMENSIONS, SpeakerNetwork

ENCODED_SECONDS = 5.12
VOICE_SNRS_DB = (-5.0, 15.0)    # of the talker against the other one
NOISE_IN_ENCODED = 0.3          # of the noise of a mixture stays in what the encoder hears
GOLDEN = 0.618034               # its multiples' fractions spread evenly, however many they are
LEAST_LEVEL = 0.3               # of the median level: pieces below it hold too little speech to tell a voice by
N_AT_ONCE = 16
TALKER = "_talker"              # after the size, in names of files and of what is trained


class TalkerDenoiser(Denoiser):
    """A `Denoiser` with an encoder of voices. Weights of a denoiser of this size fit, and leave those unset."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        self._shifts: list[Tensor] = []     # while `forward` runs
        self.encoder = SpeakerNetwork()
        self.voice_maps = nn.ModuleList(nn.Linear(N_DIMENSIONS, 3 * config.hidden, bias=False)
                                        for _ in range(config.n_layers))
        for voice_map in self.voice_maps:
            nn.init.normal_(voice_map.weight, std=0.01)     # type: ignore[arg-type]

    def voice_of(self, samples: Tensor) -> Tensor:
        """Of speech [B, T], about `ENCODED_SECONDS` long: directions [B, D], their coordinates' mean square one."""
        return self.encoder(power(spectrogram(samples)))[0] * N_DIMENSIONS**0.5

    def forward(self, noisy: Tensor, state: State, voice: Tensor | None = None) -> tuple[Tensor, State]:
        """As a `Denoiser`, with the voice [B, D] to keep."""
        assert voice is not None
        self._shifts = [voice_map(voice) for voice_map in self.voice_maps]
        try:
            return super().forward(noisy, state)
        finally:
            self._shifts = []

    def _layer(self, i: int, hidden: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        layer = self.layers[i]
        assert isinstance(layer, nn.GRU)
        return gru(layer, hidden, state, self._shifts[i])

    def of_voices(self) -> dict[str, Tensor]:
        """The weights that a denoiser has not."""
        return {name: value for name, value in self.state_dict().items()
                if name.startswith(("encoder.", "voice_maps."))}

    @torch.no_grad()
    def folded(self, voice: Tensor) -> Denoiser:
        """A denoiser that keeps the voice [D] and does what this one does with it."""
        network, own = Denoiser(self.config), self.of_voices()
        network.load_state_dict({name: value for name, value in self.state_dict().items() if name not in own})
        for layer, voice_map in zip(network.layers, self.voice_maps, strict=True):
            layer.bias_ih_l0 += voice_map(voice)    # type: ignore[operator]
        return network.eval()

    @torch.no_grad()
    def for_talker(self, speech: Sequence[np.ndarray]) -> Denoiser | None:
        """`folded` for whoever speaks in all of `speech` [T] at the model's rate; None where each is too short."""
        length = round(ENCODED_SECONDS * STFT.sample_rate)
        pieces = [samples[start:start + length] for samples in speech
                  for start in range(0, len(samples) - length + 1, length // 2)]
        if not pieces:
            return None
        heard = torch.from_numpy(np.stack(pieces)).float()
        level = heard.square().mean(1).sqrt()
        heard = heard[level >= LEAST_LEVEL * level.median()]
        voices = torch.cat([self.voice_of(some) for some in heard.split(N_AT_ONCE)])
        return self.folded(nn.functional.normalize(voices.mean(0), dim=0) * N_DIMENSIONS**0.5)


def build_talker_network(what: str) -> TalkerDenoiser:
    """A new one, such as "small_talker". Its encoder begins as the speaker embeddings that ship, if they are there."""
    network = TalkerDenoiser(NETWORKS[what.removesuffix(TALKER)])
    shipped = MODELS / "speaker_embedding.onnx"
    if shipped.exists():
        found = {weight.name: torch.from_numpy(onnx.numpy_helper.to_array(weight).copy())
                 for weight in onnx.load(shipped).graph.initializer}
        with torch.no_grad():
            for name, value in network.encoder.named_parameters():
                if name in found:
                    value.copy_(found[name])
    return network


def load_talker_network(size: str) -> TalkerDenoiser | None:
    """The one that ships for this size; None where none does.

    Raises:
        ModelFileError: its file is damaged.
    """
    path = MODELS / f"{size}{TALKER}.safetensors"
    return load_weights(TalkerDenoiser(NETWORKS[size]), path, f"{size}{TALKER}") if path.exists() else None


@dataclass(frozen=True)
class TalkerItems:
    """What a `TalkerDenoiser` learns from. Shape: `batch` as ever; `encoded` [B, T], the same talker saying something
    else in other noise and another room; `beside_voice`, `in_noise` [B]."""

    batch: Batch
    encoded: Tensor
    beside_voice: Tensor
    in_noise: Tensor


def talker_items(batch: Batch) -> TalkerItems:
    """Of mixtures whose neighbours are of one talker (`MixingConfig.takes`), two thirds with another voice added: that
    of the item two places further in its group. In half of these it is there instead of the noise, and in one item of
    sixteen instead of the talker."""
    index = torch.arange(len(batch.noisy), device=batch.noisy.device)
    noise = batch.noisy - batch.target
    encoded = (batch.target + NOISE_IN_ENCODED * noise)[index ^ 1]
    other = exchanged(batch.target, GROUP // 2)
    both_speak = batch.has_speech & exchanged(batch.has_speech, GROUP // 2)
    beside = (index % 3 != 2) & both_speak
    in_noise = ~beside | (index % 2 == 1)
    absent = (index % 16 == 4) & beside
    low, high = VOICE_SNRS_DB
    snr_db = low + (high - low) * (index * GOLDEN % 1)
    voice = other * (active_rms(batch.target) / active_rms(other) * 10 ** (-snr_db[:, None] / 20))
    target = torch.where(absent[:, None], 0.0, batch.target)
    mixture = target + torch.where(in_noise[:, None], noise, 0.0) + torch.where(beside[:, None], voice, 0.0)
    scale = 1.0 / mixture.square().mean(1, keepdim=True).add(1e-10).sqrt()
    return TalkerItems(Batch(mixture * scale, target * scale, batch.has_speech & ~absent), encoded,
                       beside & ~absent, in_noise)
