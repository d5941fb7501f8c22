"""Which way to train a specialist is best: the methods of the paper and those beyond it, with and without the guard.

    python benchmarks/methods.py --users build/users --methods pseudose pseudose+dp cm cm+dp auto auto^truth
    python benchmarks/methods.py --users build/users --methods finetune@10 pseudose,finetune@10 auto@10
    python benchmarks/methods.py --users build/users --methods remixit^self,remixit^self auto^dtln --peers peers.py

A method is written as stages, each of which goes on from the one before; the first starts as the method says, from the
generalist or from what a network that is told about users makes for this one ("auto-untold": without that):

    STAGE[,STAGE ...]       STAGE = METHOD[:remove][@SECONDS][^TEACHER]

    METHOD      one of `pse_sdk.METHODS`, or a variant of "auto" that exists only here (--help lists them)
    :remove     trained with others="remove"
    @SECONDS    with the first seconds of the user's clean speech
    ^TEACHER    who says what the speech in the recordings is, instead of the package's teacher: `truth` (the recordings
                without noise: an upper bound), `blended` (the package's teacher, but the recording itself as far as its
                frames can be trusted), `self` (the network that the stage starts from), or a peer of --peers

Users are folders as for `benchmarks/personalization.py`; @SECONDS and ^truth need <user>/clean/NN.wav, the recordings'
speech without their noise. Every stage takes the same number of steps, whatever they cost; seconds are those of
training. Rows and networks stay in the work folder, whole or not at all: kill it at any time, the same command goes on.
They are known by sounds, weights and settings, not by code: after a change of training give another --work.
Needs pse_sdk[train,bench].
"""

import argparse
import copy
import json
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adapters import with_adapters, without_adapters
from engines import on_this_machine
from safetensors.torch import load_file, save_file
from score_tables import Result, gains, mean_over_clips, metrics_of, summary, summary_page
from user_scores import (
    SETS,
    System,
    digest,
    digest_of_files,
    digest_of_package,
    evaluate,
    first_seconds,
    plain,
    read,
    unplain,
    users_in,
    write_json,
)

from pse_sdk.config import SIZES, STFT
from pse_sdk.errors import PseError, SettingsError
from pse_sdk.peers import make_peer
from pse_sdk.purification import FramePredictor
from pse_sdk.report import ACCEPTED
from pse_sdk.tables import environment, environment_line, write_results
from pse_sdk.training.fit import Fit
from pse_sdk.training.guard import Score, enhance_batch
from pse_sdk.training.job import Job, NoSpecialist
from pse_sdk.training.material import Material, prepare
from pse_sdk.training.network import Denoiser, build_network
from pse_sdk.training.pseudo_mixtures import AUTO, METHODS, Method
from pse_sdk.training.specialist import choose, load_generalist, network_before_training, train
from pse_sdk.training.teacher import Teacher

RESULTS = Path(__file__).resolve().parent / "results"
TRUTH, SELF, BLENDED = "truth", "self", "blended"
UNGUARDED = "no guard"
VARIANTS = {
    "auto-no-pauses": replace(METHODS[AUTO], pauses_are_silent=False),
    "auto-no-remix": replace(METHODS[AUTO], remix_share=0.0),
    "auto-no-fade": replace(METHODS[AUTO], clean_share=0.0),
    "auto-adapters": METHODS[AUTO],
    "auto-untold": replace(METHODS[AUTO], told_start=False),
    "remixit": replace(METHODS[AUTO], remix_share=1.0),
}
ADAPTER_RANKS = {"auto-adapters": 8}

NOTES = f"""\
"{UNGUARDED}": the averaged weights that validation liked best, whatever the guard says of them, as the paper ships its
specialists. The other line of each method is what the user would get: as far towards these weights as validation
advises, or the generalist where the guard refuses. Scores are means over the clips of a user, then over users, ± half
of the 95 % interval over users (Student's t). "worse" counts users whose score fell at all; the worst user is named
even if that is still a gain. The seconds of clean speech (@SECONDS) are sentences that the recordings hold as well,
with noise.
"""


