"""Where independent tasks run: in processes of this machine, or on a Ray cluster.

What a task makes it leaves in files. So an engine only says which task has ended, and if it ended badly, how. A task
that dies takes no other with it.
"""

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from multiprocessing.connection import wait
from typing import Any, TypeVar

from pse_sdk.errors import MissingDependencyError, SettingsError

Task = TypeVar("Task")
SECONDS_TO_END = 10.0       # for interrupted tasks on a cluster
SECONDS_TO_CONNECT = 5.0


def on_this_machine(function: Callable[[Task], object], tasks: Sequence[Task], n_jobs: int
                    ) -> Iterator[tuple[Task, str]]:
    """Each task, and what went wrong with it, as it ends: each in a process of its own, `n_jobs` at a time.

    Processes that still run are ended when the iteration is given up.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")       # of numpy in the processes: they are enough by themselves
    waiting, running = list(reversed(tasks)), {}
    try:
        while waiting or running:
            while waiting and len(running) < n_jobs:
                task = waiting.pop()
                process = get_context("spawn").Process(target=_call, args=(function, task))
                process.start()
                running[process.sentinel] = task, process
            for ended in wait(list(running)):
                task, process = running.pop(ended)      # type: ignore[index]
                process.join()
                yield task, f"its process ended with code {process.exitcode}" if process.exitcode else ""
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.join()


def on_ray(function: Callable[[Task], object], tasks: Sequence[Task], n_jobs: int, *, threads: int,
           address: str | None = None) -> Iterator[tuple[Task, str]]:
    """The same on the Ray cluster at `address`, each task on `threads` of its cores.

    Every machine of the cluster has to see this program, its packages and the tasks' files under the same paths.
    Without an address a cluster is started on this machine, with cores for `n_jobs` tasks, and ended afterwards.

    Raises:
        MissingDependencyError: Ray is not installed. SettingsError: no cluster can be reached.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"         # before the import: it tells nobody that it runs
    try:
        import ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise MissingDependencyError("running on a cluster needs ray: pip install 'pse_sdk[study]'") from error
    if address:
        _check_reachable(address)
    here = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "RAY_USAGE_STATS_ENABLED": "0"}
    started: dict[str, object] = {} if address else {"num_cpus": n_jobs * threads, "include_dashboard": False}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address or "local", runtime_env={"env_vars": here}, log_to_driver=False, logging_level="warning",
                 **started)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise SettingsError(f"no Ray cluster at {address or 'this machine'}: {error}") from error
    signal.signal(signal.SIGTERM, on_sigterm)           # Ray's own would abort this process
    running: dict[Any, Task] = {}
    try:
        @ray.remote(num_cpus=threads, max_retries=0)    # type: ignore[misc]
        def call(task: Task) -> None:
            function(task)

        running = {call.remote(task): task for task in tasks}
        while running:
            [ended], _ = ray.wait(list(running))
            task, problem = running.pop(ended), ""
            try:
                ray.get(ended)
            except ray.exceptions.RayError as error:
                problem = str(error).strip().splitlines()[-1]
            yield task, problem
    finally:
        for unfinished in running:      # interrupted, so that training ends and removes its folder
            ray.cancel(unfinished)
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=SECONDS_TO_END)
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray itself would wait for minutes. "auto" and the like are left to Ray."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=SECONDS_TO_CONNECT).close()
    except (OSError, OverflowError) as error:
        raise SettingsError(f"no Ray cluster at {address}: {error}; give HOST:PORT of its head, as `ray start` printed "
                            "it") from error


def end_when_told() -> None:
    """In each process: leave it to the parent to be interrupted, and end in order, so that training ends too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))


def _call(function: Callable[[Task], object], task: Task) -> None:
    end_when_told()
    function(task)
