"""The meter of a running `listen` and the keys that steer it; without a terminal, one line of text a second.

Everything is written to stderr, so that a program's own output stays clean.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from .errors import MissingDependencyError
from .live import Control, LiveStatus, StreamMaker, listen
from .quiet import quiet_libraries

try:
    from rich.console import Console, Group, RenderableType
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text
except ModuleNotFoundError as error:
    raise MissingDependencyError("the meter needs the package rich: pip install 'pse_sdk[live]'") from error

BAR_CELLS = 40
BAR_FLOOR_DBFS = -72.0
METER_SECONDS = 0.1     # from one picture to the next
LINE_SECONDS = 1.0      # from one line of text to the next


def run_listen(
    enhancer: StreamMaker,
    *,
    control: Control | None = None,
    on_status: Callable[[LiveStatus], object] | None = None,
    **options: Any,
) -> LiveStatus:
    """`listen` with a meter on the terminal. Space or b switches before/after, q or Ctrl-C ends it.

    Args:
        options: of `listen`. While it runs, nothing that other code writes straight to stderr is seen.

    Raises:
        The errors of `listen`.
    """
    control = control or Control()
    # the sound library complains on stderr whenever it likes, in the middle of the meter
    with quiet_libraries(), _screen(control) as (show, pause):
        shown = -pause

        def tell(status: LiveStatus) -> None:
            nonlocal shown
            if status.seconds - shown >= pause:
                shown = status.seconds
                show(status)
            if on_status is not None:
                on_status(status)

        status = listen(enhancer, control=control, on_status=tell, **options)
        show(status)
    return status


Show = Callable[[LiveStatus], None]


@contextlib.contextmanager
def _screen(control: Control) -> Iterator[tuple[Show, float]]:
    """How to show a status here, and how many seconds to leave between two."""
    console = Console(stderr=True)
    if not console.is_terminal:
        def print_line(status: LiveStatus) -> None:
            console.print(line(status), soft_wrap=True, highlight=False)

        yield print_line, LINE_SECONDS
        return
    with keys(control) as has_keys, Live(console=console, auto_refresh=False, redirect_stderr=False) as screen:
        def draw(status: LiveStatus) -> None:
            screen.update(meter(status, has_keys), refresh=True)

        yield draw, METER_SECONDS


def meter(status: LiveStatus, has_keys: bool = True) -> RenderableType:
    """The picture of one moment."""
    levels = Table.grid(padding=(0, 1))
    for name, dbfs, style in (("microphone", status.input_dbfs, "yellow"),
                              ("loudspeaker", status.output_dbfs, "green")):
        levels.add_row(name, Text(bar(dbfs), style=style), f"{dbfs:6.1f} dBFS")
    state = Text(" BEFORE: microphone as it is ", style="black on yellow") if status.bypassed else \
        Text(" AFTER: enhanced ", style="black on green")
    if has_keys:
        state.append("   space: before/after   q: quit", style="default on default")
    rows: list[RenderableType] = [levels, Text(figures(status)), Text(losses(status), style=_alarm(status)), state]
    if status.note:
        rows.append(Text(status.note, style="bold red"))
    return Group(*rows)


def bar(dbfs: float) -> str:
    """A level as a bar: full at 0 dBFS."""
    filled = round(BAR_CELLS * min(1.0, max(0.0, 1 - dbfs / BAR_FLOOR_DBFS)))
    return "█" * filled + "░" * (BAR_CELLS - filled)


def line(status: LiveStatus) -> str:
    """One moment in one line of text."""
    parts = [f"{status.seconds:.0f} s", f"in {status.input_dbfs:.1f} dBFS", f"out {status.output_dbfs:.1f} dBFS",
             figures(status), losses(status), "before" if status.bypassed else "after"]
    return "   ".join(parts + [status.note] * bool(status.note))


def figures(status: LiveStatus) -> str:
    """What enhancement does and costs."""
    return (f"reduction {status.reduction_db:.1f} dB   latency {status.latency_ms:.0f} ms   "
            f"CPU {status.cpu_percent:.1f} % of one core")


def losses(status: LiveStatus) -> str:
    """Everything that a listener may have missed."""
    text = f"gaps {status.gaps + status.device_gaps}"
    text += f"   dropped {status.dropped_samples}   missing {status.missing_input_samples} samples"
    return text + (f"   reopened {status.reopened}" if status.reopened else "")


def _alarm(status: LiveStatus) -> str:
    lost = status.gaps + status.device_gaps + status.dropped_samples + status.missing_input_samples + status.reopened
    return "red" if lost else "dim"


@contextlib.contextmanager
def keys(control: Control) -> Iterator[bool]:
    """Obey the keyboard while the block runs; False where there is none to read."""
    with _unbuffered_keyboard() as read_key:
        if read_key is None:
            yield False
            return
        ended = threading.Event()

        def obey() -> None:
            while not ended.is_set():
                press(read_key(), control)

        reader = threading.Thread(target=obey, name="pse-keys", daemon=True)
        reader.start()
        try:
            yield True
        finally:
            ended.set()
            reader.join(timeout=1)


def press(key: str, control: Control) -> None:
    """What a key does."""
    if key in {" ", "b", "B"}:
        control.toggle_bypass()
    elif key in {"q", "Q"}:
        control.stop()


if sys.platform == "win32":
    @contextlib.contextmanager
    def _unbuffered_keyboard() -> Iterator[Callable[[], str] | None]:
        import msvcrt
        import time

        def read_key() -> str:
            """The key that is down, or nothing after a tenth of a second."""
            if msvcrt.kbhit():
                return msvcrt.getwch()
            time.sleep(0.1)
            return ""

        yield read_key if sys.stdin is not None and sys.stdin.isatty() else None
else:
    @contextlib.contextmanager
    def _unbuffered_keyboard() -> Iterator[Callable[[], str] | None]:
        import select
        import termios
        import tty
        try:
            keyboard = sys.stdin.fileno()
            in_foreground = os.isatty(keyboard) and os.tcgetpgrp(keyboard) == os.getpgrp()
        except (AttributeError, OSError, ValueError):       # no stdin, or one that is no file
            in_foreground = False
        if not in_foreground:       # touching the terminal would suspend a job in the background
            yield None
            return

        def read_key() -> str:
            """The next key, or nothing after a tenth of a second."""
            ready, _, _ = select.select([keyboard], [], [], 0.1)
            if not ready:
                return ""
            key = os.read(keyboard, 1)
            return key.decode("ascii", "ignore") if key else "q"        # the terminal was closed

        before = termios.tcgetattr(keyboard)
        tty.setcbreak(keyboard)
        try:
            yield read_key
        finally:
            termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
