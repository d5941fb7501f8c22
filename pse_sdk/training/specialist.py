"""Recordings -> segments -> pseudo-mixtures -> specialist -> model file: personalization from end to end."""

import copy
import datetime
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from ..config import STFT
from ..enhancer import Enhancer, generalist
from ..errors import ModelFileError
from ..model_format import ModelInfo, digest_of
from ..noise import foreign_noise, synthetic_voice
from ..purification import FramePredictor
from ..remarks import NARROW_BAND_HZ, holds_music, is_narrow
from ..report import ACCEPTED, INSUFFICIENT_DATA, KEPT, Check, Report
from ..segments import Stretch, harvest_pauses, join_short, split
from ..talkers import SpeakerEmbedding, pieces_of, talkers_in
from .corpus import Bank
from .fit import Checkpoint, Fit, FitConfig, fit
from .graph import network_of
from .guard import HeldOut, Score, held_out, judge
from .network import Denoiser, build_network, load_network
from .onnx_export import export_model
from .pseudo_mixtures import AUTO, METHODS, SEGMENT_FRAMES, Method, NoiseBank, NoiseBanks, Pair, PseudoMixtures
from .teacher import Teacher
from .threads import QuickestThreads
from .user_network import load_user_network
from .voices import in_other_moods, others_from

LEAST_SPEECH_SECONDS = 20.0
LEAST_CLEAN_SNR_DB = 22.0   # of what the user calls clean; the predictor's own error is several dB
FOREIGN_SECONDS = 4.0
FOREIGN_CLIPS, JUDGING_FOREIGN_CLIPS = 160, 40      # with 20, a specialist lost 1.4 dB in a car, in few steps
VOICE_SECONDS, N_SYNTHETIC_VOICES = 6.0, 8
MOST_INT16 = 32767
LEAST_CLIP = 2 * SEGMENT_FRAMES * STFT.hop_length   # of noise, when drawn from
LEAST_HARVEST_SECONDS, LEAST_JUDGED_SECONDS = 3.0, 1.0     # of pauses, to train with and to judge with
LEAST_TRAINING_SECONDS = 5.0
# `small` gained less by 3,600 steps than by 1,900, in noise, elsewhere and on clean speech; `tiny` was not seen to. For
# the larger ones it is a guess
MOST_STEPS = {"tiny": 6000, "small": 2000, "medium": 2000, "large": 2000}
# Of the learning rate. At 2e-3 it does not matter what training begins with: what many talkers taught is forgotten, and
# 1,700 steps of `small` made 0.13 dB less in the user's noise and 0.5 dB less elsewhere than at 1e-3 or 5e-4
PEAK_RATES = {"tiny": 1.4e-3, "small": 7e-4, "medium": 7e-4, "large": 7e-4}
FINISH_SECONDS = 4.0        # kept back from the budget for interpolation, guard and export, and on a slow machine
FINISH_SCORES = 9.0         # so many times what one look at the validation part takes; each retreat takes three more
# Shares of the way from the start to the trained weights that are tried. Never all of it: the last seventh is worth
# 0.02 dB in the user's noise, and costs 0.07 dB elsewhere and 2 dB on clean speech, which validation cannot see, for it
# has no speech but what the teacher hears in noise. Where voices are to be removed, all of the way was measured
MIXES = {"keep": (0.85, 0.6, 0.35), "remove": (1.0, 0.7, 0.4)}
RETREATS = (0.75, 0.5, 0.25)    # of that way, where the guard says that the whole of it did too much

T = TypeVar("T")
Progress = Callable[[str, float, float, str], None]
"""Stage, share done, seconds left, message."""


@dataclass
class WorkClock:
    """The time, less that in which the training rested."""

    seconds_rested: float = 0.0

    def now(self) -> float:
        return time.monotonic() - self.seconds_rested


