"""What it costs to keep weights as float16: size, time and quality of both kinds of model file, side by side.

    python benchmarks/stored_weights.py --users build/users [--set noise] [--per-user 8]

The users are folders as for `benchmarks/personalization.py`. Needs pse_sdk[train,bench].
"""

import argparse
import tempfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import soundfile

from pse_sdk import Enhancer
from pse_sdk.benchmark import EMPTY, LatencyPlan, installed_generalists, measure_latency
from pse_sdk.config import MODELS, SIZES
from pse_sdk.metrics import Scores, score
from pse_sdk.tables import environment, environment_line, format_table, write_results
from pse_sdk.training.network import load_network
from pse_sdk.training.onnx_export import export_model

RESULTS = Path(__file__).resolve().parent / "results"
RATE = 16_000
PLAN = LatencyPlan(n_steps=4000, seconds=1.0, n_fresh=3)

NOTES = f"""\
Step: median of {PLAN.n_steps:,} hops through the model, hot, models taking turns; load: median of {PLAN.n_fresh} fresh
processes; both as in `latency.md`. Scores: means over all clips. The files differ in nothing but the weights' type: the
runtime widens float16 once, when it loads the file, so both compute in float32.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=Path, required=True)
    parser.add_argument("--set", default="noise")
    parser.add_argument("--per-user", type=int, default=8, help="clips of each user")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(installed_generalists()))
    parser.add_argument("--out", type=Path, default=RESULTS / "stored_weights.md")
    parser.add_argument("--json", type=Path, default=RESULTS / "stored_weights.json")
    args = parser.parse_args()
    clips = [clip for folder in sorted(args.users.glob(f"*/tests/{args.set}"))
             for clip in sorted(folder.glob("*.noisy.wav"))[:args.per_user]]
    if not clips:
        parser.exit(2, f"{args.users}: no user has clips in tests/{args.set}; make users first\n")

    above = environment()
    with tempfile.TemporaryDirectory() as folder:
        models = {f"{size}, {kind}": write_model(size, kind, Path(folder))
                  for size in args.sizes for kind in ("float32", "float16")}
        costs = {row.name: row for row in measure_latency(models, PLAN)}
        values = {EMPTY: {"step_us": costs[EMPTY].step_us.p50}}
        for name, path in models.items():
            values[name] = {"file_bytes": costs[name].file_bytes, "load_ms": costs[name].load_ms,
                            "step_us": costs[name].step_us.p50, **mean_scores(Enhancer(path), clips)}
            print(name, values[name], flush=True)

    rows = [["model, weights", "file KiB", "load ms", "step us", "SI-SDRi dB", "PESQ", "ESTOI"],
            [EMPTY, "", "", f"{values[EMPTY]['step_us']:.1f}", "", "", ""]]
    rows += [[name, f"{v['file_bytes'] / 1024:.1f}", f"{v['load_ms']:.1f}", f"{v['step_us']:.1f}",
              f"{v['si_sdr_improvement']:.3f}", f"{v['pesq']:.4f}", f"{v['estoi']:.4f}"]
             for name, v in values.items() if name != EMPTY]
    page = (f"# Weights as float16\n\n{environment_line(above)}; {len(clips)} clips of set `{args.set}`\n\n"
            f"{format_table(rows)}\n\n{NOTES}")
    write_results(page, {"environment": above, "n_clips": len(clips), "models": values}, args.out, args.json)
    print(f"\n{page}\nwritten: {args.out}, {args.json}")


def write_model(size: str, kind: str, folder: Path) -> Path:
    network = load_network(size, MODELS / f"{size}.safetensors")
    path = folder / f"{size}-{kind}.onnx"
    path.write_bytes(export_model(network, Enhancer(size=size).info, half=kind == "float16"))
    return path


def mean_scores(enhancer: Enhancer, clips: list[Path]) -> dict[str, float]:
    scores = []
    for clip in clips:
        noisy, clean = (soundfile.read(path, dtype="float32")[0]
                        for path in (clip, clip.with_name(clip.name.replace(".noisy.", ".clean."))))
        scores.append(score(enhancer.enhance(noisy, RATE), noisy, clean))
    return {f.name: float(np.nanmean([getattr(s, f.name) for s in scores])) for f in fields(Scores)}


if __name__ == "__main__":
    main()
