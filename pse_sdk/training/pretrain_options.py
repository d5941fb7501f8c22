"""What the program `pretrain` can be told."""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from ..config import SIZES, STFT
from .distillation import PACKAGE, WEIGHTS
from .mixing import MixingConfig
from .network import NETWORKS
from .perception import DISTURBANCE_WEIGHT
from .user_network import USER

USER_SIZES = [size + USER for size in SIZES]
MIN_FRAMES, MAX_FRAMES = 40, 4000   # of a mixture
TEACHER_SHARE = 0.5


def parse_options(arguments: list[str] | None, description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
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