@dataclass(frozen=True)
class Job:
    """What is asked for. Shape: recordings, noise, clean speech and voices are mono samples [T] at the model's rate;
    voices may all be int16, of any level, which takes less memory."""

    recordings: Sequence[np.ndarray]
    method: str = "auto"
    size: str = "small"
    deadline: float = 0.0           # on the job's clock
    budget_seconds: float = 180.0
    seed: int = 0
    steps: int | None = None
    start: bytes | None = None      # the model file of a specialist to go on from, instead of the generalist
    noise: Sequence[np.ndarray] = ()
    clean: Sequence[np.ndarray] = ()
    others: str = "keep"            # or "remove": what other people say counts as noise
    voices: Sequence[np.ndarray] = ()       # of other people
    estimates: Sequence[np.ndarray] = ()    # of another teacher, of the speech in each recording; or none
    recipe: Method | None = None            # instead of the one that `method` names, for experiments
    notes: tuple[str, ...] = ()
    clock: WorkClock = field(default_factory=WorkClock)
    checkpoint: Path | None = None
    most_threads: int | None = None     # that training may take, where it chooses by itself

    @property
    def method_name(self) -> str:
        return AUTO if self.method == "auto" else self.method

    @property
    def training_method(self) -> Method:
        return METHODS[self.method_name] if self.recipe is None else self.recipe

    @property
    def before(self) -> str:
        """What was in use before, in words."""
        return f"the {self.size} generalist" if self.start is None else "the model it went on from"

    def seconds_left(self) -> float:
        return self.deadline - self.clock.now()

    def key(self, start: Denoiser) -> str:
        """Tells a training from one of other sounds, settings or weights."""
        seen = hashlib.sha256(repr((self.training_method, self.size, self.seed, self.steps, self.others)).encode())
        sounds = [*self.recordings, *self.clean, *self.noise, *self.voices, *self.estimates]
        for array in [*sounds, *(value.numpy() for value in start.state_dict().values())]:
            seen.update(np.ascontiguousarray(array).tobytes())
        return seen.hexdigest()


def load_generalist(size: str) -> Denoiser:
    """The network behind a generalist that ships with the package.

    Raises:
        SettingsError: no such size. ModelFileError: this installation lacks it.
    """
    return load_network(size, generalist(size).with_suffix(".safetensors"))


@dataclass(frozen=True)
class Material:
    """What the recordings of a job give to train with, to choose with and to judge with; the last two stay unseen."""

    mixtures: PseudoMixtures
    validation: HeldOut
    guard: HeldOut
    told: Denoiser | None = None    # made for this user by a network that learnt from many; to train, not the start


class NoSpecialist(Exception):
    """Why the start model stays: fields of the report."""

    def __init__(self, status: str, summary: str, advice: Sequence[str] = ()) -> None:
        super().__init__(summary)
        self.verdict = {"status": status, "summary": summary, "advice": tuple(advice)}


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
        verdict = {"status": ACCEPTED, "advice": _advice(facts),
                   "summary": f"The specialist is {facts['gain_db']:.1f} dB better than {job.before} on "
                              "held-out parts of the recordings, and is in use."}
    except NoSpecialist as reason:
        verdict = reason.verdict
    progress("done", 1.0, 0.0, "done")
    spent = job.budget_seconds - job.seconds_left()     # the caller's clock runs since before this process began
    return model, Report(**facts, **verdict, seconds_spent=round(spent if spent > 0 else time.monotonic() - began, 1))