@dataclass(frozen=True)
class Stage:
    """One training, see the head of this file."""

    method: str
    others: str = "keep"
    seconds_of_clean: float = 0.0
    teacher: str = ""

    @classmethod
    def parse(cls, words: str) -> "Stage":
        rest, _, teacher = words.partition("^")
        rest, _, seconds = rest.partition("@")
        method, _, others = rest.partition(":")
        if method != "auto" and method not in {**METHODS, **VARIANTS} or others not in ("", "remove"):
            raise argparse.ArgumentTypeError(f"{words}: expected METHOD[:remove][@SECONDS][^TEACHER]; METHOD is one of "
                                             f"auto, {', '.join([*METHODS, *VARIANTS])}")
        try:
            stage = cls(method, others or "keep", float(seconds or 0), teacher)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{words}: {seconds!r} is no number of seconds") from error
        if not 0 <= stage.seconds_of_clean < inf:
            raise argparse.ArgumentTypeError(f"{words}: {seconds} s of clean speech cannot be")
        if stage.recipe.true_share == 1 and not stage.seconds_of_clean:
            raise argparse.ArgumentTypeError(f"{words}: {method} learns from clean speech alone; say how much, such as "
                                             f"{method}@10")
        return stage

    @property
    def recipe(self) -> Method:
        return {**METHODS, **VARIANTS}[AUTO if self.method == "auto" else self.method]


@dataclass(frozen=True)
class Task:
    """One method on one user, and the file of its row; without stages the generalist."""

    user: Path
    size: str
    words: str
    stages: tuple[Stage, ...]
    row: Path


@dataclass(frozen=True)
class Settings:
    """The same for every task."""

    sets: tuple[str, ...]
    work: Path
    steps: int
    threads: int
    seed: int
    peers: Path | None
    voices: Path | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog=f"variants of auto: {', '.join(VARIANTS)}")
    parser.add_argument("--users", type=Path, required=True, help="folder of users")
    parser.add_argument("--only", nargs="+", help="names of users, else all")
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["tiny"])
    parser.add_argument("--methods", nargs="+", type=_method, required=True, metavar="METHOD")
    parser.add_argument("--steps", type=int, default=1000, help="of each stage")
    parser.add_argument("--threads", type=int, default=1, help="of each training")
    parser.add_argument("--jobs", type=int, default=1, help="tasks at the same time")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--peers", type=Path, metavar="FILE", help="makes the teachers that are no part of the package")
    parser.add_argument("--voices", type=Path, metavar="FOLDER",
                        help="of WAV files of other people speaking, for METHOD:remove")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("build/methods"), help="rows, networks and scores")
    parser.add_argument("--out", type=Path, default=RESULTS / "methods", help="of .md and .json")
    args = parser.parse_args()
    users = users_in(args.users.resolve(), args.only)
    absent = set(args.only or ()) - {user.name for user in users}
    if not users or absent:
        parser.error(f"no {', '.join(sorted(absent)) or 'users'} in {args.users}: expected <user>/recordings and "
                     "<user>/tests")
    if args.steps < 1:
        parser.error(f"--steps {args.steps}: expected one or more")
    if args.voices is not None and not list(args.voices.glob("*.wav")):
        parser.error(f"--voices {args.voices}: no WAV files there")
    settings = Settings(tuple(args.sets), args.work.resolve(), args.steps, args.threads, args.seed,
                        _absolute(args.peers), _absolute(args.voices))
    tasks = [_task(user, size, words, stages, settings) for size in args.size
             for words, stages in [("", ()), *args.methods] for user in users]

    above = {**environment(), "seed": args.seed}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    missing = [task for task in tasks if not task.row.exists()]
    print(f"{len(tasks)} tasks, {len(tasks) - len(missing)} of them finished before", flush=True)
    try:
        for i, (task, problem) in enumerate(on_this_machine(partial(run_task, settings=settings), missing, args.jobs)):
            print(f"[{i + 1}/{len(missing)}] {task.user.name}, {task.size} {task.words or 'generalist'}: "
                  f"{problem or 'done'}", flush=True)
    except KeyboardInterrupt:
        parser.exit(130, "\nstopped; the same command goes on\n")
    failed = [task for task in tasks if not task.row.exists()]
    results = [Result(**row) for task in tasks if task.row.exists()
               for row in unplain(json.loads(task.row.read_text("utf-8")))]
    if not results:
        parser.exit(2, "nothing could be trained\n")
    setup = f"{len(users)} users; {args.steps} steps for each stage"
    if failed:
        setup += f"; failed: {', '.join(f'{task.user.name} {task.words}' for task in failed)}"
    page = f"# Methods\n\n{environment_line(above)}\n\n{setup}\n\n{summary_page(results)}\n\n## Notes\n\n{NOTES}"
    told = {**asdict(settings), "work": None, "peers": None, "voices": None}
    write_results(page, plain({"environment": above, "settings": told, "summary": summary(results),
                               "gains": gains(results), "results": [_condensed(result) for result in results]}),
                  args.out.with_suffix(".md"), args.out.with_suffix(".json"))
    print(f"\n{page}")
    if failed:
        parser.exit(2, "some tasks failed; the same command tries them again\n")


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.resolve()


