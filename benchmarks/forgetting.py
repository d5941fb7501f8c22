"""Does a specialist forget old rooms when it goes on with recordings from new ones?

    python benchmarks/forgetting.py --users build/users --size tiny

Users are folders as for `benchmarks/personalization.py` whose recordings, and whose test clips of the set `noise`,
alternate between an old room (00, 02, ...) and a new one (01, 03, ...). Compared are specialists of

    old             the recordings from the old room
    old, then new   the same, which went on (`start=`) with those from the new room alone
    new             the recordings from the new room
    all             all of them at once

A user's row stays in the work folder: kill the program at any time, the same command goes on. Needs
pse_sdk[train,bench].
"""

import argparse
import json
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from engines import on_this_machine
from score_tables import Result, gains, summary, summary_page
from user_scores import (
    RATE,
    digest,
    digest_of_files,
    digest_of_package,
    evaluate,
    our_system,
    plain,
    read,
    unplain,
    users_in,
    write_json,
)

from pse_sdk import Enhancer
from pse_sdk.config import SIZES
from pse_sdk.tables import environment, environment_line, write_results

RESULTS = Path(__file__).resolve().parent / "results"
ROOMS = ("old room", "new room")

NOTES = """\
Gains are over the generalist, means over the clips of a room, then over users, ± half of the 95 % interval over users
(Student's t); "worse" counts users whose score fell at all. The verdict of "old, then new" is on its second training:
where that found nothing better for the new room, the specialist for the old one stays.
"""


@dataclass(frozen=True)
class Task:
    user: Path
    row: Path


@dataclass(frozen=True)
class Settings:
    size: str
    steps: int
    seed: int
    work: Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=Path, required=True, help="folder of users")
    parser.add_argument("--only", nargs="+", help="names of users, else all")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--steps", type=int, default=600, help="of each training")
    parser.add_argument("--jobs", type=int, default=1, help="users at the same time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("build/forgetting"), help="rows and scores")
    parser.add_argument("--out", type=Path, default=RESULTS / "forgetting", help="of .md and .json")
    args = parser.parse_args()
    settings = Settings(args.size, args.steps, args.seed, args.work.resolve())
    users = [user for user in users_in(args.users.resolve(), args.only)
             if len(list((user / "recordings").glob("*.wav"))) > 1 and (user / "tests" / "noise").is_dir()]
    if not users:
        parser.error(f"no users in {args.users}: expected <user>/recordings, two or more, and <user>/tests/noise")
    tasks = [Task(user, settings.work / "rows" / f"{user.name}-{_key(user, settings)}.json") for user in users]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    missing = [task for task in tasks if not task.row.exists()]
    try:
        for i, (task, problem) in enumerate(on_this_machine(partial(run_task, settings=settings), missing, args.jobs)):
            print(f"[{i + 1}/{len(missing)}] {task.user.name}: {problem or 'done'}", flush=True)
    except KeyboardInterrupt:
        parser.exit(130, "\nstopped; the same command goes on\n")
    results = [Result(**row) for task in tasks if task.row.exists()
               for row in unplain(json.loads(task.row.read_text("utf-8")))]
    if not results:
        parser.exit(2, "nothing could be trained\n")
    above = {**environment(), "seed": args.seed}
    done = len({result.user for result in results})
    page = (f"# What is forgotten\n\n{environment_line(above)}\n\n{done} of {len(users)} users; {args.steps} steps for "
            f"each training\n\n{summary_page(results)}\n\n## Notes\n\n{NOTES}")
    write_results(page, plain({"environment": above, "steps": args.steps, "summary": summary(results),
                               "gains": gains(results), "results": results}),
                  args.out.with_suffix(".md"), args.out.with_suffix(".json"))
    print(f"\n{page}")


def _key(user: Path, settings: Settings) -> str:
    return digest(digest_of_package(settings.size), digest_of_files(user / "recordings"),
                  digest_of_files(user / "tests" / "noise"), settings.size, settings.steps, settings.seed)


def run_task(task: Task, settings: Settings) -> None:
    """Leave the user's row: a result for every specialist, and for the generalist."""
    recordings = [(read(path), RATE) for path in sorted((task.user / "recordings").glob("*.wav"))]

    def trained(sounds: Sequence[Any], start: Enhancer | None = None) -> Enhancer:
        return Enhancer.personalize(sounds, start=start, size=settings.size, steps=settings.steps, seed=settings.seed,
                                    threads=1, budget_seconds=3600)

    generalist = f"generalist {settings.size}"
    old = trained(recordings[0::2])
    found = {generalist: Enhancer(size=settings.size), "old": old, "old, then new": trained(recordings[1::2], old),
             "new": trained(recordings[1::2]), "all": trained(recordings)}
    write_json(task.row, [row(task.user, name, enhancer, "" if name == generalist else generalist, settings)
                          for name, enhancer in found.items()])


def row(user: Path, name: str, enhancer: Enhancer, start: str, settings: Settings) -> Result:
    clips = evaluate(user, our_system(enhancer), ("noise",), settings.work)["noise"]
    by_room = {room: [clip for clip in clips if int(clip["test"]) % 2 == i] for i, room in enumerate(ROOMS)}
    report = enhancer.report
    if report is None:
        return Result(user.name, name, by_room, enhancer.n_parameters)
    return Result(user.name, name, by_room, enhancer.n_parameters, start=start, status=report.status,
                  seconds=report.seconds_spent, n_steps=report.n_steps, held_out_gain_db=report.gain_db)


if __name__ == "__main__":
    main()