def prepare(job: Job, facts: dict[str, Any], progress: Progress = lambda *_: None) -> Material:
    """Judge the recordings, estimate the speech in them, and part them. What was found is added to `facts`.

    Raises:
        NoSpecialist: too little speech, in all or in one part, or no time left.
    """
    stretches, clean = _heard(job, facts, progress)
    rng = np.random.default_rng(job.seed)
    with _beside_torch(lambda: _foreign(FOREIGN_CLIPS + JUDGING_FOREIGN_CLIPS, rng)) as being_made:
        stretches = _taught(job, stretches, progress)
        note = _on_talkers([*stretches, *clean])
    foreign = being_made.result()
    facts["notes"] += note
    parts = split(join_short(stretches))
    pairs = {name: list(map(Pair.of_taught, part)) for name, part in parts.items()}
    for name, part in split(join_short(clean)).items():
        pairs[name] += map(Pair.of_clean, part)
    harvested = {name: harvest_pauses(part) for name, part in parts.items()}
    facts["seconds_of_noise"] = round(seconds_of(harvested["training"]), 1)
    residuals = {name: [pair.residual for pair in part if not pair.is_true] for name, part in pairs.items()}
    enough = seconds_of(harvested["training"]) >= LEAST_HARVEST_SECONDS
    noises = noise_banks((harvested["training"] if enough else (), 0.5), (residuals["training"], 0.2),
                         (job.noise, 0.15), foreign=(foreign[:FOREIGN_CLIPS], 0.1 if job.noise else 0.25))
    told = _knowing_the_user(job, pairs["training"], residuals["training"])
    judged = {}
    for i, name in enumerate(("validation", "guard")):
        others = noise_banks((foreign[FOREIGN_CLIPS + i::2], 1.0))
        enough = seconds_of(harvested[name]) >= LEAST_JUDGED_SECONDS
        own = noise_banks((harvested[name] if enough else (), 0.7), (residuals[name], 0.3))
        judged[name] = held_out(pairs[name], own if own.banks else others, others, _voices(job, name, pairs[name], rng),
                                _moods(job, pairs[name], rng), most_segments=12, seed=job.seed + i,
                                are_doubtful=bool(note))
    # after those that only judge, whose memory is free again
    voices, predictor = _voices(job, "training", pairs["training"], rng), FramePredictor()
    pairs["training"] += [Pair.of_clean(_stretch(mood, predictor)) for mood in _moods(job, pairs["training"], rng)]
    too_little = NoSpecialist(
        INSUFFICIENT_DATA, "There is too little speech in one piece to train on one part of the recordings and to "
        f"judge on another. {job.before.capitalize()} stays in use.",
        ["record stretches of half a minute or more of plain speech", *_advice(facts)])
    if not any(pair.stretch.n_frames >= SEGMENT_FRAMES for pair in pairs["training"]):
        raise too_little
    mixtures = PseudoMixtures(pairs["training"], noises, job.training_method, job.seed, voices)
    if not mixtures.n_segments or judged["guard"].n_segments < 2 or not judged["validation"].n_segments:
        raise too_little
    return Material(mixtures, judged["validation"], judged["guard"], told)


