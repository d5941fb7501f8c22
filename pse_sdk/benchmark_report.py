"""What `benchmark` measured, as one table, as JSON, and as a page with plots of quality against cost.

Quality is not measured here: `benchmarks/personalization.py` scores denoisers on users, and its JSON is joined by name.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from .benchmark import EMPTY, N_FRESH_STEPS, N_PACED_TURNS, TURN, WARM_UP, LatencyPlan, LatencyRow, Times
from .errors import SettingsError
from .tables import environment_line, format_table

METRICS = {"si_sdr_improvement": "SI-SDRi dB", "pesq": "PESQ", "estoi": "ESTOI"}
_DECIMALS = {"si_sdr_improvement": 2, "pesq": 3, "estoi": 3}


@dataclass(frozen=True)
class Score:
    """Mean over users, and half of its 95 % interval; None for a single user."""

    value: float
    half_width: float | None


@dataclass(frozen=True)
class Quality:
    """Scores of one test set, by system and metric, and what tells whether a system is the one that was measured."""

    set_name: str
    date: str
    n_users: int
    scores: dict[str, dict[str, Score]]
    digests: dict[str, str]
    n_parameters: dict[str, int]

    def missing(self, rows: Sequence[LatencyRow]) -> str:
        """What to say where none of the rows was scored; nothing else."""
        if any(self.of(row) for row in rows):
            return ""
        return ("no scores are shown: those of --quality are of other models, or of other versions of these; score "
                "these with benchmarks/personalization.py")

    def of(self, row: LatencyRow) -> dict[str, Score]:
        """The scores of the row's denoiser; none where another model of that name was scored."""
        digest, n_parameters = self.digests.get(row.name), self.n_parameters.get(row.name)
        if (digest and digest != row.digest) or (n_parameters and n_parameters != row.n_parameters):
            return {}
        return self.scores.get(row.name, {})


def read_quality(path: str | os.PathLike[str], set_name: str = "noise") -> Quality:
    """The JSON that `benchmarks/personalization.py` writes.

    Raises:
        SettingsError: it cannot be read, is another file, or has no such set.
    """
    try:
        content = json.loads(Path(path).read_text("utf-8"))
        results, sets = content["results"], content["summary"]
        if set_name not in sets:
            raise SettingsError(f"{path}: no set {set_name!r}; choose one of {', '.join(sets)}")
        scores = {system: {metric: Score(mean["value"], mean["half_width"]) for metric, mean in metrics.items()
                           if metric in METRICS and mean["value"] is not None}
                  for system, metrics in sets[set_name].items()}
        return Quality(set_name, content["environment"]["date"], len({result["user"] for result in results}), scores,
                       {result["system"]: result.get("digest", "") for result in results},
                       {result["system"]: result["n_parameters"] for result in results})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, SettingsError):
            raise
        raise SettingsError(f"{path}: no scores can be read ({error}); give the JSON that "
                            "benchmarks/personalization.py wrote") from error


@dataclass(frozen=True)
class Comparison:
    """Denoisers measured side by side, and what is known of their quality."""

    environment: dict[str, Any]
    plan: LatencyPlan
    rows: Sequence[LatencyRow]
    quality: Quality | None = None

    def markdown(self) -> str:
        """The machine, the table and the method."""
        return (f"{environment_line(self.environment)}\n\n{format_table(comparison_table(self.rows, self.quality))}\n\n"
                f"{method_notes(self.plan, self.quality)}")

    def values(self) -> dict[str, Any]:
        """For JSON: a row's scores lie in its `quality`."""
        rows = [{**asdict(row), "quality": {metric: asdict(score) for metric, score in self._scores(row).items()}}
                for row in self.rows]
        quality = self.quality and {"set": self.quality.set_name, "date": self.quality.date,
                                    "n_users": self.quality.n_users}
        return {"environment": self.environment, "plan": asdict(self.plan), "quality": quality, "rows": rows,
                "method": method_notes(self.plan, self.quality)}

    def _scores(self, row: LatencyRow) -> dict[str, Score]:
        return self.quality.of(row) if self.quality else {}