def _condensed(result: Result) -> Result:
    """With the means over the clips instead of the clips."""
    return replace(result, sets={name: [{metric: mean_over_clips(clips, metric) for metric in metrics_of(name)}]
                                 for name, clips in result.sets.items()})


def _method(words: str) -> tuple[str, tuple[Stage, ...]]:
    return words, tuple(map(Stage.parse, words.split(",")))


def _task(user: Path, size: str, words: str, stages: tuple[Stage, ...], settings: Settings) -> Task:
    tests = [(name, digest_of_files(user / "tests" / name)) for name in settings.sets]
    key = digest(digest_of_package(size), size, stages, tests, *_sounds(user, stages, settings), settings.steps,
                 settings.seed)
    return Task(user, size, words, stages, settings.work / "rows" / f"{user.name}-{size}-{key}.json")


def _sounds(user: Path, stages: tuple[Stage, ...], settings: Settings) -> tuple[str, ...]:
    """What is heard in training, as digests."""
    heard = [user / "recordings", user / "clean"]
    if settings.voices is not None and any(stage.others == "remove" for stage in stages):
        heard.append(settings.voices)
    return tuple(map(digest_of_files, heard))


def run_task(task: Task, settings: Settings) -> None:
    """Leave the task's row: a result for the generalist, or two for a method, without and with the guard."""
    torch.set_num_threads(settings.threads)
    torch.set_flush_denormal(True)
    generalist = load_generalist(task.size)
    start = f"generalist {task.size}"
    if not task.stages:
        write_json(task.row, [scored(Result(task.user.name, start, {}), generalist, task, settings)])
        return
    facts: dict[str, Any] = {}
    network = best = generalist
    result = Result(task.user.name, f"{task.size}, {task.words}", {}, start=start, status=ACCEPTED)
    try:
        job, material = material_of(task, task.stages, settings, facts)
        fitted = trained(task, task.stages, settings, (job, material))
        best, result = fitted.network, replace(result, seconds=fitted.seconds, n_steps=fitted.n_steps)
        # whatever its last stage started from, it is judged against the generalist
        score = Score(generalist, material.validation)
        gained = replace(fitted, score=score(best), curve=((0, 0.0),))
        network = choose(job, material, score, generalist, gained, facts)
    except NoSpecialist as reason:
        result = replace(result, status=reason.verdict["status"], note=reason.verdict["summary"])
    raw = replace(result, system=f"{result.system}, {UNGUARDED}", status=ACCEPTED, note="")
    result = replace(result, held_out_gain_db=facts.get("gain_db", nan))
    write_json(task.row, [scored(raw, best, task, settings), scored(result, network, task, settings)])


def material_of(task: Task, stages: tuple[Stage, ...], settings: Settings, facts: dict[str, Any]
                ) -> tuple[Job, Material]:
    """What the last of the stages learns from."""
    stage, recordings = stages[-1], _recordings(task.user)
    clean = [samples for samples, _ in first_seconds(task.user / "clean", stage.seconds_of_clean)]
    voices = [] if settings.voices is None else [read(path) for path in sorted(settings.voices.glob("*.wav"))]
    job = Job(recordings, size=task.size, deadline=inf, budget_seconds=inf, seed=settings.seed, steps=settings.steps,
              clean=clean, others=stage.others, voices=voices, recipe=stage.recipe,
              estimates=estimates(task, stages, settings))
    torch.manual_seed(settings.seed)
    return job, prepare(job, facts)


