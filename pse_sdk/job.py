"""Personalization as the calling process sees it: a job folder, a child process, a result. torch stays in the child."""

import glob
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

try:
    import fcntl
except ImportError:     # no POSIX system
    fcntl = None        # type: ignore[assignment]

from .arguments import as_number, as_whole_number, check_function, check_target
from .config import SIZES, STFT
from .errors import (
    AudioError,
    MissingDependencyError,
    PersonalizationCancelled,
    PersonalizationError,
    SettingsError,
)
from .model_format import read_model
from .recordings import SHORTEST_SECONDS, Recording, Source, is_copy, read_recordings
from .report import Report
from .stft import frame_power

METHODS = ("auto", "pseudose", "pseudose+dp", "cm", "cm-published", "cm+dp", "pseudose-from-random", "finetune",
           "teacher", "teacher+dp")
"""How a specialist can be trained; "auto" is the one that has won most comparisons."""
OTHERS = ("keep", "remove")
"""What a specialist does with the voices of other people."""
SHORTEST_BUDGET_SECONDS, LONGEST_BUDGET_SECONDS = 20.0, 24 * 3600.0
LONGEST_SECONDS, LONGEST_OTHER_SECONDS = 3600.0, 600.0      # of recordings, and of each other kind, that are read
# glibc returns every large array to the system and faults it in again, at a third of the time of a training step
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
# threads that wait for each other spin, by default for so long that two of them, beside another program, took ten times
# as long as one; with "passive" they sleep at once, and two that have the machine alone take longer than one
GIVE_WAY = {"GOMP_SPINCOUNT": "10000"}
_BLOCK = 60 * STFT.sample_rate  # samples that are taken or left together, where not all of them are used
LEAST_SWING_DB = 6.0            # between quiet and loud where somebody speaks; steady noise has half of it
CHECKPOINT_HEADER = b"pse_sdk checkpoint\n"
"""How a checkpoint's file begins. Nothing else is ever overwritten or removed as one."""
# Of recordings: six minutes were worth no more than four, and take time and memory. Other voices take some, too.
MOST_SECONDS = {"keep": 360.0, "remove": 240.0}
IN_USE = "in_use"
"""A file in the job's folder that is locked while the process that made it lives."""
FOLDER_PREFIX = "pse-"
MOST_CLIPPED = 0.1      # with 2 to 5 % two users gained, with 22 to 34 % one lost 0.3 dB in noise and 1.7 dB elsewhere
QUIETEST_ESTIMATE = 1e-6    # of the recordings' energy: what another teacher returns is silence below it
LEAST_PART, MOST_PART = 0.5, 5.0     # see `_check_estimates`; a mask of a third everywhere has 3
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
        if checkpoint.exists() and checkpoint.stat().st_size and not _is_checkpoint(checkpoint):
            raise SettingsError(f"checkpoint {checkpoint}: is there already, and no checkpoint; name another file")
    settings["checkpoint"] = None if checkpoint is None else str(checkpoint.absolute())
    with _alone_at(checkpoint):
        deadline = settings["deadline"] = time.monotonic() + settings["budget_seconds"]
        _tell(on_progress, Progress("read", 0.0, settings["budget_seconds"], "reading the recordings"))
        read = read_recordings(recordings, max_seconds=LONGEST_SECONDS, evenly=True)
        given, foreign, talkers = (_read_others(source, name) for name, source in (
            ("clean", clean), ("noise", noise), ("voices", voices)))
        settings["notes"] = [f"{kind} {i + 1}: {note}" for kind, sounds in (
            ("recording", read), ("clean recording", given), ("noise", foreign), ("recording of voices", talkers))
            for i, sound in enumerate(sounds) for note in sound.notes]
        read, twice = _without(read, given, "recordings are given as clean, too: they count as that")
        foreign, no_noise = _without(foreign, [*read, *given], "noises are recordings of the user as well: left out")
        talkers, no_other = _without(talkers, [*read, *given], "voices are recordings of the user as well: left out")
        read, broken = _not_too_clipped(read)
        given, also_broken = _not_too_clipped(given)
        read, cut = at_most(read, MOST_SECONDS[others])
        settings["notes"] += [*twice, *no_noise, *no_other, *broken, *also_broken, *cut]
        estimates = [] if teacher is None else _estimates(teacher, read, deadline, on_progress)
        _remove_abandoned()
        folder, in_use = _new_folder()
        try:
            _write_job(folder, settings, {"recording": read, "clean": given, "noise": foreign, "voice": talkers,
                                          "estimate": estimates}, start)
            _run_child(folder, settings, deadline, on_progress, paused)
            report = Report.from_json((folder / "report.json").read_text())
            model = read_model(folder / "model.onnx") if report.accepted else None
            if checkpoint is not None and report.n_steps and _is_checkpoint(checkpoint):
                _remove(checkpoint)
            return model, report
        finally:
            in_use.close()
            shutil.rmtree(folder, ignore_errors=True)
            if checkpoint is not None:
                _remove_partial(checkpoint)


