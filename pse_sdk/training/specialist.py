"""Recordings -> segments -> pseudo-mixtures -> specialist -> model file: personalization from end to end."""

import copy
import datetime
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..enhancer import Enhancer, generalist
from ..errors import ModelFileError
from ..model_format import ModelInfo, digest_of
from ..report import ACCEPTED, KEPT, Check, Report
from .advice import advice_on
from .fit import Checkpoint, Fit, FitConfig, fit
from .graph import network_of
from .guard import HeldOut, Score, judge
from .job import FINISH_SECONDS, Job, NoSpecialist, Progress, out_of_time
from .material import Material, prepare, seconds_of
from .network import Denoiser, build_network, load_network
from .onnx_export import export_model
from .threads import QuickestThreads

LEAST_TRAINING_SECONDS = 5.0
# `small` gained less by 3,600 steps than by 1,900, in noise, elsewhere and on clean speech; `tiny` was not seen to. For
# the larger ones it is a guess
MOST_STEPS = {"tiny": 6000, "small": 2000, "medium": 2000, "large": 2000}
# Of the learning rate. At 2e-3 it does not matter what training begins with: what many talkers taught is forgotten, and
# 1,700 steps of `small` made 0.13 dB less in the user's noise and 0.5 dB less elsewhere than at 1e-3 or 5e-4
PEAK_RATES = {"tiny": 1.4e-3, "small": 7e-4, "medium": 7e-4, "large": 7e-4}
FINISH_SCORES = 9.0         # kept back too, in looks at the validation part; each retreat takes three more
# Shares of the way from the start to the trained weights that are tried. Never all of it: the last seventh is worth
# 0.02 dB in the user's noise, and costs 0.07 dB elsewhere and 2 dB on clean speech, which validation cannot see, for it
# has no speech but what the teacher hears in noise. Where voices are to be removed, all of the way was measured
MIXES = {"keep": (0.85, 0.6, 0.35), "remove": (1.0, 0.7, 0.4)}
RETREATS = (0.75, 0.5, 0.25)    # of that way, where the guard says that the whole of it did too much


def load_generalist(size: str) -> Denoiser:
    """The network behind a generalist that ships with the package.

    Raises:
        SettingsError: no such size. ModelFileError: this installation lacks it.
    """
    return load_network(size, generalist(size).with_suffix(".safetensors"))


def personalize(job: Job, progress: Progress = lambda *_: None) -> tuple[bytes | None, Report]:
    """The model file of the specialist, or None where the start model stays, and the report."""
    began = time.monotonic()
    torch.manual_seed(job.seed)
    facts: dict[str, Any] = {"method": job.method_name, "size": job.size, "others": job.others}
    verdict: dict[str, Any]
    model = None
    try:
        start = load_generalist(job.size) if job.start is None else network_of(job.start, job.size)
        material = prepare(job, facts, progress)
        score = Score(start, material.validation)
        fitted = train(job, material, score, network_before_training(job, material, start), facts, progress)
        progress("judge", 0.92, job.seconds_left(), "comparing on held-out parts")
        candidate = choose(job, material, score, start, fitted, facts)
        progress("export", 0.97, job.seconds_left(), "writing the model")
        model = _export(job, material, start, candidate, facts)
        verdict = {"status": ACCEPTED, "advice": advice_on(facts),
                   "summary": f"The specialist is {facts['gain_db']:.1f} dB better than {job.before} on "
                              "held-out parts of the recordings, and is in use."}
    except NoSpecialist as reason:
        verdict = reason.verdict
    progress("done", 1.0, 0.0, "done")
    spent = job.budget_seconds - job.seconds_left()     # the caller's clock runs since before this process began
    return model, Report(**facts, **verdict, seconds_spent=round(spent if spent > 0 else time.monotonic() - began, 1))


def network_before_training(job: Job, material: Material, start: Denoiser) -> Denoiser:
    """What the method begins with, where it does not go on from an earlier training."""
    return build_network(job.size) if job.training_method.random_start else material.told or start


def train(job: Job, material: Material, score: Score, first: Denoiser, facts: dict[str, Any],
          progress: Progress = lambda *_: None) -> Fit:
    """The best weights that training came by, as the validation part has it. Figures are added to `facts`.

    Args:
        score: against what was in use before.
        first: the network before the first step.

    Raises:
        NoSpecialist: no time left.
    """
    seconds = job.seconds_left() - max(FINISH_SECONDS, FINISH_SCORES * score.seconds)
    if seconds < LEAST_TRAINING_SECONDS:
        raise out_of_time(job)

    def on_step(done: float, _: float) -> None:
        progress("train", 0.1 + 0.8 * min(done, 1.0), job.seconds_left(), "training")

    method = job.training_method
    checkpoint = None if job.checkpoint is None else Checkpoint(job.checkpoint, job.key(first))
    fitted = fit(first, material.mixtures, score, seconds=seconds, steps=job.steps, on_step=on_step,
                 config=FitConfig(peak_rate=method.peak_rate or PEAK_RATES[job.size], most_steps=MOST_STEPS[job.size]),
                 now=job.clock.now, checkpoint=checkpoint,
                 threads=None if job.most_threads is None else QuickestThreads(job.most_threads))
    facts |= {"n_steps": fitted.n_steps, "seconds_training": round(fitted.seconds, 1)}
    if fitted.began_anew:
        facts["notes"] += ("the checkpoint was of other recordings or settings, or damaged: training began anew",)
    return fitted


