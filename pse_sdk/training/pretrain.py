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
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ..config import STFT
from ..errors import PseError, SettingsError
from . import processes
from .corpus import Corpus, load_corpus
from .distillation import Teachers, label
from .generated_noise import generated_noise
from .mixing import GROUP, Batch, Mixer
from .muon import optimizers
from .network import set_weights
from .perception import DISTURBANCE_WEIGHT
from .pretrain_options import TEACHER_SHARE, USER_SIZES, parse_options
from .run_folder import RunFolder, in_a_line
from .tasks import DENOISING, SNR_PREDICTION, SPEAKER_EMBEDDING, USER_DENOISING, Task, denoising_loss
from .user_network import UserDenoiser

AVERAGE_DECAY = 0.999
ADAMW_DECAY, MUON_DECAY = 0.01, 0.03    # without, weights grow with Muon until outputs hang on their last bit


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    return parse_options(arguments, __doc__)


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
    task = _task(args)
    rows = _rows_of_this_process(args.batch)
    network = task.build(args.what).to(device)
    if args.start_weights is not None:
        _load_start(network, args.start_weights)
    run, is_first = RunFolder(args.out), processes.rank() == 0
    if is_first:
        locks.enter_context(run.held())
    network.precision = getattr(torch, args.precision)
    learner = Learner(network, args.optimizer, args.peak_rate)
    settings = _settings(args, task)
    saved = processes.from_first(run.checkpoint() if is_first else None)
    if saved is not None:
        run.check_settings(saved["settings"], settings)
        learner.go_on_from(saved)
        if args.start_weights is not None and is_first:
            _say(f"going on from the checkpoint in {args.out}; --start-weights counted when it was begun")
    training, validation = _corpora(args, device)
    settings["data"] = training.digest
    if saved is not None:
        run.check_settings(saved["settings"], settings)
    mixer = Mixer(training, task.mixing, args.seed)
    judge = Mixer(validation, task.mixing.to_judge(), seed=10_007)
    judged = [judge.batch(i, 32) for i in range(4)]
    loss_of: torch.nn.Module = Loss(network, task.loss)
    if processes.n_processes() > 1:
        loss_of = DistributedDataParallel(loss_of)
    if is_first:
        run.go_back(learner.step, None if saved is None else learner.average)
        _say(f"training: {_amounts(training)}; validation: {_amounts(validation)}")
        n_parameters = sum(p.numel() for p in network.parameters())
        _say(f"{args.what}: {n_parameters} parameters, "
             + (f"from step {learner.step} to {args.steps}" if learner.step < args.steps else
                f"finished at step {learner.step}"))

    mixtures = _mixtures(mixer, range(learner.step, args.steps), args.batch, rows, ahead=args.mix_ahead)
    hours_a_step = args.batch * _seconds_each(task) / 3600
    started = time.monotonic() - learner.seconds
    losses, watch, since = [], Stopwatch(device), time.monotonic()
    while learner.step < args.steps:
        watch.start_step()
        batch = next(mixtures)
        watch.finish("mixing")
        loss = loss_of(batch)
        loss_of.zero_grad()
        loss.backward()
        watch.finish("network")
        learner.take_step(learning_rate(learner.step, args.steps, args.peak_rate))
        losses.append(loss.detach())
        watch.finish("rest")
        if learner.step % args.evaluate_every == 0 or learner.step == args.steps:
            mean_loss = processes.mean_over_processes(torch.stack(losses).mean()).item()
            now = time.monotonic()
            learner.seconds = now - started
            row = {"step": learner.step, "hours": round(learner.step * hours_a_step, 4), "snrs_db": task.mixing.snr_db,
                   "mixture_seconds": round(_seconds_each(task), 2), "speech_share": args.speech_share,
                   "teachers": settings["teacher"], "teacher_share": settings["teacher-share"],
                   "wall_hours": round(learner.seconds / 3600, 3),
                   "hours_per_hour": round(len(losses) * hours_a_step * 3600 / (now - since), 1),
                   **{k: round(v, 3) for k, v in watch.shares().items()}, "training_loss": round(mean_loss, 4),
                   **{k: round(v, 4) for k, v in task.evaluate(learner.average, judged).items()}}
            if not all(isfinite(row[name]) for name in ("training_loss", "loss")):
                raise SettingsError(f"between steps {learner.step - len(losses)} and {learner.step} the loss became "
                                    f"{mean_loss}; {args.out} keeps what was before. A lower --peak-rate than "
                                    f"{args.peak_rate:g} helps where the rate was to blame")
            if is_first:
                print(row, flush=True)
                run.leave(row, learner.average, {**learner.state(), "settings": settings})
            losses, watch, since = [], Stopwatch(device), time.monotonic()


