"""What a stream costs among many: one by one, and together in one call.

    python benchmarks/together.py                                           # every generalist that is installed
    python benchmarks/together.py --sizes tiny --streams 1 8 --turns 50     # a look

What is measured is the processor's time, so that other programs matter little; they still take the caches away. Needs
nothing but pse_sdk.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pse_sdk import Enhancer, process_together
from pse_sdk.benchmark import installed_generalists
from pse_sdk.onnx_denoiser import OnnxDenoiser
from pse_sdk.tables import environment, environment_line, format_table, write_results

RESULTS = Path(__file__).resolve().parent / "results"
RATES = (16_000, 48_000)

NOTES = """\
Microseconds of one core for a stream and a hop of 16 ms: medians of calls that take turns, over the number of streams.
Step: the model alone, called with one hop after the other, and with all of them. Stream: `EnhancementStream.process` of
each, and `process_together` of all; at rates other than the model's, most of it is the conversion of rates, which is
done for each stream by itself.
"""

Call = Callable[[int], object]      # of a turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    installed = installed_generalists()
    parser.add_argument("--sizes", nargs="+", choices=list(installed), default=list(installed))
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--turns", type=int, default=2000, help="of every call (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "together.md")
    parser.add_argument("--json", type=Path, default=RESULTS / "together.json")
    args = parser.parse_args()

    above = {**environment(), "seed": args.seed, "turns": args.turns}       # before measuring makes its own load
    rows = []
    for size in args.sizes:
        for n_streams in args.streams:
            calls = steps(installed[size], n_streams, args.seed)
            for rate in RATES:
                calls |= streams(installed[size], rate, n_streams, args.seed)
            medians = take_turns(calls, args.turns)
            rows.append({"model": size, "streams": n_streams,
                         **{name: 1e6 * seconds / n_streams for name, seconds in medians.items()}})
            print(rows[-1], flush=True)

    names = list(rows[0])[2:]
    cells = [["model", "streams", *names]]
    cells += [[row["model"], str(row["streams"]), *(f"{row[name]:.1f}" for name in names)] for row in rows]
    page = f"# Streams together\n\n{environment_line(above)}\n\n{format_table(cells)}\n\n{NOTES}"
    write_results(page, {"environment": above, "rows": rows}, args.out, args.json)
    print(f"\n{page}\nwritten: {args.out}, {args.json}")


def steps(path: Path, n_streams: int, seed: int) -> dict[str, Call]:
    denoiser = OnnxDenoiser(path)
    hops = noise(8, n_streams, denoiser.info.hop_length, seed=seed)
    states = [denoiser.initial_state() for _ in range(n_streams)]
    state = denoiser.initial_state(n_streams)

    def one_by_one(turn: int) -> None:
        for i in range(n_streams):
            _, states[i] = denoiser.step(hops[turn % len(hops), i:i + 1], states[i])

    def together(turn: int) -> None:
        nonlocal state
        _, state = denoiser.step(hops[turn % len(hops)], state)

    return {"step": one_by_one, "steps together": together}


def streams(path: Path, rate: int, n_streams: int, seed: int) -> dict[str, Call]:
    enhancer = Enhancer(path)
    hop_length = enhancer.info.hop_length * rate // enhancer.sample_rate
    hops = noise(8, n_streams, hop_length, seed=seed)
    apart, company = ([enhancer.stream(rate) for _ in range(n_streams)] for _ in range(2))
    return {
        f"stream, {rate // 1000} kHz":
            lambda turn: [stream.process(hop) for stream, hop in zip(apart, hops[turn % len(hops)], strict=True)],
        f"streams together, {rate // 1000} kHz": lambda turn: process_together(company, hops[turn % len(hops)]),
    }


def noise(*shape: int, seed: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def take_turns(calls: dict[str, Call], n_turns: int) -> dict[str, float]:
    """Median seconds of this thread for every call; they take turns, so that what else happens meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(n_turns):
        for name, call in calls.items():
            began = time.thread_time()
            call(turn)
            seconds[name].append(time.thread_time() - began)
    return {name: float(np.median(times)) for name, times in seconds.items()}


if __name__ == "__main__":
    main()
