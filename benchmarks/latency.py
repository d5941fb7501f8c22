"""What the models cost on this machine: step times, CPU at real time, start, memory, size.

    python benchmarks/latency.py                                   # every generalist that is installed
    python benchmarks/latency.py --model me.onnx --seconds 60      # and a specialist; longer at real time
    python benchmarks/latency.py --quick                           # a look, half a minute

Close other programs first: the load average stands above the table. How each figure is measured stands below it (and in
`pse_sdk.benchmark.method_notes`). Needs nothing but pse_sdk.
"""

import argparse
from dataclasses import asdict, replace
from pathlib import Path

from pse_sdk.benchmark import (
    QUICK,
    LatencyPlan,
    environment,
    environment_line,
    installed_generalists,
    markdown_table,
    measure_latency,
    method_notes,
)
from pse_sdk.errors import PseError
from pse_sdk.tables import write_results

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, nargs="+", default=[], help="model files of specialists")
    parser.add_argument("--seconds", type=float, help="of audio at real time, for each model")
    parser.add_argument("--quick", action="store_true", help="few steps: a look, not a result")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "latency.md")
    parser.add_argument("--json", type=Path, default=RESULTS / "latency.json")
    args = parser.parse_args()
    plan = replace(QUICK if args.quick else LatencyPlan(), seed=args.seed)
    plan = replace(plan, seconds=args.seconds) if args.seconds else plan

    models = {f"generalist {size}": path for size, path in installed_generalists().items()}
    models |= {f"specialist {path.stem}": path for path in args.model}
    if len({path.stem for path in args.model}) < len(args.model):
        parser.error("two model files have one name; rename one, for the table names them by it")

    above = {**environment(), "seed": args.seed}        # before measuring makes its own load
    try:
        rows = measure_latency(models, plan, on_progress=lambda words: print(words, flush=True))
    except PseError as error:
        parser.exit(2, f"{error}\n")

    page = f"# Latency\n\n{environment_line(above)}\n\n{markdown_table(rows)}\n\n{method_notes(plan)}"
    values = {"environment": above, "plan": asdict(plan), "rows": [asdict(row) for row in rows]}
    write_results(page, values, args.out, args.json)
    print(f"\n{page}\nwritten: {args.out}, {args.json}")


if __name__ == "__main__":
    main()
