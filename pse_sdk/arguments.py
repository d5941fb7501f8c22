"""What callers pass, checked before anything starts. Each check returns the value, ready to use."""

import errno
import math
import os
import reprlib
import shutil
from pathlib import Path

import numpy as np

from .errors import SettingsError

LEAST_FREE_BYTES = 16 * 2**20   # where a model file or a checkpoint is to be written


def as_path(value: object, name: str) -> Path:
    """The path that the argument called `name` gives.

    Raises:
        SettingsError: not a path.
    """
    if isinstance(value, (str, os.PathLike)) and isinstance(os.fspath(value), str):
        return Path(value)
    raise SettingsError(f"{name}={reprlib.repr(value)}; give a path as str or Path")


def as_whole_number(value: object, name: str, least: int, most: int) -> int:
    """The argument called `name` as an int.

    Raises:
        SettingsError: not a whole number from `least` to `most`.

    >>> as_whole_number(2, "channels", 1, 64)
    2
    """
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and least <= value <= most:
        return int(value)
    raise SettingsError(f"{name}={reprlib.repr(value)}; give a whole number from {least} to {most}")


def as_number(value: object, name: str, least: float, most: float = math.inf) -> float:
    """The argument called `name` as a float.

    Raises:
        SettingsError: not a number from `least` to `most`.
    """
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool) \
            and least <= value <= most:
        return float(value)
    limits = f"from {least:g} to {most:g}" if math.isfinite(most) else f"of at least {least:g}"
    raise SettingsError(f"{name}={reprlib.repr(value)}; give a number {limits}")


def a_type(value: object) -> str:
    """What a value is, for messages.

    >>> a_type(3), a_type("3")
    ('an int', 'a str')
    """
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' or name == 'ndarray' else 'a'} {name}"


def check_function(value: object, name: str) -> None:
    """Raises SettingsError where the argument called `name` is neither None nor something to call."""
    if value is not None and not callable(value):
        raise SettingsError(f"{name}={reprlib.repr(value)}; give a function, or None")


def check_target(path: Path, name: str) -> None:
    """Say now, not after minutes of work, that its result has nowhere to go.

    Raises:
        SettingsError: no file can be written at the path that the argument called `name` gives.
    """
    folder = path.parent
    if path.is_dir() or not folder.is_dir() or (path.exists() and not path.is_file()):
        raise SettingsError(f"{name} {path}: " + ("is a folder" if path.is_dir() else "is no regular file"
                                                  if path.exists() else f"there is no folder {folder}")
                            + "; give the path of a file to write")
    probe = folder / f".{path.name}.probe"
    try:
        probe.touch()
        probe.unlink()
        free = shutil.disk_usage(folder).free
        if free < LEAST_FREE_BYTES:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {free} bytes left")
    except OSError as error:
        raise SettingsError(f"{name} {path}: cannot be written ({error.strerror}); choose a writable folder") from error
