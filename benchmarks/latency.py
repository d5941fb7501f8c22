"""What denoisers cost on this machine, kept as a page, as figures, and as a page with plots.

    python benchmarks/latency.py                                   # every generalist that is installed
    python benchmarks/latency.py --model "specialist tiny, auto=me.onnx" --seconds 60    # a specialist; longer
    python benchmarks/latency.py --peers peers.py gtcrn dtln --quality benchmarks/results/personalization.json
    python benchmarks/latency.py --quick                           # a look, half a minute

`pse benchmark`, whose result goes into three files instead: --out with .md, .json and .html. Close other programs
first: the load average stands above the table, and how each figure is measured below it. Needs nothing but pse_sdk.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from pse_sdk.benchmark import QUICK, LatencyPlan, installed_generalists, measure_latency
from pse_sdk.benchmark_page import comparison_page
from pse_sdk.benchmark_report import Comparison, read_quality
from pse_sdk.errors import PseError
from pse_sdk.tables import environment, write_results

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=[], metavar="[NAME=]FILE", help="model files of specialists")
    parser.add_argument("--peers", nargs="+", default=[], metavar=("FILE", "NAME"), help="other people's denoisers")
    parser.add_argument("--quality", type=Path, metavar="JSON", help="of benchmarks/personalization.py")
    parser.add_argument("--set", default="noise", help="which of its test sets (%(default)s)")
    parser.add_argument("--seconds", type=float, help="of audio at real time, for each model")
    parser.add_argument("--quick", action="store_true", help="few steps: a look, not a result")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "latency", help="of .md, .json and .html")
    args = parser.parse_args()
    plan = replace(QUICK if args.quick else LatencyPlan(), seed=args.seed)
    plan = replace(plan, seconds=args.seconds) if args.seconds else plan
    if len(args.peers) == 1:
        parser.error("--peers needs a file and at least one name")

    models = {f"generalist {size}": path for size, path in installed_generalists().items()}
    for given in args.model:
        name, _, path = given.rpartition("=")
        name = name or f"specialist {Path(path).stem}"
        if name in models:
            parser.error(f"two models are called {name!r}; name one of them: NAME={path}")
        models[name] = Path(path)

    above = {**environment(), "seed": args.seed}        # before measuring makes its own load
    try:
        quality = read_quality(args.quality, args.set) if args.quality else None
        rows = measure_latency(models, plan, lambda words: print(words, flush=True),
                               [(args.peers[0], name) for name in args.peers[1:]])
    except PseError as error:
        parser.exit(2, f"{error}\n")

    if quality and quality.missing(rows):
        print(quality.missing(rows))
    comparison = Comparison(above, plan, rows, quality)
    page = f"# Latency\n\n{comparison.markdown()}"
    write_results(page, comparison.values(), args.out.with_suffix(".md"), args.out.with_suffix(".json"))
    args.out.with_suffix(".html").write_text(comparison_page("Denoisers side by side", comparison), "utf-8")
    print(f"\n{page}\nwritten: {args.out} (.md, .json, .html)")


if __name__ == "__main__":
    main()
