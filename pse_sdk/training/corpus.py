"""Audio to learn from, as one long array of samples per kind, so that a batch is one gather.

Files of any layout that `layouts.py` knows are decoded once, to mono at the model's rate, into a cache of 16-bit
samples that several runs map: what is not drawn stays on the disk, so a corpus may be larger than the memory.
"""

import hashlib
import json
import logging
import os
import time
import uuid
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile as sf
import soxr
import torch
from torch import Tensor

from ..config import STFT
from ..errors import AudioError, SettingsError
from .layouts import KINDS, Clip, find_clips

DRAWN_AT_ONCE = 8       # stretches at another speed, whose places take memory
HELD_OUT_SHARE = 0.06   # of the speakers, noise files and rooms: for validation, never trained on
N_AT_ONCE = 64          # files decoded at once
MOST_BAD_SHARE = 0.05   # of the files of a kind may be bad: they are left out
SECONDS_TO_SAY = 10.0   # between two lines on how far decoding is
ABANDONED_SECONDS = 3600.0      # since a half-made cache was last written

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
        """A bank of clips [T], floats in [-1, 1] or all of them int16; empty ones are left out."""
        kept = [i for i, clip in enumerate(clips) if len(clip)]
        lengths = torch.tensor([len(clips[i]) for i in kept], dtype=torch.long)
        samples = np.concatenate([clips[i] for i in kept]) if kept else np.zeros(0, np.float32)
        if samples.dtype != np.int16:
            samples = samples.astype(np.float32, copy=False)
        return cls(torch.from_numpy(samples), lengths.cumsum(0) - lengths, lengths,
                   torch.tensor([weights[i] for i in kept], dtype=torch.float64),
                   tuple(names[i] for i in kept) if names else ())

    @property
    def n_clips(self) -> int:
        return len(self.lengths)

    @cached_property
    def _shortest(self) -> int:
        return int(self.lengths.min())

    def only(self, keep: Tensor) -> "Bank":
        """The clips whose entry in `keep` [n_clips] is true; the samples stay shared."""
        index = keep.nonzero().squeeze(1)
        return Bank(self.samples, self.starts[index], self.lengths[index], self.weights[index],
                    tuple(self.names[i] for i in index.tolist()) if self.names else ())

    def with_share(self, corpus: str, share: float) -> "Bank":
        """The same clips, of which those of one corpus (named before the slash) make so much of what is drawn.

        Raises:
            SettingsError: all clips are of this corpus, or none.
        """
        named = torch.tensor([name.split("/")[0] == corpus for name in self.names])
        if not self.names or named.all() or not named.any():
            others = ", ".join(sorted({name.split("/")[0] for name in self.names}))
            raise SettingsError(f"no share can be given to {corpus!r}: expected one of several corpora, got {others}")
        wanted = torch.where(named, share / self.weights[named].sum(), (1 - share) / self.weights[~named].sum())
        return replace(self, weights=self.weights * wanted)

    def to(self, device: torch.device) -> "Bank":
        """The same bank on a device. Samples that would take more than half of a GPU's free memory stay where they are,
        and what is drawn travels."""
        size = self.samples.numel() * self.samples.element_size()
        fits = device.type != "cuda" or size < torch.cuda.mem_get_info(device)[0] / 2
        return replace(self, samples=self.samples.to(device) if fits else self.samples,
                       starts=self.starts.to(device), lengths=self.lengths.to(device))

    def draw(self, n: int, length: int, generator: torch.Generator, *, max_speed_change: float = 0.0,
             rows: slice = slice(None), takes: int = 1) -> Tensor:
        """`n` stretches [n, length] float32 from random clips and places; short clips start over.

        Args:
            max_speed_change: half the draws are played faster or slower by up to this share, linearly interpolated.
            rows: which of the `n` are wanted. The others are not read, and change nothing.
            takes: so many neighbours come from one clip, and no others from it if there are clips enough.
        """
        device = self.starts.device
        n_clips = n // takes
        clip = torch.multinomial(self.weights, n_clips, replacement=takes == 1 or n_clips > self.n_clips,
                                 generator=generator).repeat_interleave(takes)[rows].to(device)
        starts, lengths = self.starts[clip, None], self.lengths[clip, None]
        place = torch.rand(n, 1, generator=generator, dtype=torch.float64)[rows].to(device)
        room = (lengths - int(length * (1 + max_speed_change)) - 1).clamp_min(0)
        offset = torch.where(room > 0, place * room, place * lengths)
        wraps = self._shortest <= int(length * (1 + max_speed_change)) + 1
        if wraps:
            drawn = self._at(starts + (offset.long() + torch.arange(length, device=device)) % lengths)
        else:
            first = (starts + offset.long()).squeeze(1).to(self.samples.device)
            drawn = self._float(self.samples.unfold(0, length, 1)[first])
        if max_speed_change:
            speed = 1.0 + max_speed_change * (2 * torch.rand(n_clips, 1, generator=generator, dtype=torch.float64) - 1)
            speed = speed.repeat_interleave(takes, 0)[rows].to(device)
            chosen = (torch.rand(n_clips, 1, generator=generator) < 0.5).repeat_interleave(takes, 0)[rows]
            changed = chosen.squeeze(1).nonzero().squeeze(1).to(device)
            place = torch.arange(length, dtype=torch.float64, device=device)
            for some in changed.split(DRAWN_AT_ONCE):
                position = offset[some].floor() + speed[some] * place
                index = position.long()
                now, then = (index % lengths[some], (index + 1) % lengths[some]) if wraps else (index, index + 1)
                drawn[some] = torch.lerp(self._at(starts[some] + now), self._at(starts[some] + then),
                                         (position - index).float())
        return drawn

    def beginnings(self, clips: Tensor, length: int) -> Tensor:
        """The first samples [n, length] float32 of the clips [n] of these numbers, then zeros."""
        place = torch.arange(length, device=self.starts.device)
        inside = place < self.lengths[clips, None]
        return torch.where(inside, self._at(self.starts[clips, None] + place * inside), 0.0)

    def _at(self, index: Tensor) -> Tensor:
        return self._float(self.samples[index.to(self.samples.device)])

    def _float(self, samples: Tensor) -> Tensor:
        samples = samples.to(self.starts.device)
        return samples.float() / 32768 if samples.dtype == torch.int16 else samples


