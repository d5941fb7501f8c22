"""The SNR predictor: for each frame of a recording, how likely it holds speech and how much of its energy is speech.

It looks ahead (it judges recordings, not live sound) and is trained on mixtures whose parts are known. Three outputs a
frame: speech or not and the share k = P_speech / (P_speech + P_noise), both by cross-entropy; and the SNR in dB,
clipped to [-15, 35], by its absolute error in speech frames. k is an expectation, good as a weight; turned into dB it
would come out far too low where the predictor is unsure, so the SNR is learnt by itself.
"""

import onnx
import torch
from torch import Tensor, nn

from ..config import STFT
from ..model_format import seal
from .losses import spectrogram
from .mixing import Batch, active_rms
from .network import band_matrix
from .onnx_export import to_onnx
from .processes import mean_over_processes

N_BANDS, HIDDEN = 48, 48
DB_SCALE = 20.0             # the SNR output is in units of this
SPEECH_BELOW_DB = 30.0      # a frame is speech if it lies within this of the talker's active level
SHARE_BELOW_DB = 40.0       # pauses of speech this far down count as having none, also without noise


class SnrPredictor(nn.Module):
    band_mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        bands = band_matrix(N_BANDS, STFT.n_bins)
        self.register_buffer("band_mean", bands / bands.sum(0), persistent=False)
        self.gru = nn.GRU(N_BANDS, HIDDEN, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * HIDDEN, 3)

    @property
    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def forward(self, power: Tensor) -> Tensor:
        """Logits of speech and of its share of energy, and SNR / 20 dB [B, N, 3], of power spectra [B, N, F]."""
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
    guess = network(spectrogram(batch.noisy).square().sum(2))
    label = frame_labels(batch)
    snr_error = (guess[..., 2] - snr_db(label[..., 1]) / DB_SCALE).abs() * label[..., 0]
    # the mean over the speech frames of all processes, of which each has another number
    n_speech = mean_over_processes(label[..., 0].sum()).clamp_min(1)
    return nn.functional.binary_cross_entropy_with_logits(guess[..., :2], label) + snr_error.sum() / n_speech


@torch.no_grad()
def evaluate_predictor(network: SnrPredictor, batches: list[Batch]) -> dict[str, float]:
    """Loss, accuracy of the speech decision, bias and mean error of the SNR in speech frames in dB, and how far the
    share of energy is off on average within tenths of its range (expected calibration error)."""
    losses, hits, errors, shares, truths = [], [], [], [], []
    for batch in batches:
        losses.append(predictor_loss(network, batch).item())
        guess = network(spectrogram(batch.noisy).square().sum(2))
        label = frame_labels(batch)
        hits.append(((guess[..., 0] > 0) == (label[..., 0] > 0.5)).float().mean().item())
        errors.append((guess[..., 2] * DB_SCALE - snr_db(label[..., 1]))[label[..., 0] > 0.5])
        shares.append(torch.sigmoid(guess[..., 1]).flatten())
        truths.append(label[..., 1].flatten())
    error, share, truth = torch.cat(errors), torch.cat(shares), torch.cat(truths)
    tenth = (share * 10).long().clamp_max(9)
    off = [(share[tenth == i].mean() - truth[tenth == i].mean()).abs() * (tenth == i).float().mean()
           for i in range(10) if bool((tenth == i).any())]
    return {"share_calibration_error": float(sum(off)), "loss": sum(losses) / len(losses),
            "speech_accuracy": sum(hits) / len(hits),
            "snr_bias_db": error.mean().item(), "snr_error_db": error.abs().mean().item()}


def snr_db(share: Tensor) -> Tensor:
    """SNR in dB, clipped to [-15, 35], of a share of energy."""
    return (10 * torch.log10(share / (1 - share).clamp_min(1e-6) + 1e-9)).clamp(-15, 35)


def export_predictor(network: SnrPredictor, scores: dict[str, float]) -> bytes:
    """The sealed bytes of an ONNX file: `power` [1, N, F] to `speech`, `share` and `snr_db` [1, N], N free."""
    class Probabilities(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, power: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            guess = self.network(power)
            return torch.sigmoid(guess[..., 0]), torch.sigmoid(guess[..., 1]), (guess[..., 2] * DB_SCALE).clamp(-15, 35)

    outputs = ["speech", "share", "snr_db"]
    model = to_onnx(Probabilities(), (torch.rand(1, 50, STFT.n_bins),), input_names=["power"], output_names=outputs,
                    dynamic_axes={name: {1: "frames"} for name in ["power", *outputs]})
    onnx.helper.set_model_props(model, {f"pse.{key}": f"{value:.4f}" for key, value in scores.items()})
    return seal(model.SerializeToString())
