"""Train a specialist from a start network on pseudo-mixtures, within a budget of time or of steps."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .losses import compressed_spectrum_loss, negative_snr_db, spectrogram
from .network import Denoiser
from .pseudo_mixtures import Contrasts, Items, PseudoMixtures

SNR_WEIGHT = 0.2
CONTRAST_WEIGHTS = {"corrected": (0.05, 0.02), "published": (1.0, 1.0)}     # alike, different; in dB beside the SNR
CONTRAST_PAIRS = 8
UNTIMED_STEPS, TIMED_STEPS = 3, 8     # before the plan is made: caches warm up, then the clock counts


@dataclass(frozen=True)
class FitConfig:
    batch: int = 16
    peak_rate: float = 2e-3
    warm_up: int = 20
    average_decay: float = 0.98
    gradient_norm: float = 1.0
    most_steps: int = 3000
    fewest_steps: int = 30
    validations: int = 12


@dataclass(frozen=True)
class Fit:
    """The best averaged weights by validation score, and how it went."""

    network: Denoiser
    score: float
    n_steps: int
    seconds: float
    curve: tuple[tuple[int, float], ...]


def items_loss(network: Denoiser, items: Items) -> Tensor:
    """Compressed spectrum plus a fifth of the negative SNR.

    Frames count by their weight, whose mean over the batch is made one: noisy recordings count less than clean ones.
    """
    mixture, target = spectrogram(items.mixture), spectrogram(items.target)
    estimate, _ = network(mixture, network.initial_state(len(mixture)))
    weight = items.weight / items.weight.mean().clamp_min(0.05)
    has_speech = items.target.square().sum(1) > 0
    snr = torch.where(has_speech, negative_snr_db(estimate, target, items.weight.clamp_min(1e-3)), 0.0)
    return compressed_spectrum_loss(estimate, target, weight) + SNR_WEIGHT * (snr * weight.mean(1)).mean()


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
) -> Fit:
    """Train a copy of `start`.

    A few steps are timed first; as many as fit into `seconds` are then planned, and the rate follows that plan (a
    cosine to a twentieth), so that the same number of steps gives the same weights. A machine that gets slower on the
    way stops early with the averaged weights.

    Args:
        validate: a score of a network, higher is better; `start` itself is the first candidate.
        steps: this many instead of as many as fit, to repeat an earlier run. `seconds` still binds.
        on_step: called with the share done and the seconds left.
    """
    began = time.monotonic()
    network = copy.deepcopy(start).train()
    average = copy.deepcopy(start)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.peak_rate)
    best, best_score = copy.deepcopy(start), validate(start)
    validation_seconds = time.monotonic() - began
    curve = [(0, best_score)]
    contrast = mixtures.method.contrast
    n_steps, step, bad, timed_from = steps or 0, 0, 0, 0.0
    while not n_steps or step < n_steps:
        left = seconds - (time.monotonic() - began)
        if left <= 0:
            break
        if step == UNTIMED_STEPS:
            timed_from = time.monotonic()
        if not n_steps and step == UNTIMED_STEPS + TIMED_STEPS:
            step_seconds = (time.monotonic() - timed_from) / TIMED_STEPS
            n_steps = step + int((left - validation_seconds * config.validations) / step_seconds)
            n_steps = min(config.most_steps, max(config.fewest_steps, n_steps))
        done = step / n_steps if n_steps else 0.0
        on_step(max(done, 1 - left / seconds), left)
        rate = config.peak_rate * min(1.0, (step + 1) / config.warm_up)
        rate *= 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = items_loss(network, mixtures.draw(config.batch))
        if contrast:
            loss = loss + contrast_loss(network, mixtures.draw_contrasts(CONTRAST_PAIRS), contrast)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), config.gradient_norm)
        if bool(torch.isfinite(norm)):
            optimizer.step()
        else:
            bad += 1
            if bad > 3:
                break
        with torch.no_grad():
            decay = min(config.average_decay, (step + 1) / (step + 10))
            for mean, value in zip(average.parameters(), network.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
        step += 1
        if n_steps and step % max(1, n_steps // config.validations) == 0 or step == n_steps:
            score = validate(average)
            curve.append((step, score))
            if score > best_score:
                best, best_score = copy.deepcopy(average), score
    if curve[-1][0] != step:
        curve.append((step, validate(average)))
        if curve[-1][1] > best_score:
            best, best_score = copy.deepcopy(average), curve[-1][1]
    return Fit(best.eval(), best_score, step, time.monotonic() - began, tuple(curve))