@dataclass(frozen=True)
class Corpus:
    """Speech, noise and room impulse responses of one split, and noise that was made from them."""

    speech: Bank
    noise: Bank
    rooms: Bank
    generated: Bank | None = None

    @property
    def digest(self) -> str:
        """Of which clips there are, wherever they lie."""
        named = [(bank.names, bank.lengths.tolist()) for bank in (self.speech, self.noise, self.rooms)]
        return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]


def load_corpus(folders: Sequence[Path], cache: Path, device: torch.device | str = "cpu",
                say: Callable[[str], None] = lambda line: None) -> tuple[Corpus, Corpus]:
    """The training and the validation part of the corpora in `folders`.

    A speaker, a noise file and a room belong to validation if the hash of their name says so, so that the parts stay
    the same when audio is added. Where there are several corpora, each is drawn as often as the square root of its
    hours says: the small ones are heard too. Silent files, and a few that cannot be decoded or have a lower rate than
    the model, are left out with a warning.

    Args:
        say: told now and then how far decoding is.

    Raises:
        AudioError: a layout that is not known, a file that is not there, more than one bad file in twenty, or a part
            without speech, noise or rooms.
        SettingsError: the cache cannot be written.
    """
    found = [(f"{folder}: {name}", clip) for folder in folders for name, clips in find_clips(folder).items()
             for clip in clips]
    where = ", ".join(map(str, folders))
    parts: tuple[list[Bank], list[Bank]] = ([], [])
    by_kind = {kind: [(source, clip) for source, clip in found if clip.kind == kind] for kind in KINDS}
    for kind, of_kind in by_kind.items():
        if not of_kind:
            raise AudioError(f"{where}: no files of kind {kind!r} to train on; add a corpus that has some")
    for kind, of_kind in by_kind.items():
        sources, clips = zip(*of_kind, strict=True)
        try:
            samples, lengths = _cached_samples(clips, cache, kind, say)
        except OSError as error:
            raise SettingsError(f"the cache {cache} cannot be used: {error.strerror or error}; name another one with "
                                "--cache") from error
        weights = _weights(sources, clips, lengths.double() / STFT.sample_rate)
        bank = Bank(samples, lengths.cumsum(0) - lengths, lengths, weights,
                    tuple(clip.held_out_by for clip in clips)).to(torch.device(device))
        held_out = torch.tensor([_held_out(name) for name in bank.names])
        for part, keep in zip(parts, (~held_out, held_out), strict=True):
            part.append(bank.only(keep & (lengths > 0)))
            if not part[-1].n_clips:
                things = {"speech": "speakers", "noise": "files", "rir": "rooms"}[kind]
                raise AudioError(f"{where}: {HELD_OUT_SHARE:.0%} of the {things} are held out for validation, which "
                                 f"leaves one part without {kind} ({int((lengths == 0).sum())} of {len(lengths)} files "
                                 f"are silent or bad); add more {things}")
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


