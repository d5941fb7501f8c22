"""Turn pre-trained weights into the model files that ship: the generalists, the teacher, the SNR predictor and the
speaker embeddings.

    python export/models.py build/pretrain/tiny build/pretrain/small ... [--into pse_sdk/models]
    python export/models.py --again tiny small large                     [--into pse_sdk/models]

Each folder is what `python -m pse_sdk.training.pretrain` left. Without --into, what the package ships is replaced. With
--again, generalists that are already there get new graphs around their weights, and keep their scores and their day.
"""

import argparse
import datetime
import json
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from pse_sdk.config import SIZES
from pse_sdk.errors import PseError, SettingsError
from pse_sdk.model_format import ModelInfo, write_whole
from pse_sdk.onnx_denoiser import OnnxDenoiser
from pse_sdk.training.network import load_network
from pse_sdk.training.onnx_export import export_model
from pse_sdk.training.pretrain import load_checkpoint, save_weights
from pse_sdk.training.snr_network import SnrPredictor, export_predictor
from pse_sdk.training.speaker_network import SpeakerNetwork, export_embedding

CALIBRATION = ("speech_accuracy", "snr_bias_db", "snr_error_db", "share_calibration_error")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--again", metavar="SIZE", nargs="+", choices=SIZES, default=[])
    parser.add_argument("--into", type=Path, default=Path(__file__).parent.parent / "pse_sdk" / "models")
    args = parser.parse_args()
    if not args.folders and not args.again:
        parser.error("name folders of weights, or sizes with --again")
    args.into.mkdir(parents=True, exist_ok=True)
    for size in args.again:
        path = args.into / f"{size}.onnx"
        model = export_model(load_network(size, path.with_suffix(".safetensors")), OnnxDenoiser(path).info)
        print(f"{path}: {path.stat().st_size} bytes, now {len(model)}")
        write_whole(path, model)
    for folder in args.folders:
        what, last = read_run(folder)
        if what == "teacher":       # only personalization uses it, and that has torch
            network = load_network(what, folder / "weights.safetensors")
            save_weights(network.half(), args.into / f"{what}.safetensors")
            print(f"{args.into / what}.safetensors: step {last['step']}, {last['hours']} hours of mixtures")
            continue
        if what == "snr_predictor":
            predictor = SnrPredictor()
            predictor.load_state_dict(load_file(folder / "weights.safetensors"))
            model = export_predictor(predictor, {k: last[k] for k in CALIBRATION})
        elif what == "speaker_embedding":
            speakers = SpeakerNetwork()
            speakers.load_state_dict(load_file(folder / "weights.safetensors"))
            model = export_embedding(speakers, {k: last[k] for k in ("equal_error_rate", "overlap_error_rate")})
        else:
            network = load_network(what, folder / "weights.safetensors")
            scores = {"hours_of_mixtures": last["hours"], "validation_si_sdr_improvement": last["si_sdr_improvement"]}
            model = export_model(network, ModelInfo(what, 0, 0, 0, 0, 0, scores=scores,
                                                    created=datetime.date.today().isoformat()))
            save_weights(network, args.into / f"{what}.safetensors")
        write_whole(args.into / f"{what}.onnx", model)
        print(f"{args.into / what}.onnx: {len(model)} bytes, step {last['step']}, {last['hours']} hours of mixtures")


def read_run(folder: Path) -> tuple[str, dict[str, Any]]:
    """What was trained there, and the last row of its log.

    Raises:
        SettingsError: that cannot be found out.
    """
    try:
        checkpoint = load_checkpoint(folder / "checkpoint.pt")
        if checkpoint is None:
            raise FileNotFoundError("there is no checkpoint.pt")
        rows = [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]
        return checkpoint["settings"]["what"], next(row for row in rows if row["step"] == checkpoint["step"])
    except (PseError, OSError, ValueError, KeyError, StopIteration) as error:
        raise SettingsError(f"{folder} is not what a training left, or is damaged: {type(error).__name__} {error}; "
                            "expected checkpoint.pt, weights.safetensors and log.jsonl") from error


if __name__ == "__main__":
    try:
        main()
    except (PseError, OSError) as error:
        sys.exit(f"{error}")