@contextmanager
def _alone_at(checkpoint: Path | None) -> Iterator[None]:
    """Two trainings at one checkpoint would each undo the other's.

    Raises:
        SettingsError: another one is there now.
    """
    if checkpoint is None or fcntl is None:
        yield
        return
    path = checkpoint.with_name(f".{checkpoint.name}.lock")
    with ExitStack() as held:
        try:
            fcntl.flock(held.enter_context(path.open("wb")), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SettingsError(f"checkpoint {checkpoint}: another personalization writes there now; wait for it, or "
                                "name another file") from error
        except OSError:     # a file system without locks
            pass
        held.callback(_remove, path)
        yield


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _remove_partial(checkpoint: Path) -> None:
    """What a child that was killed while it saved has left."""
    for path in checkpoint.parent.glob(f".{glob.escape(checkpoint.name)}.*.partial"):
        _remove(path)


def _is_checkpoint(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(CHECKPOINT_HEADER)) == CHECKPOINT_HEADER
    except OSError:
        return False


def _read_others(source: Source | Sequence[Source] | None, name: str) -> list[Recording]:
    """What the argument called `name` gives. An empty list is more likely a mistake than a wish."""
    if isinstance(source, (list, tuple)) and not source:
        raise SettingsError(f"{name}=[] holds no recordings; leave {name} out, or name some")
    try:
        return [] if source is None else read_recordings(source, max_seconds=LONGEST_OTHER_SECONDS)
    except AudioError as error:
        raise AudioError(f"{name}: {error}") from error


def _without(recordings: list[Recording], others: list[Recording],
             words: str) -> tuple[list[Recording], tuple[str, ...]]:
    """The recordings that are not among the others, and a note: a sound must not count as two things."""
    kept = [recording for recording in recordings if not any(is_copy(other, recording) for other in others)]
    n_left = len(recordings) - len(kept)
    return kept, (f"{n_left} of {len(recordings)} {words}",) if n_left else ()


def _not_too_clipped(recordings: list[Recording]) -> tuple[list[Recording], tuple[str, ...]]:
    """Those that speech can be learnt from, and a note on the others."""
    kept = [recording for recording in recordings if recording.clipped <= MOST_CLIPPED]
    n_left = len(recordings) - len(kept)
    return kept, (f"{n_left} of {len(recordings)} recordings are left out: they are clipped so hard that little of the "
                  "speech is as it was",) if n_left else ()


def at_most(recordings: list[Recording], seconds: float) -> tuple[list[Recording], tuple[str, ...]]:
    """The recordings, or where they are longer together, minutes of them in which something happens, and a note.

    Those minutes come from everywhere, evenly; neighbours stay together. Steady sound and silence are taken only where
    there is nothing else.
    """
    total = sum(recording.seconds for recording in recordings)
    if total <= seconds:
        return recordings, ()
    blocks = [(i, start, min(start + _BLOCK, len(recording.samples)))
              for i, recording in enumerate(recordings) for start in range(0, len(recording.samples), _BLOCK)]
    swing = np.array([_swing_db(recordings[i].samples[start:stop]) for i, start, stop in blocks])
    lengths = np.array([stop - start for _, start, stop in blocks]) / STFT.sample_rate
    lively = swing > LEAST_SWING_DB
    if lengths[lively].sum() > seconds:
        chosen = _evenly(lengths, lively, seconds)
    else:
        order = np.argsort(-swing, kind="stable")
        chosen = np.sort(order[np.cumsum(lengths[order]) - lengths[order] < seconds])
    places = list[tuple[int, int, int]]()
    for i, start, stop in (blocks[k] for k in chosen):
        if places and places[-1][0] == i and places[-1][2] == start:
            places[-1] = (i, places[-1][1], stop)
        else:
            places.append((i, start, stop))
    kept, left = list[Recording](), round(seconds * STFT.sample_rate)
    for i, start, stop in places:
        samples = recordings[i].samples[start:min(stop, start + left)]
        if len(samples) >= min(SHORTEST_SECONDS * STFT.sample_rate, stop - start):
            kept.append(replace(recordings[i], samples=samples.copy()))
            left -= len(samples)
    used = sum(recording.seconds for recording in kept)
    return kept, (f"of {total / 60:.1f} minutes of recordings {used / 60:.1f} were used, in which most happens",)


def _evenly(lengths: np.ndarray, lively: np.ndarray, seconds: float) -> np.ndarray:
    """Which of the lively blocks to take, so that everywhere the same share of their time is."""
    share, passed, taken, chosen = seconds / lengths[lively].sum(), 0.0, 0.0, list[int]()
    for k in np.flatnonzero(lively):
        passed += lengths[k]
        if taken + lengths[k] / 2 <= share * passed:
            chosen.append(int(k))
            taken += lengths[k]
    return np.array(chosen)


def _swing_db(samples: np.ndarray) -> float:
    """How far the levels of 16 ms lie apart, from the 10th to the 95th of a hundred, silence counting as -80 dBFS."""
    power = frame_power(samples)
    if not len(power):
        return 0.0
    low, high = np.percentile(10 * np.log10(power + 1e-8), [10, 95])
    return float(high - low)


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
        _tell(on_progress, Progress("teach", 0.0, max(0.0, deadline - time.monotonic()),
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


def _new_folder() -> tuple[Path, IO[bytes]]:
    """For a job, and the file in it that says that it is in use, open and locked."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX)).absolute()    # mode 0700: nobody else reads it
        in_use = (folder / f"{IN_USE}.new").open("wb")
        if fcntl is not None:
            fcntl.flock(in_use, fcntl.LOCK_EX)
            (folder / f"{IN_USE}.new").rename(folder / IN_USE)      # locked before anybody can find it
        return folder, in_use
    except OSError as error:
        raise PersonalizationError(f"no temporary folder to work in ({error}); "
                                   "set TMPDIR to a folder that can be written") from error


def _remove_abandoned() -> None:
    """Jobs of this user whose processes were all killed at once, so that nobody could remove their recordings."""
    if fcntl is None:
        return
    try:
        found = list(Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*/{IN_USE}"))
    except OSError:
        return
    for path in found:
        with suppress(OSError):
            if not path.is_file() or path.stat().st_uid != os.getuid():     # opening a pipe waits for its other end
                continue
            with path.open("rb") as in_use:
                fcntl.flock(in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)      # fails while its process lives
                shutil.rmtree(path.parent, ignore_errors=True)


def _write_job(folder: Path, settings: dict[str, Any], sounds: dict[str, list[Recording]],
               start: bytes | None) -> None:
    try:
        for kind, clips in sounds.items():
            for i, clip in enumerate(clips):
                np.save(folder / f"{kind}-{i:05d}.npy", clip.samples)
        if start is not None:
            (folder / "start.onnx").write_bytes(start)
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
    environment = {**os.environ, **KEEP_MEMORY, **GIVE_WAY, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "cache")      # or torch leaves a folder beside ours
    given = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).absolute().parent.parent),
                                                 *map(os.path.abspath, given)])
    try:
        with (folder / "errors.txt").open("wb") as errors:
            # not in the caller's folder: `-m` would import what lies there before what is installed
            child = subprocess.Popen([sys.executable, "-m", "pse_sdk.training", str(folder)], stdout=subprocess.PIPE,
                                     stderr=errors, stdin=subprocess.DEVNULL, env=environment, cwd=folder)
    except OSError as error:
        raise PersonalizationError(f"the training process cannot be started ({error}); the model in use is unchanged"
                                   ) from error
    ended, overtime, seconds_rested = threading.Event(), threading.Event(), 0.0

    def watch() -> None:
        while not ended.wait(1.0):
            if time.monotonic() > deadline + seconds_rested + OVERTIME_SECONDS:
                overtime.set()
                child.kill()

    threading.Thread(target=watch, daemon=True).start()
    rest, asked = folder / REST, time.monotonic()
    refused = ""
    try:
        assert child.stdout is not None
        for line in child.stdout:
            message = _message(line)
            if "error" in message:
                refused = message["error"]
            if "stage" not in message:
                continue
            _tell(on_progress, Progress(**message))
            if message["stage"] == "rest":
                seconds_rested += time.monotonic() - asked
            asked = time.monotonic()
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
        checkpoint = settings["checkpoint"]
        what_next = ("the same call goes on from the checkpoint" if checkpoint and _is_checkpoint(Path(str(checkpoint)))
                     else "try again or with fewer recordings")
        last = (folder / "errors.txt").read_text(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise PersonalizationError(f"the training process ended with code {child.returncode} ({last[0][:300]}); "
                                   f"the model in use is unchanged, {what_next}")


def _message(line: bytes) -> dict[str, Any]:
    """What the child says in a line; nothing, if some library printed it there."""
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}


def _tell(on_progress: Callable[[Progress], object] | None, progress: Progress) -> None:
    if on_progress is not None and on_progress(progress) is False:
        raise PersonalizationCancelled("personalization was cancelled; the model in use is unchanged")
