"""Which frames of a noisy recording can be trusted: speech probability, SNR, and the purification weight.

The weight is the square of the share of speech energy k = P_speech / (P_speech + P_noise), the Wiener gain: near 1
where the recording is clean, 0.25 at 0 dB. Source of the idea: Sivaraman and Kim, IEEE JSTSP 2022 (data
purification), whose logistic of the SNR in dB is so steep that it only says yes or no.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnxruntime

from .config import MODELS
from .model_format import read_model
from .onnx_denoiser import open_session
from .stft import power_spectrogram

WEIGHT_EXPONENT = 2.0
OUTPUTS = ["speech", "share", "snr_db"]
_CHUNK, _MARGIN = 320, 32       # frames judged at once, and how many at each inner edge are judged twice


@dataclass(frozen=True)
class FrameAnalysis:
    """What the SNR predictor says of a recording. Shape: all [N]."""

    speech: np.ndarray      # probability that the frame holds speech
    share: np.ndarray       # of the frame's energy that is speech, 0 to 1
    snr_db: np.ndarray      # -15 to 35, meant for frames with speech

    @property
    def weight(self) -> np.ndarray:
        """Purification weight [N] in [0, 1]."""
        return self.share**WEIGHT_EXPONENT

    def part(self, start: int, stop: int) -> "FrameAnalysis":
        return FrameAnalysis(self.speech[start:stop], self.share[start:stop], self.snr_db[start:stop])


class FramePredictor:
    """The SNR predictor that ships with the package.

    Raises:
        ModelFileError: its file is missing or damaged.
    """

    @cached_property
    def _session(self) -> onnxruntime.InferenceSession:
        return open_session(read_model(MODELS / "snr_predictor.onnx"))

    @property
    def calibration(self) -> dict[str, float]:
        """Measured on speakers and noises it was not trained on: `speech_accuracy` (share of frames), `snr_bias_db`,
        `snr_error_db` (mean absolute error) and `share_calibration_error`."""
        metadata = self._session.get_modelmeta().custom_metadata_map
        return {key.removeprefix("pse."): float(value) for key, value in metadata.items() if key != "pse.sha256"}

    def analyse(self, samples: np.ndarray) -> FrameAnalysis:
        """Judge every frame of a recording at the model's rate. Shape: `samples` [T], N = T // hop_length."""
        power = power_spectrogram(samples)
        found = np.zeros((len(OUTPUTS), len(power)), np.float32)
        for start in range(0, len(power), _CHUNK - 2 * _MARGIN):
            stop = min(start + _CHUNK, len(power))
            inner = 0 if start == 0 else _MARGIN
            got = np.concatenate(self._session.run(OUTPUTS, {"power": power[None, start:stop]}))
            found[:, start + inner:stop] = got[:, inner:]
            if stop == len(power):
                break
        silent = power.sum(1) < 1e-7        # digital silence holds neither speech nor noise
        found[:2, silent] = 0.0
        return FrameAnalysis(*found)
