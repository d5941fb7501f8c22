"""What a stream costs at the rates of sound cards, and what its full band costs.

    python benchmarks/rates.py                  # size tiny
    python benchmarks/rates.py --turns 50       # a look

What is measured is the processor's time, so that other programs matter little; they still take the caches away. Needs
nothing but pse_sdk.
"""

import argparse
from pathlib import Path

from together import Call, noise, take_turns

from pse_sdk import Enhancer
from pse_sdk.config import SIZES
from pse_sdk.tables import environment, environment_line, format_table, write_results

RESULTS = Path(__file__).resolve().parent / "results"
RATES = (8_000, 16_000, 44_100, 48_000, 96_000)
HOPS = 10       # in each turn, one after the other

NOTES = """\
Microseconds of one core for 16 ms of sound, in chunks of that length: medians of turns, over their hops. "Without full
band" is `full_band=False`: nothing comes out above 7 to 8 kHz. At the model's own rate there is nothing above.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--turns", type=int, default=2000, help="of every stream (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "rates", help="of .md and .json")
    args = parser.parse_args()

    above = {**environment(), "size": args.size, "seed": args.seed, "turns": args.turns}
    enhancer = Enhancer(size=args.size)
    kinds = [(rate, channels, full_band) for rate in RATES for channels in (1, 2) for full_band in (True, False)]
    medians = take_turns({str(kind): stream(enhancer, *kind, args.seed) for kind in kinds}, args.turns)
    us = {kind: 1e6 * medians[str(kind)] / HOPS for kind in kinds}
    cells = [["rate", "channels", "stream us", "without full band us", "full band us"]]
    for rate in RATES:
        for channels in (1, 2):
            full, narrow = us[rate, channels, True], us[rate, channels, False]
            cells.append([f"{rate} Hz", str(channels), f"{full:.1f}", f"{narrow:.1f}", f"{full - narrow:.1f}"])
    page = f"# Rates\n\n{environment_line(above)}\n\n{format_table(cells)}\n\n{NOTES}"
    rows = [{"rate": rate, "channels": channels, "full_band": full_band, "us": us[rate, channels, full_band]}
            for rate, channels, full_band in kinds]
    write_results(page, {"environment": above, "rows": rows}, args.out.with_suffix(".md"),
                  args.out.with_suffix(".json"))
    print(f"{page}\nwritten: {args.out} (.md, .json)")


def stream(enhancer: Enhancer, rate: int, channels: int, full_band: bool, seed: int) -> Call:
    ours = enhancer.stream(rate, channels, full_band=full_band)
    chunks = noise(HOPS, round(rate * enhancer.info.hop_length / enhancer.sample_rate), channels, seed=seed)

    def call(_: int) -> None:
        for chunk in chunks:
            ours.process(chunk)
    return call


if __name__ == "__main__":
    main()
