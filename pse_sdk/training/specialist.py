"""Recordings -> segments -> pseudo-mixtures -> specialist -> model file: personalization from end to end."""

import copy
import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..config import STFT
from ..enhancer import Enhancer, generalist
from ..errors import PseError
from ..model_format import ModelInfo
from ..noise import foreign_noise
from ..purification import FramePredictor
from ..report import ACCEPTED, INSUFFICIENT_DATA, KEPT, Report
from ..segments import Stretch, harvest_pauses, split
from .corpus import Bank
from .fit import FitConfig, fit
from .guard import Score, held_out, judge
from .network import Denoiser, build_network, load_network
from .onnx_export import export_model
from .pseudo_mixtures import AUTO, METHODS, NoiseBanks, Pair, PseudoMixtures
from .teacher import Teacher

LEAST_SPEECH_SECONDS = 20.0
LEAST_CLEAN_SNR_DB = 22.0   # of what the user calls clean; the predictor's own error is several dB
MOST_SECONDS = 20 * 60.0    # of recordings: more than that is not learnt within a budget of minutes
FOREIGN_SECONDS, FOREIGN_CLIPS = 6.0, 40
LEAST_HARVEST_SECONDS, LEAST_JUDGED_SECONDS = 3.0, 1.0     # of pauses, to train with and to judge with
FINISH_SECONDS = 6.0        # kept back from the budget for interpolation, guard and export
MIXES = (1.0, 0.7, 0.4)     # shares of the way from the start to the trained weights that are tried

Progress = Callable[[str, float, float, str], None]
"""Stage, share done, seconds left, message."""


@dataclass(frozen=True)
class Job:
    """What is asked for. Shape: `recordings`, `noise` and `clean` are mono samples [T] at the model's rate."""

    recordings: Sequence[np.ndarray]
    method: str = "auto"
    size: str = "small"
    deadline: float = 0.0           # on the clock of time.time()
    budget_seconds: float = 180.0
    seed: int = 0
    steps: int | None = None
    noise: Sequence[np.ndarray] = ()
    clean: Sequence[np.ndarray] = ()
    notes: tuple[str, ...] = ()


def load_generalist(size: str) -> Denoiser:
    """The network behind a generalist that ships with the package.

    Raises:
        SettingsError: no such size. ModelFileError: this installation lacks it.
    """
    return load_network(size, generalist(size).with_suffix(".safetensors"))


