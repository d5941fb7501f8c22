"""Personalization as the calling process sees it: what is read and checked, a child process, a result. torch stays in
the child."""

import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .arguments import as_number, as_whole_number, check_function, check_target
from .checkpoint_file import alone_at, is_checkpoint, remove, remove_partial
from .child import Progress, new_folder, remove_abandoned, run_child, tell, write_job
from .config import SIZES
from .errors import AudioError, MissingDependencyError, SettingsError
from .model_format import read_model
from .recordings import Recording, Source, read_recordings
from .report import Report
from .selection import at_most, not_too_clipped, without_copies

METHODS = ("auto", "pseudose", "pseudose+dp", "cm", "cm-published", "cm+dp", "pseudose-from-random", "finetune",
           "teacher", "teacher+dp")
"""How a specialist can be trained; "auto" is the one that has won most comparisons."""
OTHERS = ("keep", "remove")
"""What a specialist does with the voices of other people."""
SHORTEST_BUDGET_SECONDS, LONGEST_BUDGET_SECONDS = 20.0, 24 * 3600.0
LONGEST_SECONDS, LONGEST_OTHER_SECONDS = 3600.0, 600.0      # of recordings, and of each other kind, that are read
# Of recordings: six minutes were worth no more than four, and take time and memory. Other voices take some, too.
MOST_SECONDS = {"keep": 360.0, "remove": 240.0}
QUIETEST_ESTIMATE = 1e-6    # of the recordings' energy: what another teacher returns is silence below it
LEAST_PART, MOST_PART = 0.5, 5.0     # see `_check_estimates`; a mask of a third everywhere has 3


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
        if checkpoint.exists() and checkpoint.stat().st_size and not is_checkpoint(checkpoint):
            raise SettingsError(f"checkpoint {checkpoint}: is there already, and no checkpoint; name another file")
    settings["checkpoint"] = None if checkpoint is None else str(checkpoint.absolute())
    with alone_at(checkpoint):
        deadline = settings["deadline"] = time.monotonic() + settings["budget_seconds"]
        tell(on_progress, Progress("read", 0.0, settings["budget_seconds"], "reading the recordings"))
        read = read_recordings(recordings, max_seconds=LONGEST_SECONDS, evenly=True)
        given, foreign, talkers = (_read_others(source, name) for name, source in (
            ("clean", clean), ("noise", noise), ("voices", voices)))
        settings["notes"] = [f"{kind} {i + 1}: {note}" for kind, sounds in (
            ("recording", read), ("clean recording", given), ("noise", foreign), ("recording of voices", talkers))
            for i, sound in enumerate(sounds) for note in sound.notes]
        read, twice = without_copies(read, given, "recordings are given as clean, too: they count as that")
        own = [*read, *given]
        foreign, no_noise = without_copies(foreign, own, "noises are recordings of the user as well: left out")
        talkers, no_other = without_copies(talkers, own, "voices are recordings of the user as well: left out")
        read, broken = not_too_clipped(read)
        given, also_broken = not_too_clipped(given)
        read, cut = at_most(read, MOST_SECONDS[others])
        settings["notes"] += [*twice, *no_noise, *no_other, *broken, *also_broken, *cut]
        estimates = [] if teacher is None else _estimates(teacher, read, deadline, on_progress)
        remove_abandoned()
        folder, in_use = new_folder()
        try:
            write_job(folder, settings, {"recording": read, "clean": given, "noise": foreign, "voice": talkers,
                                          "estimate": estimates}, start)
            run_child(folder, settings, deadline, on_progress, paused)
            report = Report.from_json((folder / "report.json").read_text())
            model = read_model(folder / "model.onnx") if report.accepted else None
            if checkpoint is not None and report.n_steps and is_checkpoint(checkpoint):
                remove(checkpoint)
            return model, report
        finally:
            in_use.close()
            shutil.rmtree(folder, ignore_errors=True)
            if checkpoint is not None:
                remove_partial(checkpoint)


def _read_others(source: Source | Sequence[Source] | None, name: str) -> list[Recording]:
    """What the argument called `name` gives. An empty list is more likely a mistake than a wish."""
    if isinstance(source, (list, tuple)) and not source:
        raise SettingsError(f"{name}=[] holds no recordings; leave {name} out, or name some")
    try:
        return [] if source is None else read_recordings(source, max_seconds=LONGEST_OTHER_SECONDS)
    except AudioError as error:
        raise AudioError(f"{name}: {error}") from error


