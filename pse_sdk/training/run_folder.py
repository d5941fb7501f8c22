"""What a run of pre-training leaves in its folder: weights, a log, and the checkpoint that it goes on from."""

import json
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from ..errors import SettingsError
from .network import save_weights

WHOLE_STATE = {"network", "average", "optimizers", "step", "seconds", "settings"}


class RunFolder:
    """`weights.safetensors` (the averaged ones, what ships), `log.jsonl` (a row every evaluation), `checkpoint.pt`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._checkpoint, self._weights, self._log = (path / name for name in (
            "checkpoint.pt", "weights.safetensors", "log.jsonl"))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Made if it is not there, and this run's alone: a second one would go on from the same checkpoint, and each
        undo the other.

        Raises:
            SettingsError: nothing can be written there, or another run writes there now.
        """
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._path):
                pass
        except OSError as error:
            raise SettingsError(f"--out {self._path}: nothing can be written there: {error.strerror}") from error
        try:
            lock = FileLock(self._path / ".lock").acquire(blocking=False)
        except Timeout as error:
            raise SettingsError(f"--out {self._path}: another run writes there now; wait for it, or choose another"
                                ) from error
        with lock:
            yield

    def checkpoint(self) -> dict[str, Any] | None:
        """What a run goes on from; None where there is none yet.

        Raises:
            SettingsError: it is damaged, or no checkpoint.
        """
        if not self._checkpoint.exists():
            return None
        try:
            with zipfile.ZipFile(self._checkpoint) as archive:      # torch itself looks at no checksum
                if archive.testzip() is not None:
                    raise ValueError("its checksums do not match")
            state = torch.load(self._checkpoint, map_location="cpu", weights_only=True)
            if missing := WHOLE_STATE - set(state):
                raise ValueError(f"it holds no {', '.join(sorted(missing))}")
            return dict(state)
        except Exception as error:      # torch has no common class for what a damaged file leads to
            raise SettingsError(f"{self._checkpoint} is no checkpoint to go on from: {in_a_line(error)}; remove it to "
                                "begin anew, or --start-weights with those beside it") from error

    def check_settings(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        """What a checkpoint of an earlier version does not tell is not compared.

        Raises:
            SettingsError: it was made with others.
        """
        for name, value in now.items():
            # None: the task's own number of seconds, as an earlier version wrote it
            if before.get(name) not in (None, value):
                told = ("with other sounds than those of --data" if name == "data" else
                        f"with --{name} {_words(before[name])}, not {_words(value)}")
                raise SettingsError(f"{self._checkpoint} was made {told}; go on with the same, or choose another --out "
                                    "(and --start-weights with its weights, to begin where it stands)")

    def go_back(self, last_step: int, average: torch.nn.Module | None) -> None:
        """To when the checkpoint was written. A run that died may have left rows of steps that are done again, or half
        a row; one that begins anew, all of its own.

        Args:
            average: what the checkpoint holds, or None where there is none.
        """
        if average is not None:
            save_weights(average, self._weights)
        if not self._log.exists():
            return
        kept = []
        for line in self._log.read_text("utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= last_step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                pass
        partial = self._log.with_suffix(".partial")
        partial.write_text("".join(kept), "utf-8")
        partial.replace(self._log)

    def leave(self, row: dict[str, Any], average: torch.nn.Module, state: dict[str, Any]) -> None:
        """The row, the weights and last the checkpoint: going on from one mends what was written after it.

        Raises:
            SettingsError: they could not be written.
        """
        try:
            with self._log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            save_weights(average, self._weights)
            partial = self._checkpoint.with_suffix(".partial")
            try:
                torch.save(state, partial)
                partial.replace(self._checkpoint)
            finally:
                partial.unlink(missing_ok=True)
        except (OSError, RuntimeError) as error:    # the latter of torch.save
            raise SettingsError(f"{self._path} could not be written to: {in_a_line(error)}; its checkpoint is of the "
                                "evaluation before") from error


def in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _words(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(part if isinstance(part, str) else f"{part:g}" for part in value) or "none"
    return str(value)