def choose(job: Job, material: Material, score: Score, start: Denoiser, fitted: Fit,
           facts: dict[str, Any]) -> Denoiser:
    """How far to go from `start` to what training came by: a specialist that passed every check of the guard.

    Figures are added to `facts`.

    Raises:
        NoSpecialist: nothing better was found, or it failed a check.
    """
    if not fitted.n_steps:
        raise out_of_time(job)
    if fitted.score <= 0:       # what the start itself has
        raise NoSpecialist(KEPT, f"{fitted.n_steps} training steps found nothing better than {job.before}, which "
                                 "stays in use.",
                           ["give it a larger budget" if job.steps is None else "let it take more steps",
                            *advice_on(facts)])
    # between unrelated networks lies nothing of use
    mixes = (1.0,) if job.training_method.random_start else MIXES[job.others]
    mixed = {mix: interpolate(start, fitted.network, mix) for mix in mixes}
    mix = max(mixed, key=lambda mix: score(mixed[mix]))
    judged = judge_retreating(mixed[mix], start, material.guard, job.seed, _retreats(job))
    facts |= _figures(judged, judged.share * mix)
    if not judged.accepted:
        raise NoSpecialist(KEPT, "No sure gain on held-out parts of the recordings (failed: "
                                 f"{_first_few([check.meaning for check in judged.checks if not check.passed])}). "
                                 f"{job.before.capitalize()} stays in use.", advice_on(facts))
    return judged.network


def _retreats(job: Job) -> tuple[float, ...]:
    return () if job.training_method.random_start else RETREATS


@dataclass(frozen=True)
class Judged:
    """A network that the guard looked at, and what it says."""

    network: Denoiser
    share: float        # of the way from the start to the candidate
    gain_db: float
    checks: tuple[Check, ...]

    @property
    def accepted(self) -> bool:
        return all(check.passed for check in self.checks)


def _figures(judged: Judged, mix: float) -> dict[str, Any]:
    return {"gain_db": round(judged.gain_db, 2), "mix": round(mix, 3), "checks": judged.checks}


def judge_retreating(candidate: Denoiser, start: Denoiser, material: HeldOut, seed: int,
                     retreats: Sequence[float] = RETREATS) -> Judged:
    """The candidate; if the guard refuses it, the first of `retreats` towards it that passes; if none does, itself."""
    whole = Judged(candidate, 1.0, *judge(candidate, start, material, seed))
    judged = whole
    for share in retreats:
        if judged.accepted:
            break
        gentler = interpolate(start, candidate, share)
        judged = Judged(gentler, share, *judge(gentler, start, material, seed))
    return judged if judged.accepted else whole


def _export(job: Job, material: Material, start: Denoiser, candidate: Denoiser, facts: dict[str, Any]) -> bytes:
    """The model file of the candidate; where its graph cannot be trusted, of the first retreat from it that passes.

    Far from the start a network may make so much of the last bit that no two programs agree on its output.
    """
    mix = facts["mix"]
    for share in (1.0, *_retreats(job)):
        network = interpolate(start, candidate, share)
        if share < 1:
            judged = judge_retreating(network, start, material.guard, job.seed, ())
            if not judged.accepted:
                continue
            facts |= _figures(judged, mix * share)
        try:
            return _model_file(job, network, facts)
        except ModelFileError as error:
            reason = error
    raise NoSpecialist(KEPT, f"The trained model could not be exported ({reason}). {job.before.capitalize()} stays in "
                             "use.")


def _model_file(job: Job, network: Denoiser, facts: dict[str, Any]) -> bytes:
    scores = {"held_out_gain_db": facts["gain_db"], **{check.name: round(check.value, 2) for check in facts["checks"]}}
    return export_model(network, ModelInfo(
        job.size, 0, 0, 0, 0, 0, method=job.method_name, seed=job.seed,
        seconds_of_audio=round(seconds_of([*job.recordings, *job.clean]), 1),
        created=datetime.date.today().isoformat(), scores=scores,
        generalist=Enhancer(size=job.size).digest if job.start is None else digest_of(job.start)))


def interpolate(start: Denoiser, end: Denoiser, mix: float) -> Denoiser:
    """A network whose weights lie the share `mix` of the way from `start` to `end`."""
    network = copy.deepcopy(end)
    with torch.no_grad():
        for value, first in zip(network.parameters(), start.parameters(), strict=True):
            value.lerp_(first, 1 - mix)
    return network


def _first_few(parts: Sequence[str]) -> str:
    return "; ".join(parts[:3]) + (f"; and {len(parts) - 3} more" if len(parts) > 3 else "")
