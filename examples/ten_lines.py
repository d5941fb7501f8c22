"""Enhance a recording with numpy and onnxruntime alone: the model file brings its own signal processing.

    python examples/ten_lines.py me.onnx noisy.wav enhanced.wav         16 kHz, mono, 16 bits
"""

import os
import sys
import wave

os.environ["ORT_DISABLE_TELEMETRY"] = "1"       # before the import, or onnxruntime reports to its vendor

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402


def enhance(model_path: str, samples: np.ndarray) -> np.ndarray:
    """The speech in `samples` [T], float32 at the model's rate, aligned with them."""
    session = onnxruntime.InferenceSession(model_path, providers=["CPUExecutionProvider"])
    info = session.get_modelmeta().custom_metadata_map
    hop, delay = int(info["pse.hop_length"]), int(info["pse.delay"])
    state = {i.name: np.zeros(i.shape, np.float32) for i in session.get_inputs() if i.name.startswith("state_")}
    enhanced = []
    for chunk in np.pad(samples, (0, delay + -(len(samples) + delay) % hop)).reshape(-1, 1, hop):
        out, *next_state = session.run(None, {"samples": chunk, **state})
        state = dict(zip(state, next_state, strict=True))       # outputs come in the order of the inputs
        enhanced.append(out[0])
    return np.concatenate(enhanced)[delay:delay + len(samples)]


def main() -> None:
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    model_path, source, target = sys.argv[1:]
    with wave.open(source) as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (16_000, 1, 2):
            sys.exit(f"{source}: expected 16 kHz, mono, 16 bits")
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 2**15
    enhanced = enhance(model_path, samples)
    with wave.open(target, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", "not compressed"))
        file.writeframes(np.clip(np.rint(enhanced * 2**15), -(2**15), 2**15 - 1).astype("<i2").tobytes())


if __name__ == "__main__":
    main()
