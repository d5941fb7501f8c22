"""Train a specialist from a start network on pseudo-mixtures, within a budget of time or of steps."""

import copy
import io
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from ..checkpoint_file import CHECKPOINT_HEADER
from ..errors import ModelFileError
from ..model_format import write_whole
from .losses import compressed_spectrum_loss, negative_snr_db, power, spectrogram
from .muon import optimizers
from .network import Denoiser
from .perception import perceptual_loss
from .pseudo_mixtures import Contrasts, Items, PseudoMixtures
from .threads import QuickestThreads

SNR_WEIGHT = 0.2
MISSING_WEIGHT = 3.0    # missing speech is worse than noise that is left: without this, PESQ falls for some users
DISTURBANCE_WEIGHT = 0.4    # generalists have 0.15: 0.05 of PESQ more for 0.17 dB of SI-SDR less
MOST_BAD_STEPS = 3
CONTRAST_WEIGHTS = {"corrected": (0.05, 0.02), "published": (1.0, 1.0)}     # alike, different; in dB beside the SNR
CONTRAST_PAIRS = 4      # half as many as items
PLAN_SHARE = 0.25       # of the time, after which it is clear how many steps fit; until then the rate stays at its peak
LAST_STEPS = 16         # that tell the pace of those to come, if they are quicker than all before
CHECKPOINT_SECONDS = 5.0


