"""What a personalization is asked for, the time it has, and the word for having made nothing."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..report import KEPT
from .network import Denoiser
from .pseudo_mixtures import AUTO, METHODS, Method

FINISH_SECONDS = 4.0        # kept back from the budget for interpolation, guard and export, and on a slow machine

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


class NoSpecialist(Exception):
    """Why the start model stays: fields of the report."""

    def __init__(self, status: str, summary: str, advice: Sequence[str] = ()) -> None:
        super().__init__(summary)
        self.verdict = {"status": status, "summary": summary, "advice": tuple(advice)}


def check_time(job: Job) -> None:
    if job.seconds_left() < FINISH_SECONDS:
        raise out_of_time(job)


def out_of_time(job: Job) -> NoSpecialist:
    spent = job.budget_seconds - job.seconds_left()
    return NoSpecialist(KEPT, f"After {spent:.0f} s too little of the budget of {job.budget_seconds:.0f} s is left for "
                              f"training, since the verdict takes its time. {job.before.capitalize()} stays in use.",
                        ["give it a larger budget, or a machine that is less busy"])
