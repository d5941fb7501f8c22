"""The SNR predictor: for each frame of a recording, how likely it holds speech and how much of its energy is speech.

It looks ahead (it judges recordings, not live sound), is trained on mixtures whose parts are known, and learns a bounded
target, the share k = P_speech / (P_speech + P_noise), by cross-entropy: decibels of near-silent frames would dominate a
squared error. SNR in dB follows as 10 log10(k / (1 - k)).
"""

import io
import warnings

import onnx
import torch
from torch import Tensor, nn

from ..config import STFT
from ..model_format import seal
from .losses import spectrogram
from .mixing import Batch, active_rms
from .network import band_matrix

N_BANDS, HIDDEN = 48, 48
SPEECH_BELOW_DB = 30.0      # a frame is speech if it lies within this of the talker's active level
SHARE_BELOW_DB = 40.0       # pauses of speech this far down count as having none, also without noise


class SnrPredictor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        bands = band_matrix(N_BANDS, STFT.n_bins)
        self.register_buffer("band_mean", bands / bands.sum(0), persistent=False)
        self.gru = nn.GRU(N_BANDS, HIDDEN, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * HIDDEN, 2)

    @property
    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(self, power: Tensor) -> Tensor:
        """Logits [B, N, 2] (speech, share of energy) of power spectra [B, N, F]; independent of level."""
        bands = power @ self.band_mean
        level = bands.mean((1, 2), keepdim=True)
        features = torch.log(bands / (level + 1e-9) + 1e-5) * 0.25 + 1.0
        hidden, _ = self.gru(features)
        return self.head(hidden)


def frame_labels(batch: Batch) -> Tensor:
    """What the predictor should say [B, N, 2]: 1 where the frame holds speech, and the share of speech energy."""
    speech = spectrogram(batch.target).square().sum((2, 3))
    noise = spectrogram(batch.noisy - batch.target).square().sum((2, 3))
    # Parseval: a frame of unit RMS under the window has this energy
    active = active_rms(batch.target).square() * STFT.n_fft * STFT.n_fft / 4
    has_speech = batch.has_speech[:, None]
    is_speech = (speech > active * 10 ** (-SPEECH_BELOW_DB / 10)) & has_speech
    share = speech / (speech + noise + active * 10 ** (-SHARE_BELOW_DB / 10) + 1e-6)
    return torch.stack([is_speech.float(), torch.where(has_speech, share, 0.0)], dim=2)


def predictor_loss(network: SnrPredictor, batch: Batch) -> Tensor:
    power = spectrogram(batch.noisy).square().sum(2)
    return nn.functional.binary_cross_entropy_with_logits(network(power), frame_labels(batch))


@torch.no_grad()
def evaluate_predictor(network: SnrPredictor, batches: list[Batch]) -> dict[str, float]:
    """Loss, accuracy of the speech decision, and the SNR's calibration in speech frames: bias and mean error in dB."""
    losses, hits, errors = [], [], []
    for batch in batches:
        losses.append(predictor_loss(network, batch).item())
        guess = torch.sigmoid(network(spectrogram(batch.noisy).square().sum(2)))
        label = frame_labels(batch)
        hits.append(((guess[..., 0] > 0.5) == (label[..., 0] > 0.5)).float().mean().item())
        known = (label[..., 0] > 0.5) & (label[..., 1] > 0.03) & (label[..., 1] < 0.997)
        errors.append((_snr_db(guess[..., 1]) - _snr_db(label[..., 1]))[known])
    error = torch.cat(errors)
    return {"loss": sum(losses) / len(losses), "speech_accuracy": sum(hits) / len(hits),
            "snr_bias_db": error.mean().item(), "snr_error_db": error.abs().mean().item()}


def _snr_db(share: Tensor) -> Tensor:
    return (10 * torch.log10(share / (1 - share).clamp_min(1e-6) + 1e-9)).clamp(-15, 35)


def export_predictor(network: SnrPredictor, scores: dict[str, float]) -> bytes:
    """The sealed bytes of an ONNX file: `power` [1, N, F] to `speech` and `share` [1, N], N free."""
    buffer = io.BytesIO()

    class Probabilities(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, power: Tensor) -> tuple[Tensor, Tensor]:
            both = torch.sigmoid(self.network(power))
            return both[..., 0], both[..., 1]

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(Probabilities().eval(), (torch.rand(1, 50, STFT.n_bins),), buffer, dynamo=False,
                          input_names=["power"], output_names=["speech", "share"],
                          dynamic_axes={"power": {1: "frames"}, "speech": {1: "frames"}, "share": {1: "frames"}})
    model = onnx.load_from_string(buffer.getvalue())
    for node in model.graph.node:
        node.doc_string = ""
    onnx.helper.set_model_props(model, {f"pse.{key}": f"{value:.4f}" for key, value in scores.items()})
    return seal(model.SerializeToString())
