"""What a model costs on this machine: time per hop, CPU at real time, start, memory, size.

Nothing but numpy and onnxruntime is needed. `method_notes` says how each figure is measured; it stands below every
table. `benchmarks/latency.py` and `pse benchmark` print what is measured here.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .config import SIZES
from .empty_model import empty_model
from .enhancer import Enhancer, generalist
from .errors import ModelFileError, PseError
from .macs import count_macs
from .onnx_denoiser import OnnxDenoiser
from .stream import EnhancementStream
from .tables import environment, environment_line, format_table

__all__ = ["EMPTY", "QUICK", "LatencyPlan", "LatencyRow", "Times", "environment", "environment_line",
           "installed_generalists", "markdown_table", "measure_latency", "method_notes"]

Model = Enhancer | str | os.PathLike[str]

EMPTY = "empty graph"
"""Name of the row that `measure_latency` adds: a model that does nothing, so what the runtime itself costs."""

TURN = 20               # steps that count before the next model has its turn
WARM_UP = 5             # steps before them that do not: the caches still hold the other model
N_PACED_TURNS = 4
N_FRESH_STEPS = 100


@dataclass(frozen=True)
class LatencyPlan:
    """How long to measure. The defaults take about half a minute for each model."""

    n_steps: int = 10_000       # hot, for each model
    seconds: float = 20.0       # of audio at real time, for each model
    n_fresh: int = 5            # fresh processes for each model
    seed: int = 0               # of the noise that is enhanced


QUICK = LatencyPlan(n_steps=1000, seconds=2.0, n_fresh=1)


@dataclass(frozen=True)
class Times:
    """Of many calls, in microseconds."""

    p50: float
    p99: float
    p999: float
    mean: float
    n: int

    @classmethod
    def of(cls, nanoseconds: np.ndarray) -> "Times":
        p50, p99, p999 = np.percentile(nanoseconds, [50, 99, 99.9]) / 1e3
        return cls(float(p50), float(p99), float(p999), float(nanoseconds.mean()) / 1e3, len(nanoseconds))


@dataclass(frozen=True)
class LatencyRow:
    """One model's costs. The names' last parts are the units; `method_notes` says what each is."""

    name: str
    n_parameters: int
    macs_per_second: float
    file_bytes: int
    delay_samples: int
    delay_ms: float
    latency_ms: float
    load_ms: float
    start_ms: float
    first_step_ms: float
    resident_mib: float | None
    step_us: Times
    process_us: Times
    paced_us: Times
    cpu_percent: float
    real_time_factor: float


def measure_latency(
    models: Mapping[str, Model],
    plan: LatencyPlan | None = None,
    on_progress: Callable[[str], object] | None = None,
) -> list[LatencyRow]:
    """Measure `models`, and an empty graph beside them, taking turns so that other load hits all alike.

    The calling thread is pinned to one core meanwhile, where the system allows it.

    Args:
        models: name in the table -> an `Enhancer` or the path of a model file.
        on_progress: called with a few words before each part.

    Raises:
        ModelFileError: a model file that cannot be used.
        PseError: a fresh process failed.
    """
    plan = plan or LatencyPlan()
    say = on_progress or (lambda words: None)
    with tempfile.TemporaryDirectory() as folder, _pinned_to_one_core():
        paths = _as_files({EMPTY: None, **models}, Path(folder))
        benches = {name: _Bench(path, plan.seed) for name, path in paths.items()}

        say("fresh processes")
        starts: dict[str, list[dict[str, Any]]] = {name: [] for name in paths}
        for _ in range(plan.n_fresh):
            for name, path in paths.items():
                starts[name].append(_start_fresh(path))
        say("steps, hot")
        steps = _take_turns({name: bench.step for name, bench in benches.items()}, benches, plan.n_steps)
        say("stream, hot")
        processes = _take_turns({name: bench.process for name, bench in benches.items()}, benches, plan.n_steps)
        paced: dict[str, list[_Paced]] = {name: [] for name in paths}
        for turn in range(N_PACED_TURNS):
            for name, bench in benches.items():
                say(f"at real time, {name}, {turn + 1} of {N_PACED_TURNS}")
                paced[name].append(bench.pace(plan.seconds / N_PACED_TURNS))

    return [_row(name, benches[name], starts[name], steps[name], processes[name], paced[name]) for name in paths]


def installed_generalists() -> dict[str, Path]:
    """Size -> model file of every generalist that this installation has."""
    found = {}
    for size in SIZES:
        try:
            found[size] = generalist(size)
        except ModelFileError:
            continue
    return found


def markdown_table(rows: Sequence[LatencyRow]) -> str:
    """Two tables: what each model is and takes to start, and its times."""
    rest = [["model", "parameters", "MMAC/s", "file KiB", "load ms", "start ms", "first hop ms", "memory MiB",
             "delay samples (ms)", "latency ms"]]
    rest += [[row.name, f"{row.n_parameters:,}", f"{row.macs_per_second / 1e6:.1f}", f"{row.file_bytes / 1024:.1f}",
              f"{row.load_ms:.1f}", f"{row.start_ms:.0f}", f"{row.first_step_ms:.2f}",
              "-" if row.resident_mib is None else f"{row.resident_mib:.0f}",
              f"{row.delay_samples} ({row.delay_ms:.0f})", f"{row.latency_ms:.0f}"] for row in rows]
    times = [["model", "step us p50", "p99", "p99.9", "stream us p50", "p99", "p99.9",
              "at real time us p50", "p99", "p99.9", "CPU %", "real-time factor"]]
    times += [[row.name, *_percentiles(row.step_us), *_percentiles(row.process_us), *_percentiles(row.paced_us),
               f"{row.cpu_percent:.2f}", f"{row.real_time_factor:.4f}"] for row in rows]
    return f"{format_table(rest)}\n\n{format_table(times)}"


def method_notes(plan: LatencyPlan) -> str:
    """How the figures of `markdown_table` were measured: the foot of the table."""
    return _METHOD.format(plan=plan, empty=EMPTY, n_fresh_steps=N_FRESH_STEPS, turn=TURN, warm_up=WARM_UP,
                          n_paced_turns=N_PACED_TURNS)


_METHOD = """\
One thread, pinned to one core where the system allows it; ONNX Runtime on the CPU; one channel at the model's own rate;
the input is noise in bursts. "{empty}" hands its input on: what the runtime and Python cost alone.