def trained(task: Task, stages: tuple[Stage, ...], settings: Settings,
            prepared: tuple[Job, Material] | None = None) -> Fit:
    """The last of the stages, after those before it; from the work folder if it was trained before.

    Args:
        prepared: what `material_of` gave for these stages, if somebody asked it before.
    """
    key = digest(digest_of_package(task.size), task.size, stages, *_sounds(task.user, stages, settings),
                 settings.steps, settings.seed)
    path = settings.work / "networks" / f"{task.user.name}-{task.size}-{key}.safetensors"
    network = build_network(task.size)
    if path.exists():
        network.load_state_dict(load_file(path))
        return Fit(network.eval(), **json.loads(path.with_suffix(".json").read_text("utf-8")))
    facts: dict[str, Any] = {}
    job, material = prepared or material_of(task, stages, settings, facts)
    if stages[1:]:
        start = first = trained(task, stages[:-1], settings).network
    else:
        start = load_generalist(task.size)
        first = network_before_training(job, material, start)
    score = Score(start, material.validation)
    if rank := ADAPTER_RANKS.get(stages[-1].method):
        fitted = train(job, material, score, with_adapters(copy.deepcopy(first), rank), facts)
        fitted = replace(fitted, network=without_adapters(fitted.network))
    else:
        fitted = train(job, material, score, first, facts)
    write_json(path.with_suffix(".json"), {"score": fitted.score, "n_steps": fitted.n_steps, "curve": fitted.curve,
                                           "seconds": fitted.seconds})
    partial_ = path.with_suffix(".partial")
    save_file(fitted.network.state_dict(), partial_)
    partial_.replace(path)
    return fitted


def estimates(task: Task, stages: tuple[Stage, ...], settings: Settings) -> list[np.ndarray]:
    """Of the speech in each recording, by the last stage's teacher; kept in the work folder."""
    teacher = stages[-1].teacher
    if teacher == TRUTH:
        return [read(path) for path in sorted((task.user / "clean").glob("*.wav"))]
    named = digest(stages[:-1], task.size, settings.steps, settings.seed) if teacher == SELF else teacher
    key = digest(digest_of_package(task.size), named, _sounds(task.user, stages[:-1], settings))
    path = settings.work / "estimates" / f"{task.user.name}-{key}.npz"
    if not path.exists():
        if teacher == SELF:
            network = trained(task, stages[:-1], settings).network if stages[1:] else load_generalist(task.size)
            enhance = network_system(network).enhance
        elif teacher == BLENDED:
            enhance = partial(blended, Teacher(), FramePredictor())
        elif teacher:
            if settings.peers is None:
                raise SettingsError(f"^{teacher}: no teacher of ours; give --peers FILE, or ^truth, ^blended or ^self")
            enhance = make_peer(settings.peers, teacher).enhance
        else:
            enhance = Teacher().estimate
        found = [np.asarray(enhance(samples), np.float32) for samples in _recordings(task.user)]
        path.parent.mkdir(parents=True, exist_ok=True)
        partial_ = path.with_suffix(".partial.npz")
        np.savez(partial_, *found)
        partial_.replace(path)
    with np.load(path) as kept:
        return [kept[name] for name in kept.files]


def blended(teacher: Teacher, predictor: FramePredictor, samples: np.ndarray) -> np.ndarray:
    """What the teacher hears in samples [T], and these themselves as far as frames have purification weight."""
    weight, hop = predictor.analyse(samples).weight, STFT.hop_length
    trusted = np.interp(np.arange(len(samples)), (np.arange(len(weight)) + 0.5) * hop, weight)
    estimate = teacher.estimate(samples)
    return estimate + trusted * (samples - estimate)


def _recordings(user: Path) -> list[np.ndarray]:
    return [read(path) for path in sorted((user / "recordings").glob("*.wav"))]


def scored(result: Result, network: Denoiser, task: Task, settings: Settings) -> Result:
    return replace(result, sets=evaluate(task.user, network_system(network), settings.sets, settings.work),
                   n_parameters=sum(value.numel() for value in network.parameters()))


def network_system(network: Denoiser) -> System:
    """A network as it was trained, without a model file."""
    def enhance(noisy: np.ndarray) -> np.ndarray:
        whole = np.pad(noisy, (0, -len(noisy) % STFT.hop_length))
        return enhance_batch(network, torch.from_numpy(whole)[None])[0, :len(noisy)].numpy()

    weights: Sequence[bytes] = [value.numpy().tobytes() for value in network.state_dict().values()]
    return System(digest(*weights), enhance)


if __name__ == "__main__":
    try:
        main()
    except PseError as error:
        raise SystemExit(f"{error}") from error
