"""Noise that no file of a corpus holds: crowds of its speakers, and machines, rain and traffic out of nothing.

Half of what is made here are crowds, the other half `noise.foreign_noise`.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import STFT
from ..errors import SettingsError
from ..noise import foreign_noise
from .corpus import Bank, Corpus, mapped_samples

CLIP_SAMPLES = 10 * STFT.sample_rate
CROWD_SHARE = 0.5
N_VOICES = 4, 24            # in a crowd; fewer would be people to listen to
VOICE_SPREAD_DB = 10.0      # between the nearest and the farthest
FLOOR_DB = 3.0, 25.0        # by which the place itself is below its crowd
ECHO_SAMPLES = STFT.sample_rate
VERSION = 1                 # of what is made from the same seeds


def generated_noise(corpus: Corpus, hours: float, cache: Path, seed: int = 0,
                    say: Callable[[str], None] = lambda line: None) -> Bank:
    """So many hours of noise in clips of ten seconds, made once for a corpus and kept beside it.

    Raises:
        SettingsError: the cache cannot be written.
    """
    n_clips = max(1, round(hours * 3600 * STFT.sample_rate / CLIP_SAMPLES))
    key = hashlib.sha256(json.dumps([VERSION, corpus.digest, n_clips, seed]).encode()).hexdigest()[:12]
    path = cache / f"generated-{key}.int16"
    try:
        if not path.exists() or path.stat().st_size != 2 * n_clips * CLIP_SAMPLES:
            cache.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{uuid.uuid4().hex}.partial")      # another run may be doing the same
            try:
                with partial.open("wb") as file:
                    for i in range(n_clips):
                        clip = _clip(corpus, seed, i)
                        file.write(np.round(clip * (0.9 * 32767 / np.abs(clip).max())).astype(np.int16).tobytes())
                        if i % 360 == 359:
                            say(f"made {(i + 1) * CLIP_SAMPLES / STFT.sample_rate / 3600:.1f} of {hours:g} h of noise")
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
        samples = mapped_samples(path)
    except OSError as error:
        raise SettingsError(f"the cache {cache} cannot be used: {error.strerror or error}; name another one with "
                            "--cache") from error
    lengths = torch.full((n_clips,), CLIP_SAMPLES)
    return Bank(samples, lengths.cumsum(0) - lengths, lengths,
                torch.ones(n_clips, dtype=torch.float64)).to(corpus.noise.starts.device)


def _clip(corpus: Corpus, seed: int, number: int) -> np.ndarray:
    """[T] float32, never silent."""
    rng = np.random.default_rng((seed, number))
    if rng.random() < CROWD_SHARE:
        return crowd(corpus, CLIP_SAMPLES, rng)
    return foreign_noise(CLIP_SAMPLES / STFT.sample_rate, rng)


def crowd(corpus: Corpus, n_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Many of the corpus' speakers at once, near and far, in one of its rooms, over the hiss of the place.

    Shape: the result is [T], float32.
    """
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    n_voices = round(float(np.exp(rng.uniform(*np.log(N_VOICES)))))
    voices = corpus.speech.draw(n_voices, n_samples, generator, max_speed_change=0.15).cpu().numpy()
    rms = np.sqrt(np.square(voices).mean(1, keepdims=True)) + 1e-6
    voices *= 10 ** (rng.uniform(-VOICE_SPREAD_DB, 0, (n_voices, 1)) / 20) / rms
    room = corpus.rooms.beginnings(_room(corpus, rng), ECHO_SAMPLES)[0].cpu().numpy()
    n_fft = n_samples + ECHO_SAMPLES
    echoing = np.fft.irfft(np.fft.rfft(voices.sum(0), n_fft) * np.fft.rfft(room, n_fft), n_fft)[:n_samples]
    floor = foreign_noise(n_samples / STFT.sample_rate, rng, str(rng.choice(["coloured", "modulated", "impulsive"])))
    level = np.sqrt(np.square(echoing).mean()) + 1e-9
    floor *= level * 10 ** (-rng.uniform(*FLOOR_DB) / 20) / (np.sqrt(np.square(floor).mean()) + 1e-9)
    return (echoing + floor).astype(np.float32)


def _room(corpus: Corpus, rng: np.random.Generator) -> Tensor:
    return torch.tensor([int(rng.integers(corpus.rooms.n_clips))], device=corpus.rooms.starts.device)