- **parameters**: trained ones. **MMAC/s**: millions of multiply-accumulates for a second of audio, in matrix products,
  convolutions and recurrent layers of the file; its Fourier transforms are matrix products too.
- **load, start, first hop, memory**: medians of {plan.n_fresh} fresh processes: making the session; from before the
  first import to the first enhanced hop; that hop alone; resident after {n_fresh_steps} hops.
- **delay**: samples that the output lags the input. **latency**: the delay and the wait for a whole hop.
- **step**: one hop through the model, {plan.n_steps:,} times. **stream**: the same through `EnhancementStream.process`.
  Models take turns of {turn} hops, back to back, after {warm_up} that do not count, so that other load hits all alike.
- **at real time**: `EnhancementStream.process` called when a hop is due, asleep in between, for {plan.seconds:g} s of
  audio in {n_paced_turns} turns. Caches and clock cool down meanwhile. **CPU**: of one core, time of the whole process
  over wall time.
- **real-time factor**: mean time of `stream` over the duration of a hop.
"""


# Measuring.


@dataclass(frozen=True)
class _Paced:
    nanoseconds: np.ndarray
    cpu_seconds: float
    wall_seconds: float


class _Bench:
    """A model under test with the memory of its streams, and sound for it that repeats after some seconds."""

    def __init__(self, path: Path, seed: int) -> None:
        self.denoiser = OnnxDenoiser(path)
        self.info = self.denoiser.info
        self.stream = EnhancementStream(self.denoiser, self.info.sample_rate)
        self._state = self.denoiser.initial_state()
        self._hops = _noise_in_bursts(8 * self.info.sample_rate, seed)
        self._hops = self._hops[:len(self._hops) // self.info.hop_length * self.info.hop_length]
        self._hops = self._hops.reshape(-1, 1, self.info.hop_length)
        self._next = 0

    def next_hop(self) -> np.ndarray:
        """[1, hop_length]"""
        self._next = (self._next + 1) % len(self._hops)
        hop: np.ndarray = self._hops[self._next]
        return hop

    def step(self, hop: np.ndarray) -> None:
        _, self._state = self.denoiser.step(hop, self._state)

    def process(self, hop: np.ndarray) -> None:
        self.stream.process(hop[0])

    def pace(self, seconds: float) -> _Paced:
        """Process each hop when it is due, as a sound card would ask for it."""
        period = round(1e9 * self.info.hop_length / self.info.sample_rate)
        nanoseconds = np.empty(max(1, round(seconds * 1e9 / period)), np.int64)
        cpu, start = time.process_time(), time.perf_counter_ns()
        for i in range(len(nanoseconds)):
            hop = self.next_hop()
            wait = start + (i + 1) * period - time.perf_counter_ns()
            if wait > 0:
                time.sleep(wait / 1e9)
            called = time.perf_counter_ns()
            self.process(hop)
            nanoseconds[i] = time.perf_counter_ns() - called
        return _Paced(nanoseconds, time.process_time() - cpu, (time.perf_counter_ns() - start) / 1e9)


def _take_turns(calls: Mapping[str, Callable[[np.ndarray], None]], benches: Mapping[str, _Bench],
                n_steps: int) -> dict[str, np.ndarray]:
    """Nanoseconds of `n_steps` calls each, rounded up to whole turns."""
    n_turns = -(-n_steps // TURN)
    nanoseconds = {name: np.empty((n_turns, TURN), np.int64) for name in calls}
    for turn in range(n_turns):
        for name, call in calls.items():
            bench, times = benches[name], nanoseconds[name][turn]
            for _ in range(WARM_UP):
                call(bench.next_hop())
            for i in range(TURN):
                hop = bench.next_hop()
                start = time.perf_counter_ns()
                call(hop)
                times[i] = time.perf_counter_ns() - start
    return {name: times.reshape(-1) for name, times in nanoseconds.items()}


_FRESH_PROCESS = """
import time
start = time.perf_counter()
import json, sys
import numpy as np
from pse_sdk.enhancer import Enhancer
before_load = time.perf_counter()
enhancer = Enhancer(sys.argv[1])
load = time.perf_counter() - before_load
stream = enhancer.stream(enhancer.sample_rate)
hop = np.full(enhancer.info.hop_length, 0.1, np.float32)
before_step = time.perf_counter()
stream.process(hop)
end = time.perf_counter()
for _ in range(int(sys.argv[2]) - 1):
    stream.process(hop)