def personalize(job: Job, progress: Progress = lambda *_: None) -> tuple[bytes | None, Report]:
    """The model file of the specialist, or None where the start model stays, and the report."""
    began = time.time()
    torch.manual_seed(job.seed)
    method_name = AUTO if job.method == "auto" else job.method
    method = METHODS[method_name]
    facts: dict[str, object] = {"method": method_name, "size": job.size}

    def left() -> float:
        return job.deadline - time.time()

    def report(status: str, summary: str, **more: object) -> Report:
        values = {**facts, **more, "status": status, "summary": summary, "seconds_spent": round(time.time() - began, 1)}
        return Report(**values)  # type: ignore[arg-type]

    def out_of_time() -> Report:
        return report(KEPT, f"The budget of {job.budget_seconds:.0f} s was spent before training could start. "
                            f"The {job.size} generalist stays in use.",
                      advice=("give a larger budget_seconds, or fewer hours of recordings",))

    progress("analyse", 0.0, left(), "judging the recordings")
    predictor = FramePredictor()
    recordings, note = at_most(job.recordings, MOST_SECONDS)
    stretches = [_stretch(samples, predictor) for samples in recordings]
    given = [_stretch(samples, predictor) for samples in job.clean]
    clean = [stretch for stretch in given if stretch.snr_db >= LEAST_CLEAN_SNR_DB]
    doubted = [stretch for stretch in given if not stretch.snr_db >= LEAST_CLEAN_SNR_DB]    # NaN: no speech in it
    if doubted:
        stretches += doubted
        note += (f"{len(doubted)} of {len(given)} recordings given as clean seem noisy, and were used as noisy ones",)
    speech_seconds = sum(stretch.seconds_of_speech for stretch in stretches)
    snrs = [stretch.snr_db for stretch in stretches if stretch.seconds_of_speech > 1]
    facts["seconds_of_clean"] = round(sum(stretch.n_frames for stretch in clean) * STFT.hop_seconds, 1)
    facts |= {"seconds_recorded": round(seconds_of(job.recordings), 1),
              "seconds_of_speech": round(speech_seconds, 1), "notes": (*job.notes, *note),
              "snr_db": round(float(np.median(snrs)), 1) if snrs else None}
    if speech_seconds < LEAST_SPEECH_SECONDS:
        return None, report(
            INSUFFICIENT_DATA, f"Only {speech_seconds:.0f} s of speech in {facts['seconds_recorded']} s of recordings; "
            f"at least {LEAST_SPEECH_SECONDS:.0f} s are needed. The {job.size} generalist stays in use.",
            advice=("record a few minutes of speaking where you usually speak",))

    parts = split(stretches)
    progress("teach", 0.05, left(), "estimating the speech in the recordings")
    teacher = Teacher()
    pairs: dict[str, list[Pair]] = {name: [] for name in parts}
    for name, part in parts.items():
        for stretch in part:
            if left() < FINISH_SECONDS:
                return None, out_of_time()
            pairs[name].append(Pair(stretch, teacher.estimate(stretch.samples)))
    pairs_of_clean = {name: [Pair.of_clean(stretch) for stretch in part] for name, part in split(clean).items()}
    pairs = {name: part + pairs_of_clean[name] for name, part in pairs.items()}
    rng = np.random.default_rng(job.seed)
    foreign = [foreign_noise(FOREIGN_SECONDS, rng) for _ in range(FOREIGN_CLIPS)]
    harvested = {name: harvest_pauses(part) for name, part in parts.items()}
    facts["seconds_of_noise"] = round(seconds_of(harvested["training"]), 1)
    residuals = {name: [pair.residual for pair in part if not pair.is_true] for name, part in pairs.items()}
    enough = seconds_of(harvested["training"]) >= LEAST_HARVEST_SECONDS
    noises = noise_banks((harvested["training"] if enough else (), 0.5), (residuals["training"], 0.2),
                         (foreign[: FOREIGN_CLIPS // 2], 0.15 if job.noise else 0.3), (job.noise, 0.15))
    judged = {}
    for i, name in enumerate(("validation", "guard")):
        others = noise_banks((foreign[FOREIGN_CLIPS // 2:][i::2], 1.0))
        enough = seconds_of(harvested[name]) >= LEAST_JUDGED_SECONDS
        own = noise_banks((harvested[name] if enough else (), 0.7), (residuals[name], 0.3))
        judged[name] = held_out(pairs[name], own if own.banks else others, others, most_segments=12, seed=job.seed + i)
    mixtures = PseudoMixtures(pairs["training"], noises, method, job.seed)
    if not mixtures.n_segments or judged["guard"].n_segments < 2 or not judged["validation"].n_segments:
        return None, report(
            INSUFFICIENT_DATA, "The recordings are too short or too broken up to train on one part and to judge on "
            f"another. The {job.size} generalist stays in use.",
            advice=("record stretches of half a minute or more",))

    start = load_generalist(job.size)
    score = Score(start, judged["validation"])

    def on_step(done: float, _: float) -> None:
        progress("train", 0.1 + 0.8 * min(done, 1.0), left(), "training")

    seconds = left() - FINISH_SECONDS
    if seconds < 5.0:
        return None, out_of_time()
    first = build_network(job.size) if method.random_start else start
    fitted = fit(first, mixtures, score, seconds=seconds, steps=job.steps, config=FitConfig(), on_step=on_step)
    facts |= {"n_steps": fitted.n_steps, "seconds_training": round(fitted.seconds, 1)}

    if fitted.score <= fitted.curve[0][1]:
        return None, report(KEPT, f"{fitted.n_steps} training steps found nothing better than the {job.size} "
                                  "generalist, which stays in use.",
                            advice=("give a larger budget_seconds", *_advice(facts)))

    progress("judge", 0.92, left(), "comparing with the generalist on held-out parts")
    mixes = (1.0,) if method.random_start else MIXES      # between unrelated networks lies nothing of use
    mixed = {mix: interpolate(start, fitted.network, mix) for mix in mixes}
    mix = max(mixed, key=lambda mix: score(mixed[mix]))
    candidate = mixed[mix]
    gain, checks = judge(candidate, start, judged["guard"], job.seed)
    if not all(check.passed for check in checks):       # half the way may pass where the whole did too much
        gentler = interpolate(start, candidate, 0.5)
        second_gain, second_checks = judge(gentler, start, judged["guard"], job.seed)
        if all(check.passed for check in second_checks):
            mix, candidate, gain, checks = mix / 2, gentler, second_gain, second_checks
    facts |= {"gain_db": round(gain, 2), "mix": mix, "checks": checks}
    if not all(check.passed for check in checks):
        failed = "; ".join(check.meaning for check in checks if not check.passed)
        return None, report(KEPT, f"No sure gain on held-out parts of the recordings (failed: {failed}). "
                                  f"The {job.size} generalist stays in use.", advice=_advice(facts))

    progress("export", 0.97, left(), "writing the model")
    try:
        model = export_model(candidate, ModelInfo(
            job.size, 0, 0, 0, 0, 0, method=method_name, seconds_of_audio=float(str(facts["seconds_recorded"])),
            seed=job.seed, created=datetime.date.today().isoformat(), generalist=Enhancer(size=job.size).digest,
            scores={"held_out_gain_db": round(gain, 2), **{check.name: round(check.value, 2) for check in checks}}))
    except PseError as error:
        return None, report(KEPT, f"The trained model could not be exported ({error}). The generalist stays in use.")
    progress("done", 1.0, 0.0, "done")
    return model, report(ACCEPTED, f"The specialist is {gain:.1f} dB better than the {job.size} generalist on held-out "
                                   "parts of the recordings, and is in use.", advice=_advice(facts))


def at_most(recordings: Sequence[np.ndarray], seconds: float) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """The recordings, or the same share from the middle of each where they are longer together, and a note of that."""
    total = seconds_of(recordings)
    if total <= seconds:
        return list(recordings), ()
    kept = []
    for samples in recordings:
        length = int(len(samples) * seconds / total)
        start = (len(samples) - length) // 2
        kept.append(samples[start:start + length])
    return kept, (f"of {total / 60:.0f} minutes of recordings {seconds / 60:.0f} were used, from the middle of each",)


def interpolate(start: Denoiser, end: Denoiser, mix: float) -> Denoiser:
    """A network whose weights lie the share `mix` of the way from `start` to `end`."""
    network = copy.deepcopy(end)
    with torch.no_grad():
        for value, first in zip(network.parameters(), start.parameters(), strict=True):
            value.lerp_(first, 1 - mix)
    return network


def _stretch(samples: np.ndarray, predictor: FramePredictor) -> Stretch:
    whole = len(samples) // STFT.hop_length * STFT.hop_length
    return Stretch(np.ascontiguousarray(samples[:whole], np.float32), predictor.analyse(samples[:whole]))


def noise_banks(*kinds: tuple[Sequence[np.ndarray], float]) -> NoiseBanks:
    """A bank for every kind of noise that is there: its clips [T], and how often it is used against the others."""
    found = [(clips, share) for clips, share in kinds if any(np.any(clip) for clip in clips)]
    return NoiseBanks(tuple(Bank.of(list(clips), [float(len(clip)) for clip in clips]) for clips, _ in found),
                      tuple(share for _, share in found))


def seconds_of(clips: Sequence[np.ndarray]) -> float:
    return sum(map(len, clips)) / STFT.sample_rate


def _advice(facts: dict[str, object]) -> tuple[str, ...]:
    advice = []
    if float(str(facts["seconds_of_speech"])) < 120:
        advice.append("a few minutes more of speech would help most")
    if float(str(facts.get("seconds_of_noise", 0))) < 10:
        advice.append("leave pauses of a second or two in a recording: the noise is learnt from them")
    if isinstance(facts["snr_db"], float) and facts["snr_db"] < 5:
        advice.append("the recordings are very noisy; a few from closer to the microphone would help")
    return tuple(advice)
