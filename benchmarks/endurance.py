"""A day of sound through one stream, faster than it could be heard: does anything drift, grow, or wear off?

    python benchmarks/endurance.py                      # 24 hours
    python benchmarks/endurance.py --hours 0.2          # a look
    python benchmarks/endurance.py --wav talk.wav       # with somebody's clean speech instead of a made voice

Every minute is a scene of its own: a voice, a noise, an SNR, a level, a length of chunks, and some samples that are no
numbers. The last hour (of less than two hours the last half) has the scenes of the first, so that their scores can be
compared; but for the first minute of each, which has another scene before it. Needs nothing but pse_sdk.
"""

import argparse
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pse_sdk import Enhancer
from pse_sdk.audio import resample
from pse_sdk.audio_file import AudioReader
from pse_sdk.config import SIZES
from pse_sdk.metrics import si_sdr
from pse_sdk.noise import foreign_noise, synthetic_voice
from pse_sdk.tables import environment, environment_line, format_table, write_results

RESULTS = Path(__file__).resolve().parent / "results"
MODEL_RATE = 16_000
SCENE_SECONDS = 60
POOL_SECONDS = 30
N_POOL = 8                      # voices, and as many noises
CHUNK_LENGTHS = (128, 441, 480, 1024, 4801, 48_000)
DAMAGE = (np.nan, np.inf, -np.inf, 1e9)

MOST_GROWTH_MIB = 2.0
MOST_CHANGE_DB = 0.1


@dataclass(frozen=True)
class Scene:
    """A minute: noisy and clean samples [T], how many of the noisy ones are no sound, and how it arrives."""

    noisy: np.ndarray
    clean: np.ndarray
    n_damaged: int
    chunk_length: int


@dataclass(frozen=True)
class Outcome:
    """What a run showed; `failures` judges it."""

    hours: float
    length_drift: int           # samples that came out, less those that went in and the delay
    growth_mib: float | None    # of the process: medians of the minutes compared; None where unknown
    first_si_sdr_db: float
    last_si_sdr_db: float
    n_damaged: int              # samples that were put in as NaN, Inf or far over full scale
    n_replaced: int             # samples that the stream replaced
    n_damaged_out: int          # samples of the output that are no sound
    n_late: int                 # chunks that took longer than they last
    cpu_seconds: float          # scenes and scores included

    def failures(self) -> list[str]:
        """What should not be, in plain words."""
        change_db = abs(self.last_si_sdr_db - self.first_si_sdr_db)
        found = {
            f"the output is {self.length_drift} samples too long": self.length_drift != 0,
            f"memory grew by {self.growth_mib} MiB": self.growth_mib is not None and self.growth_mib > MOST_GROWTH_MIB,
            f"SI-SDR changed by {change_db:.2f} dB": not change_db <= MOST_CHANGE_DB,
            f"{self.n_replaced} of {self.n_damaged} damaged samples were replaced": self.n_replaced != self.n_damaged,
            f"{self.n_damaged_out} samples came out damaged": self.n_damaged_out > 0,
        }
        return [words for words, is_so in found.items() if is_so]


# glibc keeps freed arrays of some megabytes, as scenes are, for the next ones; pieces of that would look like growth
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(2**20)}


def main() -> int:
    if not RETURN_MEMORY.items() <= os.environ.items() and os.name == "posix":     # it looks at them when it starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **RETURN_MEMORY})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--rate", type=int, default=48_000, help="of the stream, in Hz")
    parser.add_argument("--wav", type=Path, help="clean speech")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "endurance.md")
    parser.add_argument("--json", type=Path, default=RESULTS / "endurance.json")
    args = parser.parse_args()
    n_scenes = round(args.hours * 3600 / SCENE_SECONDS)
    if n_scenes < 4:
        parser.error(f"--hours {args.hours}: four minutes (0.067) are the least")

    above = {**environment(), "size": args.size, "rate": args.rate, "seed": args.seed}
    speech = read_speech(args.wav) if args.wav else None
    outcome = run(Enhancer(size=args.size), scenes(n_scenes, args.rate, args.seed, speech), n_scenes, args.rate)
    failures = outcome.failures()
    page = f"# Endurance\n\n{environment_line(above)}\n\n{table(outcome)}\n\n"
    page += "".join(f"FAILED: {words}\n" for words in failures) or "Nothing drifted, grew or wore off.\n"
    values = {"environment": above, "outcome": vars(outcome), "failures": failures}
    write_results(page, values, args.out, args.json)
    print(page)
    return 1 if failures else 0


