"""The training process: `python -m pse_sdk.training JOB_FOLDER`.

The folder holds `job.json` and samples as `.npy`; `model.onnx` (if the specialist was accepted) and then `report.json`
appear there, each whole or not at all. Progress goes to standard output, a JSON object a line. Killing it is safe.
While there is a file `rest` in the folder, training rests and its clock stands still.
"""

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

SAY_SECONDS = 0.2


def _end_with_parent(folder: Path, parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    _abandon(folder)


def _abandon(folder: Path) -> None:
    """The application was killed: nobody waits for the result, and the user's samples must not stay behind."""
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def main() -> int:
    folder = Path(sys.argv[1])
    settings = json.loads((folder / "job.json").read_text())
    if hasattr(os, "nice"):
        os.nice(settings["nice"])
    threading.Thread(target=_end_with_parent, args=(folder, os.getppid()), daemon=True).start()
    import torch

    from ..child import REST
    from ..errors import PseError
    from ..model_format import write_whole
    from .job import Job
    from .material import as_int16
    from .specialist import personalize
    torch.set_num_threads(settings["threads"])
    torch.set_flush_denormal(True)

    def samples(kind: str) -> Iterator[np.ndarray]:
        return (np.load(path, allow_pickle=False) for path in sorted(folder.glob(f"{kind}-*.npy")))

    start = folder / "start.onnx"
    job = Job(recordings=list(samples("recording")), clean=list(samples("clean")), noise=list(samples("noise")),
              start=start.read_bytes() if start.exists() else None,
              others=settings["others"], voices=list(map(as_int16, samples("voice"))),
              estimates=list(samples("estimate")),
              method=settings["method"], size=settings["size"], deadline=settings["deadline"],
              budget_seconds=settings["budget_seconds"], seed=settings["seed"], steps=settings["steps"],
              checkpoint=None if settings["checkpoint"] is None else Path(settings["checkpoint"]),
              notes=tuple(settings["notes"]), most_threads=settings["most_threads"])
    last = [0.0]

    def say(stage: str, done: float, message: str) -> None:
        last[0] = time.monotonic()
        try:
            print(json.dumps({"stage": stage, "done": done, "seconds_left": max(0.0, job.seconds_left()),
                              "message": message}), flush=True)
        except BrokenPipeError:
            _abandon(folder)

    def progress(stage: str, done: float, _: float, message: str) -> None:
        began = time.monotonic()
        while (folder / REST).exists():
            say("rest", done, "resting")
            time.sleep(SAY_SECONDS)
            job.clock.seconds_rested += time.monotonic() - began
            began = time.monotonic()
        if time.monotonic() - last[0] > SAY_SECONDS or stage != "train":
            say(stage, done, message)

    try:
        model, report = personalize(job, progress)
    except PseError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return 2
    if model is not None:
        write_whole(folder / "model.onnx", model)
    write_whole(folder / "report.json", report.to_json().encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
