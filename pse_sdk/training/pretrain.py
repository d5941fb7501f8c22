"""Train a generalist, the teacher, a denoiser that is told about its user (such as `small_user`), the SNR predictor or
speaker embeddings. Can be killed and started again.

    python -m pse_sdk.training.pretrain --data FOLDER --what tiny --steps 40000 --out build/tiny

leaves in --out: `checkpoint.pt` (to go on from), `weights.safetensors` (the averaged weights, what ships) and
`log.jsonl` (a row every evaluation: step, hours of mixtures, hours of wall clock, hours of mixtures per hour of wall
clock and what the time of a step went to, both without the evaluations, loss, validation scores).

The same on several cores, GPUs or machines, with the same losses, for a batch is shared out:

    torchrun --nproc-per-node 2 -m pse_sdk.training.pretrain --data FOLDER ... --device cpu

Which corpora `--data` takes: `layouts.py`. What 10,000 hours would take: benchmarks/pretraining.md.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from filelock import AcquireReturnProxy, FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ..config import SIZES, STFT
from ..errors import PseError, SettingsError
from ..talkers import PIECE_FRAMES
from . import processes
from .corpus import Corpus, load_corpus
from .distillation import PACKAGE, WEIGHTS, Teachers, label
from .generated_noise import generated_noise
from .losses import compressed_spectrum_loss, negative_snr_db, power, spectrogram, waveform
from .mixing import GROUP, Batch, Mixer, MixingConfig
from .muon import optimizers
from .network import NETWORKS, Denoiser, build_network, set_weights
from .perception import DISTURBANCE_WEIGHT, disturbance, intelligibility, perceptual_loss
from .snr_network import SnrPredictor, evaluate_predictor, predictor_loss
from .speaker_network import SpeakerNetwork, evaluate_speakers, speaker_loss
from .user_network import HEARD_SECONDS, USER, UserDenoiser, UserItems, build_user_network, user_items

USER_SIZES = [size + USER for size in SIZES]
AVERAGE_DECAY = 0.999
ADAMW_DECAY, MUON_DECAY = 0.01, 0.03    # without, weights grow with Muon until outputs hang on their last bit
MIN_FRAMES, MAX_FRAMES = 40, 4000   # of a mixture
TEACHER_SHARE = 0.5
SNR_WEIGHT = 0.1        # of the negative SNR in dB, beside the compressed spectrum


def learning_rate(step: int, n_steps: int, peak: float) -> float:
    """Warm-up over 500 steps, constant, and over the last 30 % linearly down to 1 %."""
    warm_up = min(1.0, (step + 1) / 500)
    remaining = (n_steps - step) / (0.3 * n_steps)
    return peak * warm_up * min(1.0, max(0.01, remaining))


def denoising_loss(network: Denoiser, batch: Batch, disturbance_weight: float = DISTURBANCE_WEIGHT,
                   teachers: Teachers | None = None, teacher_share: float = 0.0) -> Tensor:
    """`teacher_share`: how much nearness to what `teachers` make of the mixtures counts, of nearness to the truth."""
    noisy, target = spectrogram(batch.noisy), spectrogram(batch.target)
    estimate, _ = network(noisy, network.initial_state(len(noisy)))
    distance = _distance(estimate, target, batch.has_speech)
    if teachers is not None:
        taught = _distance(estimate, teachers.estimate(batch.noisy), batch.has_speech)
        distance = torch.lerp(distance, taught, teacher_share)
    return distance + _heard(estimate, target, batch.has_speech, disturbance_weight)


def _loss_of_estimate(estimate: Tensor, target: Tensor, has_speech: Tensor) -> Tensor:
    """Of spectra [B, N, 2, F]."""
    return _distance(estimate, target, has_speech) + _heard(estimate, target, has_speech, DISTURBANCE_WEIGHT)


def _heard(estimate: Tensor, target: Tensor, has_speech: Tensor, disturbance_weight: float) -> Tensor:
    """Of spectra [B, N, 2, F]: the part of the loss that is what listeners say."""
    return (perceptual_loss(power(estimate), power(target), disturbance_weight) * has_speech).mean()


def _distance(estimate: Tensor, target: Tensor, has_speech: Tensor) -> Tensor:
    """Of spectra [B, N, 2, F]: the other part."""
    snr = negative_snr_db(estimate, target)
    return compressed_spectrum_loss(estimate, target) + SNR_WEIGHT * (snr * has_speech).mean()


def user_loss(network: UserDenoiser, batch: Batch) -> Tensor:
    items = user_items(batch)
    estimate, target, _ = _told(network, items)
    return _loss_of_estimate(estimate, target, items.batch.has_speech)


def _told(network: UserDenoiser, items: UserItems) -> tuple[Tensor, Tensor, Tensor]:
    """Spectra [B, N, 2, F]: enhanced, wanted, noisy."""
    noisy, target = spectrogram(items.batch.noisy), spectrogram(items.batch.target)
    about = network.about(items.voice, items.noise, items.keeps_others)
    return network(noisy, network.initial_state(len(noisy)), about)[0], target, noisy


@torch.no_grad()
def evaluate_users(network: UserDenoiser, batches: list[Batch]) -> dict[str, float]:
    """Over validation mixtures: the loss, and the mean SI-SDR gain in dB of the user's voice in his noise, of
    other voices and in other noise, and beside another voice alone that is to be removed."""
    losses, gains = [], dict[str, list[Tensor]](si_sdr_improvement=[], si_sdr_improvement_elsewhere=[],
                                                si_sdr_improvement_beside_voice=[])
    for batch in batches:
        items = user_items(batch)
        enhanced, wanted, noisy = _told(network, items)
        losses.append(_loss_of_estimate(enhanced, wanted, items.batch.has_speech).item())
        gain, counts = _gains(enhanced, wanted, noisy, items.batch.has_speech)
        alone = counts & ~items.beside_voice
        for name, chosen in zip(gains, (alone & items.is_own, alone & ~items.is_own,
                                        counts & items.beside_voice & ~items.in_noise), strict=True):
            gains[name].append(gain[chosen])
    return {"loss": sum(losses) / len(losses),
            **{name: torch.cat(found).mean().item() for name, found in gains.items()}}


@torch.no_grad()
def evaluate_denoising(network: Denoiser, batches: list[Batch]) -> dict[str, float]:
    """Over validation mixtures: the loss, and the means of the SI-SDR gain in dB and of both perceptual measures."""
    losses, found = [], dict[str, list[Tensor]](si_sdr_improvement=[], intelligibility=[], disturbance=[])
    for batch in batches:
        noisy, wanted = spectrogram(batch.noisy), spectrogram(batch.target)
        enhanced, _ = network(noisy, network.initial_state(len(noisy)))
        losses.append(_loss_of_estimate(enhanced, wanted, batch.has_speech).item())
        gain, counts = _gains(enhanced, wanted, noisy, batch.has_speech)
        found["si_sdr_improvement"].append(gain[counts])
        for measure in (intelligibility, disturbance):
            found[measure.__name__].append(measure(power(enhanced), power(wanted))[counts])
    return {"loss": sum(losses) / len(losses),
            **{name: torch.cat(values).mean().item() for name, values in found.items()}}


def _gains(enhanced: Tensor, wanted: Tensor, noisy: Tensor, has_speech: Tensor) -> tuple[Tensor, Tensor]:
    """Of spectra [B, N, 2, F]: SI-SDR gains in dB [B], and which count: of speech with what is to be removed less than
    30 dB below it."""
    estimate, target, mixture = waveform(enhanced), waveform(wanted), waveform(noisy)
    return (_si_sdr(estimate, target) - _si_sdr(mixture, target),
            has_speech & ((mixture - target).square().sum(1) > 1e-3 * target.square().sum(1)))


def _si_sdr(estimate: Tensor, target: Tensor) -> Tensor:
    scaled = target * ((estimate * target).sum(1, keepdim=True) / target.square().sum(1, keepdim=True).add(1e-8))
    return 10 * torch.log10(scaled.square().sum(1) / (estimate - scaled).square().sum(1).add(1e-8) + 1e-8)


@dataclass(frozen=True)
class Task:
    """What is learnt: how to build the network, its loss, its scores, and the mixtures it learns from."""

    build: Callable[[str], Any]
    loss: Callable[[Any, Batch], Tensor]
    evaluate: Callable[[Any, list[Batch]], dict[str, float]]
    mixing: MixingConfig


DENOISING = Task(build_network, denoising_loss, evaluate_denoising, MixingConfig())
SNR_PREDICTION = Task(lambda _: SnrPredictor(), predictor_loss, evaluate_predictor,
                      MixingConfig(length=320 * STFT.hop_length, noise_only_share=0.1))
USER_DENOISING = Task(build_user_network, user_loss, evaluate_users,
                      MixingConfig(length=round(HEARD_SECONDS * STFT.sample_rate), takes=2, noise_takes=2))
SPEAKER_EMBEDDING = Task(lambda _: SpeakerNetwork(), speaker_loss, evaluate_speakers,
                         MixingConfig(length=PIECE_FRAMES * STFT.hop_length, snr_db=(0.0, 30.0), noise_only_share=0.0,
                                      gap_share=0.0, max_speed_change=0.0, takes=2))


def _averaged(average: Tensor, value: Tensor, n_averaged: Tensor | int) -> Tensor:
    """Exponential average whose memory grows to its full length, so that random first weights are soon forgotten."""
    n = float(n_averaged)
    return average.lerp(value, 1 - min(AVERAGE_DECAY, (n + 1) / (n + 10)))


def save_weights(network: torch.nn.Module, path: Path) -> None:
    """The parameters as safetensors, written whole or not at all."""
    partial = path.with_suffix(".partial")
    # not `save_file`, whose files nobody else may read
    partial.write_bytes(save({name: value.detach().contiguous() for name, value in network.state_dict().items()}))
    partial.replace(path)


class Loss(torch.nn.Module):
    """A network that answers with its loss: the whole of a step, as DistributedDataParallel wants to see it."""

    def __init__(self, network: torch.nn.Module, loss: Callable[[Any, Batch], Tensor]) -> None:
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self, batch: Batch) -> Tensor:
        return self.loss(self.network, batch)


class Stopwatch:
    """Where the time of a step goes. Two steps in twenty are measured, for a GPU must be waited for to measure it."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._seconds = device, {"mixing": 0.0, "network": 0.0, "rest": 0.0}
        self._n_steps, self._measured, self._since = 0, False, 0.0

    def start_step(self) -> None:
        self._measured = self._n_steps % 20 < 2     # a pair: only the first of two steps draws sources
        self._n_steps += 1
        self._lap()

    def finish(self, part: str) -> None:
        """All since the last call was this part."""
        if self._measured:
            self._seconds[part] += self._lap()

    def shares(self) -> dict[str, float]:
        """Of the time of a step, {part: share}."""
        total = sum(self._seconds.values())
        return {f"{part}_share": seconds / total for part, seconds in self._seconds.items()}

    def _lap(self) -> float:
        if self._measured and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.monotonic()
        elapsed, self._since = now - self._since, now
        return elapsed


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True,
                        help="a folder with a manifest.csv or a public corpus as it unpacks; give it once for each")
    parser.add_argument("--what", choices=[*NETWORKS, *USER_SIZES, "snr_predictor", "speaker_embedding"],
                        required=True)
    parser.add_argument("--steps", type=_whole(0), required=True,
                        help="in all; a run that is finished goes on with more, its rate at the peak again")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("build/corpus"), help="where decoded audio is kept")
    parser.add_argument("--speech-share", type=_share, default=[], metavar="CORPUS=SHARE",
                        help="of the speech that is drawn, from one corpus (librispeech=0.85), where another one has "
                             "more speakers than it shall count for")
    parser.add_argument("--generated-noise", type=_hours, default=0.0, metavar="HOURS",
                        help="of noise to make from the corpus and from nothing (crowds, machines, rain), heard beside "
                             "the corpus' own; kept in --cache (%(default)g)")
    parser.add_argument("--batch", type=_whole(0), default=32, help="mixtures a step, of all processes together")
    parser.add_argument("--seconds", type=_whole_hops,
                        help="that a mixture lasts, and a validation one (2.56; for snr_predictor 5.12, for "
                             "speaker_embedding 3.07)")
    parser.add_argument("--snrs", type=_snr_db, nargs=2, metavar=("LOW", "HIGH"),
                        help="of the mixtures, in dB ({:g} {:g})".format(*MixingConfig.snr_db))
    parser.add_argument("--start-weights", type=Path, metavar="FILE",
                        help="weights to begin with instead of random ones, such as those of a shipped model (of the "
                             "same size, for a size_user); a run that goes on has its own")
    parser.add_argument("--disturbance-weight", type=_weight, metavar="WEIGHT", default=DISTURBANCE_WEIGHT,
                        help="of what disturbs listeners, in the loss of a denoiser: with more of it PESQ is higher, "
                             "SI-SDR lower (%(default)g)")
    parser.add_argument("--teacher", action="append", default=[], metavar="NAME",
                        help=f"a denoiser for this one to learn from beside the truth: {PACKAGE}, the networks that "
                             f"teach specialists; FILE{WEIGHTS}:WHAT, weights that this program left; or FILE:NAME, a "
                             "peer as for `pse benchmark --peers FILE NAME`. Give it once for each; the mean of what "
                             "they make of a mixture counts")
    parser.add_argument("--teacher-share", type=_fraction, metavar="SHARE",
                        help="how much what the teachers made of a mixture counts, of 1 that it and the true speech "
                             f"count together ({TEACHER_SHARE:g}); how the result sounds is compared with the truth "
                             "alone")
    parser.add_argument("--peak-rate", type=_fraction, default=2e-3)
    parser.add_argument("--optimizer", choices=["adamw", "muon"], default="adamw",
                        help="muon (for matrices) learns more from a step where weights are given; try a rate of 4e-4")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu",
                        help="(here: %(default)s)")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32",
                        help="of the recurrent layers; bfloat16 is faster where the processor has it (%(default)s)")
    parser.add_argument("--threads", type=_whole(1), default=1, help="of the network, in each process (%(default)s)")
    parser.add_argument("--mix-ahead", action="store_true",
                        help="make the next mixtures in a second thread while the network learns (the same ones)")
    parser.add_argument("--seed", type=_whole(0), default=0)
    parser.add_argument("--evaluate-every", type=_whole(1), default=1000, metavar="STEPS")
    return parser.parse_args(arguments)


