"""Recordings -> judged frames -> taught speech -> parts: what a personalization trains, chooses and judges with."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch

from ..config import STFT
from ..noise import foreign_noise, synthetic_voice
from ..purification import FramePredictor
from ..remarks import NARROW_BAND_HZ, holds_music, is_narrow
from ..report import INSUFFICIENT_DATA
from ..segments import Stretch, harvest_pauses, join_short, split
from ..talkers import SpeakerEmbedding, pieces_of, talkers_in
from .advice import LEAST_HARVEST_SECONDS, advice_on, on_band, on_level, on_music
from .corpus import Bank
from .guard import HeldOut, held_out
from .job import Job, NoSpecialist, Progress, check_time
from .network import Denoiser
from .pseudo_mixtures import SEGMENT_FRAMES, NoiseBank, NoiseBanks, Pair, PseudoMixtures
from .teacher import Teacher
from .user_network import load_user_network
from .voices import in_other_moods, others_from

LEAST_SPEECH_SECONDS = 20.0
LEAST_CLEAN_SNR_DB = 22.0   # of what the user calls clean; the predictor's own error is several dB
FOREIGN_SECONDS = 4.0
FOREIGN_CLIPS, JUDGING_FOREIGN_CLIPS = 160, 40      # with 20, a specialist lost 1.4 dB in a car, in few steps
VOICE_SECONDS, N_SYNTHETIC_VOICES = 6.0, 8
MOST_INT16 = 32767
LEAST_CLIP = 2 * SEGMENT_FRAMES * STFT.hop_length   # of noise, when drawn from
LEAST_JUDGED_SECONDS = 1.0      # of pauses, to judge with

T = TypeVar("T")


@dataclass(frozen=True)
class Material:
    """What the recordings of a job give to train with, to choose with and to judge with; the last two stay unseen."""

    mixtures: PseudoMixtures
    validation: HeldOut
    guard: HeldOut
    told: Denoiser | None = None    # made for this user by a network that learnt from many; to train, not the start


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
        ["record stretches of half a minute or more of plain speech", *advice_on(facts)])
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
        check_time(job)
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
            [*on_level(facts), *on_band(facts), *on_music(facts),
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
        check_time(job)
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