try:
    with open("/proc/self/status") as status:
        resident = next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))
except OSError:
    try:
        import resource
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 ** (2 if sys.platform == "darwin" else 1)
    except ImportError:
        resident = None
print(json.dumps({"load_ms": load * 1e3, "start_ms": (end - start) * 1e3, "first_step_ms": (end - before_step) * 1e3,
                  "resident_mib": resident}))
"""


def _start_fresh(path: Path) -> dict[str, Any]:
    package_folder = str(Path(__file__).resolve().parent.parent)
    python_path = os.pathsep.join(filter(None, [package_folder, os.environ.get("PYTHONPATH")]))
    done = subprocess.run([sys.executable, "-c", _FRESH_PROCESS, str(path), str(N_FRESH_STEPS)], check=False,
                          text=True, capture_output=True, env={**os.environ, "PYTHONPATH": python_path})
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise PseError(f"a fresh Python process could not run {path.name} (exit {done.returncode}: {reason}); "
                       "check that this Python starts from a shell")
    values: dict[str, Any] = json.loads(done.stdout)
    return values


def _row(name: str, bench: _Bench, starts: Sequence[Mapping[str, Any]], steps: np.ndarray, processes: np.ndarray,
         paced: Sequence[_Paced]) -> LatencyRow:
    info = bench.info
    hop_seconds = info.hop_length / info.sample_rate
    resident = [start["resident_mib"] for start in starts if start["resident_mib"] is not None]
    process_us = Times.of(processes)
    return LatencyRow(
        name=name,
        n_parameters=info.n_parameters,
        macs_per_second=count_macs(bench.denoiser.model) / hop_seconds,
        file_bytes=len(bench.denoiser.model),
        delay_samples=info.delay,
        delay_ms=info.delay / info.sample_rate * 1e3,
        latency_ms=bench.stream.latency_seconds * 1e3,
        load_ms=statistics.median(start["load_ms"] for start in starts),
        start_ms=statistics.median(start["start_ms"] for start in starts),
        first_step_ms=statistics.median(start["first_step_ms"] for start in starts),
        resident_mib=statistics.median(resident) if resident else None,
        step_us=Times.of(steps),
        process_us=process_us,
        paced_us=Times.of(np.concatenate([turn.nanoseconds for turn in paced])),
        cpu_percent=100 * sum(turn.cpu_seconds for turn in paced) / sum(turn.wall_seconds for turn in paced),
        real_time_factor=process_us.mean / 1e6 / hop_seconds,
    )


def _as_files(models: Mapping[str, Model | None], folder: Path) -> dict[str, Path]:
    """Each model as a file, for a fresh process can open nothing else. None stands for the empty graph."""
    paths = {}
    for i, (name, model) in enumerate(models.items()):
        path = folder / f"{i}.onnx"
        if model is None:
            path.write_bytes(empty_model())
        elif isinstance(model, Enhancer):
            model.save(path)
        else:
            path = Path(model)
        paths[name] = path
    return paths


@contextmanager
def _pinned_to_one_core() -> Iterator[None]:
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})       # interrupts tend to go to the first one
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _noise_in_bursts(n_samples: int, seed: int) -> np.ndarray:
    bursts = np.sin(np.arange(n_samples) * (2 * np.pi * 16 / n_samples)).clip(0.01, 1)
    noise = np.random.default_rng(seed).standard_normal(n_samples)
    return np.asarray(0.05 * bursts * noise, np.float32)


def _percentiles(times: Times) -> list[str]:
    return [f"{value:.0f}" if value >= 100 else f"{value:.1f}" for value in (times.p50, times.p99, times.p999)]
