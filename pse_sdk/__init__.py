"""Speech enhancement that learns its user, on the user's own device.

    from pse_sdk import Enhancer

    clean = Enhancer().enhance(noisy, sample_rate=48_000)
    mine = Enhancer.personalize(["monday.wav", "kitchen.flac"])
    mine.save("me.onnx")
"""

import os

# onnxruntime reports to its vendor unless this is set before its first import; recordings and habits stay here.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from .child import Progress  # noqa: E402
from .enhancer import Enhancer  # noqa: E402
from .errors import (  # noqa: E402
    AudioError,
    DeviceError,
    MissingDependencyError,
    ModelFileError,
    PersonalizationCancelled,
    PersonalizationError,
    PseError,
    SettingsError,
)
from .job import METHODS, OTHERS  # noqa: E402
from .report import Report  # noqa: E402
from .together import process_together  # noqa: E402

__all__ = [
    "METHODS",
    "OTHERS",
    "AudioError",
    "DeviceError",
    "Enhancer",
    "MissingDependencyError",
    "ModelFileError",
    "PersonalizationCancelled",
    "PersonalizationError",
    "Progress",
    "PseError",
    "Report",
    "SettingsError",
    "process_together",
]
__version__ = "0.1.0"
