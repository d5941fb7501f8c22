"""Train a generalist, the teacher or the SNR predictor from speech and noise. Can be killed and started again.

    python -m pse_sdk.training.pretrain --data FOLDER --what tiny --steps 40000 --out build/tiny

leaves in --out: `checkpoint.pt` (to go on from), `weights.safetensors` (the averaged weights, what ships) and
`log.jsonl` (a row every evaluation: step, hours of mixtures, hours of wall clock, loss, validation scores).
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..config import STFT
from .corpus import load_corpus
from .losses import compressed_spectrum_loss, negative_snr_db, spectrogram, waveform
from .mixing import Batch, Mixer, MixingConfig
from .network import NETWORKS, Denoiser, build_network
from .snr_network import SnrPredictor, evaluate_predictor, predictor_loss

AVERAGE_DECAY = 0.999
SNR_WEIGHT = 0.1        # of the negative SNR in dB, beside the compressed spectrum


def learning_rate(step: int, n_steps: int, peak: float) -> float:
    """Warm-up over 500 steps, constant, and over the last 30 % linearly down to 1 %."""
    warm_up = min(1.0, (step + 1) / 500)
    remaining = (n_steps - step) / (0.3 * n_steps)
    return peak * warm_up * min(1.0, max(0.01, remaining))


def denoising_loss(network: Denoiser, batch: Batch) -> Tensor:
    noisy, target = spectrogram(batch.noisy), spectrogram(batch.target)
    estimate, _ = network(noisy, network.initial_state(len(noisy)))
    snr = negative_snr_db(estimate, target)
    return compressed_spectrum_loss(estimate, target) + SNR_WEIGHT * (snr * batch.has_speech).mean()


@torch.no_grad()
def evaluate_denoising(network: Denoiser, batches: list[Batch]) -> dict[str, float]:
    """Loss and mean SNR gain in dB over validation mixtures."""
    losses, gains = [], []
    for batch in batches:
        losses.append(denoising_loss(network, batch).item())
        noisy = spectrogram(batch.noisy)
        estimate = waveform(network(noisy, network.initial_state(len(noisy)))[0])
        target, mixture = waveform(spectrogram(batch.target)), waveform(noisy)
        wanted = batch.has_speech & ((mixture - target).square().sum(1) > 1e-3 * target.square().sum(1))
        gains.append((_si_sdr(estimate, target) - _si_sdr(mixture, target))[wanted])
    return {"loss": sum(losses) / len(losses), "si_sdr_improvement": torch.cat(gains).mean().item()}


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


def _averaged(average: Tensor, value: Tensor, n_averaged: Tensor | int) -> Tensor:
    """Exponential average whose memory grows to its full length, so that random first weights are soon forgotten."""
    n = float(n_averaged)
    return average.lerp(value, 1 - min(AVERAGE_DECAY, (n + 1) / (n + 10)))


def save_weights(network: torch.nn.Module, path: Path) -> None:
    """The parameters as safetensors, written whole or not at all."""
    partial = path.with_suffix(".partial")
    save_file({name: value.detach().contiguous() for name, value in network.state_dict().items()}, partial)
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with a manifest.csv")
    parser.add_argument("--what", choices=[*NETWORKS, "snr_predictor"], required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("build/corpus"), help="where decoded audio is kept")
    parser.add_argument("--batch", type=int, default=32, help="mixtures of 2.56 s a step")
    parser.add_argument("--peak-rate", type=float, default=2e-3)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32",
                        help="of the recurrent layers; bfloat16 is faster where the processor has it (%(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate-every", type=int, default=1000)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)
    args.out.mkdir(parents=True, exist_ok=True)
    training, validation = load_corpus(args.data, args.cache)
    task = DENOISING if args.what in NETWORKS else SNR_PREDICTION
    mixer = Mixer(training, task.mixing, args.seed)
    judge = Mixer(validation, replace(task.mixing, max_speed_change=0.0), seed=10_007)
    judged = [judge.batch(i, 32) for i in range(4)]

    network = task.build(args.what)
    average = torch.optim.swa_utils.AveragedModel(network, avg_fn=_averaged)
    network.precision = getattr(torch, args.precision)
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.peak_rate, weight_decay=0.01)
    step, seconds = 0, 0.0
    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(saved["network"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        step, seconds = saved["step"], saved["seconds"]
    n_parameters = sum(p.numel() for p in network.parameters())
    print(f"{args.what}: {n_parameters} parameters, from step {step} to {args.steps}", flush=True)

    started, running = time.monotonic() - seconds, []
    while step < args.steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.peak_rate)
        loss = task.loss(network, mixer.batch(step, args.batch))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(network)
        running.append(loss.item())
        step += 1
        if step % args.evaluate_every == 0 or step == args.steps:
            seconds = time.monotonic() - started
            row = {"step": step, "hours": round(step * args.batch * task.mixing.length / STFT.sample_rate / 3600, 2),
                   "wall_hours": round(seconds / 3600, 3), "training_loss": round(sum(running) / len(running), 4),
                   **{k: round(v, 4) for k, v in task.evaluate(average.module, judged).items()}}
            running = []
            with (args.out / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            print(row, flush=True)
            partial = checkpoint.with_suffix(".partial")
            torch.save({"network": network.state_dict(), "average": average.state_dict(),
                        "optimizer": optimizer.state_dict(), "step": step, "seconds": seconds}, partial)
            partial.replace(checkpoint)
            save_weights(average.module, args.out / "weights.safetensors")


if __name__ == "__main__":
    main()