def _cached_samples(clips: Sequence[Clip], cache: Path, kind: str, say: Callable[[str], None]
                    ) -> tuple[Tensor, Tensor]:
    """All samples [T] int16, mapped, and how many are each clip's [n_clips]: none where it is silent or bad."""
    paths = [clip.folder.resolve() / clip.path for clip in clips]
    files = [(str(path), *_size_and_time(path)) for path in paths]
    key = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:12]
    samples_path, index_path = cache / f"{kind}-{key}.int16", cache / f"{kind}-{key}.json"
    lengths = _lengths(samples_path, index_path)
    if lengths is None:
        cache.mkdir(parents=True, exist_ok=True)
        for left in cache.glob("*.partial"):
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                left.unlink(missing_ok=True)
        partial = cache / f"{kind}-{key}.{uuid.uuid4().hex}.partial"    # another run may be doing the same
        try:
            with partial.open("wb") as file:
                lengths = _decode(paths, file, kind, say)
            partial.replace(samples_path)
            partial.write_text(json.dumps(lengths))
            partial.replace(index_path)
        finally:
            partial.unlink(missing_ok=True)
    samples = mapped_samples(samples_path) if sum(lengths) else torch.zeros(0, dtype=torch.int16)
    return samples, torch.tensor(lengths, dtype=torch.long)


def mapped_samples(path: Path) -> Tensor:
    """The samples [T] int16 of a file, which stay on the disk until they are drawn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)        # that nobody may write to them is the point
        return torch.from_numpy(np.memmap(path, np.int16, mode="r"))


def _lengths(samples_path: Path, index_path: Path) -> list[int] | None:
    """Of the clips in the cache; None where it is missing or damaged."""
    try:
        lengths: list[int] = json.loads(index_path.read_text())
        return lengths if 2 * sum(lengths) == samples_path.stat().st_size else None
    except (OSError, ValueError):
        return None


def _decode(paths: Sequence[Path], file: BinaryIO, kind: str, say: Callable[[str], None]) -> list[int]:
    """Write the samples of all files, one after the other; how many are each one's."""
    lengths: list[int] = []
    bad: list[str] = []
    said = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), N_AT_ONCE):
            for found in pool.map(_read_or_error, paths[start:start + N_AT_ONCE]):
                if isinstance(found, AudioError):
                    bad.append(str(found))
                    _log.warning("left out: %s", found)
                samples = np.zeros(0, np.int16) if isinstance(found, AudioError) else found
                file.write(samples.tobytes())
                lengths.append(len(samples))
            if len(bad) > max(1, MOST_BAD_SHARE * len(paths)):
                raise AudioError(f"{len(bad)} of the first {len(lengths)} files of kind {kind!r} are bad: "
                                 f"{'; '.join(bad[:3])}")
            if time.monotonic() - said > SECONDS_TO_SAY:
                said = time.monotonic()
                say(f"decoded {len(lengths)} of {len(paths)} files of kind {kind!r}")
    return lengths


def _read_or_error(path: Path) -> np.ndarray | AudioError:
    try:
        return _read(path)
    except AudioError as error:
        return error


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise AudioError(f"{path}: this file is named but cannot be read: {error.strerror}") from error
    return status.st_size, status.st_mtime_ns


def _read(path: Path) -> np.ndarray:
    """The first channel that is not silent at the model's rate [T] int16; nothing of a silent file."""
    try:
        samples, sample_rate = sf.read(path, dtype="float32", always_2d=True)
    except sf.LibsndfileError as error:
        raise AudioError(f"{path} cannot be decoded: {error.error_string}; repair or remove it") from error
    if sample_rate < STFT.sample_rate:
        raise AudioError(f"{path}: expected at least {STFT.sample_rate} Hz, got {sample_rate} Hz; remove it")
    if not np.isfinite(samples).all():
        raise AudioError(f"{path} holds samples that are no numbers; repair or remove it")
    for channel in samples.T:
        mono = soxr.resample(channel, sample_rate, STFT.sample_rate)
        whole = np.round(mono.clip(-1, 1) * 32767).astype(np.int16)
        if whole.any():
            return whole
    _log.warning("%s is silent and left out", path)
    return np.zeros(0, np.int16)
