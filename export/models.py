"""Turn pre-trained weights into the model files that ship: the generalists, the teacher, the SNR predictor and the
speaker embeddings.

    python export/models.py build/pretrain/tiny build/pretrain/small ... [--into pse_sdk/models]
    python export/models.py --again tiny small large                     [--into pse_sdk/models]
    python export/models.py --mix large before.safetensors 0.35          [--into pse_sdk/models]

Each folder is what `python -m pse_sdk.training.pretrain` left. Without --into, what the package ships is replaced. With
--again, generalists that are already there get new graphs around their weights, and keep their scores and their day.
With --mix, weights that are already there move a share of the way to those of a file, such as the ones that their
training began with: what is left in between is often better on what either learnt from than both.
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
from pse_sdk.training.network import Denoiser, load_network, load_weights, save_weights
from pse_sdk.training.onnx_export import export_model
from pse_sdk.training.run_folder import RunFolder
from pse_sdk.training.snr_network import SnrPredictor, export_predictor
from pse_sdk.training.speaker_network import SpeakerNetwork, export_embedding
from pse_sdk.training.specialist import interpolate
from pse_sdk.training.user_network import USER, build_user_network

CALIBRATION = ("speech_accuracy", "snr_bias_db", "snr_error_db", "share_calibration_error")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--again", metavar="SIZE", nargs="+", choices=SIZES, default=[])
    parser.add_argument("--mix", metavar=("SIZE", "FILE", "SHARE"), nargs=3, action="append", default=[],
                        help="SIZE may be teacher; SHARE lies between 0 and 1")
    parser.add_argument("--into", type=Path, default=Path(__file__).parent.parent / "pse_sdk" / "models")
    args = parser.parse_args()
    if not args.folders and not args.again and not args.mix:
        parser.error("name folders of weights, or sizes with --again or --mix")
    runs = [(folder, *read_run(folder)) for folder in args.folders]     # all of them, before anything is replaced
    try:
        args.into.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--into {args.into}: is no folder to write to ({error.strerror})") from error
    for size in args.again:
        path = args.into / f"{size}.onnx"
        model = export_model(load_network(size, path.with_suffix(".safetensors")), OnnxDenoiser(path).info)
        print(f"{path}: {path.stat().st_size} bytes, now {len(model)}")
        write_whole(path, model)
    for size, other, share in args.mix:
        mix(args.into, size, Path(other), share)
    for folder, what, last in runs:
        if what == "snr_predictor":
            predictor = SnrPredictor()
            predictor.load_state_dict(load_file(folder / "weights.safetensors"))
            model = export_predictor(predictor, {k: last[k] for k in CALIBRATION})
        elif what == "speaker_embedding":
            speakers = SpeakerNetwork()
            speakers.load_state_dict(load_file(folder / "weights.safetensors"))
            model = export_embedding(speakers, {k: last[k] for k in ("equal_error_rate", "overlap_error_rate")})
        elif what.endswith(USER):
            path = args.into / f"{what}.safetensors"
            save_weights(load_weights(build_user_network(what), folder / "weights.safetensors", what).half(), path)
            print(f"{path}: step {last['step']}, {last['hours']} hours of mixtures")
            continue
        else:
            scores = {"hours_of_mixtures": last["hours"], "validation_si_sdr_improvement": last["si_sdr_improvement"]}
            ship(load_network(what, folder / "weights.safetensors"), what, scores, args.into)
            print(f"{args.into / what}: step {last['step']}, {last['hours']} hours of mixtures")
            continue
        write_whole(args.into / f"{what}.onnx", model)
        print(f"{args.into / what}.onnx: {len(model)} bytes, step {last['step']}, {last['hours']} hours of mixtures")


def ship(network: Denoiser, size: str, scores: dict[str, float], models: Path) -> None:
    """Write the weights of one size into a folder of models, and its graph; of the teacher, which only personalization
    uses, weights alone."""
    weights = models / f"{size}.safetensors"
    if size == "teacher":
        save_weights(network.half(), weights)
        return
    model = export_model(network, ModelInfo(size, 0, 0, 0, 0, 0, scores=scores,
                                            created=datetime.date.today().isoformat()))
    save_weights(network, weights)
    write_whole(models / f"{size}.onnx", model)


def mix(models: Path, size: str, other: Path, share: str) -> None:
    """Move the weights of one size in a folder of models towards those of another file, and its graph with them.

    What training measured of the weights before is no longer said of them.

    Source: Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022.

    Raises:
        SettingsError: the share is none. ModelFileError: one of the files is missing or of another size.
    """
    try:
        if not 0 <= (part := float(share)) <= 1:
            raise ValueError
    except ValueError:
        raise SettingsError(f"--mix {size} {other} {share}: expected a share between 0 and 1 at the end") from None
    path = models / f"{size}.safetensors"
    network = interpolate(load_network(size, path), load_network(size, other), part)
    told = {} if size == "teacher" else OnnxDenoiser(models / f"{size}.onnx").info.scores
    ship(network, size, {name: told[name] for name in ("hours_of_mixtures",) if name in told}, models)
    print(f"{path}: moved {part:g} of the way to {other}")


def read_run(folder: Path) -> tuple[str, dict[str, Any]]:
    """What was trained there, and the last row of its log.

    Raises:
        SettingsError: that cannot be found out.
    """
    try:
        checkpoint = RunFolder(folder).checkpoint()
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