@dataclass(frozen=True)
class FitConfig:
    batch: int = 8          # twice as many steps of 8 in the same time are worth 0.1 dB more than steps of 16
    peak_rate: float = 2e-3
    warm_up: int = 40
    average_decay: float = 0.98
    gradient_norm: float = 1.0
    most_steps: int = 6000
    fewest_steps: int = 60
    most_validations: int = 12
    steps_to_validate: int = 160    # at least, between two validations: one costs as much as several steps

    def steps_between(self, n_steps: int) -> int:
        """Validations, where there are to be `n_steps`."""
        return max(n_steps // self.most_validations, self.steps_to_validate)


@dataclass(frozen=True)
class Fit:
    """The best averaged weights by validation score, and how it went."""

    network: Denoiser
    score: float
    n_steps: int
    seconds: float
    curve: tuple[tuple[int, float], ...]
    began_anew: bool = False    # for the checkpoint that was there is of another training, or damaged


@dataclass(frozen=True)
class Checkpoint:
    """A file for the state of training. `key` says what is trained: another key's file counts as none."""

    path: Path
    key: str


def items_loss(network: Denoiser, items: Items) -> Tensor:
    """Compressed spectrum, where too little counts three times as much as too much, a fifth of the negative SNR, and
    what a listener would say (`perceptual_loss`).

    Frames count by their weight, whose mean over the batch is made one: noisy recordings count less than clean ones.
    """
    mixture, target = spectrogram(items.mixture), spectrogram(items.target)
    estimate, _ = network(mixture, network.initial_state(len(mixture)))
    weight = items.weight / items.weight.mean().clamp_min(0.05)
    has_speech = items.target.square().sum(1) > 0
    snr = torch.where(has_speech, negative_snr_db(estimate, target, items.weight.clamp_min(1e-3)), 0.0)
    spectral = compressed_spectrum_loss(estimate, target, weight, MISSING_WEIGHT)
    heard = perceptual_loss(power(estimate), power(target), DISTURBANCE_WEIGHT)
    return spectral + ((SNR_WEIGHT * snr + heard) * weight.mean(1)).mean()


def contrast_loss(network: Denoiser, contrasts: Contrasts, kind: str) -> Tensor:
    """Contrastive mixtures: outputs for one recording in two noises agree; those for two recordings stay different.

    Source: Sivaraman and Kim, IEEE JSTSP 2022. Its term for different recordings, max(D(y1, y2), D(p1, p2)), has no
    gradient where the outputs are too alike, which is what it is for; "corrected" is max(0, D(p1, p2) - D(y1, y2)),
    where D is the negative SNR in dB.
    """
    first, second = contrasts.first, contrasts.second
    mixtures = spectrogram(torch.cat([first.mixture, second.mixture]))
    one, other = network(mixtures, network.initial_state(len(mixtures)))[0].chunk(2)
    target, other_target = spectrogram(first.target), spectrogram(second.target)
    both = first.weight * second.weight
    between_outputs = negative_snr_db(one, other, both)
    between_targets = negative_snr_db(target, other_target, both)
    if kind == "published":
        alike, different = negative_snr_db(one, other, first.weight), torch.maximum(between_outputs, between_targets)
    else:
        alike = 0.5 * (negative_snr_db(one, other.detach(), first.weight)
                       + negative_snr_db(other, one.detach(), first.weight))
        different = (between_targets - between_outputs).clamp_min(0)
    weights = CONTRAST_WEIGHTS[kind]
    return SNR_WEIGHT * torch.where(contrasts.alike, weights[0] * alike, weights[1] * different).mean()


def fit(
    start: Denoiser,
    mixtures: PseudoMixtures,
    validate: Callable[[Denoiser], float],
    *,
    seconds: float,
    steps: int | None = None,
    config: FitConfig = FitConfig(),
    on_step: Callable[[float, float], None] = lambda done, seconds_left: None,
    now: Callable[[], float] = time.monotonic,
    checkpoint: Checkpoint | None = None,
    threads: QuickestThreads | None = None,
) -> Fit:
    """Train a copy of `start`.

    After a quarter of `seconds` the number of steps is planned, by the pace of all or of the last ones, whichever is
    quicker, and the rate follows that plan (a cosine to a twentieth), so that the same number of steps gives the same
    weights. A machine that gets slower on the way stops early with the averaged weights: little is lost, for the last
    steps are small.

    Args:
        validate: a score of a network, higher is better; `start` itself is the first candidate.
        steps: this many instead of as many as fit, to repeat an earlier run. `seconds` still binds.
        on_step: called with the share done and the seconds left.
        now: a clock in seconds; `seconds` are its.
        checkpoint: where the state of training is kept every few seconds, and read from if there is one.
        threads: to choose the number of torch's threads on the way, instead of leaving it as it is.
    """
    began = now()
    run = _Run.begin(start, config, steps or 0, validate)
    validation_seconds = now() - began      # building a run takes next to nothing
    seconds -= validation_seconds
    began_anew = checkpoint is not None and not run.load(checkpoint, mixtures) and checkpoint.path.exists()
    trained_before, began, saved = run.seconds, now(), now()
    took: deque[float] = deque(maxlen=LAST_STEPS)       # seconds
    contrast = mixtures.method.contrast
    while not run.n_steps or run.step < run.n_steps:
        elapsed = now() - began
        run.seconds, left = trained_before + elapsed, seconds - elapsed
        if left <= 0:
            break
        if not run.n_steps:
            fitting = min(config.most_steps, max(config.fewest_steps, round(run.step / PLAN_SHARE)))
            n_validations = (1 - PLAN_SHARE) * fitting / config.steps_between(fitting)     # none before the plan
            for_steps = seconds - n_validations * validation_seconds
            if run.seconds >= PLAN_SHARE * for_steps or fitting == config.most_steps:
                run.n_steps = min(config.most_steps, max(fitting, _steps_at_last_pace(run, for_steps, took)))
        done = run.step / run.n_steps if run.n_steps else 0.0
        on_step(max(done, 1 - left / seconds), left)
        loss = items_loss(run.network, mixtures.draw(config.batch))
        if contrast:
            loss = loss + contrast_loss(run.network, mixtures.draw_contrasts(CONTRAST_PAIRS), contrast)
        if not run.learn(loss, learning_rate(run.step, done, config)):
            break
        took.append(now() - began - elapsed)
        if threads is not None:
            threads.took(took[-1])
        if run.step == run.n_steps or (run.step > PLAN_SHARE * run.n_steps > 0
                                       and run.step % config.steps_between(run.n_steps) == 0):
            run.consider(validate)
        if checkpoint is not None and now() - saved > CHECKPOINT_SECONDS:
            saved = now()
            run.seconds = trained_before + saved - began
            run.save(checkpoint, mixtures)
    if threads is not None:
        threads.settle()
    if run.curve[-1][0] != run.step:
        run.consider(validate)
    trained = trained_before + validation_seconds + now() - began
    return Fit(run.best.eval(), run.best_score, run.step, trained, tuple(run.curve), began_anew)


def _steps_at_last_pace(run: "_Run", for_steps: float, took: Sequence[float]) -> int:
    """That fit into `for_steps` seconds if all to come are as quick as the last ones: the first steps are slower, or
    another program has ended, or the number of threads was a bad one. 0 where there were too few of them."""
    if len(took) < LAST_STEPS:
        return 0
    return run.step + int((for_steps - run.seconds) / fmean(took))


def learning_rate(step: int, done: float, config: FitConfig) -> float:
    """Of a step at the share `done` of the plan: a warm-up, a plateau while there is no plan yet, a cosine."""
    falling = max(0.0, (done - PLAN_SHARE) / (1 - PLAN_SHARE))
    return (config.peak_rate * min(1.0, (step + 1) / config.warm_up)
            * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * falling))))