def scenes(n_scenes: int, rate: int, seed: int, speech: np.ndarray | None) -> Iterator[Scene]:
    """`n_scenes` minutes, of which the last hour (or half) is the first once more."""
    rng = np.random.default_rng(seed)
    n_pool = POOL_SECONDS * MODEL_RATE
    voices = [at_rate(synthetic_voice(n_pool, rng), rate) for _ in range(N_POOL)] if speech is None else \
        [at_rate(speech, rate)]
    noises = [at_rate(foreign_noise(POOL_SECONDS, rng), rate) for _ in range(N_POOL)]
    n_repeated = min(3600 // SCENE_SECONDS, n_scenes // 2)
    for i in range(n_scenes):
        first = i - (n_scenes - n_repeated)
        yield make_scene(voices, noises, rate, np.random.default_rng([seed, first if first >= 0 else i]))


def make_scene(voices: list[np.ndarray], noises: list[np.ndarray], rate: int, rng: np.random.Generator) -> Scene:
    clean, noise = (resized(np.roll(pool[i := rng.integers(len(pool))], rng.integers(len(pool[i]))),
                            SCENE_SECONDS * rate) for pool in (voices, noises))
    noise *= np.sqrt(np.mean(clean**2) / np.mean(noise**2)) * 10 ** (-rng.uniform(-5, 15) / 20)
    level = 10 ** (rng.uniform(-40, -15) / 20) / np.sqrt(np.mean((clean + noise) ** 2))
    clean, noisy = level * clean, level * (clean + noise)
    damaged = rng.choice(len(noisy), rng.integers(20), replace=False)
    noisy[damaged] = rng.choice(DAMAGE, len(damaged))
    return Scene(noisy, clean, len(damaged), int(rng.choice(CHUNK_LENGTHS)))


def run(enhancer: Enhancer, day: Iterator[Scene], n_scenes: int, rate: int) -> Outcome:
    began = time.process_time()
    stream = enhancer.stream(rate)
    waiting: deque[np.ndarray] = deque()        # clean samples of the scenes that have not come out yet
    heard = np.zeros(0, np.float32)
    n_in = n_out = n_damaged = n_damaged_out = 0
    scores: list[float] = []
    memory: list[float | None] = []

    def hear(out: np.ndarray) -> None:
        nonlocal heard, n_out, n_damaged_out
        fresh = out[max(0, stream.delay_samples - n_out):]      # nothing stands for the delay
        n_out += len(out)
        n_damaged_out += int(np.count_nonzero(~(np.abs(out) <= 10)))
        heard = np.concatenate([heard, fresh])
        while waiting and len(heard) >= len(waiting[0]):
            clean = waiting.popleft()
            scores.append(si_sdr(heard[:len(clean)], clean))
            heard = heard[len(clean):].copy()

    for i, scene in enumerate(day):
        n_in, n_damaged = n_in + len(scene.noisy), n_damaged + scene.n_damaged
        waiting.append(scene.clean)
        hear(np.concatenate([stream.process(scene.noisy[start:start + scene.chunk_length])
                             for start in range(0, len(scene.noisy), scene.chunk_length)]))
        memory.append(resident_mib())
        if sys.stderr.isatty():
            print(f"\r{i + 1} of {n_scenes} minutes", end="", file=sys.stderr, flush=True)
    hear(stream.flush())
    n_compared = min(3600 // SCENE_SECONDS, n_scenes // 2)
    early, late = memory[1:n_compared], memory[-n_compared:]        # the first minute still loads things
    grown = None if None in memory else float(np.median(late) - np.median(early))   # single minutes differ by a scene
    return Outcome(
        hours=n_scenes * SCENE_SECONDS / 3600, length_drift=n_out - n_in - stream.delay_samples,
        growth_mib=None if grown is None else round(grown, 2),
        first_si_sdr_db=float(np.mean(scores[1:n_compared])),
        last_si_sdr_db=float(np.mean(scores[1 - n_compared:])),
        n_damaged=n_damaged, n_replaced=stream.n_replaced, n_damaged_out=n_damaged_out, n_late=stream.n_late,
        cpu_seconds=round(time.process_time() - began, 1))


def table(outcome: Outcome) -> str:
    growth = "unknown" if outcome.growth_mib is None else f"{outcome.growth_mib:.2f} MiB"
    return format_table([
        ["", "found", "wanted"],
        ["sound", f"{outcome.hours:.1f} hours", ""],
        ["length less input and delay", f"{outcome.length_drift} samples", "0"],
        ["memory growth, last against first hour", growth, f"at most {MOST_GROWTH_MIB:g} MiB"],
        ["SI-SDR at the beginning", f"{outcome.first_si_sdr_db:.3f} dB", ""],
        ["SI-SDR of the same scenes at the end", f"{outcome.last_si_sdr_db:.3f} dB", f"within {MOST_CHANGE_DB:g} dB"],
        ["damaged samples in", f"{outcome.n_damaged}", ""],
        ["of these replaced", f"{outcome.n_replaced}", f"{outcome.n_damaged}"],
        ["damaged samples out", f"{outcome.n_damaged_out}", "0"],
        ["chunks that took longer than they last", f"{outcome.n_late}", ""],
        ["CPU, making scenes and scores included", f"{outcome.cpu_seconds:.0f} s", ""],
    ])


def at_rate(samples: np.ndarray, rate: int) -> np.ndarray:
    return resample(samples, MODEL_RATE, rate)


def resized(samples: np.ndarray, length: int) -> np.ndarray:
    """As often as needed, cut to length: a new array."""
    return np.asarray(np.resize(samples, length), np.float32)


def read_speech(path: Path) -> np.ndarray:
    """A recording, mono, at the model's rate."""
    with AudioReader(path) as reader:
        samples = np.concatenate([block.mean(axis=1) for block in reader.blocks()])
        return resample(samples, reader.sample_rate, MODEL_RATE)


def resident_mib() -> float | None:
    """Memory of this process; None on systems that do not say in this way."""
    try:
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


if __name__ == "__main__":
    sys.exit(main())