def _whole(least: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if text.isascii() and text.isdecimal() and least <= int(text) < 2**63:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number, {least} or more")

    return whole


def _fraction(text: str) -> float:
    return _number(text, 0.0, 1.0)


def _weight(text: str) -> float:
    return _number(text, 0.0, 100.0)


def _snr_db(text: str) -> float:
    return _number(text, -60.0, 100.0)


def _share(text: str) -> list[str | float]:
    corpus, _, share = text.rpartition("=")
    if not corpus:
        raise argparse.ArgumentTypeError(f"{text}: expected the name of a corpus and its share, like librispeech=0.85")
    return [corpus, _number(share, 0.0, 1.0)]


def _hours(text: str) -> float:
    return _number(text, 0.0, 1000.0)


def _number(text: str, low: float, high: float) -> float:
    try:
        if low <= float(text) <= high:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text}: expected a number from {low:g} to {high:g}")


def _whole_hops(text: str) -> float:
    """Seconds, rounded to hops of the transform."""
    try:
        n_frames = round(float(text) / STFT.hop_seconds)
        if MIN_FRAMES <= n_frames <= MAX_FRAMES:
            return n_frames * STFT.hop_seconds
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(f"{text}: expected {MIN_FRAMES * STFT.hop_seconds:g} to "
                                     f"{MAX_FRAMES * STFT.hop_seconds:g} s")


