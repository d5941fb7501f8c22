"""Audio to learn from, as one long array of samples per kind, so that a batch is one gather.

A corpus folder holds a `manifest.csv` with a row a file (path, kind, split, corpus, name, seconds, licence) and the
files it lists, at the model's rate, mono. Decoded samples are cached as 16-bit arrays that several runs can map.
"""

import csv
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
from torch import Tensor

from ..config import STFT
from ..errors import AudioError

HELD_OUT_SHARE = 0.06   # of the speakers and of the noise files: for validation, never trained on


@dataclass(frozen=True)
class Bank:
    """Many clips in one array; `weights` say how often each is drawn.

    Shape: `samples` [T] int16 or float32; `starts`, `lengths`, `weights` [n_clips].
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

    def draw(self, n: int, length: int, generator: torch.Generator, *, max_speed_change: float = 0.0) -> Tensor:
        """`n` stretches [n, length] float32 from random clips and places; short clips start over.

        Args:
            max_speed_change: half the draws are played faster or slower by up to this share, linearly interpolated.
        """
        clip = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        starts, lengths = self.starts[clip, None], self.lengths[clip, None]
        place = torch.rand(n, 1, generator=generator, dtype=torch.float64)
        room = (lengths - int(length * (1 + max_speed_change)) - 1).clamp_min(0)
        offset = torch.where(room > 0, place * room, place * lengths)
        if not max_speed_change:
            index = (offset.long() + torch.arange(length)) % lengths
            return self._at(starts + index)
        speed = 1.0 + max_speed_change * (2 * torch.rand(n, 1, generator=generator, dtype=torch.float64) - 1)
        speed = torch.where(torch.rand(n, 1, generator=generator) < 0.5, speed, 1.0)
        position = offset.floor() + speed * torch.arange(length, dtype=torch.float64)
        index = position.long()
        share = (position - index).float()
        return torch.lerp(self._at(starts + index % lengths), self._at(starts + (index + 1) % lengths), share)

    def _at(self, index: Tensor) -> Tensor:
        samples = self.samples[index]
        return samples.float() / 32768 if samples.dtype == torch.int16 else samples


@dataclass(frozen=True)
class Corpus:
    """Speech, noise and room impulse responses of one split."""

    speech: Bank
    noise: Bank
    rooms: Bank


def load_corpus(folder: Path, cache: Path) -> tuple[Corpus, Corpus]:
    """The training and the validation part of the corpus in `folder`.

    A speaker (by name) and a noise file belong to validation if the hash of their name says so, so that the parts stay
    the same when audio is added. Only rows whose split is `train` are read.

    Raises:
        AudioError: no manifest, a file that is not mono at the model's rate, or a part without speech, noise or rooms.
    """
    manifest = folder / "manifest.csv"
    if not manifest.exists():
        raise AudioError(f"{folder} has no manifest.csv; expected columns path, kind, split, corpus, name, seconds")
    with manifest.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    parts: tuple[dict[str, Bank], dict[str, Bank]] = ({}, {})
    for kind in ("speech", "noise", "rir"):
        of_kind = [row for row in rows if row["kind"] == kind]
        if not of_kind:
            raise AudioError(f"{manifest} lists no files of kind {kind!r} in the split 'train'; add some")
        bank = _cached_bank(folder, cache, kind, of_kind)
        held_out = torch.tensor([_held_out(name) for name in bank.names])
        if kind == "rir":
            held_out = torch.zeros_like(held_out)
        parts[0][kind] = bank.only(~held_out)
        parts[1][kind] = bank.only(held_out) if kind != "rir" else bank
        if not all(part[kind].n_clips for part in parts):
            raise AudioError(f"{manifest}: {HELD_OUT_SHARE:.0%} of the names are held out for validation, which leaves "
                             f"one part without {kind}; add more {'speakers' if kind == 'speech' else 'files'}")
    return tuple(Corpus(part["speech"], part["noise"], part["rir"]) for part in parts)  # type: ignore[return-value]


def _held_out(name: str) -> bool:
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 0x1_0000_0000 < HELD_OUT_SHARE


def _cached_bank(folder: Path, cache: Path, kind: str, rows: list[dict[str, str]]) -> Bank:
    paths = [folder.resolve() / row["path"] for row in rows]
    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    key = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:12]
    samples_path, index_path = cache / f"{kind}-{key}.npy", cache / f"{kind}-{key}.json"
    if not index_path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        clips = [_read(path) for path in paths]
        # another run may be doing the same
        partial = cache / f"{kind}-{key}.{os.getpid()}.partial"
        with partial.open("wb") as file:
            np.save(file, np.concatenate(clips))
        partial.replace(samples_path)
        partial.write_text(json.dumps([len(clip) for clip in clips]))
        partial.replace(index_path)
    lengths = torch.tensor(json.loads(index_path.read_text()), dtype=torch.long)
    samples = torch.from_numpy(np.load(samples_path, mmap_mode="c"))      # "c": torch wants to be allowed to write
    per_name: dict[tuple[str, str], int] = {}
    for row in rows:
        per_name[row["corpus"], row["name"]] = per_name.get((row["corpus"], row["name"]), 0) + 1
    seconds = lengths.double() / STFT.sample_rate
    if kind == "speech":        # long speakers more often, but not in proportion: variety counts
        weights = seconds.clamp_max(120) ** 0.5
        names = tuple(f"{row['corpus']}/{row['name']}" for row in rows)
    else:                       # every class alike, whatever the number of its files
        weights = torch.tensor([1.0 / per_name[row["corpus"], row["name"]] ** 0.5 for row in rows], dtype=torch.float64)
        names = tuple(row["path"] for row in rows)
    return Bank(samples, lengths.cumsum(0) - lengths, lengths, weights, names)


def _read(path: Path) -> np.ndarray:
    samples, sample_rate = sf.read(path, dtype="float32")
    if sample_rate != STFT.sample_rate or samples.ndim != 1:
        raise AudioError(f"{path}: expected {STFT.sample_rate} Hz mono, got {sample_rate} Hz, shape {samples.shape}")
    if not np.any(samples):
        raise AudioError(f"{path} holds only silence; take it out of the manifest")
    return np.round(samples.clip(-1, 1) * 32767).astype(np.int16)
