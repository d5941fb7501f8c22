"""The file that a personalization goes on from, as the calling process sees it: what it is, and whose."""

import glob
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:     # no POSIX system
    fcntl = None        # type: ignore[assignment]

from .errors import SettingsError

CHECKPOINT_HEADER = b"pse_sdk checkpoint\n"
"""How a checkpoint's file begins. Nothing else is ever overwritten or removed as one."""


@contextmanager
def alone_at(checkpoint: Path | None) -> Iterator[None]:
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
        held.callback(remove, path)
        yield


def remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def remove_partial(checkpoint: Path) -> None:
    """What a child that was killed while it saved has left."""
    for path in checkpoint.parent.glob(f".{glob.escape(checkpoint.name)}.*.partial"):
        remove(path)


def is_checkpoint(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(CHECKPOINT_HEADER)) == CHECKPOINT_HEADER
    except OSError:
        return False
