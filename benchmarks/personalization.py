"""What personalization is worth: specialists against generalists, user by user, on sound they never recorded.

    python benchmarks/personalization.py --users build/users --size tiny --methods pseudose pseudose+dp auto
    python benchmarks/personalization.py --users build/users --size small --methods auto auto:remove
    python benchmarks/personalization.py --users build/users --methods none        # the generalists alone
    python benchmarks/personalization.py --users build/users --methods none --sets noise elsewhere \
        --teacher --peers peers.py dtln gtcrn       # beside the teacher and other people's denoisers

A user is a folder, whatever made it; all audio is 16 kHz mono:

    <user>/recordings/*.wav             what `Enhancer.personalize` gets, and nothing else
    <user>/tests/<set>/NN.noisy.wav     what is enhanced, and in NN.clean.wav what it should become
    <user>/tests/<set>/tests.json       [{"test": "NN", "snr_db": -5}, ...], if there is one

In the set `clean` nothing was mixed in, so nothing should change.

Peers come from a Python file whose `make(name).enhance(samples)` takes and returns float32 [T] at 16 kHz, time-aligned.

Every finished part stays in the work folder: scores by model and test clips, specialists by user and settings. Kill the
program at any time and start it again with --resume. Needs pse_sdk[train,bench].
"""

import argparse
import json
import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from math import nan
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

from engines import end_when_told
from score_tables import CLEAN_SET, Result, gains, mean_over_clips, snr_page, summary, summary_page, users_page
from user_scores import (
    NOISY,
    SETS,
    TEACHER,
    digest,
    digest_of_files,
    digest_of_package,
    evaluate,
    method_arguments,
    other_system,
    our_system,
    plain,
    unplain,
    users_in,
    write_json,
)

from pse_sdk import Enhancer
from pse_sdk.benchmark import installed_generalists
from pse_sdk.config import SIZES
from pse_sdk.errors import MissingDependencyError, PseError
from pse_sdk.metrics import SI_SDR_LIMIT_DB
from pse_sdk.tables import environment, environment_line, write_results

RESULTS = Path(__file__).resolve().parent / "results"

NOTES = f"""\
Scores are means over the clips of a user, then over users, ± half of the 95 % interval over users (Student's t). Gains
are differences within each user; "worse" counts users whose score fell below the start's (bold in the users' tables),
and the worst user is named even if that is still a gain. A specialist that was not accepted is the generalist it
started from, and scored as such: that is what this user would hear; so is one whose training failed.

SI-SDRi: improvement of the scale-invariant SDR over the noisy input; in the set `{CLEAN_SET}` SI-SDR of the output, for
nothing should change there ({SI_SDR_LIMIT_DB:.0f} dB stands for identical). PESQ: wide band, ITU-T P.862.2.
ESTOI: extended STOI. All at 16 kHz over whole clips through `Enhancer.enhance`. The budget is time, so a busy machine
trains fewer steps.
"""


@dataclass(frozen=True)
class Task:
    """One system on one user."""

    user: Path
    size: str = ""      # without one: the noisy input, the teacher or a peer
    method: str = ""    # without one: the generalist
    peer: str = ""      # its name, or TEACHER

    @property
    def start(self) -> str:
        return f"generalist {self.size}"

    @property
    def system(self) -> str:
        if self.peer:
            return self.peer if self.peer == TEACHER else f"peer {self.peer}"
        return f"specialist {self.size}, {self.method}" if self.method else self.start if self.size else NOISY


