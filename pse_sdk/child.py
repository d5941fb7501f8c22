"""The process that trains: its folder, how it is started and watched, and what it says."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

try:
    import fcntl
except ImportError:     # no POSIX system
    fcntl = None        # type: ignore[assignment]

from .checkpoint_file import is_checkpoint
from .errors import PersonalizationCancelled, PersonalizationError
from .recordings import Recording

# glibc returns every large array to the system and faults it in again, at a third of the time of a training step
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
# threads that wait for each other spin, by default for so long that two of them, beside another program, took ten times
# as long as one; with "passive" they sleep at once, and two that have the machine alone take longer than one
GIVE_WAY = {"GOMP_SPINCOUNT": "10000"}
IN_USE = "in_use"
"""A file in the job's folder that is locked while the process that made it lives."""
FOLDER_PREFIX = "pse-"
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


def new_folder() -> tuple[Path, IO[bytes]]:
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


def remove_abandoned() -> None:
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


def write_job(folder: Path, settings: dict[str, Any], sounds: dict[str, list[Recording]],
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


def run_child(folder: Path, settings: dict[str, object], deadline: float,
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
            tell(on_progress, Progress(**message))
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
        what_next = ("the same call goes on from the checkpoint" if checkpoint and is_checkpoint(Path(str(checkpoint)))
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


def tell(on_progress: Callable[[Progress], object] | None, progress: Progress) -> None:
    if on_progress is not None and on_progress(progress) is False:
        raise PersonalizationCancelled("personalization was cancelled; the model in use is unchanged")
