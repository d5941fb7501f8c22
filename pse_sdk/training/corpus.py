"""Audio to learn from, as one long array of samples per kind, so that a batch is one gather.

Files of any layout that `layouts.py` knows are decoded once, to mono at the model's rate, into a cache of 16-bit
samples that several runs map: what is not drawn stays on the disk, so a corpus may be larger than the memory.
"""

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr
import torch
from torch import Tensor

from ..config import STFT
from ..errors import AudioError
from .layouts import KINDS, Clip, find_clips

HELD_OUT_SHARE = 0.06   # of the speakers, noise files and rooms: for validation, never trained on
N_AT_ONCE = 64          # files decoded at once

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bank:
    """Many clips in one array; `weights` say how often each is drawn.

    Shape: `samples` [T] int16 or float32; `starts`, `lengths`, `weights` [n_clips]. What is drawn lies on the device of
    `starts`.
    """

    samples: Tensor
    starts: Tensor
    lengths: Tensor
    weights: Tensor
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, clips: list[np.ndarray], weights: list[float], names: tuple[str, ...] = ()) -> "Bank":
        """A bank of float clips [T] in [-1, 1]; empty ones are left out."""
        kept = [i for i, clip in enumerate(clips) if len(clip)]
        lengths = torch.tensor([len(clips[i]) for i in kept], dtype=torch.long)
        samples = np.concatenate([clips[i] for i in kept]) if kept else np.zeros(0, np.float32)
        return cls(torch.from_numpy(samples.astype(np.float32)), lengths.cumsum(0) - lengths, lengths,
                   torch.tensor([weights[i] for i in kept], dtype=torch.float64),
                   tuple(names[i] for i in kept) if names else ())

    @property
    def n_clips(self) -> int:
        return len(self.lengths)

    def only(self, keep: Tensor) -> "Bank":
        """The clips whose entry in `keep` [n_clips] is true; the samples stay shared."""
        index = keep.nonzero().squeeze(1)
        return Bank(self.samples, self.starts[index], self.lengths[index], self.weights[index],
                    tuple(self.names[i] for i in index.tolist()) if self.names else ())

    def to(self, device: torch.device) -> "Bank":
        """The same bank on a device. Samples that would take more than half of a GPU's free memory stay where they are,
        and what is drawn travels."""
        size = self.samples.numel() * self.samples.element_size()
        fits = device.type != "cuda" or size < torch.cuda.mem_get_info(device)[0] / 2
        return replace(self, samples=self.samples.to(device) if fits else self.samples,
                       starts=self.starts.to(device), lengths=self.lengths.to(device))

    def draw(self, n: int, length: int, generator: torch.Generator, *, max_speed_change: float = 0.0,
             rows: slice = slice(None)) -> Tensor:
        """`n` stretches [n, length] float32 from random clips and places; short clips start over.

        Args:
            max_speed_change: half the draws are played faster or slower by up to this share, linearly interpolated.
            rows: which of the `n` are wanted. The others are not read, and change nothing.
        """
        device = self.starts.device
        clip = torch.multinomial(self.weights, n, replacement=True, generator=generator)[rows].to(device)
        starts, lengths = self.starts[clip, None], self.lengths[clip, None]
        place = torch.rand(n, 1, generator=generator, dtype=torch.float64)[rows].to(device)
        room = (lengths - int(length * (1 + max_speed_change)) - 1).clamp_min(0)
        offset = torch.where(room > 0, place * room, place * lengths)
        if not max_speed_change:
            index = (offset.long() + torch.arange(length, device=device)) % lengths
            return self._at(starts + index)
        speed = 1.0 + max_speed_change * (2 * torch.rand(n, 1, generator=generator, dtype=torch.float64) - 1)
        speed = torch.where(torch.rand(n, 1, generator=generator) < 0.5, speed, 1.0)[rows].to(device)
        position = offset.floor() + speed * torch.arange(length, dtype=torch.float64, device=device)
        index = position.long()
        share = (position - index).float()
        return torch.lerp(self._at(starts + index % lengths), self._at(starts + (index + 1) % lengths), share)

    def beginnings(self, clips: Tensor, length: int) -> Tensor:
        """The first samples [n, length] float32 of the clips [n] of these numbers, then zeros."""
        place = torch.arange(length, device=self.starts.device)
        inside = place < self.lengths[clips, None]
        return torch.where(inside, self._at(self.starts[clips, None] + place * inside), 0.0)

    def _at(self, index: Tensor) -> Tensor:
        samples = self.samples[index.to(self.samples.device)].to(index.device)
        return samples.float() / 32768 if samples.dtype == torch.int16 else samples


@dataclass(frozen=True)
class Corpus:
    """Speech, noise and room impulse responses of one split."""

    speech: Bank
    noise: Bank
    rooms: Bank