@dataclass(frozen=True)
class Settings:
    """The same for every task."""

    sets: tuple[str, ...]
    work: Path
    budget_seconds: float
    threads: int
    seed: int
    resume: bool
    peers: Path | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=Path, required=True, help="folder of users")
    parser.add_argument("--only", nargs="+", help="names of users, else all")
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["tiny"], help="of the specialists")
    parser.add_argument("--methods", nargs="+", default=["pseudose", "pseudose+dp", "auto"],
                        help="or none; METHOD:remove trains with others='remove'")
    parser.add_argument("--budget", type=float, default=120, help="seconds for each personalization")
    parser.add_argument("--threads", type=int, default=1, help="of each personalization")
    parser.add_argument("--jobs", type=int, default=1, help="tasks at the same time; each has its --threads")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--teacher", action="store_true", help="score the teacher as well")
    parser.add_argument("--peers", nargs="+", default=[], metavar=("FILE", "NAME"), help="other people's denoisers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="keep the specialists that an earlier run finished")
    parser.add_argument("--work", type=Path, default=Path("build/personalization"), help="models, scores, reports")
    parser.add_argument("--out", type=Path, default=RESULTS / "personalization", help="of .md and .json")
    args = parser.parse_args()

    users = users_in(args.users, args.only)
    if len(args.peers) == 1:
        parser.error("--peers needs a file and at least one name")
    if not users:
        parser.error(f"no users in {args.users}: expected <user>/recordings and <user>/tests")
    sizes = [size for size in args.size if size in installed_generalists()]
    for size in set(args.size) - set(sizes):
        print(f"no {size} generalist is installed; its specialists are left out")
    methods = [] if args.methods == ["none"] else args.methods
    peers = Path(args.peers[0]).resolve() if args.peers else None
    settings = Settings(tuple(args.sets), args.work, args.budget, args.threads, args.seed, args.resume, peers)
    tasks = [Task(user, size) for size in ["", *installed_generalists()] for user in users]
    tasks += [Task(user, peer=peer) for peer in [TEACHER] * args.teacher + args.peers[1:] for user in users]
    tasks += [Task(user, size, method) for size in sizes for method in methods for user in users]

    above = {**environment(), "seed": args.seed}
    try:
        results = run(tasks, settings, args.jobs)
    except KeyboardInterrupt:
        parser.exit(130, "\nstopped; the same command with --resume goes on\n")
    except PseError as error:
        parser.exit(2, f"{error}\n")

    setup = (f"{len(users)} users; {args.budget:g} s for each personalization on {args.threads} "
             f"thread{'s' * (args.threads > 1)}, {args.jobs} at a time")
    title = "Personalization" if methods else "Generalists, teacher and peers"
    page = (f"# {title}\n\n{environment_line(above)}\n\n{setup if methods else f'{len(users)} users'}\n\n"
            f"{summary_page(results)}\n\n{snr_page(results)}\n\n{users_page(results)}\n\n## Notes\n\n{NOTES}")
    told = {**asdict(settings), "work": None, "peers": args.peers[1:], "jobs": args.jobs}
    values = {"environment": above, "settings": told,
              "summary": summary(results), "gains": gains(results), "results": results}
    markdown, figures = args.out.with_suffix(".md"), args.out.with_suffix(".json")
    write_results(page, plain(values), markdown, figures)
    print(f"\n{summary_page(results)}\n\nwritten: {markdown}, {figures}")


def run(tasks: Sequence[Task], settings: Settings, n_jobs: int) -> list[Result]:
    """The tasks' results in the tasks' order, made in `n_jobs` processes."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")       # of numpy in the processes: they are enough by themselves
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    results: dict[int, Result] = {}
    executor = ProcessPoolExecutor(n_jobs, get_context("spawn"), initializer=end_when_told)
    try:
        futures = {executor.submit(run_task, task, settings): i for i, task in enumerate(tasks)}
        for future in as_completed(futures):
            result = results[futures[future]] = future.result()
            print(f"[{len(results)}/{len(tasks)}] {progress_line(result)}", flush=True)
    except BaseException:       # the processes would finish their tasks first, which takes minutes
        for process in active_children():
            process.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)
    return [results[i] for i in range(len(tasks))]


def run_task(task: Task, settings: Settings) -> Result:
    result = Result(task.user.name, task.system, {})
    if not task.size:
        other = other_system(task.peer, settings.peers)
        return replace(result, sets=evaluate(task.user, other, settings.sets, settings.work))
    enhancer = Enhancer(size=task.size)
    if task.method:
        enhancer, made = specialist(task, settings, enhancer)
        result = replace(result, start=task.start, **made)
    else:
        result = replace(result, digest=enhancer.digest)
    sets = evaluate(task.user, our_system(enhancer), settings.sets, settings.work)
    return replace(result, sets=sets, n_parameters=enhancer.n_parameters)


def specialist(task: Task, settings: Settings, start: Enhancer) -> tuple[Enhancer, dict[str, Any]]:
    """The user's model, and how it was made: fields of `Result`. The start model where training failed."""
    recordings = task.user / "recordings"
    key = digest(digest_of_package(task.size), digest_of_files(recordings), task.method, settings.budget_seconds,
                 settings.threads, settings.seed)
    stem = settings.work / "specialists" / f"{task.user.name}-{task.size}-{task.method.replace(':', '-')}-{key}"
    model, row = stem.with_name(f"{stem.name}.onnx"), stem.with_name(f"{stem.name}.json")
    if settings.resume and row.exists():
        return Enhancer(model), unplain(json.loads(row.read_text("utf-8")))["made"]

    began = time.perf_counter()
    try:
        mine = Enhancer.personalize(str(recordings), **method_arguments(task.method), size=task.size,
                                    seed=settings.seed, budget_seconds=settings.budget_seconds,
                                    threads=settings.threads)
    except MissingDependencyError:
        raise
    except PseError as error:
        return start, {"status": "failed", "note": str(error).replace(str(task.user), task.user.name),
                       "seconds": time.perf_counter() - began}
    report = mine.report
    assert report is not None
    made = {"status": report.status, "note": report.summary, "seconds": time.perf_counter() - began,
            "n_steps": report.n_steps, "held_out_gain_db": report.gain_db if report.n_steps else nan}
    model.parent.mkdir(parents=True, exist_ok=True)
    mine.save(model)
    write_json(row, {"made": made, "report": json.loads(report.to_json())})
    return mine, made


def progress_line(result: Result) -> str:
    first = next(iter(result.sets), None)
    words = [f"{result.user}, {result.system}"]
    words += [f"{result.status} after {result.seconds:.0f} s"] if result.status else []
    words += [result.note] if result.status == "failed" else []
    words += [f"{first}: SI-SDRi {mean_over_clips(result.sets[first], 'si_sdr_improvement'):.2f} dB"] if first else []
    return "; ".join(words)


if __name__ == "__main__":
    main()
