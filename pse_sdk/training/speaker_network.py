"""Speaker embeddings: a direction for each stretch of speech, near for one person's, far for two people's.

Trained on noisy mixtures of which two neighbours in a batch hold the same speaker, in other words, noise, rooms and
equalisers (`MixingConfig.takes`): each has to find the other among all. Used to notice that recordings hold more than
one talker.
"""

import onnx
import torch
from torch import Tensor, nn

from ..config import STFT
from ..model_format import seal
from .losses import power, spectrogram
from .mixing import Batch
from .network import band_matrix
from .onnx_export import to_onnx

N_BANDS, N_CHANNELS, N_DIMENSIONS = 48, 64, 64
FLOOR = 1e-4                # of the mean power: 40 dB down nothing is looked at
TEMPERATURE = 0.1


class SpeakerNetwork(nn.Module):
    """Convolutions over time (each frame sees 0.2 s), their mean and spread over the stretch, one linear layer.

    Source of the form: Snyder et al., "X-Vectors", ICASSP 2018.
    """

    band_mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        bands = band_matrix(N_BANDS, STFT.n_bins)
        self.register_buffer("band_mean", bands / bands.sum(0), persistent=False)
        sizes = [(N_BANDS, N_CHANNELS, 5, 1), (N_CHANNELS, N_CHANNELS, 3, 2), (N_CHANNELS, N_CHANNELS, 3, 3),
                 (N_CHANNELS, 2 * N_CHANNELS, 1, 1)]
        self.layers = nn.Sequential(*(layer for n_in, n_out, width, step in sizes for layer in (
            nn.Conv1d(n_in, n_out, width, dilation=step), nn.ReLU(), nn.GroupNorm(1, n_out))))
        self.head = nn.Linear(4 * N_CHANNELS, N_DIMENSIONS)

    def forward(self, power: Tensor) -> Tensor:
        """Unit vectors [B, D] of power spectra [B, N, F], N at least 20."""
        bands = power @ self.band_mean
        level = bands.mean((1, 2), keepdim=True)
        features = torch.log(bands / (level + 1e-9) + FLOOR).transpose(1, 2)
        # without what stays the same all the time: the room and the microphone
        hidden = self.layers(features - features.mean(2, keepdim=True))
        mean = hidden.mean(2)
        spread = ((hidden - mean[:, :, None]).square().mean(2) + 1e-5).sqrt()
        return nn.functional.normalize(self.head(torch.cat([mean, spread], 1)), dim=1)


def speaker_loss(network: SpeakerNetwork, batch: Batch) -> Tensor:
    """Cross-entropy of finding each item's neighbour of the same speaker among all others of the batch (of the process,
    where several share one: fewer others than one process alone would have).

    Source: Chen et al., "A Simple Framework for Contrastive Learning", ICML 2020, eq. 1.
    """
    likeness = _likeness(network, batch) / TEMPERATURE
    return nn.functional.cross_entropy(likeness.fill_diagonal_(-torch.inf), torch.arange(len(likeness)) ^ 1)


@torch.no_grad()
def evaluate_speakers(network: SpeakerNetwork, batches: list[Batch]) -> dict[str, float]:
    """The loss, and the equal error rate: where as many pairs of one speaker are taken for two as pairs of two for
    one."""
    losses, same, different = [], [], []
    for batch in batches:
        losses.append(speaker_loss(network, batch).item())
        likeness = _likeness(network, batch)
        index = torch.arange(len(likeness))
        together = index[:, None] // 2 == index // 2
        same.append(likeness[together & (index[:, None] < index)])
        different.append(likeness[~together])
    one, two = torch.cat(same), torch.cat(different)
    limits = one.sort().values
    missed = (torch.arange(len(limits)) + 0.5) / len(limits)
    mistaken = (two[:, None] > limits).float().mean(0)
    place = int((missed - mistaken).abs().argmin())
    return {"loss": sum(losses) / len(losses), "equal_error_rate": float((missed[place] + mistaken[place]) / 2)}


def export_embedding(network: SpeakerNetwork, scores: dict[str, float]) -> bytes:
    """The sealed bytes of an ONNX file: `power` [B, N, F] to `embedding` [B, D], B and N free."""
    model = to_onnx(network, (torch.rand(2, 50, STFT.n_bins),), input_names=["power"], output_names=["embedding"],
                    dynamic_axes={"power": {0: "stretches", 1: "frames"}, "embedding": {0: "stretches"}})
    onnx.helper.set_model_props(model, {f"pse.{key}": f"{value:.4f}" for key, value in scores.items()})
    return seal(model.SerializeToString())


def _likeness(network: SpeakerNetwork, batch: Batch) -> Tensor:
    """Cosines [B, B] between the items' embeddings."""
    found = network(power(spectrogram(batch.noisy)))
    return found @ found.T
