"""What a system makes of a user's test clips, and what stays in the work folder of a run that may be killed.

A user is a folder, whatever made it; all audio is 16 kHz mono:

    <user>/recordings/*.wav             what `Enhancer.personalize` gets, and nothing else
    <user>/tests/<set>/NN.noisy.wav     what is enhanced, and in NN.clean.wav what it should become
    <user>/tests/<set>/tests.json       [{"test": "NN", "snr_db": -5}, ...], if there is one

In the set `clean` nothing was mixed in, so nothing should change.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from score_tables import CLEAN_SET

from pse_sdk import Enhancer, __version__
from pse_sdk.config import MODELS
from pse_sdk.errors import PseError
from pse_sdk.metrics import score, si_sdr
from pse_sdk.peers import make_peer

RATE = 16_000
NOISY, TEACHER = "noisy input", "teacher (looks ahead)"
SHORTEST_PIECE = RATE // 2      # samples of clean speech that are worth a recording of their own
SETS = ("noise", "elsewhere", "talker", CLEAN_SET)


def users_in(folder: Path, only: Sequence[str] | None) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if (path / "tests").is_dir() and (not only or path.name in only))


@dataclass(frozen=True)
class System:
    """Anything that enhances [T] at 16 kHz, and what tells its scores from others'."""

    digest: str
    enhance: Callable[[np.ndarray], np.ndarray]


def our_system(enhancer: Enhancer) -> System:
    return System(enhancer.digest, lambda noisy: enhancer.enhance(noisy, RATE))


def method_arguments(words: str) -> dict[str, str]:
    """What `Enhancer.personalize` is given for METHOD, or METHOD:remove."""
    method, _, others = words.partition(":")
    return {"method": method, "others": others or "keep"}


def other_system(name: str, peers: Path | None) -> System:
    """What is no model of ours that runs live: the noisy input (no name), the teacher, or a peer of that file."""
    if not name:
        return System(NOISY, lambda noisy: noisy)
    if name == TEACHER:
        from pse_sdk.training.teacher import BEST_GENERALIST, Teacher
        asked = digest(*(digest_of_files(MODELS, f"{which}.safetensors") for which in ("teacher", BEST_GENERALIST)))
        return System(f"{TEACHER} {asked}", Teacher().estimate)
    assert peers is not None
    peer = make_peer(peers, name)
    return System(f"{name} {digest(peers.read_bytes())}", lambda noisy: np.asarray(peer.enhance(noisy), np.float32))


def evaluate(user: Path, system: System, sets: Sequence[str], work: Path) -> dict[str, list[dict[str, Any]]]:
    """The scores of every clip of every set."""
    return {name: evaluate_set(user / "tests" / name, system, work)
            for name in sets if (user / "tests" / name).is_dir()}


def evaluate_set(folder: Path, system: System, work: Path) -> list[dict[str, Any]]:
    """From the work folder if this model was scored on these files before: PESQ and ESTOI take their time."""
    key = digest(system.digest, digest_of_files(folder))
    cache = work / "scores" / f"{folder.parent.parent.name}-{folder.name}-{key}.json"
    if not cache.exists():
        write_json(cache, [score_clip(path, system) for path in sorted(folder.glob("*.noisy.wav"))])
    tests = folder / "tests.json"
    rows = unplain(json.loads(tests.read_text("utf-8"))) if tests.exists() else []
    snrs_db = {row["test"]: row["snr_db"] for row in rows}
    clips: list[dict[str, Any]] = unplain(json.loads(cache.read_text("utf-8")))
    return [{**clip, "snr_db": snrs_db.get(clip["test"], nan)} for clip in clips]


def score_clip(path: Path, system: System) -> dict[str, Any]:
    name = path.name.removesuffix(".noisy.wav")
    noisy, clean = read(path), read(path.with_name(f"{name}.clean.wav"))
    enhanced = system.enhance(noisy)
    return {"test": name, "si_sdr": si_sdr(enhanced, clean), **asdict(score(enhanced, noisy, clean))}


def read(path: Path) -> np.ndarray:
    samples, rate = soundfile.read(path, dtype="float32")
    if rate != RATE or samples.ndim != 1:
        raise PseError(f"{path}: expected {RATE} Hz mono, got {rate} Hz with shape {samples.shape}; convert it first")
    return np.asarray(samples)


def first_seconds(folder: Path, seconds: float) -> list[tuple[np.ndarray, int]]:
    """`seconds` of clean speech: each recording from where it can be heard, until there is enough."""
    taken, left = [], round(seconds * RATE)
    for path in sorted(folder.glob("*.wav")):
        if left < SHORTEST_PIECE:
            break
        samples = read(path)
        audible = int(np.argmax(np.abs(samples) > 0.01 * np.abs(samples).max()))
        taken.append((samples[audible:audible + left], RATE))
        left -= len(taken[-1][0])
    return taken


# Files of a work folder.


def digest(*values: object) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:12]


def digest_of_files(folder: Path, pattern: str = "*.wav") -> str:
    whole = hashlib.sha256()
    for path in sorted(folder.glob(pattern)):
        whole.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def digest_of_package(size: str) -> str:
    """Of what a specialist of this size starts from and is taught by."""
    from pse_sdk.training.teacher import BEST_GENERALIST  # costs torch, which not every benchmark needs

    return digest(__version__, *(digest_of_files(MODELS, name) for name in (
        f"{size}.safetensors", f"{size}_user.safetensors", "teacher.safetensors", f"{BEST_GENERALIST}.onnx",
        "snr_predictor.onnx")))


def write_json(path: Path, values: object) -> None:
    """Whole or not at all, so that what a killed run left behind is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(plain(values)), "utf-8")
    partial.replace(path)


def plain(values: Any) -> Any:
    """For JSON, which has neither dataclasses nor NaN."""
    if hasattr(values, "__dataclass_fields__"):
        return plain({name: getattr(values, name) for name in values.__dataclass_fields__})
    if isinstance(values, dict):
        return {key: plain(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [plain(value) for value in values]
    return None if isinstance(values, float) and isnan(values) else values


def unplain(values: Any) -> Any:
    """NaN where `plain` wrote nothing."""
    if isinstance(values, dict):
        return {key: unplain(value) for key, value in values.items()}
    if isinstance(values, list):
        return [unplain(value) for value in values]
    return nan if values is None else values
