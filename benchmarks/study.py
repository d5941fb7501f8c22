"""How much a user has to record: what specialists gain, against minutes, noise and seconds of clean speech.

    python benchmarks/study.py --users build/users --methods auto pseudose+dp --minutes 1 2 4 --clean-seconds 0 3 10
    python benchmarks/study.py ... --engine ray                                 # on a Ray cluster of this machine
    python benchmarks/study.py ... --engine ray --ray-address auto              # on the one that is running

Users are folders as for `benchmarks/personalization.py`, with two things that may be there:

    <user>/clean/*.wav              the same voice without noise, for --clean-seconds above 0
    <user>/recordings-*/*.wav       the recordings in other noise, such as `recordings-0dB` (recordings_at_snrs.py makes
                                    them): each such folder is studied like `recordings`

Minutes are the same share from the beginning of every recording; seconds of clean speech are the first ones that are
not silent. A user who has less than is asked for is left out there.

Every task, one personalization and its scores, leaves one row in the work folder, whole or not at all. Kill the program
at any time and start it again: finished rows stay, only what failed or is missing is run. On a cluster all machines
have to see the users, the work folder and this program under the same paths. Needs pse_sdk[train,bench], and for Ray
pse_sdk[study].
"""

import argparse
import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from engines import on_ray, on_this_machine
from score_tables import Result, gain_cells, gains, mean_over_clips, metrics_of, summary_page
from user_scores import (
    RATE,
    SETS,
    digest,
    digest_of_files,
    digest_of_package,
    evaluate,
    first_seconds,
    method_arguments,
    our_system,
    plain,
    read,
    unplain,
    users_in,
    write_json,
)

from pse_sdk import Enhancer
from pse_sdk.benchmark import installed_generalists
from pse_sdk.benchmark_page import Point, plots_page, scatter_svg
from pse_sdk.errors import PersonalizationError, PseError
from pse_sdk.job import METHODS
from pse_sdk.report import KEPT
from pse_sdk.tables import environment, environment_line, write_results

AXES = {"minutes": "minutes of recordings", "clean_seconds": "seconds of clean speech"}
RESULTS = Path(__file__).resolve().parent / "results"
FAILED = "failed"

HINT = """Gain over the generalist that training started from, in dB of SI-SDR. Against minutes and seconds: means over
users, with bars for their 95 % intervals. Against the SNR of the recordings: each user, at the most minutes."""

NOTES = """\
Every specialist is compared with the generalist that it started from, on sound that no recording holds. Gains are means
over the clips of a user, then over users, ± half of the 95 % interval over users (Student's t); "worse" counts users
whose score fell, and the worst user is named even if that is still a gain. A specialist that was not accepted is the
generalist, for that is what this user would hear; a task that failed is counted, and left out of the means. Where the
columns of users differ, so do the users: not everybody has recorded as much. SNR: median over the recordings, as the
predictor of the package hears it. The budget is time, so a busy machine trains fewer steps,
unless their number is given.
"""


Means = dict[str, dict[str, float]]
"""Name of a set -> metric -> mean over the clips."""


@dataclass(frozen=True, order=True)
class Condition:
    """What is varied."""

    size: str
    method: str
    recordings: str
    """Name of the folder."""
    minutes: float
    clean_seconds: float

    @property
    def words(self) -> dict[str, str]:
        """The fields for a reader."""
        return {"size": self.size, "method": self.method, "recordings": self.recordings,
                "minutes": f"{self.minutes:g} min", "clean_seconds": f"{self.clean_seconds:g} s clean"}

    def __str__(self) -> str:
        return ", ".join(self.words.values())


@dataclass(frozen=True)
class Task:
    """One personalization of one user, and the file of its row."""

    user: Path
    condition: Condition
    row: Path


@dataclass(frozen=True)
class Settings:
    """The same for every task."""

    sets: tuple[str, ...]
    work: Path
    budget_seconds: float
    threads: int
    seed: int
    steps: int | None = None