def _heard(job: Job, facts: dict[str, Any], progress: Progress) -> tuple[list[Stretch], list[Stretch]]:
    """The recordings of a job, judged frame by frame: noisy ones and clean ones.

    Raises:
        NoSpecialist: too little speech in them, or no time left.
    """
    predictor, note = FramePredictor(), tuple[str, ...]()
    stretches = []
    for i, samples in enumerate(job.recordings):
        _check_time(job)
        progress("analyse", 0.05 * i / len(job.recordings), job.seconds_left(), "judging the recordings")
        stretches.append(_stretch(samples, predictor, job.estimates[i] if job.estimates else None))
    given, notes = _usable([_stretch(samples, predictor) for samples in job.clean], "recordings given as clean")
    note += notes
    clean = [stretch for stretch in given if stretch.snr_db >= LEAST_CLEAN_SNR_DB]
    doubted = [stretch for stretch in given if not stretch.snr_db >= LEAST_CLEAN_SNR_DB]    # NaN: no speech in it
    if doubted:
        note += (f"{len(doubted)} of {len(given)} recordings given as clean seem noisy, and were used as noisy ones",)
    recorded = [*stretches, *doubted]
    stretches, notes = _usable(recorded, "pieces of the recordings")
    note += notes
    speech_seconds = sum(stretch.seconds_of_speech for stretch in [*stretches, *clean])
    snrs = ([stretch.snr_db for stretch in stretches if stretch.seconds_of_speech > 1]
            or [stretch.snr_db for stretch in stretches if stretch.seconds_of_speech])
    clean_seconds, recorded_seconds = (sum(stretch.seconds for stretch in some) for some in (clean, recorded))
    facts |= {"seconds_of_clean": round(clean_seconds, 1), "seconds_recorded": round(recorded_seconds, 1),
              "seconds_of_speech": round(speech_seconds, 1), "notes": (*job.notes, *note),
              "snr_db": round(float(np.median(snrs)), 1) if snrs else None}
    if speech_seconds < LEAST_SPEECH_SECONDS:
        heard = (f"Only {speech_seconds:.0f} s of speech that can be used in {recorded_seconds + clean_seconds:.0f} s "
                 f"of recordings; at least {LEAST_SPEECH_SECONDS:.0f} s are needed." if recorded or clean else
                 "Nothing of what was recorded can be used.")
        raise NoSpecialist(
            INSUFFICIENT_DATA, f"{heard} {job.before.capitalize()} stays in use.",
            [*_advice_on_level(facts), *_advice_on_band(facts), *_advice_on_music(facts),
             "record a few minutes of speaking where you usually speak"])
    if job.training_method.true_share == 1 and not clean:
        raise NoSpecialist(INSUFFICIENT_DATA, f"The method {job.method_name} learns from clean speech alone, and none "
                           f"of what was given as clean is. {job.before.capitalize()} stays in use.",
                           ["record a few seconds close to the microphone in a quiet room"])
    return stretches, clean


def _usable(stretches: list[Stretch], what: str) -> tuple[list[Stretch], tuple[str, ...]]:
    """Those that a specialist can learn the user's voice from, and notes on the others.

    It would learn that there is no speech above a telephone's band, and that music is speech, and the guard, who hears
    the same recordings, would find nothing wrong with that.
    """
    notes = tuple[str, ...]()
    for is_useless, words in (
            (is_narrow, f"hold nothing above {NARROW_BAND_HZ / 1000:.0f} kHz, as if from a telephone, and were left "
                        "out; record in the way that will be enhanced"),
            (holds_music, "hold music or tones like it, which is taken for speech, and were left out")):
        usable = [stretch for stretch in stretches if not is_useless(stretch)]
        if n_left := len(stretches) - len(usable):
            notes += (f"{n_left} of {len(stretches)} {what} {words}",)
        stretches = usable
    return stretches, notes


def _taught(job: Job, stretches: list[Stretch], progress: Progress) -> list[Stretch]:
    """With what the teacher takes for the speech in each, where no other teacher has said so.

    Raises:
        NoSpecialist: no time left.
    """
    def still_time() -> None:
        _check_time(job)
        progress("teach", 0.05, job.seconds_left(), "estimating the speech in the recordings")

    still_time()
    teacher = Teacher()
    return [replace(stretch, estimate=teacher.estimate(stretch.samples, still_time)) if stretch.estimate is None
            else stretch for stretch in stretches]


def _on_talkers(recorded: list[Stretch]) -> tuple[str, ...]:
    """A note, where what is said in the recordings may not be the user's alone."""
    embedding = SpeakerEmbedding()
    pieces = [pieces_of(stretch, embedding) for stretch in recorded]
    if n_crowded := sum(talkers_in([some]).several for some in pieces):
        return (f"{n_crowded} of {len(pieces)} pieces of the recordings seem to hold several talkers, whose voices all "
                "count as the user's: more gain is asked",)
    return (("the recordings seem to be of several talkers, some of one and some of another, whose voices all count as "
             "the user's: more gain is asked",) if talkers_in(pieces).several else ())