def _checked(others: str, has_voices: bool, method: str, has_clean: bool, size: str, budget_seconds: float,
             threads: int | None, nice: int, steps: int | None, seed: int) -> dict[str, Any]:
    """The settings for the training process, once every one of them is in range and can be followed here."""
    if not isinstance(method, str) or method not in METHODS:
        raise SettingsError(f"no method {method!r}; choose one of {', '.join(METHODS)}")
    if not isinstance(size, str) or size not in SIZES:
        raise SettingsError(f"no size {size!r}; choose one of {', '.join(SIZES)}")
    if not isinstance(others, str) or others not in OTHERS:
        raise SettingsError(f"no way {others!r} to treat others; choose one of {', '.join(OTHERS)}")
    if method == "finetune" and not has_clean:
        raise SettingsError("the method finetune learns from clean speech alone; give clean=, or another method")
    if has_voices and others == "keep":
        raise SettingsError("voices are given, but others are kept; give others=\"remove\", or no voices")
    most_threads = None
    if threads is None:
        threads, most_threads = _idle_cores(), _most_threads()
    settings = {
        "others": others, "method": method, "size": size, "nice": as_whole_number(nice, "nice", 0, 19),
        "budget_seconds": as_number(budget_seconds, "budget_seconds", SHORTEST_BUDGET_SECONDS, LONGEST_BUDGET_SECONDS),
        "threads": as_whole_number(threads, "threads", 1, 256), "most_threads": most_threads,
        "steps": None if steps is None else as_whole_number(steps, "steps", 1, 10**6),
        "seed": as_whole_number(seed, "seed", 0, 2**31 - 1),
    }
    if not sys.executable or getattr(sys, "frozen", False):
        raise MissingDependencyError("personalizing starts a Python of its own, and a packed application has none; "
                                     "personalize in a plain installation, and ship the model file")
    missing = [name for name in ("torch", "onnx", "safetensors") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(f"personalizing needs {' and '.join(missing)}: pip install 'pse_sdk[train]'")
    return settings


def _most_threads() -> int:
    """That training takes by itself."""
    return min(4, os.cpu_count() or 1)


def _idle_cores() -> int:
    """Of this machine, by the load of the last minute (where the system tells), at least one and at most four: a thread
    that waits for its turn keeps the others waiting. Training tries others on the way."""
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(1, min(_most_threads(), round((os.cpu_count() or 1) - busy)))


def _estimates(teacher: Callable[[np.ndarray], np.ndarray], recordings: list[Recording], deadline: float,
               on_progress: Callable[[Progress], object] | None) -> list[Recording]:
    """What the caller's own teacher takes for the speech in each recording."""
    found = []
    for i, recording in enumerate(recordings):
        tell(on_progress, Progress("teach", 0.0, max(0.0, deadline - time.monotonic()),
                                    f"asking the teacher, recording {i + 1} of {len(recordings)}"))
        if time.monotonic() > deadline:
            return []       # the training process will say that no time is left
        answer = teacher(recording.samples.copy())
        try:
            given = np.asarray(answer)
        except (TypeError, ValueError, RuntimeError) as error:      # the last of a tensor that torch still follows
            raise SettingsError(f"teacher: expected as many finite floats as it was given, {recording.samples.shape}, "
                                f"and got what is no array ({error})") from error
        with np.errstate(over="ignore"):
            floats = given.astype(np.float32) if given.dtype.kind == "f" else given
        if given.shape != recording.samples.shape or given.dtype.kind != "f":
            raise SettingsError(f"teacher: expected as many finite floats as it was given, {recording.samples.shape}, "
                                f"and got {given.dtype} {given.shape}")
        if n_bad := np.count_nonzero(~np.isfinite(floats)):
            raise SettingsError(f"teacher: {n_bad} of the {len(floats)} samples that it returned are NaN or infinite")
        found.append(Recording(floats, recording.name))
    if found:
        _check_estimates(recordings, found)
    return found


def _check_estimates(recordings: list[Recording], estimates: list[Recording]) -> None:
    """Speech is a part of its recording: how much of an estimate is in there says whether it can be one.

    Where recording x = speech s + noise that has nothing to do with it, <s, x> / <s, s> is one, and more where the
    estimate holds too little of it. It is near zero for what comes later or is somebody else's, negative for what is
    inverted, and another number at another level.
    """
    pairs = [(estimate.samples.astype(np.float64), recording.samples)
             for recording, estimate in zip(recordings, estimates, strict=True)]
    energy = sum(float(estimate @ estimate) for estimate, _ in pairs)
    if energy <= QUIETEST_ESTIMATE * sum(float(np.square(heard, dtype=np.float64).sum()) for _, heard in pairs):
        raise SettingsError("teacher: it hears no speech in any recording, what it returns is silence")
    share = sum(float(estimate @ heard) for estimate, heard in pairs) / energy
    if not LEAST_PART <= share <= MOST_PART:
        raise SettingsError("teacher: what it returns is no part of the recordings, as speech is; look whether it is "
                            f"later or earlier, inverted or at another level (<s, x> / <s, s> is {share:.2g}, not 1)")


