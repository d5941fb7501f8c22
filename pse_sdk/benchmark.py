"""What a model costs on this machine: time per hop, CPU at real time, start, memory, size. Ours and other people's.

Nothing but numpy and onnxruntime is needed. `benchmark_report` makes pages of what is measured here, and says how each
figure is measured; `pse benchmark` and `benchmarks/latency.py` print them.
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
from .onnx_denoiser import BoundSteps, OnnxDenoiser
from .peers import make_streaming_peer
from .stream import EnhancementStream

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
    """One denoiser's costs. The names' last parts are the units; `benchmark_report.method_notes` says what each is.

    None is what cannot be known of a peer.
    """

    name: str
    digest: str                     # of the model file; empty for peers
    n_parameters: int | None
    macs_per_second: float | None
    file_bytes: int | None
    hop_ms: float
    delay_samples: int              # at the denoiser's own rate
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
    cpu_us_per_second: float
    real_time_factor: float


def measure_latency(
    models: Mapping[str, Model],
    plan: LatencyPlan | None = None,
    on_progress: Callable[[str], object] | None = None,
    peers: Sequence[tuple[str | os.PathLike[str], str]] = (),
) -> list[LatencyRow]:
    """Measure `models` and `peers`, and an empty graph beside them, taking turns so that other load hits all alike.

    The calling thread is pinned to one core meanwhile, where the system allows it.

    Args:
        models: name in the table -> an `Enhancer` or the path of a model file.
        on_progress: called with a few words before each part.
        peers: Python file and name of each (see `pse_sdk.peers`); in the table they are called "peer NAME".

    Raises:
        ModelFileError: a model file that cannot be used.
        PseError: a fresh process failed, or a peer cannot be made or takes no hops.
    """
    plan = plan or LatencyPlan()
    say = on_progress or (lambda words: None)
    with tempfile.TemporaryDirectory() as folder, _pinned_to_one_core():
        paths = _as_files({EMPTY: None, **models}, Path(folder))
        subjects: dict[str, _Model | _Peer] = {name: _Model(path) for name, path in paths.items()}
        subjects |= {f"peer {name}": _Peer(Path(file), name) for file, name in peers}
        benches = {name: _Bench(subject, plan.seed) for name, subject in subjects.items()}

        say("fresh processes")
        starts: dict[str, list[dict[str, Any]]] = {name: [] for name in subjects}
        for _ in range(plan.n_fresh):
            for name, subject in subjects.items():
                starts[name].append(subject.start_fresh())
        say("steps, hot")
        steps = _take_turns({name: subject.step for name, subject in subjects.items()}, benches, plan.n_steps)
        say("stream, hot")
        processes = _take_turns({name: subject.process for name, subject in subjects.items()}, benches, plan.n_steps)
        paced: dict[str, list[_Paced]] = {name: [] for name in subjects}
        for turn in range(N_PACED_TURNS):
            for name, bench in benches.items():
                say(f"at real time, {name}, {turn + 1} of {N_PACED_TURNS}")
                paced[name].append(bench.pace(plan.seconds / N_PACED_TURNS))

    return [_row(name, subject, starts[name], steps[name], processes[name], paced[name])
            for name, subject in subjects.items()]


def installed_generalists() -> dict[str, Path]:
    """Size -> model file of every generalist that this installation has."""
    found = {}
    for size in SIZES:
        try:
            found[size] = generalist(size)
        except ModelFileError:
            continue
    return found


# Measuring.


class _Model:
    """A model file: alone, and in the stream that an application calls. Keeps the memory of both."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.denoiser = OnnxDenoiser(path)
        info = self.denoiser.info
        self.sample_rate, self.hop_length, self.delay = info.sample_rate, info.hop_length, info.delay
        self.n_parameters: int | None = info.n_parameters
        self.digest = self.denoiser.digest
        self._stream = EnhancementStream(self.denoiser, info.sample_rate)
        self._steps, self._state = BoundSteps(self.denoiser, 1), self.denoiser.initial_state()

    def step(self, hop: np.ndarray) -> None:
        _, self._state = self._steps.step(hop[None], self._state)

    def process(self, hop: np.ndarray) -> None:
        self._stream.process(hop)

    def start_fresh(self) -> dict[str, Any]:
        return _start_fresh(_LOAD_MODEL, str(self.path))

    def count(self) -> tuple[float | None, int | None]:
        """Multiply-accumulates for a second of audio, bytes of the file."""
        model = self.denoiser.model
        return count_macs(model) * self.sample_rate / self.hop_length, len(model)