@dataclass(frozen=True)
class Row:
    """What became of a task."""

    user: str
    condition: Condition
    status: str
    """As in `Result`."""
    note: str
    seconds: float = 0.0
    n_steps: int = 0
    n_parameters: int = 0
    held_out_gain_db: float = nan
    snr_db: float = nan
    seconds_of_clean: float = 0.0
    start: Means = field(default_factory=dict)
    """Of the generalist that training started from; like `scores` empty where the task failed."""
    scores: Means = field(default_factory=dict)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=Path, required=True, help="folder of users")
    parser.add_argument("--only", nargs="+", help="names of users, else all")
    parser.add_argument("--size", nargs="+", choices=list(installed_generalists()), default=["tiny"])
    parser.add_argument("--methods", nargs="+", default=["auto"],
                        choices=[*METHODS, *(f"{method}:remove" for method in METHODS)],
                        help="METHOD:remove trains with others='remove'")
    parser.add_argument("--minutes", nargs="+", type=float, default=[1.0, 2.0, 4.0], help="of recordings")
    parser.add_argument("--recordings", nargs="+", metavar="FOLDER", help="such as recordings recordings-0dB; else all")
    parser.add_argument("--clean-seconds", nargs="+", type=float, default=[0.0], help="of clean speech, such as 0 3 10")
    parser.add_argument("--budget", type=float, default=120.0, help="seconds for each personalization")
    parser.add_argument("--steps", type=int, help="of each personalization, where machines differ or are busy")
    parser.add_argument("--threads", type=int, default=1, help="of each personalization")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    parser.add_argument("--ray-address", help="of a running cluster, else one is started on this machine")
    parser.add_argument("--jobs", type=int, default=1, help="tasks at the same time on this machine")
    parser.add_argument("--work", type=Path, default=Path("build/study"), help="rows and scores")
    parser.add_argument("--out", type=Path, default=RESULTS / "study", help="of .md, .json and .html")
    args = parser.parse_args()

    settings = Settings(tuple(args.sets), args.work.resolve(), args.budget, args.threads, args.seed, args.steps)
    tasks = list(tasks_of(users_in(args.users.resolve(), args.only), settings, args.size, args.methods,
                          args.minutes, args.clean_seconds, args.recordings))
    if not tasks:
        parser.error(f"no user in {args.users} has recordings, tests and as many minutes and seconds as asked for")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    above = {**environment(), "seed": args.seed}
    engine = (partial(on_ray, threads=args.threads, address=args.ray_address) if args.engine == "ray"
              else on_this_machine)
    try:
        missing = [task for task in tasks if not is_finished(task)]
        print(f"{len(tasks)} tasks, {len(tasks) - len(missing)} of them finished before", flush=True)
        for i, (task, problem) in enumerate(engine(partial(run_task, settings=settings), missing, args.jobs)):
            if problem and not is_finished(task):
                write_json(task.row, Row(task.user.name, task.condition, FAILED, problem))
            print(f"[{i + 1}/{len(missing)}] {progress_line(read_row(task))}", flush=True)
    except KeyboardInterrupt:
        parser.exit(130, "\nstopped; the same command goes on\n")
    except PseError as error:
        parser.exit(2, f"{error}\n")

    rows = [read_row(task) for task in tasks]
    results = results_of(rows)
    setup = (f"{len({row.user for row in rows})} users, {len(rows)} tasks, "
             f"{sum(row.status == FAILED for row in rows)} of them failed; "
             f"{f'{args.steps} steps' if args.steps else f'{args.budget:g} s'} for each personalization "
             f"on {args.threads} thread{'s' * (args.threads > 1)}")
    page = (f"# How much to record\n\n{environment_line(above)}\n\n{setup}\n\n{summary_page(results)}\n\n"
            f"## Notes\n\n{NOTES}")
    values = {"environment": above, "settings": {**asdict(settings), "work": None}, "gains": gains(results),
              "rows": rows}
    markdown, figures, html = (args.out.with_suffix(suffix) for suffix in (".md", ".json", ".html"))
    write_results(page, plain(values), markdown, figures)
    html.write_text(plots_page("How much to record", f"{environment_line(above)}; {setup}", HINT, plots(rows),
                               gain_cells(results), NOTES), "utf-8")
    print(f"\n{summary_page(results)}\n\nwritten: {markdown}, {figures}, {html}")


# Tasks.


def tasks_of(users: Sequence[Path], settings: Settings, sizes: Sequence[str], methods: Sequence[str],
             minutes: Sequence[float], clean_seconds: Sequence[float],
             folders: Sequence[str] | None = None) -> Iterator[Task]:
    """The conditions of every user, as far as the user's recordings reach."""
    packages = {size: digest_of_package(size) for size in sizes}
    for user in users:
        tests = [(name, digest_of_files(user / "tests" / name)) for name in settings.sets]
        has_clean, clean = seconds_in(user / "clean"), digest_of_files(user / "clean")
        for recordings in sorted(folder for folder in user.glob("recordings*")
                                 if folder.is_dir() and (folders is None or folder.name in folders)):
            has, noisy = seconds_in(recordings), digest_of_files(recordings)
            for condition in (Condition(size, method, recordings.name, m, s)
                              for size, method, m, s in product(sizes, methods, minutes, clean_seconds)
                              if 60 * m <= has and s <= has_clean):
                key = digest(packages[condition.size], condition, tests, noisy,
                             clean if condition.clean_seconds else "", settings.budget_seconds, settings.threads,
                             settings.seed, settings.steps)
                name = f"{user.name}-{condition.size}-{condition.method.replace(':', '-')}-{key}.json"
                yield Task(user, condition, settings.work / "rows" / name)


def seconds_in(folder: Path) -> float:
    return float(sum(soundfile.info(path).duration for path in folder.glob("*.wav")))


def is_finished(task: Task) -> bool:
    return task.row.exists() and read_row(task).status != FAILED


def read_row(task: Task) -> Row:
    values = unplain(json.loads(task.row.read_text("utf-8")))
    return Row(**{**values, "condition": Condition(**values["condition"])})