@contextmanager
def _beside_torch(work: Callable[[], T]) -> Iterator[Future[T]]:
    """What `work` returns, for which torch gives up one of its threads meanwhile, where it has several."""
    n_threads = torch.get_num_threads()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        if n_threads == 1:
            future.exception()      # waits
        torch.set_num_threads(max(1, n_threads - 1))
        try:
            yield future
        finally:
            torch.set_num_threads(n_threads)


def _foreign(n: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Noises [T] that are not the user's."""
    return [as_int16(foreign_noise(FOREIGN_SECONDS, rng)) for _ in range(n)]


def as_int16(samples: np.ndarray) -> np.ndarray:
    """The same sound, as loud as can be: of noises and voices many are needed, and their level is of no account."""
    return (samples * (MOST_INT16 / max(float(np.abs(samples).max()), 1e-9))).astype(np.int16)


def _check_time(job: Job) -> None:
    if job.seconds_left() < FINISH_SECONDS:
        raise _out_of_time(job)


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
        raise _out_of_time(job)

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
        raise _out_of_time(job)
    if fitted.score <= 0:       # what the start itself has
        raise NoSpecialist(KEPT, f"{fitted.n_steps} training steps found nothing better than {job.before}, which "
                                 "stays in use.",
                           ["give it a larger budget" if job.steps is None else "let it take more steps",
                            *_advice(facts)])
    # between unrelated networks lies nothing of use
    mixes = (1.0,) if job.training_method.random_start else MIXES[job.others]
    mixed = {mix: interpolate(start, fitted.network, mix) for mix in mixes}
    mix = max(mixed, key=lambda mix: score(mixed[mix]))
    judged = judge_retreating(mixed[mix], start, material.guard, job.seed, _retreats(job))
    facts |= _figures(judged, judged.share * mix)
    if not judged.accepted:
        raise NoSpecialist(KEPT, "No sure gain on held-out parts of the recordings (failed: "
                                 f"{_first_few([check.meaning for check in judged.checks if not check.passed])}). "
                                 f"{job.before.capitalize()} stays in use.", _advice(facts))
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


def _out_of_time(job: Job) -> NoSpecialist:
    spent = job.budget_seconds - job.seconds_left()
    return NoSpecialist(KEPT, f"After {spent:.0f} s too little of the budget of {job.budget_seconds:.0f} s is left for "
                              f"training, since the verdict takes its time. {job.before.capitalize()} stays in use.",
                        ["give it a larger budget, or a machine that is less busy"])


def interpolate(start: Denoiser, end: Denoiser, mix: float) -> Denoiser:
    """A network whose weights lie the share `mix` of the way from `start` to `end`."""
    network = copy.deepcopy(end)
    with torch.no_grad():
        for value, first in zip(network.parameters(), start.parameters(), strict=True):
            value.lerp_(first, 1 - mix)
    return network


def _stretch(samples: np.ndarray, predictor: FramePredictor, estimate: np.ndarray | None = None) -> Stretch:
    whole = len(samples) // STFT.hop_length * STFT.hop_length
    return Stretch(np.ascontiguousarray(samples[:whole], np.float32), predictor.analyse(samples[:whole]),
                   None if estimate is None else estimate[:whole])


def noise_banks(*kinds: tuple[Sequence[np.ndarray], float],
                foreign: tuple[Sequence[np.ndarray], float] = ((), 0.0)) -> NoiseBanks:
    """A bank for every kind of noise that is there: its clips [T], and how often it is used against the others.

    Short clips are repeated beforehand: starting over while drawing takes three times as long.

    Args:
        foreign: to train with, not the user's.
    """
    banks = []
    for clips, share, is_foreign in (*((*kind, False) for kind in kinds), (*foreign, True)):
        found = [clip for clip in clips if len(clip)]
        if any(map(np.any, found)):
            long_enough = [clip if len(clip) >= LEAST_CLIP else np.resize(clip, LEAST_CLIP) for clip in found]
            banks.append(NoiseBank(Bank.of(long_enough, [float(len(clip)) for clip in found]), share, is_foreign))
    return NoiseBanks(tuple(banks))


def _voices(job: Job, name: str, pairs: Sequence[Pair], rng: np.random.Generator) -> NoiseBanks | None:
    """Other people's voices for one part, if they are to be removed: some that were given, and some made of the user's.

    The fourth and the fifth of every five that were given are judged with and not trained with.
    """
    if job.others != "remove":
        return None
    judging = {3: "validation", 4: "guard"}
    given = [voice for i, voice in enumerate(job.voices) if judging.get(i % 5, "training") == name]
    made = [as_int16(voice) for voice in others_from([pair.enhanced for pair in pairs], rng)]
    synthetic = [as_int16(synthetic_voice(int(VOICE_SECONDS * STFT.sample_rate), rng))
                 for _ in range(N_SYNTHETIC_VOICES)]
    return noise_banks((made, 0.4 if given else 0.8), (synthetic, 0.2), (given, 0.4))


def _moods(job: Job, pairs: Sequence[Pair], rng: np.random.Generator) -> list[np.ndarray]:
    """The user's voice [T] in other moods, where others are to be removed: it is not to be taken for one of them."""
    if job.others != "remove":
        return []
    true_alone = job.training_method.true_share == 1
    return list(in_other_moods([pair.enhanced for pair in pairs if pair.is_true or not true_alone], rng))


def _knowing_the_user(job: Job, pairs: Sequence[Pair], residuals: Sequence[np.ndarray]) -> Denoiser | None:
    """What to train instead of the generalist: a network that learnt from many users, told about this one. None where
    the method begins otherwise, there is none for this size, or a specialist goes on."""
    method = job.training_method
    if job.start is not None or method.random_start or not (method.told_start or job.others == "remove"):
        return None
    network = load_user_network(job.size)
    return None if network is None else network.for_user(
        [pair.enhanced for pair in pairs], [*residuals, *job.noise], keeps_others=job.others == "keep")


def seconds_of(clips: Sequence[np.ndarray]) -> float:
    return sum(map(len, clips)) / STFT.sample_rate


def _first_few(parts: Sequence[str]) -> str:
    return "; ".join(parts[:3]) + (f"; and {len(parts) - 3} more" if len(parts) > 3 else "")


def _advice(facts: dict[str, Any]) -> tuple[str, ...]:
    advice = []
    if facts["seconds_of_speech"] < 120:
        advice.append("a few minutes more of speech would help most")
    advice += [*_advice_on_band(facts), *_advice_on_music(facts)]
    if facts["seconds_of_noise"] < LEAST_HARVEST_SECONDS:       # training did without them
        advice.append("leave pauses of a second or two in a recording: the noise is learnt from them")
    if _is_noted(facts, "several talkers"):
        advice.append("record one person alone, away from other voices: they are learnt as the user's")
    if on_level := _advice_on_level(facts):
        advice += on_level
    elif facts["snr_db"] is not None and facts["snr_db"] < 5:
        advice.append("the recordings are very noisy; a few from closer to the microphone would help")
    return tuple(advice)


def _is_noted(facts: dict[str, Any], words: str) -> bool:
    return any(words in note for note in facts["notes"])


def _advice_on_music(facts: dict[str, Any]) -> list[str]:
    return ["record without music: it is taken for speech"] if _is_noted(facts, "music") else []


def _advice_on_band(facts: dict[str, Any]) -> list[str]:
    return (["record with the whole band: what a telephone leaves out cannot be learnt"]
            if _is_noted(facts, "from a telephone") else [])


def _advice_on_level(facts: dict[str, Any]) -> list[str]:
    is_clipped = any("clipped" in note and note.startswith(("recording ", "clean recording "))
                     for note in facts["notes"] if not note.startswith("recording of voices"))
    return ["record anew with the input level turned down: clipped speech is learnt as it is"] if is_clipped else []
