"""The front door: a denoiser that starts good for everybody and can be made better for one voice."""

import math
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from .arguments import as_path
from .audio import as_float32, check_scale, count_beyond
from .audio_file import AudioReader
from .child import Progress
from .config import MODELS, SIZES
from .errors import AudioError, ModelFileError, SettingsError
from .job import run_job
from .model_format import ModelInfo, write_whole
from .onnx_denoiser import OnnxDenoiser
from .recordings import Source
from .report import Report
from .stream import EnhancementStream


@dataclass(frozen=True)
class FileResult:
    """What `Enhancer.enhance_file` did."""

    seconds: float
    notes: tuple[str, ...]
    """What was wrong with the source, in plain words."""


class Enhancer:
    """A denoiser for speech, ready to run.

    Args:
        model: a model file, or nothing for a generalist that ships with the package.
        size: which generalist: "tiny", "small", "medium" or "large". Only without `model`.

    Raises:
        ModelFileError: the file is missing, damaged or not a model of ours.
        SettingsError: no generalist of that size, or `model` is no path.

    Any number of threads may share an `Enhancer`; a stream belongs to one thread at a time.
    """

    def __init__(self, model: str | os.PathLike[str] | None = None, *, size: str | None = None) -> None:
        if model is not None and size is not None:
            raise SettingsError(f"got both a model file and size={size!r}; a model file has its size inside")
        path = generalist("small" if size is None else size) if model is None else as_path(model, "model")
        self._use(OnnxDenoiser(path))

    def _use(self, denoiser: OnnxDenoiser, report: Report | None = None) -> None:
        self._denoiser = denoiser
        self.report = report
        """What personalization did; None for a model that came from a file."""

    @property
    def info(self) -> ModelInfo:
        """What the model file says of itself."""
        return self._denoiser.info

    @property
    def digest(self) -> str:
        """SHA-256 that names the model, wherever its file lies."""
        return self._denoiser.digest

    @property
    def n_parameters(self) -> int:
        return self.info.n_parameters

    @property
    def sample_rate(self) -> int:
        """The model's own rate in Hz. `enhance` and `stream` take any."""
        return self.info.sample_rate

    @property
    def delay_samples(self) -> int:
        """By how much a stream at the model's own rate lags, in samples. `enhance` is aligned."""
        return self.info.delay

    def enhance(self, noisy: ArrayLike, sample_rate: int, *, strength: float = 1.0,
                max_reduction_db: float = math.inf, full_band: bool = True) -> np.ndarray:
        """The speech in `noisy`, aligned with it.

        Args:
            noisy: samples in [-1, 1] (float16, float32, float64) or integers (int16, int32, uint8), at any rate. NaN
                and Inf count as silence.
            sample_rate: of `noisy`, in Hz, 4,000 to 384,000.
            strength: share of the enhanced sound in the result, 0 to 1; the rest is `noisy` as it is.
            max_reduction_db: by how many dB noise is lowered at most, 0 or more.
            full_band: keep what lies above the model's 8 kHz, lowered as the model lowers the band below.

        Shape: `noisy` [T] or [T, channels], the result the same, float32.

        Raises:
            AudioError: not samples: another shape, another type, another scale than [-1, 1].
            SettingsError: a rate or another argument outside its range.
        """
        samples = as_float32(noisy)
        check_scale("noisy", count_beyond(samples), samples.size)
        channels = 1 if samples.ndim == 1 else samples.shape[1]
        with self.stream(sample_rate, channels, strength=strength, max_reduction_db=max_reduction_db,
                         full_band=full_band) as stream:
            joined = np.concatenate([stream.process(samples), stream.flush().reshape(-1, *samples.shape[1:])])
            return joined[stream.delay_samples:]

    def enhance_file(self, source: str | os.PathLike[str], target: str | os.PathLike[str], *, strength: float = 1.0,
                     max_reduction_db: float = math.inf, full_band: bool = True) -> "FileResult":
        """Enhance a recording of any length, in constant memory, into a 16-bit WAV of the same rate and channels.

        The target appears whole or not at all.

        Args:
            strength, max_reduction_db, full_band: as in `enhance`.

        Raises:
            AudioError: the source cannot be read, or the target cannot be written.
            SettingsError: one of them is no path, or another argument is outside its range.
        """
        import soundfile  # type: ignore[import-untyped]  # here: an application that streams never needs it
        source, target = as_path(source, "source"), as_path(target, "target")
        if not target.name or "\0" in target.name:
            raise AudioError(f"{str(target)!r} names no file; give a path such as 'enhanced.wav'")
        partial = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}.partial")
        written = n_beyond = 0
        with AudioReader(source) as reader:
            try:
                # a descriptor, for the name may be bytes that are no text
                with (partial.open("wb") as raw,
                      soundfile.SoundFile(raw.fileno(), "w", reader.sample_rate, reader.n_channels, "PCM_16",
                                          format="WAV", closefd=False)
                      as file, self.stream(reader.sample_rate, reader.n_channels, strength=strength,
                                           max_reduction_db=max_reduction_db, full_band=full_band) as stream):
                    skip = stream.delay_samples
                    for block in reader.blocks():
                        n_beyond += count_beyond(block)
                        enhanced = stream.process(block)
                        file.write(enhanced[skip:])
                        written, skip = written + max(0, len(enhanced) - skip), max(0, skip - len(enhanced))
                    enhanced = stream.flush()
                    file.write(enhanced[skip:])
                    written += max(0, len(enhanced) - skip)
                    n_replaced = stream.n_replaced
                check_scale(reader.name, n_beyond, written * reader.n_channels)
                partial.replace(target)
            except (OSError, soundfile.LibsndfileError) as error:
                raise AudioError(f"{target}: cannot be written ({error}); choose a writable folder") from error
            finally:
                with suppress(OSError):
                    partial.unlink()
            notes = reader.notes
            if n_replaced:
                notes += (f"{n_replaced} samples were no numbers or far over full scale, and count as silence",)
            return FileResult(written / reader.sample_rate, notes)

    def stream(self, sample_rate: int, channels: int = 1, *, strength: float = 1.0,
               max_reduction_db: float = math.inf, full_band: bool = True) -> EnhancementStream:
        """A stream for live audio: chunks of any length in, enhanced samples out, `stream.delay_samples` later.

        Args:
            sample_rate: in Hz, 4,000 to 384,000.
            channels: 1 to 64.
            strength, max_reduction_db, full_band: as in `enhance`; the stream's first two may change at any time.

        Raises:
            SettingsError: an argument outside its range.
        """
        return EnhancementStream(self._denoiser, sample_rate, channels, strength=strength,
                                 max_reduction_db=max_reduction_db, full_band=full_band)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model file, whole or not at all.

        Raises:
            ModelFileError: the target cannot be written; a file that was there is unchanged.
            SettingsError: `path` is no path.
        """
        write_whole(as_path(path, "path"), self._denoiser.model)

    @classmethod
    def personalize(
        cls,
        recordings: Source | Sequence[Source],
        *,
        clean: Source | Sequence[Source] | None = None,
        noise: Source | Sequence[Source] | None = None,
        others: str = "keep",
        voices: Source | Sequence[Source] | None = None,
        teacher: Callable[[np.ndarray], np.ndarray] | None = None,
        method: str = "auto",
        start: "Enhancer | str | os.PathLike[str] | None" = None,
        size: str | None = None,
        budget_seconds: float = 180,
        threads: int | None = None,
        nice: int = 0,
        steps: int | None = None,
        on_progress: Callable[[Progress], object] | None = None,
        paused: Callable[[], object] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        seed: int = 0,
    ) -> "Enhancer":
        """Train a specialist for the voice and the rooms in `recordings`, on this machine.

        Training runs in a child process. The result is used only if it is better than the generalist of the same size
        on parts of the recordings that it was not trained on; otherwise the returned `Enhancer` is that generalist,
        and `report` says why.

        Args:
            recordings: of the user, noisy as they are: paths, folders or (samples, sample_rate) pairs. A minute of
                speech is little, five are plenty. Of more than 6 minutes (4 where others are removed) those are used in
                which most happens; of more than an hour an hour is read, as much of every recording and of each its
                beginning; of anything else at most ten minutes. A take that is given twice counts once. What is clipped
                hard, comes from a telephone or holds music is left out, where several talkers are noticed more is asked
                of the result, and the report says so.
            clean: of the user as well, but without noise (close to the microphone, in a quiet room): seconds help, a
                minute helps more. What does not sound clean is used as a noisy recording, and noted.
            noise: files or folders with noises that should be removed, beside those that the package makes itself;
                without the user's voice.
            others: "remove" makes a specialist for this voice alone: what other people say is removed as well. "keep"
                serves better where the user is alone with the microphone.
            voices: files or folders with other people talking, for others="remove". Without them other voices are made
                of the user's own.
            teacher: a function to estimate the speech in a recording instead of the package's own teacher: from mono
                float32 samples [T] at 16 kHz to as many, time-aligned. It may take its time and look ahead; it is
                asked once for each recording, within the budget, and never again.
            method: "auto", or one of `METHODS`.
            start: a specialist to go on from with more recordings, weeks later, without those from before. It stays
                unless the result is better on parts of the new ones.
            size: "tiny", "small" (if none is given), "medium" or "large"; of a `start` its own.
            budget_seconds: for everything, from reading to the verdict; at least 20. Some 15 s of it (on a slow or busy
                machine 30 and more) go by before training and after it: below a minute little is learnt.
            threads: of the training. By default it begins with one for each core that is idle, at most four, and goes
                on with whatever turns out to be quickest, as other programs come and go.
            nice: 0 to 19: how readily the training gives way to other programs (POSIX systems).
            steps: number of training steps instead of as many as the budget allows, to repeat an earlier run.
            on_progress: called a few times a second with a `Progress`; if it returns False, training is cancelled.
            paused: asked a few times a second; while it is true, training rests and the budget's clock stands still.
            checkpoint: a file for the state of training, a new one or what this wrote before. It is written every five
                seconds; if this process or the machine goes down, the same call goes on from there. It holds weights,
                no audio, and is removed when all is done.
            seed: same seed, recordings, `threads` (a number) and number of steps, same specialist.

        Raises:
            AudioError: a recording cannot be used. SettingsError: an argument is out of range.
            MissingDependencyError: torch and onnx are not installed.
            PersonalizationCancelled: `on_progress` returned False.
            PersonalizationError: the training process failed.
            What `teacher`, `on_progress` or `paused` raise themselves comes through as it is.
        """
        if start is None:
            before = cls(size=size)
        else:
            before = start if isinstance(start, Enhancer) else cls(as_path(start, "start"))
            if size not in (None, before.info.size):
                raise SettingsError(f"got size={size!r} and a start of size {before.info.size!r}; leave size out")
        model, report = run_job(recordings, clean=clean, noise=noise, others=others, voices=voices,
                                teacher=teacher, method=method, start=None if start is None else before._denoiser.model,
                                size=before.info.size, budget_seconds=budget_seconds, threads=threads, nice=nice,
                                steps=steps, on_progress=on_progress, paused=paused,
                                checkpoint=None if checkpoint is None else as_path(checkpoint, "checkpoint"), seed=seed)
        enhancer = cls.__new__(cls)
        enhancer._use(before._denoiser if model is None else OnnxDenoiser(model), report)
        return enhancer


def generalist(size: str) -> Path:
    """The model file of the generalist that ships with the package.

    Raises:
        SettingsError: no such size. ModelFileError: the package came without it.
    """
    if not isinstance(size, str) or size not in SIZES:
        raise SettingsError(f"no model of size {size!r}; choose one of {', '.join(SIZES)}")
    path = MODELS / f"{size}.onnx"
    if not path.exists():
        raise ModelFileError(f"this installation has no {size} generalist; choose another size, or train one "
                             "(README, 'Train your own generalist')")
    return path