def run_task(task: Task, settings: Settings) -> None:
    """Leave the task's row, whatever happens to the task."""
    began = time.perf_counter()
    try:
        row = study(task, settings)
    except Exception as error:      # also what is no PseError: it must not end the others
        note = f"{type(error).__name__}: {error}".replace(f"{task.user.parent}{os.sep}", "")
        row = Row(task.user.name, task.condition, FAILED, note)
    write_json(task.row, replace(row, seconds=time.perf_counter() - began))


def study(task: Task, settings: Settings) -> Row:
    """Personalize as the condition says, and score the specialist and its start."""
    condition, start = task.condition, Enhancer(size=task.condition.size)
    clean = first_seconds(task.user / "clean", condition.clean_seconds) or None
    mine = Enhancer.personalize(first_minutes(task.user / condition.recordings, condition.minutes), clean=clean,
                                **method_arguments(condition.method), size=condition.size, seed=settings.seed,
                                budget_seconds=settings.budget_seconds, threads=settings.threads,
                                steps=settings.steps)
    report = mine.report
    assert report is not None
    if report.status == KEPT and not report.n_steps:
        raise PersonalizationError(report.summary)     # no verdict on a specialist: there was no time to train one
    return Row(task.user.name, condition, report.status, report.summary, n_steps=report.n_steps,
               n_parameters=mine.n_parameters, held_out_gain_db=report.gain_db if report.n_steps else nan,
               snr_db=nan if report.snr_db is None else report.snr_db, seconds_of_clean=report.seconds_of_clean,
               start=scores(start, task.user, settings), scores=scores(mine, task.user, settings))


def first_minutes(folder: Path, minutes: float) -> list[tuple[np.ndarray, int]]:
    """The same share from the beginning of every recording, `minutes` together."""
    recordings = [read(path) for path in sorted(folder.glob("*.wav"))]
    share = min(1.0, 60 * RATE * minutes / sum(map(len, recordings)))
    return [(samples[:round(share * len(samples))], RATE) for samples in recordings]


def scores(enhancer: Enhancer, user: Path, settings: Settings) -> Means:
    return {name: {metric: mean_over_clips(clips, metric) for metric in metrics_of(name)}
            for name, clips in evaluate(user, our_system(enhancer), settings.sets, settings.work).items()}


def progress_line(row: Row) -> str:
    gains_db = [f"{name} {gain_db(row, name):+.2f} dB" for name in row.scores]
    return (f"{row.user}, {row.condition}: {row.status} after {row.seconds:.0f} s; "
            f"{'gain in ' + ', '.join(gains_db) if gains_db else row.note}")


def gain_db(row: Row, set_name: str) -> float:
    metric = metrics_of(set_name)[0]
    return row.scores[set_name][metric] - row.start[set_name][metric]


# Results.


def results_of(rows: Sequence[Row]) -> list[Result]:
    """The generalists, then every condition as a system of its own. A failed task has a verdict and no scores."""
    starts = {(row.condition.size, row.user): row for row in rows if row.start}
    return [Result(user, f"generalist {size}", as_clips(row.start), n_parameters=row.n_parameters)
            for (size, user), row in starts.items()] + [
        Result(row.user, system(row.condition), as_clips(row.scores), n_parameters=row.n_parameters,
               start=f"generalist {row.condition.size}", status=row.status, note=row.note, seconds=row.seconds,
               n_steps=row.n_steps, held_out_gain_db=row.held_out_gain_db)
        for row in sorted(rows, key=lambda row: (row.condition, row.user))]


def system(condition: Condition) -> str:
    return f"specialist {condition}"


def as_clips(means: Means) -> dict[str, list[dict[str, Any]]]:
    """As if there had been one clip."""
    return {name: [values] for name, values in means.items()}


def plots(rows: Sequence[Row]) -> list[str]:
    """Gain against what was varied and against the SNR of the recordings, as SVG, for every set."""
    conditions = sorted({row.condition for row in rows})
    found = []
    for set_name, by_system in gains(results_of(rows)).items():
        metric = metrics_of(set_name)[0]
        y_label = f"gain in the set {set_name}, dB"
        for axis, x_label in AXES.items():
            points = []
            for condition in conditions:
                mean = by_system[system(condition)][metric].mean
                if not isnan(mean.value):
                    points.append(Point(label(condition, conditions, axis), getattr(condition, axis), mean.value,
                                        0.0 if isnan(mean.half_width) else mean.half_width))
            if len({point.x for point in points}) > 1:
                found.append(scatter_svg(points, x_label, y_label, linear=True, joined=True))
        most = max(condition.minutes for condition in conditions)
        points = [Point(label(row.condition, conditions, "minutes"), row.snr_db, gain_db(row, set_name))
                  for row in rows if row.condition.minutes == most and set_name in row.scores]
        found.append(scatter_svg([point for point in points if not isnan(point.x + point.y)],
                                 "SNR of the recordings, dB", y_label, linear=True))
    return found


def label(condition: Condition, conditions: Sequence[Condition], axis: str) -> str:
    """The method, and what else tells this line of a plot over `axis` from its others."""
    return ", ".join(word for name, word in condition.words.items() if name == "method" or (
        name != axis and len({getattr(other, name) for other in conditions}) > 1))


if __name__ == "__main__":
    main()