@dataclass
class _Run:
    """Everything that changes while training."""

    config: FitConfig
    network: Denoiser
    average: Denoiser
    best: Denoiser
    best_score: float
    optimizers: tuple[torch.optim.Optimizer, ...]
    curve: list[tuple[int, float]]
    n_steps: int        # that are planned; 0 before there is a plan
    step: int = 0
    n_bad: int = 0
    seconds: float = 0.0

    @classmethod
    def begin(cls, start: Denoiser, config: FitConfig, n_steps: int, validate: Callable[[Denoiser], float]) -> "_Run":
        network = copy.deepcopy(start).train()
        score = validate(start)
        return cls(config, network, copy.deepcopy(start), copy.deepcopy(start), score,
                   optimizers(network, config.peak_rate), [(0, score)], n_steps)

    def learn(self, loss: Tensor, rate: float) -> bool:
        """One step; False where the loss is broken beyond repair."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        self.network.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_norm)
        if bool(torch.isfinite(norm)):
            for optimizer in self.optimizers:
                optimizer.step()
        else:
            self.n_bad += 1
            if self.n_bad > MOST_BAD_STEPS:
                return False
        with torch.no_grad():
            decay = min(self.config.average_decay, (self.step + 1) / (self.step + 10))
            for mean, value in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
        self.step += 1
        return True

    def consider(self, validate: Callable[[Denoiser], float]) -> None:
        """Keep the averaged weights if they are the best so far."""
        score = validate(self.average)
        self.curve.append((self.step, score))
        if score > self.best_score:
            self.best, self.best_score = copy.deepcopy(self.average), score

    def save(self, checkpoint: Checkpoint, mixtures: PseudoMixtures) -> None:
        """Whole or not at all. A disk that is full costs the checkpoint, not the training."""
        state = {"key": checkpoint.key, "mixtures": mixtures.state(),
                 "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                 **{name: getattr(self, name).state_dict() for name in _WEIGHTS},
                 **{name: getattr(self, name) for name in _NUMBERS}}
        content = io.BytesIO()
        torch.save(state, content)
        with suppress(ModelFileError):
            write_whole(checkpoint.path, CHECKPOINT_HEADER + content.getvalue())

    def load(self, checkpoint: Checkpoint, mixtures: PseudoMixtures) -> bool:
        """Go on where the checkpoint was saved, if it is there, whole, and of this training. Whether it is."""
        try:
            content = checkpoint.path.read_bytes().removeprefix(CHECKPOINT_HEADER)
            state = torch.load(io.BytesIO(content), weights_only=True)
            if state["key"] != checkpoint.key:
                return False
            saved_optimizers = state["optimizers"]      # an earlier version had one
        except Exception:       # torch has no common class for what a damaged file leads to
            return False
        for name in _WEIGHTS:
            getattr(self, name).load_state_dict(state[name])
        for name in _NUMBERS:
            setattr(self, name, state[name])
        for optimizer, saved in zip(self.optimizers, saved_optimizers, strict=True):
            optimizer.load_state_dict(saved)
        mixtures.set_state(state["mixtures"])
        return True


_WEIGHTS = ("network", "average", "best")
_NUMBERS = ("best_score", "curve", "n_steps", "step", "n_bad", "seconds")