def comparison_table(rows: Sequence[LatencyRow], quality: Quality | None = None) -> list[list[str]]:
    """Rows of cells, the head first: quality if there is any, what each denoiser is, and what it costs."""
    titles = list(METRICS.values()) if quality else []
    head = ["model", *titles, "parameters", "MMAC/s", "file KiB", "load ms", "start ms", "first hop ms", "memory MiB",
            "hop ms", "delay ms", "latency ms", "step us p50", "p99", "p99.9", "at real time us p50", "p99", "p99.9",
            "CPU %", "CPU us/s", "real-time factor"]
    return [head] + [[
        row.name, *(_score_cells(quality.of(row)) if quality else []), _cell(row.n_parameters, ","),
        _cell(row.macs_per_second, ".1f", 1e6), _cell(row.file_bytes, ".1f", 1024), f"{row.load_ms:.1f}",
        f"{row.start_ms:.0f}", f"{row.first_step_ms:.2f}", _cell(row.resident_mib, ".0f"), f"{row.hop_ms:g}",
        f"{row.delay_ms:g}", f"{row.latency_ms:g}", *_percentiles(row.step_us), *_percentiles(row.paced_us),
        f"{row.cpu_percent:.2f}", f"{row.cpu_us_per_second:,.0f}", f"{row.real_time_factor:.4f}"] for row in rows]


def method_notes(plan: LatencyPlan, quality: Quality | None = None) -> str:
    """How the figures of `comparison_table` were measured: the foot of the table."""
    notes = _METHOD.format(plan=plan, empty=EMPTY, n_fresh_steps=N_FRESH_STEPS, turn=TURN, warm_up=WARM_UP,
                           n_paced_turns=N_PACED_TURNS)
    return notes + (_QUALITY.format(quality=quality) if quality else "")


_METHOD = """\
One process and one thread, pinned to one core where the system allows it; one channel at the denoiser's own rate; the
input is noise in bursts. All denoisers take turns in one run, so that other load hits all alike: compare within a
table, not between tables. "{empty}" hands its input on: what the runtime and Python cost alone. A "peer" is somebody
else's denoiser behind a Python function, its own signal processing included. Hops differ, so compare steps by what a
second of audio costs. A dash is what cannot be known of a peer.

- **parameters**: trained ones, for peers as stated. **MMAC/s**: millions of multiply-accumulates for a second of audio,
  in matrix products, convolutions and recurrent layers of what runs in ONNX Runtime; our Fourier transforms are matrix
  products too, peers often have theirs elsewhere. **file**: of the model, for peers what ONNX Runtime loads.
- **load, start, first hop, memory**: medians of {plan.n_fresh} fresh processes: making the denoiser, for peers with the
  import of their runtime; from before the first import to the first enhanced hop; that hop alone; resident after
  {n_fresh_steps} hops.
- **delay**: by which the output lags the input. **latency**: the delay and the wait for a whole hop.
- **step**: one hop through the denoiser, {plan.n_steps:,} times, in turns of {turn} hops, back to back, after {warm_up}
  that do not count.
- **at real time**: one hop when it is due, asleep in between, for {plan.seconds:g} s of audio in {n_paced_turns} turns,
  ours through `EnhancementStream.process`. Caches and clock cool down meanwhile. **CPU %**: of one core meanwhile, time
  of the whole process over wall time.
- **CPU us/s**: processor time of the whole process, all threads, for a second of audio, back to back in turns as above,
  ours through `EnhancementStream.process`. **real-time factor**: the same as time on the clock over time of audio.
"""

_QUALITY = """\
- **Quality**: means over {quality.n_users} users in the set `{quality.set_name}`, ± half of the 95 % interval over
  users, scored on {quality.date} by `benchmarks/personalization.py`; of a specialist over all users' specialists of
  that kind. A dash: not scored there, or another model of that name was.
"""


def _percentiles(times: Times) -> list[str]:
    return [f"{value:.0f}" if value >= 100 else f"{value:.1f}" for value in (times.p50, times.p99, times.p999)]


def _cell(value: float | None, form: str, unit: float = 1) -> str:
    return "-" if value is None else format(value if unit == 1 else value / unit, form)


def _score_cells(scores: dict[str, Score]) -> list[str]:
    cells = []
    for metric, decimals in _DECIMALS.items():
        score = scores.get(metric)
        spread = "" if score is None or score.half_width is None else f" ± {score.half_width:.{decimals}f}"
        cells.append("-" if score is None or not isfinite(score.value) else f"{score.value:.{decimals}f}{spread}")
    return cells