def load_corpus(folders: Sequence[Path], cache: Path, device: torch.device | str = "cpu") -> tuple[Corpus, Corpus]:
    """The training and the validation part of the corpora in `folders`.

    A speaker, a noise file and a room belong to validation if the hash of their name says so, so that the parts stay
    the same when audio is added. Where there are several corpora, each is drawn as often as the square root of its
    hours says: the small ones are heard too.

    Raises:
        AudioError: a layout that is not known, a file that cannot be read or has a lower rate than the model, or a part
            without speech, noise or rooms.
    """
    found = [(f"{folder}: {name}", clip) for folder in folders for name, clips in find_clips(folder).items()
             for clip in clips]
    where = ", ".join(map(str, folders))
    parts: tuple[list[Bank], list[Bank]] = ([], [])
    for kind in KINDS:
        of_kind = [(source, clip) for source, clip in found if clip.kind == kind]
        if not of_kind:
            raise AudioError(f"{where}: no files of kind {kind!r} to train on; add a corpus that has some")
        sources, clips = zip(*of_kind, strict=True)
        samples, lengths = _cached_samples(clips, cache, kind)
        weights = _weights(sources, clips, lengths.double() / STFT.sample_rate)
        bank = Bank(samples, lengths.cumsum(0) - lengths, lengths, weights,
                    tuple(clip.held_out_by for clip in clips)).to(torch.device(device))
        held_out = torch.tensor([_held_out(name) for name in bank.names])
        for part, keep in zip(parts, (~held_out, held_out), strict=True):
            part.append(bank.only(keep & (lengths > 0)))
            if not part[-1].n_clips:
                things = {"speech": "speakers", "noise": "files", "rir": "rooms"}[kind]
                raise AudioError(f"{where}: {HELD_OUT_SHARE:.0%} of the {things} are held out for validation, which "
                                 f"leaves one part without {kind}; add more {things}")
    return Corpus(*parts[0]), Corpus(*parts[1])


def _held_out(name: str) -> bool:
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 0x1_0000_0000 < HELD_OUT_SHARE


def _weights(sources: Sequence[str], clips: Sequence[Clip], seconds: Tensor) -> Tensor:
    """How often each clip is drawn [n_clips]."""
    _, name = np.unique([f"{source}/{clip.corpus}/{clip.name}" for source, clip in zip(sources, clips, strict=True)],
                        return_inverse=True)
    if clips[0].kind == "speech":       # long speakers more often, but not in proportion: variety counts
        of_name = _sums(seconds, name)
        weights = seconds * (of_name.clamp_max(120) ** 0.5 / of_name.clamp_min(1e-9))
    else:                               # every class alike, nearly, whatever the number of its files
        weights = _sums((seconds > 0).double(), name).clamp_min(1) ** -0.5
    _, source_of = np.unique(sources, return_inverse=True)
    audible = weights * (seconds > 0)
    return audible * _sums(seconds, source_of) ** 0.5 / _sums(audible, source_of).clamp_min(1e-9)


def _sums(values: Tensor, groups: np.ndarray) -> Tensor:
    """For each item the sum of `values` over its group."""
    index = torch.from_numpy(groups)
    return torch.zeros(int(index.max()) + 1, dtype=values.dtype).index_add(0, index, values)[index]


def _cached_samples(clips: Sequence[Clip], cache: Path, kind: str) -> tuple[Tensor, Tensor]:
    """All samples [T] int16, mapped, and how many are each clip's [n_clips]: none where it is silent."""
    paths = [clip.folder.resolve() / clip.path for clip in clips]
    files = [(str(path), *_size_and_time(path)) for path in paths]
    key = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:12]
    samples_path, index_path = cache / f"{kind}-{key}.int16", cache / f"{kind}-{key}.json"
    if not index_path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        lengths = []
        # another run may be doing the same
        partial = cache / f"{kind}-{key}.{os.getpid()}.partial"
        with partial.open("wb") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(paths), N_AT_ONCE):
                for samples in pool.map(_read, paths[start:start + N_AT_ONCE]):
                    samples.tofile(file)
                    lengths.append(len(samples))
        partial.replace(samples_path)
        partial.write_text(json.dumps(lengths))
        partial.replace(index_path)
    lengths = json.loads(index_path.read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)        # that nobody may write to them is the point
        mapped = np.memmap(samples_path, np.int16, mode="r") if sum(lengths) else np.zeros(0, np.int16)
        return torch.from_numpy(mapped), torch.tensor(lengths, dtype=torch.long)


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise AudioError(f"{path}: this file is named but cannot be read: {error.strerror}") from error
    return status.st_size, status.st_mtime_ns


def _read(path: Path) -> np.ndarray:
    """The first channel at the model's rate [T] int16; nothing of a silent file."""
    try:
        samples, sample_rate = sf.read(path, dtype="float32", always_2d=True)
    except sf.LibsndfileError as error:
        raise AudioError(f"{path} cannot be decoded: {error.error_string}; repair or remove it") from error
    if sample_rate < STFT.sample_rate:
        raise AudioError(f"{path}: expected at least {STFT.sample_rate} Hz, got {sample_rate} Hz; remove it")
    mono = soxr.resample(samples[:, 0], sample_rate, STFT.sample_rate)
    if not np.any(mono):
        _log.warning("%s is silent and left out", path)
        return np.zeros(0, np.int16)
    return np.round(mono.clip(-1, 1) * 32767).astype(np.int16)
