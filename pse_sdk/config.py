"""The numbers that everything else agrees on. Each has its home here and nowhere else."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class StftConfig:
    """Frames of the model: 32 ms windows (square root of Hann) every 16 ms at 16 kHz."""

    sample_rate: int = 16_000
    n_fft: int = 512
    hop_length: int = 256

    @property
    def n_bins(self) -> int:
        return self.n_fft // 2 + 1

    @property
    def delay(self) -> int:
        """Samples by which a frame-by-frame output lags its input."""
        return self.n_fft - self.hop_length

    @property
    def hop_seconds(self) -> float:
        return self.hop_length / self.sample_rate


STFT = StftConfig()

SIZES = ("tiny", "small", "medium", "large")
"""Names of the network sizes, from at most 35 k to about 1 M parameters."""

MODELS = Path(__file__).parent / "models"
"""What ships: generalists, their weights, the teacher, the SNR predictor."""

SOUNDFILE_SUFFIXES = {".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf"}
PHONE_SUFFIXES = {".m4a", ".mp4", ".webm", ".amr", ".awb", ".3gp", ".3g2", ".aac", ".mkv", ".mka", ".mov", ".wma"}
"""What a folder is searched for: what libsndfile reads, and what only FFmpeg does."""