class _Peer:
    """Somebody else's denoiser. An application calls its `step` itself."""

    digest = ""

    def __init__(self, file: Path, name: str) -> None:
        self.file, self.name = file.resolve(), name
        self._peer = peer = make_streaming_peer(file, name)
        self.sample_rate, self.hop_length, self.delay = int(peer.sample_rate), int(peer.hop), int(peer.delay)
        self.n_parameters: int | None = getattr(peer, "params", None)

    def step(self, hop: np.ndarray) -> None:
        self._peer.step(hop)

    process = step

    def start_fresh(self) -> dict[str, Any]:
        return _start_fresh(_LOAD_PEER, str(self.file.parent), str(self.file), self.name)

    def count(self) -> tuple[float | None, int | None]:
        counted = _run_fresh(["-m", "pse_sdk.peers", str(self.file), self.name])
        return counted["macs_per_second"], counted["file_bytes"]


@dataclass(frozen=True)
class _Hot:
    nanoseconds: np.ndarray
    cpu_seconds: float


@dataclass(frozen=True)
class _Paced:
    nanoseconds: np.ndarray
    cpu_seconds: float
    wall_seconds: float


class _Bench:
    """Sound for a denoiser, one hop after the other, that repeats after some seconds."""

    def __init__(self, subject: _Model | _Peer, seed: int) -> None:
        self.subject = subject
        hops = _noise_in_bursts(8 * subject.sample_rate, seed)
        self._hops = hops[:len(hops) // subject.hop_length * subject.hop_length].reshape(-1, subject.hop_length)
        self._next = 0

    def next_hop(self) -> np.ndarray:
        """[hop_length]"""
        self._next = (self._next + 1) % len(self._hops)
        hop: np.ndarray = self._hops[self._next]
        return hop

    def pace(self, seconds: float) -> _Paced:
        """Process each hop when it is due, as a sound card would ask for it."""
        period = round(1e9 * self.subject.hop_length / self.subject.sample_rate)
        nanoseconds = np.empty(max(1, round(seconds * 1e9 / period)), np.int64)
        cpu, start = time.process_time(), time.perf_counter_ns()
        for i in range(len(nanoseconds)):
            hop = self.next_hop()
            wait = start + (i + 1) * period - time.perf_counter_ns()
            if wait > 0:
                time.sleep(wait / 1e9)
            called = time.perf_counter_ns()
            self.subject.process(hop)
            nanoseconds[i] = time.perf_counter_ns() - called
        return _Paced(nanoseconds, time.process_time() - cpu, (time.perf_counter_ns() - start) / 1e9)


def _take_turns(calls: Mapping[str, Callable[[np.ndarray], None]], benches: Mapping[str, _Bench],
                n_steps: int) -> dict[str, _Hot]:
    """`n_steps` calls each, rounded up to whole turns."""
    n_turns = -(-n_steps // TURN)
    nanoseconds = {name: np.empty((n_turns, TURN), np.int64) for name in calls}
    cpu_seconds = dict.fromkeys(calls, 0.0)
    for turn in range(n_turns):
        for name, call in calls.items():
            bench, times = benches[name], nanoseconds[name][turn]
            for _ in range(WARM_UP):
                call(bench.next_hop())
            cpu = time.process_time()
            for i in range(TURN):
                hop = bench.next_hop()
                start = time.perf_counter_ns()
                call(hop)
                times[i] = time.perf_counter_ns() - start
            cpu_seconds[name] += time.process_time() - cpu
    return {name: _Hot(times.reshape(-1), cpu_seconds[name]) for name, times in nanoseconds.items()}


# What a fresh process runs; LOAD makes `step`, `hop_length` and `before_load`, and takes arguments from the second on.
_FRESH_PROCESS = """
import time
start = time.perf_counter()
import json, sys
import numpy as np
LOAD
load = time.perf_counter() - before_load
hop = np.full(hop_length, 0.1, np.float32)
before_step = time.perf_counter()
step(hop)
end = time.perf_counter()
for _ in range(int(sys.argv[1]) - 1):
    step(hop)
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

_LOAD_MODEL = """
from pse_sdk.enhancer import Enhancer
before_load = time.perf_counter()
enhancer = Enhancer(sys.argv[2])
hop_length, step = enhancer.info.hop_length, enhancer.stream(enhancer.sample_rate).process
"""

# as `peers.make_peer` does it, which cannot be asked: what this package loads would count as the peer's
_LOAD_PEER = """
import importlib.machinery, importlib.util
sys.path.insert(0, sys.argv[2])
loader = importlib.machinery.SourceFileLoader("peers in a file", sys.argv[3])
module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
sys.modules[loader.name] = module
loader.exec_module(module)
before_load = time.perf_counter()
peer = module.make(sys.argv[4])
hop_length, step = peer.hop, peer.step
"""


def _start_fresh(load: str, *arguments: str) -> dict[str, Any]:
    return _run_fresh(["-c", _FRESH_PROCESS.replace("LOAD", load), str(N_FRESH_STEPS), *arguments])


def _run_fresh(arguments: Sequence[str]) -> dict[str, Any]:
    """The JSON that a fresh Python prints as its last line."""
    package_folder = str(Path(__file__).resolve().parent.parent)
    python_path = os.pathsep.join(filter(None, [package_folder, os.environ.get("PYTHONPATH")]))
    done = subprocess.run([sys.executable, *arguments], check=False, text=True, capture_output=True,
                          env={**os.environ, "PYTHONPATH": python_path})
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise PseError(f"a fresh Python process could not run {Path(arguments[-1]).name} (exit {done.returncode}: "
                       f"{reason}); check that this Python starts from a shell")
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return values


def _row(name: str, subject: _Model | _Peer, starts: Sequence[Mapping[str, Any]], steps: _Hot, processes: _Hot,
         paced: Sequence[_Paced]) -> LatencyRow:
    hop_seconds = subject.hop_length / subject.sample_rate
    resident = [start["resident_mib"] for start in starts if start["resident_mib"] is not None]
    process_us = Times.of(processes.nanoseconds)
    macs_per_second, file_bytes = subject.count()
    return LatencyRow(
        name=name,
        digest=subject.digest,
        n_parameters=subject.n_parameters,
        macs_per_second=macs_per_second,
        file_bytes=file_bytes,
        hop_ms=hop_seconds * 1e3,
        delay_samples=subject.delay,
        delay_ms=subject.delay / subject.sample_rate * 1e3,
        latency_ms=(subject.delay + subject.hop_length) / subject.sample_rate * 1e3,
        load_ms=statistics.median(start["load_ms"] for start in starts),
        start_ms=statistics.median(start["start_ms"] for start in starts),
        first_step_ms=statistics.median(start["first_step_ms"] for start in starts),
        resident_mib=statistics.median(resident) if resident else None,
        step_us=Times.of(steps.nanoseconds),
        process_us=process_us,
        paced_us=Times.of(np.concatenate([turn.nanoseconds for turn in paced])),
        cpu_percent=100 * sum(turn.cpu_seconds for turn in paced) / sum(turn.wall_seconds for turn in paced),
        cpu_us_per_second=processes.cpu_seconds * 1e6 / (len(processes.nanoseconds) * hop_seconds),
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

