"""C libraries that write to the terminal: ALSA and PortAudio about devices, libmpg123 about damaged MP3s.

They write to file descriptor 2, which belongs to the whole process: to every thread, and to the children it starts. So
this is for programs and for the moments in which a device opens, one thread at a time. Files are read by any number of
threads of somebody's application, and leave the descriptor alone.
"""

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """While this lasts, nothing reaches the terminal but what Python writes to `sys.stderr`."""
    try:
        terminal = os.dup(2)
    except OSError:             # no stderr at all, as in a windowed program
        yield
        return
    python_stderr, moved = sys.stderr, None
    with contextlib.suppress(AttributeError, OSError, ValueError):
        python_stderr.flush()
        if python_stderr.fileno() == 2:
            moved = os.fdopen(os.dup(terminal), "w", buffering=1, encoding=python_stderr.encoding, errors="replace")
            sys.stderr = moved
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        if moved is not None:
            if sys.stderr is moved:
                sys.stderr = python_stderr
            moved.close()