class Learner:
    """A network, the average of its weights, what changes them, and how far that is.

    Args:
        network: on its device.
        optimizer: "muon" or "adamw".
    """

    def __init__(self, network: torch.nn.Module, optimizer: str, peak_rate: float) -> None:
        self._network = network
        self._average = torch.optim.swa_utils.AveragedModel(network, avg_fn=_averaged)
        self._optimizers: tuple[torch.optim.Optimizer, ...] = (
            optimizers(network, peak_rate, MUON_DECAY) if optimizer == "muon" else
            (torch.optim.AdamW(network.parameters(), lr=peak_rate, weight_decay=ADAMW_DECAY),))
        self.step, self.seconds = 0, 0.0

    @property
    def average(self) -> torch.nn.Module:
        """The network with averaged weights, which ship."""
        return self._average.module

    def take_step(self, rate: float) -> None:
        """Along the gradients that the network's parameters hold."""
        torch.nn.utils.clip_grad_norm_(self._network.parameters(), 1.0)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        self._average.update_parameters(self._network)
        self.step += 1

    def state(self) -> dict[str, Any]:
        return {"network": self._network.state_dict(), "average": self._average.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self._optimizers], "step": self.step,
                "seconds": self.seconds}

    def go_on_from(self, state: dict[str, Any]) -> None:
        self._network.load_state_dict(state["network"])
        self._average.load_state_dict(state["average"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]


def learning_rate(step: int, n_steps: int, peak: float) -> float:
    """Warm-up over 500 steps, constant, and over the last 30 % linearly down to 1 %."""
    warm_up = min(1.0, (step + 1) / 500)
    remaining = (n_steps - step) / (0.3 * n_steps)
    return peak * warm_up * min(1.0, max(0.01, remaining))


def _averaged(average: Tensor, value: Tensor, n_averaged: Tensor | int) -> Tensor:
    """Exponential average whose memory grows to its full length, so that random first weights are soon forgotten."""
    n = float(n_averaged)
    return average.lerp(value, 1 - min(AVERAGE_DECAY, (n + 1) / (n + 10)))


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


def _task(args: argparse.Namespace) -> Task:
    """
    Raises:
        SettingsError: options that contradict each other, or a teacher that cannot be had.
    """
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
    if task.loss is denoising_loss:
        return replace(task, loss=partial(denoising_loss, disturbance_weight=args.disturbance_weight,
                                          teachers=Teachers(args.teacher) if args.teacher else None,
                                          teacher_share=_teacher_share(args)))
    if args.teacher or args.disturbance_weight != DISTURBANCE_WEIGHT:
        raise SettingsError(f"{'--teacher' if args.teacher else '--disturbance-weight'}: it is of the denoisers' loss, "
                            f"and {args.what} has another")
    return task


def _teacher_share(args: argparse.Namespace) -> float:
    return TEACHER_SHARE if args.teacher_share is None else float(args.teacher_share)


def _seconds_each(task: Task) -> float:
    return task.mixing.length / STFT.sample_rate


def _rows_of_this_process(batch: int) -> slice:
    """Which mixtures of a batch.

    Raises:
        SettingsError: it cannot be shared out.
    """
    share, rest = divmod(batch, GROUP * processes.n_processes())
    if rest or not share:
        raise SettingsError(f"--batch {batch} cannot be shared by {processes.n_processes()} process(es); "
                            f"expected a multiple of {GROUP * processes.n_processes()}")
    return slice(processes.rank() * share * GROUP, (processes.rank() + 1) * share * GROUP)


def _settings(args: argparse.Namespace, task: Task) -> dict[str, Any]:
    """What a run cannot change when it goes on, but for the sounds."""
    return {"what": args.what, "seed": args.seed, "batch": args.batch, "seconds": _seconds_each(task),
            "snrs": list(task.mixing.snr_db), "optimizer": args.optimizer,
            "speech-share": args.speech_share, "generated-noise": args.generated_noise,
            "disturbance-weight": args.disturbance_weight, "teacher": sorted(map(label, args.teacher)),
            "teacher-share": _teacher_share(args) if args.teacher else None}


def _corpora(args: argparse.Namespace, device: torch.device) -> tuple[Corpus, Corpus]:
    """To train with and to validate on. The first process of a machine decodes, the others find the cache."""
    if processes.local_rank() > 0:
        processes.wait_for_all()
    training, validation = load_corpus(args.data, args.cache, device, _say)
    speech = training.speech.with_share(*args.speech_share) if args.speech_share else training.speech
    if args.generated_noise:
        training = replace(training, generated=generated_noise(training, args.generated_noise, args.cache, say=_say))
    if processes.local_rank() == 0:
        processes.wait_for_all()
    return replace(training, speech=speech), validation


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
        raise SettingsError(f"--start-weights {weights} cannot be read as safetensors: {in_a_line(error)}") from error
    except ValueError as error:
        raise SettingsError(f"--start-weights {weights} are of another network: {error}; give those of the same --what"
                            ) from error


def main() -> None:
    try:
        train(parse())
    except PseError as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
