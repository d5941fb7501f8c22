"""Personalization as the calling process sees it: a job folder, a child process, a result. torch stays in the child."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .arguments import as_number, as_whole_number, check_function, check_target
from .config import SIZES
from .errors import (
    MissingDependencyError,
    PersonalizationCancelled,
    PersonalizationError,
    SettingsError,
)
from .model_format import read_model
from .recordings import Recording, Source, read_recordings
from .report import Report

METHODS = ("auto", "pseudose", "pseudose+dp", "cm", "cm-published", "cm+dp", "pseudose-from-random", "finetune",
           "teacher+dp")
"""How a specialist can be trained; "auto" is the one that has won most comparisons."""
OTHERS = ("keep", "remove")
"""What a specialist does with the voices of other people."""
SHORTEST_BUDGET_SECONDS, LONGEST_BUDGET_SECONDS = 20.0, 24 * 3600.0
LONGEST_SECONDS, LONGEST_CLEAN_SECONDS = 3 * 3600.0, 600.0      # of recordings that one job learns from
# glibc returns every large array to the system and faults it in again, at a third of the time of a training step
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
REST = "rest"
"""While a file of this name is in the job's folder, training rests."""
OVERTIME_SECONDS = 60.0         # beyond the budget, after which the child counts as stuck


@dataclass(frozen=True)
class Progress:
    """How far a personalization is."""

    stage: str              # "read", "analyse", "teach", "train", "judge", "export", "done"; "rest" while paused
    done: float             # share, 0 to 1
    seconds_left: float     # until the budget is spent
    message: str


def run_job(
    recordings: Source | Sequence[Source],
    *,
    clean: Source | Sequence[Source] | None,
    noise: Source | Sequence[Source] | None,
    others: str,
    voices: Source | Sequence[Source] | None,
    teacher: Callable[[np.ndarray], np.ndarray] | None,
    method: str,
    start: bytes | None,
    size: str,
    budget_seconds: float,
    threads: int | None,
    nice: int,
    steps: int | None,
    on_progress: Callable[[Progress], object] | None,
    paused: Callable[[], object] | None,
    checkpoint: Path | None,
    seed: int,
) -> tuple[bytes | None, Report]:
    """The sealed bytes of the specialist's model file, or None where the start model stays, and the report.

    Arguments and errors are those of `Enhancer.personalize`.
    """
    check_function(on_progress, "on_progress")
    check_function(teacher, "teacher")
    check_function(paused, "paused")
    settings = _checked(others, voices is not None, method, clean is not None, size, budget_seconds, threads, nice,
                        steps, seed)
    if checkpoint is not None:
        check_target(checkpoint, "checkpoint")
    settings["checkpoint"] = None if checkpoint is None else str(checkpoint.absolute())
    deadline = settings["deadline"] = time.time() + settings["budget_seconds"]
    _tell(on_progress, Progress("read", 0.0, settings["budget_seconds"], "reading the recordings"))
    read = read_recordings(recordings, max_seconds=LONGEST_SECONDS)
    given = read_recordings(clean, max_seconds=LONGEST_CLEAN_SECONDS) if clean is not None else []
    foreign = read_recordings(noise, max_seconds=600.0) if noise is not None else []
    talkers = read_recordings(voices, max_seconds=600.0) if voices is not None else []
    estimates = [] if teacher is None else _estimates(teacher, read, deadline, on_progress)
    settings["notes"] = [f"recording {i + 1}: {note}" for i, recording in enumerate(read) for note in recording.notes]
    folder = _new_folder()
    try:
        _write_job(folder, settings, {"recording": read, "clean": given, "noise": foreign, "voice": talkers,
                                      "estimate": estimates})
        if start is not None:
            (folder / "start.onnx").write_bytes(start)
        _run_child(folder, settings, deadline, on_progress, paused)
        if checkpoint is not None:
            checkpoint.unlink(missing_ok=True)
        report = Report.from_json((folder / "report.json").read_text())
        return (read_model(folder / "model.onnx") if report.accepted else None), report
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _checked(others: str, has_voices: bool, method: str, has_clean: bool, size: str, budget_seconds: float,
             threads: int | None, nice: int, steps: int | None, seed: int) -> dict[str, Any]:
    """The settings for the training process, once every one of them is in range and can be followed here."""
    if method not in METHODS:
        raise SettingsError(f"no method {method!r}; choose one of {', '.join(METHODS)}")
    if size not in SIZES:
        raise SettingsError(f"no size {size!r}; choose one of {', '.join(SIZES)}")
    if others not in OTHERS:
        raise SettingsError(f"no way {others!r} to treat others; choose one of {', '.join(OTHERS)}")
    if method == "finetune" and not has_clean:
        raise SettingsError("the method finetune learns from clean speech alone; give clean=, or another method")
    if has_voices and others == "keep":
        raise SettingsError("voices are given, but others are kept; give others=\"remove\", or no voices")
    if threads is None:
        threads = min(4, os.cpu_count() or 1)
    settings = {
        "others": others, "method": method, "size": size, "nice": as_whole_number(nice, "nice", 0, 19),
        "budget_seconds": as_number(budget_seconds, "budget_seconds", SHORTEST_BUDGET_SECONDS, LONGEST_BUDGET_SECONDS),
        "threads": as_whole_number(threads, "threads", 1, 256),
        "steps": None if steps is None else as_whole_number(steps, "steps", 1, 10**6),
        "seed": as_whole_number(seed, "seed", 0, 2**31 - 1),
    }
    missing = [name for name in ("torch", "onnx", "safetensors") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(f"personalizing needs {' and '.join(missing)}: pip install 'pse_sdk[train]'")
    return settings


def _estimates(teacher: Callable[[np.ndarray], np.ndarray], recordings: list[Recording], deadline: float,
               on_progress: Callable[[Progress], object] | None) -> list[Recording]:
    """What the caller's own teacher takes for the speech in each recording."""
    found = []
    for i, recording in enumerate(recordings):
        _tell(on_progress, Progress("teach", 0.0, max(0.0, deadline - time.time()),
                                    f"asking the teacher, recording {i + 1} of {len(recordings)}"))
        given = np.asarray(teacher(recording.samples.copy()))
        if given.shape != recording.samples.shape or given.dtype.kind != "f" or not np.isfinite(given).all():
            raise SettingsError(f"teacher: expected as many finite floats as it was given, {recording.samples.shape}, "
                                f"and got {given.dtype} {given.shape}; look for NaN and Inf, too")
        found.append(Recording(given.astype(np.float32), recording.name))
    return found


def _new_folder() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="pse-"))        # mode 0700: nobody else reads the samples
    except OSError as error:
        raise PersonalizationError(f"no temporary folder to work in ({error}); "
                                   "set TMPDIR to a folder that can be written") from error