def train(args: argparse.Namespace) -> None:
    """Train as `parse` understood, from the last checkpoint if there is one.

    Raises:
        AudioError: see `load_corpus`.
        SettingsError: the checkpoint was made with other settings, or the batch cannot be shared out.
    """
    device = torch.device(args.device, processes.local_rank()) if args.device == "cuda" else torch.device("cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SettingsError("--device cuda: this torch sees no GPU here; leave it out")
    if args.threads > (os.cpu_count() or 1):
        raise SettingsError(f"--threads {args.threads}: this machine has {os.cpu_count()} cores")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)
    with processes.joined(device), ExitStack() as locks:
        _train(args, device, locks)


def _train(args: argparse.Namespace, device: torch.device, locks: ExitStack) -> None:
    tasks = {"snr_predictor": SNR_PREDICTION, "speaker_embedding": SPEAKER_EMBEDDING,
             **dict.fromkeys(USER_SIZES, USER_DENOISING)}
    task = tasks.get(args.what, DENOISING)
    if args.seconds is not None:
        task = replace(task, mixing=replace(task.mixing, length=round(args.seconds * STFT.sample_rate)))
    if args.snrs is not None:
        if args.snrs[0] > args.snrs[1]:
            raise SettingsError(f"--snrs {args.snrs[0]:g} {args.snrs[1]:g}: expected the lower one first")
        task = replace(task, mixing=replace(task.mixing, snr_db=tuple(args.snrs)))
    if args.teacher_share is not None and not args.teacher:
        raise SettingsError("--teacher-share: there is no --teacher")
    teacher_share = TEACHER_SHARE if args.teacher_share is None else args.teacher_share
    if task.loss is denoising_loss:
        task = replace(task, loss=partial(denoising_loss, disturbance_weight=args.disturbance_weight,
                                          teachers=Teachers(args.teacher) if args.teacher else None,
                                          teacher_share=teacher_share))
    elif args.teacher or args.disturbance_weight != DISTURBANCE_WEIGHT:
        raise SettingsError(f"{'--teacher' if args.teacher else '--disturbance-weight'}: it is of the denoisers' loss, "
                            f"and {args.what} has another")
    seconds_each = task.mixing.length / STFT.sample_rate
    share, rest = divmod(args.batch, GROUP * processes.n_processes())
    if rest or not share:
        raise SettingsError(f"--batch {args.batch} cannot be shared by {processes.n_processes()} process(es); "
                            f"expected a multiple of {GROUP * processes.n_processes()}")
    rows = slice(processes.rank() * share * GROUP, (processes.rank() + 1) * share * GROUP)

    network = task.build(args.what).to(device)
    if args.start_weights is not None:
        _load_start(network, args.start_weights)
    if processes.rank() == 0:
        _check_writable(args.out)
        locks.enter_context(_lock(args.out))
    average = torch.optim.swa_utils.AveragedModel(network, avg_fn=_averaged)
    network.precision = getattr(torch, args.precision)
    learners: tuple[torch.optim.Optimizer, ...] = (
        optimizers(network, args.peak_rate, MUON_DECAY) if args.optimizer == "muon" else
        (torch.optim.AdamW(network.parameters(), lr=args.peak_rate, weight_decay=ADAMW_DECAY),))
    step, seconds = 0, 0.0
    checkpoint = args.out / "checkpoint.pt"
    settings = {"what": args.what, "seed": args.seed, "batch": args.batch, "seconds": seconds_each,
                "snrs": list(task.mixing.snr_db), "optimizer": args.optimizer,
                "speech-share": args.speech_share, "generated-noise": args.generated_noise,
                "disturbance-weight": args.disturbance_weight, "teacher": sorted(map(label, args.teacher)),
                "teacher-share": teacher_share if args.teacher else None}
    saved = processes.from_first(load_checkpoint(checkpoint) if processes.rank() == 0 else None)
    if saved is not None:
        _check_settings(checkpoint, saved["settings"], settings)
        network.load_state_dict(saved["network"])
        average.load_state_dict(saved["average"])
        for optimizer, state in zip(learners, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        step, seconds = saved["step"], saved["seconds"]
        if args.start_weights is not None and processes.rank() == 0:
            _say(f"going on from {checkpoint}; --start-weights counted when it was begun")

    if processes.local_rank() > 0:      # the first process of a machine decodes, the others find the cache
        processes.wait_for_all()
    training, validation = load_corpus(args.data, args.cache, device, _say)
    settings["data"] = training.digest
    if saved is not None:
        _check_settings(checkpoint, saved["settings"], settings)
    speech = training.speech.with_share(*args.speech_share) if args.speech_share else training.speech
    if args.generated_noise:
        training = replace(training, generated=generated_noise(training, args.generated_noise, args.cache, say=_say))
    training = replace(training, speech=speech)
    if processes.local_rank() == 0:
        processes.wait_for_all()
    mixer = Mixer(training, task.mixing, args.seed)
    judge = Mixer(validation, task.mixing.to_judge(), seed=10_007)
    judged = [judge.batch(i, 32) for i in range(4)]
    loss_of: torch.nn.Module = Loss(network, task.loss)
    if processes.n_processes() > 1:
        loss_of = DistributedDataParallel(loss_of)
    if processes.rank() == 0:
        if saved is not None:       # as they were when the checkpoint was written
            save_weights(average.module, args.out / "weights.safetensors")
        _keep_rows(args.out / "log.jsonl", step)
        _say(f"training: {_amounts(training)}; validation: {_amounts(validation)}")
        n_parameters = sum(p.numel() for p in network.parameters())
        print(f"{args.what}: {n_parameters} parameters, "
              + (f"from step {step} to {args.steps}" if step < args.steps else f"finished at step {step}"), flush=True)

    mixtures = _mixtures(mixer, range(step, args.steps), args.batch, rows, ahead=args.mix_ahead)
    hours_a_step = args.batch * seconds_each / 3600
    started = time.monotonic() - seconds
    losses, watch, since = [], Stopwatch(device), time.monotonic()
    while step < args.steps:
        watch.start_step()
        for group in (group for optimizer in learners for group in optimizer.param_groups):
            group["lr"] = learning_rate(step, args.steps, args.peak_rate)
        batch = next(mixtures)
        watch.finish("mixing")
        loss = loss_of(batch)
        loss_of.zero_grad()
        loss.backward()
        watch.finish("network")
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer in learners:
            optimizer.step()
        average.update_parameters(network)
        losses.append(loss.detach())
        step += 1
        watch.finish("rest")
        if step % args.evaluate_every == 0 or step == args.steps:
            mean_loss = processes.mean_over_processes(torch.stack(losses).mean()).item()
            now = time.monotonic()
            row = {"step": step, "hours": round(step * hours_a_step, 4), "snrs_db": task.mixing.snr_db,
                   "mixture_seconds": round(seconds_each, 2), "speech_share": args.speech_share,
                   "teachers": settings["teacher"], "teacher_share": settings["teacher-share"],
                   "wall_hours": round((now - started) / 3600, 3),
                   "hours_per_hour": round(len(losses) * hours_a_step * 3600 / (now - since), 1),
                   **{k: round(v, 3) for k, v in watch.shares().items()}, "training_loss": round(mean_loss, 4),
                   **{k: round(v, 4) for k, v in task.evaluate(average.module, judged).items()}}
            if not all(isfinite(row[name]) for name in ("training_loss", "loss")):
                raise SettingsError(f"between steps {step - len(losses)} and {step} the loss became {mean_loss}; "
                                    f"{args.out} keeps what was before. A lower --peak-rate than {args.peak_rate:g} "
                                    "helps where the rate was to blame")
            if processes.rank() == 0:
                print(row, flush=True)
                _leave(args.out, row, average.module,
                       {"network": network.state_dict(), "average": average.state_dict(),
                        "optimizers": [optimizer.state_dict() for optimizer in learners], "step": step,
                        "seconds": time.monotonic() - started, "settings": settings})
            losses, watch, since = [], Stopwatch(device), time.monotonic()


def _say(line: str) -> None:
    print(line, flush=True)


def _amounts(corpus: Corpus) -> str:
    """Hours, and how many files of which corpora."""
    told = []
    for kind, bank in (("speech", corpus.speech), ("noise", corpus.noise), ("rooms", corpus.rooms)):
        named = Counter(name.split("/")[0] for name in bank.names) if kind == "speech" else {}
        hours = bank.lengths.sum().item() / STFT.sample_rate / 3600
        told.append(f"{hours:.2g} h of {kind} in {bank.n_clips} files"
                    + (f" ({', '.join(f'{name} {n}' for name, n in sorted(named.items()))})" if named else ""))
    return ", ".join(told)


def _mixtures(mixer: Mixer, steps: range, size: int, rows: slice, *, ahead: bool) -> Iterator[Batch]:
    """The batch of each step. `ahead`: while one is used, a thread makes the next."""
    if not ahead:
        yield from (mixer.batch(step, size, rows) for step in steps)
        return
    # denormals are flushed thread by thread
    with ThreadPoolExecutor(1, initializer=torch.set_flush_denormal, initargs=(True,)) as pool:
        coming = [pool.submit(mixer.batch, step, size, rows) for step in steps[:1]]
        for step in steps:
            batch = coming.pop().result()
            if step + 1 in steps:
                coming.append(pool.submit(mixer.batch, step + 1, size, rows))
            yield batch


def _load_start(network: torch.nn.Module, weights: Path) -> None:
    own = network.not_of_a_denoiser() if isinstance(network, UserDenoiser) else {}      # a generalist has none of these
    try:
        set_weights(network, {**own, **load_file(weights)})
    except (OSError, SafetensorError) as error:
        raise SettingsError(f"--start-weights {weights} cannot be read as safetensors: {_line(error)}") from error
    except ValueError as error:
        raise SettingsError(f"--start-weights {weights} are of another network: {error}; give those of the same --what"
                            ) from error


def _check_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise SettingsError(f"--out {out}: nothing can be written there: {error.strerror}") from error


def _lock(out: Path) -> AcquireReturnProxy[FileLock]:
    """Held while a run writes to `out`: a second one would go on from the same checkpoint, and each undo the other."""
    try:
        return FileLock(out / ".lock").acquire(blocking=False)
    except Timeout as error:
        raise SettingsError(f"--out {out}: another run writes there now; wait for it, or choose another") from error


def _check_settings(checkpoint: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """What a checkpoint of an earlier version does not tell is not compared."""
    for name, value in now.items():
        # None: the task's own number of seconds, as an earlier version wrote it
        if before.get(name) not in (None, value):
            told = ("with other sounds than those of --data" if name == "data" else
                    f"with --{name} {_words(before[name])}, not {_words(value)}")
            raise SettingsError(f"{checkpoint} was made {told}; go on with the same, or choose another --out (and "
                                "--start-weights with its weights, to begin where it stands)")


def _words(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(part if isinstance(part, str) else f"{part:g}" for part in value) or "none"
    return str(value)


def _keep_rows(log: Path, last_step: int) -> None:
    """Of a log: a run that died may have left rows of steps that are done again, or half a row; one that begins anew,
    all of its own."""
    if not log.exists():
        return
    kept = []
    for line in log.read_text("utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= last_step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            pass
    partial = log.with_suffix(".partial")
    partial.write_text("".join(kept), "utf-8")
    partial.replace(log)


def _leave(out: Path, row: dict[str, Any], network: torch.nn.Module, state: dict[str, Any]) -> None:
    """The row, the weights and last the checkpoint: going on from one mends what was written after it."""
    try:
        with (out / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        save_weights(network, out / "weights.safetensors")
        _save(state, out / "checkpoint.pt")
    except (OSError, RuntimeError) as error:    # the latter of torch.save
        raise SettingsError(f"{out} could not be written to: {_line(error)}; its checkpoint is of the evaluation "
                            "before") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def load_checkpoint(checkpoint: Path) -> dict[str, Any] | None:
    """What a run goes on from; None where there is no such file.

    Raises:
        SettingsError: it is damaged, or no checkpoint.
    """
    if not checkpoint.exists():
        return None
    try:
        with zipfile.ZipFile(checkpoint) as archive:    # torch itself looks at no checksum
            if archive.testzip() is not None:
                raise ValueError("its checksums do not match")
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        missing = {"network", "average", "optimizers", "step", "seconds", "settings"} - set(state)
        if missing:
            raise ValueError(f"it holds no {', '.join(sorted(missing))}")
        return dict(state)
    except Exception as error:      # torch has no common class for what a damaged file leads to
        raise SettingsError(f"{checkpoint} is no checkpoint to go on from: {_line(error)}; remove it to begin anew, or "
                            "--start-weights with those beside it") from error


def _save(state: dict[str, Any], checkpoint: Path) -> None:
    partial = checkpoint.with_suffix(".partial")
    try:
        torch.save(state, partial)
        partial.replace(checkpoint)
    finally:
        partial.unlink(missing_ok=True)


def main() -> None:
    try:
        train(parse())
    except PseError as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
