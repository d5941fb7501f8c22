"""Would more pre-training help? Score against hours of mixtures, from the logs that training left.

    python benchmarks/learning_curves.py build/pretrain/tiny build/pretrain/small ...

Each folder is what `python -m pse_sdk.training.pretrain` left; its name says what was trained.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import theilslopes
from user_scores import plain

from pse_sdk.tables import environment, environment_line, format_table, write_results

RESULTS = Path(__file__).resolve().parent / "results"
N_ROWS = 8              # of a model in the table
LEAST_ROWS = 4          # in the last doubling, to say anything about it,
LEAST_SPAN = 0.6        # and the first of them at most so far on the way
# The first of these that a log has: name -> title, whether more is better, what counts as help from twice the hours
SCORES = {
    "si_sdr_improvement": ("SI-SDRi dB", True, 0.1),
    "snr_error_db": ("SNR error dB", False, 0.1),
}
NOTE = (
    "Scores are on validation mixtures, of speakers and files of noise never trained on, at the SNRs and of the length "
    "that are named. The last "
    "30 % of the steps of a run have a falling learning rate, which lifts its end: a longer run is a little worse on "
    "the way, and that part of the slope does not go on. Gain: median slope against the logarithm of the hours over "
    "the last doubling of hours, with its 95 % interval (Theil and Sen). It is no promise for several doublings."
)


@dataclass(frozen=True)
class Curve:
    """`gain` is how much better the score became over the last doubling of hours, `low` to `high` its 95 % interval."""

    model: str
    score: str
    hours: list[float]
    values: list[float]
    gain: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        title, _, enough = SCORES[self.score]
        name, unit = title.rsplit(" ", 1)
        if np.isnan(self.gain):
            return f"{self.model}: too few hours to tell whether more would help."
        worth = (f"the last doubling of hours was worth {self.gain:+.2f} {unit} ({self.low:+.2f} to {self.high:+.2f}) "
                 f"of {name}.")
        if self.low > enough:
            return f"{self.model}: more would still help: {worth}"
        if self.high < enough:
            return f"{self.model}: more of the same would hardly help: {worth}"
        return f"{self.model}: it cannot be told whether more would help: {worth}"


def curves_of(model: str, rows: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """From the rows of a log: a curve for every kind of mixture and loss. Two kinds cannot be compared.

    A run that was started again may leave two rows for one step: the last counts.
    """
    by_step = {row["step"]: row for row in rows}
    ordered = [by_step[step] for step in sorted(by_step)]
    return [curve_of(f"{model}{words}", list(some)) for words, some in groupby(ordered, _kind)]


def _kind(row: Mapping[str, Any]) -> str:
    """What a row says of its mixtures, the loss and the speech, in words to follow the model's name."""
    snrs_db, seconds = row.get("snrs_db"), row.get("mixture_seconds")
    return ((f", {snrs_db[0]:g} to {snrs_db[1]:g} dB" if snrs_db else "") + (f", {seconds:g} s" if seconds else "")
            + (", perceptual loss" if "intelligibility" in row else "")
            + (", {} {:.0%}".format(*row["speech_share"]) if row.get("speech_share") else "")
            + (", {:.0%} taught by {}".format(row["teacher_share"], " and ".join(row["teachers"]))
               if row.get("teachers") else ""))


def curve_of(model: str, rows: Sequence[Mapping[str, Any]]) -> Curve:
    """From rows in order, all validated on the same mixtures."""
    score = next(name for name in SCORES if name in rows[-1])
    rows = [row for row in rows if row["hours"] > 0] or rows
    hours, values = [row["hours"] for row in rows], [row[score] for row in rows]
    late = np.array(hours) >= hours[-1] / 2
    gain = low = high = float("nan")
    if late.sum() >= LEAST_ROWS and hours[0] <= LEAST_SPAN * hours[-1]:
        sign = 1 if SCORES[score][1] else -1
        slope = theilslopes(sign * np.array(values)[late], np.log2(np.array(hours)[late]))
        gain, low, high = float(slope.slope), float(slope.low_slope), float(slope.high_slope)
    return Curve(model, score, hours, values, gain, low, high)


def markdown_page(curves: Sequence[Curve]) -> str:
    cells = [["model", "hours of mixtures", "score", ""]]
    for curve in curves:
        chosen = np.unique(np.abs(np.array(curve.hours)[:, None]
                                  - np.geomspace(curve.hours[0], curve.hours[-1], N_ROWS)).argmin(0))
        cells += [[curve.model, f"{curve.hours[i]:.0f}", f"{curve.values[i]:.2f}", SCORES[curve.score][0]]
                  for i in chosen]
    return "\n\n".join([format_table(cells), "\n".join(f"- {curve.verdict}" for curve in curves), NOTE])


def _row(line: str) -> dict[str, Any]:
    """Of a log; nothing where it is half a row, which a run that died left."""
    try:
        row = json.loads(line)
        return row if "step" in row and "hours" in row else {}
    except (ValueError, TypeError):
        return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=RESULTS / "training.md")
    parser.add_argument("--json", type=Path, default=RESULTS / "training.json")
    args = parser.parse_args()

    curves = []
    for folder in args.folders:
        try:
            lines = (folder / "log.jsonl").read_text("utf-8").splitlines()
        except OSError as error:
            parser.exit(2, f"{folder} holds no log.jsonl of a training run: {error.strerror}\n")
        rows = [row for line in lines if (row := _row(line))]
        if not rows:
            parser.exit(2, f"{folder / 'log.jsonl'} holds no evaluation; wait for the first one\n")
        curves += curves_of(folder.name, rows)

    above = environment()
    page = f"# Learning curves\n\n{environment_line(above)}\n\n{markdown_page(curves)}\n"
    values = {"environment": above, "curves": [asdict(curve) for curve in curves]}
    write_results(page, plain(values), args.out, args.json)
    print(f"{page}\nwritten: {args.out}, {args.json}")


if __name__ == "__main__":
    main()
