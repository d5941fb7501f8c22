"""Speaker embeddings: a direction for each stretch of speech, near for one person's, far for two people's; and whether
two people talk in it at once.

Trained on noisy mixtures of which two neighbours in a batch hold the same speaker, in other words, noise, rooms and
equalisers (`MixingConfig.takes`): each has to find the other among all, and to be told from itself with another speaker
added. Used to notice that recordings hold more than one talker.
"""

import onnx
import torch
from torch import Tensor, nn

from ..config import STFT
from ..model_format import seal
from .losses import power, spectrogram
from .mixing import GROUP, Batch, active_rms, exchanged
from .network import band_matrix
from .onnx_export import to_onnx

N_BANDS, N_CHANNELS, N_DIMENSIONS = 64, 64, 64
FLOOR = 1e-4                # of the mean power: 40 dB down nothing is looked at
TEMPERATURE = 0.1
SECOND_VOICE_DB = 6.0       # a second voice is up to so much softer or louder than the first


class SoundEncoder(nn.Module):
    """A direction for a stretch of sound: convolutions over time (each frame sees 0.2 s), their mean and spread over
    the stretch, one linear layer.

    Source of the form: Snyder et al., "X-Vectors", ICASSP 2018.

    Args:
        hears_colour: also what stays the same all the time; without, the room and the microphone change nothing.
    """

    band_mean: Tensor

    def __init__(self, *, hears_colour: bool = False) -> None:
        super().__init__()
        self._hears_colour = hears_colour
        bands = band_matrix(N_BANDS, STFT.n_bins)
        self.register_buffer("band_mean", bands / bands.sum(0), persistent=False)
        sizes = [(N_BANDS, N_CHANNELS, 5, 1), (N_CHANNELS, N_CHANNELS, 3, 2), (N_CHANNELS, N_CHANNELS, 3, 3),
                 (N_CHANNELS, 2 * N_CHANNELS, 1, 1)]
        self.layers = nn.Sequential(*(layer for n_in, n_out, width, step in sizes for layer in (
            nn.Conv1d(n_in, n_out, width, dilation=step), nn.ReLU(), nn.GroupNorm(1, n_out))))
        self.head = nn.Linear(4 * N_CHANNELS, N_DIMENSIONS)

    def direction(self, power: Tensor) -> Tensor:
        """Of power spectra [B, N, F], N at least 20, of any level: unit vectors [B, D]."""
        return self._direction(self._pooled(power))

    def _direction(self, pooled: Tensor) -> Tensor:
        return nn.functional.normalize(self.head(pooled), dim=1)

    def _pooled(self, power: Tensor) -> Tensor:
        bands = power @ self.band_mean
        level = bands.mean((1, 2), keepdim=True)
        features = torch.log(bands / (level + 1e-9) + FLOOR).transpose(1, 2)
        hidden = self.layers(features if self._hears_colour else features - features.mean(2, keepdim=True))
        mean = hidden.mean(2)
        spread = ((hidden - mean[:, :, None]).square().mean(2) + 1e-5).sqrt()
        return torch.cat([mean, spread], 1)


class SpeakerNetwork(SoundEncoder):
    def __init__(self) -> None:
        super().__init__()
        self.overlap = nn.Linear(4 * N_CHANNELS, 1)

    def forward(self, power: Tensor) -> tuple[Tensor, Tensor]:
        """Of power spectra [B, N, F], N at least 20: unit vectors [B, D], and log-odds that two talk at once [B]."""
        pooled = self._pooled(power)
        return self._direction(pooled), self.overlap(pooled).squeeze(1)


def speaker_loss(network: SpeakerNetwork, batch: Batch) -> Tensor:
    """Cross-entropy of finding each item's neighbour of the same speaker among all others of the batch (of the process,
    where several share one: fewer others than one process alone would have), and of telling one voice from two.

    Source of the first: Chen et al., "A Simple Framework for Contrastive Learning", ICML 2020, eq. 1.
    """
    likeness, one, two = _judged(network, batch)
    finding = nn.functional.cross_entropy((likeness / TEMPERATURE).fill_diagonal_(-torch.inf),
                                          torch.arange(len(likeness)) ^ 1)
    telling = nn.functional.softplus(torch.cat([one, -two])).mean()
    return finding + telling


@torch.no_grad()
def evaluate_speakers(network: SpeakerNetwork, batches: list[Batch]) -> dict[str, float]:
    """The loss, and two equal error rates: where as many pairs of one speaker are taken for two as pairs of two for
    one; and where one voice is as often taken for two at once as two for one."""
    losses, same, different, alone, at_once = [], [], [], [], []
    for batch in batches:
        losses.append(speaker_loss(network, batch).item())
        likeness, one, two = _judged(network, batch)
        index = torch.arange(len(likeness))
        together = index[:, None] // 2 == index // 2
        same.append(likeness[together & (index[:, None] < index)])
        different.append(likeness[~together])
        alone.append(one)
        at_once.append(two)
    return {"loss": sum(losses) / len(losses),
            "equal_error_rate": equal_error_rate(torch.cat(same), torch.cat(different)),
            "overlap_error_rate": equal_error_rate(torch.cat(at_once), torch.cat(alone))}


def equal_error_rate(high: Tensor, low: Tensor) -> float:
    """Where as many of what should be `high` lie below a limit as of what should be `low` above it."""
    limits = high.sort().values
    missed = (torch.arange(len(limits)) + 0.5) / len(limits)
    mistaken = (low[:, None] > limits).float().mean(0)
    place = int((missed - mistaken).abs().argmin())
    return float((missed[place] + mistaken[place]) / 2)


def export_embedding(network: SpeakerNetwork, scores: dict[str, float]) -> bytes:
    """The sealed bytes of an ONNX file: `power` [B, N, F] to `embedding` [B, D] and `overlap` [B], B and N free."""
    stretches = {0: "stretches"}
    model = to_onnx(network, (torch.rand(2, 50, STFT.n_bins),), input_names=["power"],
                    output_names=["embedding", "overlap"],
                    dynamic_axes={"power": {0: "stretches", 1: "frames"}, "embedding": stretches, "overlap": stretches})
    onnx.helper.set_model_props(model, {f"pse.{key}": f"{value:.4f}" for key, value in scores.items()})
    return seal(model.SerializeToString())


def _judged(network: SpeakerNetwork, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines [B, B] between the items' embeddings, and log-odds [B] of two voices: of the items, and of them with a
    second voice."""
    embeddings, overlap = network(power(spectrogram(torch.cat([batch.noisy, with_second_voice(batch)]))))
    found = embeddings[:len(batch.noisy)]
    one, two = overlap.chunk(2)
    return found @ found.T, one, two


def with_second_voice(batch: Batch) -> Tensor:
    """The mixtures [B, T] with the speech of the item two places further in its group, another speaker's."""
    second = exchanged(batch.target, GROUP // 2)
    gain_db = torch.linspace(-SECOND_VOICE_DB, SECOND_VOICE_DB, len(second), device=second.device)[:, None]
    return batch.noisy + second * active_rms(batch.target) / active_rms(second) * 10 ** (gain_db / 20)
