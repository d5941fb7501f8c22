"""Which frames of a noisy recording can be trusted: speech probability, SNR, and the purification weight.

The weight is the square of the share of speech energy k = P_speech / (P_speech + P_noise), the Wiener gain: near 1 where
the recording is clean, 0.25 at 0 dB. Source of the idea: Sivaraman and Kim, IEEE JSTSP 2022 (data purification), whose
logistic of the SNR in dB is so steep that it only says yes or no.
"""

from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnxruntime

from .config import STFT
from .model_format import read_model
from .onnx_denoiser import session_options
from .stft import power_spectrogram

WEIGHT_EXPONENT = 2.0
_CHUNK, _MARGIN = 320, 32       # frames judged at once, and how many at each inner edge are judged twice


@dataclass(frozen=True)
class FrameAnalysis:
    """What the SNR predictor says of a recording. Shape: `speech`, `share` [N], both in [0, 1]."""

    speech: np.ndarray      # probability that the frame holds speech
    share: np.ndarray       # of the frame's energy that is speech

    @property
    def snr_db(self) -> np.ndarray:
        """[N], from -15 to 35 dB."""
        share = np.clip(self.share, 1e-6, 1 - 1e-6)
        return np.clip(10 * np.log10(share / (1 - share)), -15, 35)

    @property
    def weight(self) -> np.ndarray:
        """Purification weight [N] in [0, 1]."""
        return self.share**WEIGHT_EXPONENT

    def part(self, start: int, stop: int) -> "FrameAnalysis":
        return FrameAnalysis(self.speech[start:stop], self.share[start:stop])


class FramePredictor:
    """The SNR predictor that ships with the package.

    Raises:
        ModelFileError: its file is missing or damaged.
    """

    @cached_property
    def _session(self) -> onnxruntime.InferenceSession:
        model = read_model(Path(str(files("pse_sdk"))) / "models" / "snr_predictor.onnx")
        return onnxruntime.InferenceSession(model, session_options(), providers=["CPUExecutionProvider"])

    @property
    def calibration(self) -> dict[str, float]:
        """Measured on speakers and noises it was not trained on: `snr_bias_db`, `snr_error_db`, `speech_accuracy`."""
        metadata = self._session.get_modelmeta().custom_metadata_map
        return {key[4:]: float(value) for key, value in metadata.items()
                if key in ("pse.snr_bias_db", "pse.snr_error_db", "pse.speech_accuracy")}

    def analyse(self, samples: np.ndarray) -> FrameAnalysis:
        """Judge every frame of a recording at the model's rate. Shape: `samples` [T], N = T // hop_length."""
        power = power_spectrogram(samples)
        speech, share = np.zeros(len(power), np.float32), np.zeros(len(power), np.float32)
        for start in range(0, len(power), _CHUNK - 2 * _MARGIN):
            stop = min(start + _CHUNK, len(power))
            got_speech, got_share = self._session.run(["speech", "share"], {"power": power[None, start:stop]})
            inner = 0 if start == 0 else _MARGIN
            speech[start + inner:stop], share[start + inner:stop] = got_speech[0, inner:], got_share[0, inner:]
            if stop == len(power):
                break
        silent = power.sum(1) < 1e-7        # digital silence holds neither
        return FrameAnalysis(np.where(silent, 0, speech), np.where(silent, 0, share))


def frames_to_samples(frames: np.ndarray) -> np.ndarray:
    """A value a frame [N] as a value a sample [N * hop_length]."""
    return np.repeat(frames, STFT.hop_length)