def _write_job(folder: Path, settings: dict[str, Any], sounds: dict[str, list[Recording]]) -> None:
    try:
        for kind, clips in sounds.items():
            for i, clip in enumerate(clips):
                np.save(folder / f"{kind}-{i:05d}.npy", clip.samples)
        (folder / "job.json").write_text(json.dumps(settings))
    except OSError as error:
        raise PersonalizationError(f"the recordings cannot be written below {folder.parent} ({error}); free some space "
                                   "there, or set TMPDIR to another folder") from error


def _run_child(folder: Path, settings: dict[str, object], deadline: float,
               on_progress: Callable[[Progress], object] | None, paused: Callable[[], object] | None) -> None:
    """Run the training process to its end, passing its progress on, and letting it rest while `paused` says so.

    Raises:
        PersonalizationCancelled, PersonalizationError: it was stopped, or ended without a report.
    """
    threads = str(settings["threads"])
    environment = {**os.environ, **KEEP_MEMORY, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    package_root = str(Path(__file__).parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH", "")]))
    with (folder / "errors.txt").open("wb") as errors:
        child = subprocess.Popen([sys.executable, "-m", "pse_sdk.training", str(folder)], stdout=subprocess.PIPE,
                                 stderr=errors, stdin=subprocess.DEVNULL, env=environment)
    ended, overtime, seconds_rested = threading.Event(), threading.Event(), 0.0

    def watch() -> None:
        while not ended.wait(1.0):
            if time.time() > deadline + seconds_rested + OVERTIME_SECONDS:
                overtime.set()
                child.kill()

    threading.Thread(target=watch, daemon=True).start()
    rest, asked = folder / REST, time.time()
    refused = ""
    try:
        assert child.stdout is not None
        for line in child.stdout:
            message = json.loads(line)
            if "error" in message:
                refused = message["error"]
                continue
            _tell(on_progress, Progress(**message))
            if message["stage"] == "rest":
                seconds_rested += time.time() - asked
            asked = time.time()
            if paused is not None and paused():
                rest.touch()
            else:
                rest.unlink(missing_ok=True)
        child.wait()
    finally:        # also when the caller's own function raised, or the user pressed Ctrl-C
        ended.set()
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()
    if refused:
        raise PersonalizationError(f"{refused}; the model in use is unchanged")
    if overtime.is_set():
        raise PersonalizationError(f"the training process had not ended {OVERTIME_SECONDS:.0f} s after its budget "
                                   "and was stopped; the model in use is unchanged, try again on a less busy machine")
    if not (folder / "report.json").exists():
        last = (folder / "errors.txt").read_text(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise PersonalizationError(f"the training process ended with code {child.returncode} ({last[0][:300]}); "
                                   "the model in use is unchanged, try again or with fewer recordings")


def _tell(on_progress: Callable[[Progress], object] | None, progress: Progress) -> None:
    if on_progress is not None and on_progress(progress) is False:
        raise PersonalizationCancelled("personalization was cancelled; the model in use is unchanged")
