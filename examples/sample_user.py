"""A user to try personalization on: noisy recordings of one voice, and other clips of it with the clean truth.

    voice (real prompts, or a synthetic talker) -> speech with pauses [T] -> + noise of a few places -> SampleUser

On Debian and its relatives the voice is real: the prompts of a telephone exchange, which anybody may download with
`apt-get` and without root. Nothing is installed; the packages are unpacked below a folder of ours.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pse_sdk.config import STFT
from pse_sdk.noise import foreign_noise
from pse_sdk.noise import synthetic_voice as synthetic_talker

PACKAGE = "asterisk-core-sounds-{}-g722"
USER, CROWD = "en", ("fr", "it", "ru")     # not "es": its speaker is the English one
HELD_OUT = ("demo-",)                       # prompts for clips only; no recording contains their sentences
NOT_SPEECH = ("silence", "beep", "ascending", "descending", "confbridge-", "tt-monkeys")
SHORTEST_PROMPT = 1.2                       # seconds; below are single digits and letters
PAUSES = (0.4, 1.4)                         # seconds between prompts
DOWNLOAD_SECONDS = 180.0

PLACES = ("café", "kitchen", "street")      # of the recordings, and of most clips at another time
NEW_PLACE = "rain"                          # in clips only
RECORDING_SNR_DB, CLIP_SNR_DB = (5.0, 12.0), (0.0, 8.0)

Noise = Callable[[float, np.random.Generator], np.ndarray]      # of so many seconds [T], from draws


class NoPromptsError(Exception):
    """The real voice cannot be had here. The message says why."""


@dataclass(frozen=True, eq=False)
class Voice:
    """What somebody says. Shape: `recorded` and `held_out` [T] at 16 kHz, clean, with pauses; nothing is in both."""

    description: str
    recorded: np.ndarray
    held_out: np.ndarray
    crowd: Noise


@dataclass(frozen=True, eq=False)
class Clip:
    """A stretch of noisy speech to enhance. `clean` is None where nobody knows it. Shape: [T] at 16 kHz."""

    title: str
    noisy: np.ndarray
    clean: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class SampleUser:
    """`recordings` [T] at 16 kHz, one for each of `PLACES`, are to learn from; `clips` are not in them."""

    description: str
    recordings: tuple[np.ndarray, ...]
    clips: tuple[Clip, ...]


def sample_user(folder: Path, seed: int = 0, *, seconds: float = 240.0, n_clips: int = 8, clip_seconds: float = 8.0
                ) -> SampleUser:
    """The real voice where it can be had, else the synthetic one; `description` says which, and why.

    Args:
        folder: keeps the downloads from call to call.
        seconds: of all recordings together.
    """
    rng = np.random.default_rng(seed)
    try:
        voice = prompt_voice(fetch_prompts(folder), rng, seconds, n_clips * clip_seconds)
    except NoPromptsError as error:
        voice = synthetic_voice(rng, seconds, n_clips * clip_seconds, str(error))
    return place_user(voice, rng, n_clips)


def place_user(voice: Voice, rng: np.random.Generator, n_clips: int) -> SampleUser:
    """Let the voice speak in noise: its recorded part in each of `PLACES`, its held-out part a clip at a time."""
    recorded = np.array_split(voice.recorded, len(PLACES))
    held_out = np.array_split(voice.held_out, n_clips)
    where = [(*PLACES, NEW_PLACE)[i % (len(PLACES) + 1)] for i in range(n_clips)]
    # One scene for each place, as long as all that is said there: recording and clips hear it at different times.
    n_samples = dict.fromkeys((*PLACES, NEW_PLACE), 0)
    for place, speech in zip((*PLACES, *where), (*recorded, *held_out), strict=True):
        n_samples[place] += len(speech)
    scenes = {place: _scene(place, n, voice.crowd, rng) for place, n in n_samples.items()}

    def speak_at(place: str, speech: np.ndarray, snr_db: float) -> tuple[np.ndarray, np.ndarray]:
        noise, scenes[place] = np.split(scenes[place], [len(speech)])
        return mix(speech, noise, snr_db)

    recordings = [speak_at(place, speech, rng.uniform(*RECORDING_SNR_DB))[0]
                  for place, speech in zip(PLACES, recorded, strict=True)]
    clips = []
    for i, (place, speech) in enumerate(zip(where, held_out, strict=True)):
        snr_db = rng.uniform(*CLIP_SNR_DB)
        noisy, clean = speak_at(place, speech, snr_db)
        when = "never recorded there" if place == NEW_PLACE else "another time"
        clips.append(Clip(f"{i + 1}. {place.capitalize()}, {when}, {snr_db:.0f} dB SNR", noisy, clean))
    return SampleUser(voice.description, tuple(recordings), tuple(clips))


def mix(speech: np.ndarray, noise: np.ndarray, snr_db: float) -> tuple[np.ndarray, np.ndarray]:
    """Noisy and clean at one gain that keeps both within 0.9. The SNR counts what is said, not the pauses.

    >>> noisy, clean = mix(np.tile([1.0, -1.0], 512), np.full(1024, 5.0), snr_db=20.0)
    >>> np.round(noisy[:2] / clean[0], 3)
    array([ 1.1, -0.9])
    """
    scaled = noise * (_active_rms(speech) / np.sqrt(np.mean(np.square(noise))) * 10 ** (-snr_db / 20))
    noisy = speech + scaled
    gain = min(1.0, 0.9 / max(np.abs(noisy).max(), np.abs(speech).max()))
    return noisy * gain, speech * gain


def synthetic_voice(rng: np.random.Generator, seconds: float, held_out_seconds: float, reason: str) -> Voice:
    """A talker without a language, for machines where the prompts cannot be had."""
    n_recorded, n_held_out = (round(length * STFT.sample_rate) for length in (seconds, held_out_seconds))
    speech = synthetic_talker(n_recorded + n_held_out, rng)
    speech = speech * np.float32(0.1 / _active_rms(speech))
    return Voice(f"a synthetic talker, not real speech ({reason})", speech[:n_recorded], speech[n_recorded:],
                 lambda length, draws: foreign_noise(length, draws, "babble"))


def prompt_voice(sounds: Path, rng: np.random.Generator, seconds: float, held_out_seconds: float) -> Voice:
    """The user is the voice of the English prompts, the crowd are those of other languages.

    Args:
        sounds: folder with a folder of prompts for each speaker, as `fetch_prompts` gives it.
    """
    prompts = _prompts(sounds, USER)
    recorded = [path for path in prompts if not path.name.startswith(HELD_OUT)]
    held_out = [path for path in prompts if path.name.startswith(HELD_OUT)]
    crowd = {language: _prompts(sounds, language) for language in CROWD}

    def talk_over_each_other(length: float, draws: np.random.Generator) -> np.ndarray:
        talkers = [_speak(crowd[language], draws, length, pauses=(0.0, 0.4)) for language in CROWD * 2]
        return np.asarray(sum(10 ** (draws.uniform(-8, 0) / 20) * talker for talker in talkers))

    return Voice(f"real speech, the English voice prompts of the package {PACKAGE.format(USER)}",
                 _speak(recorded, rng, seconds), _speak(held_out, rng, held_out_seconds), talk_over_each_other)


def fetch_prompts(folder: Path) -> Path:
    """The folder with the speakers' folders, downloaded on the first call.

    Raises:
        NoPromptsError: no apt-get, no such package, no network, too slow, or no PyAV to decode with.
    """
    try:
        import av  # noqa: F401
    except ModuleNotFoundError as error:
        raise NoPromptsError("PyAV is needed to decode the voice prompts: pip install 'pse_sdk[phone]'") from error
    ready = folder / "prompts"
    if not ready.exists():
        missing = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
        if missing:
            raise NoPromptsError(f"this machine has no {' and no '.join(missing)} to download voice prompts with")
        partial = folder.resolve() / f"partial-{os.getpid()}"
        try:
            _download([PACKAGE.format(language) for language in (USER, *CROWD)], partial)
            (partial / "unpacked" / "usr" / "share" / "asterisk" / "sounds").rename(ready)
        except (OSError, subprocess.SubprocessError) as error:
            raise NoPromptsError(f"the voice prompts could not be downloaded: {_last_words(error)}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return ready


def _download(packages: Sequence[str], folder: Path) -> None:
    """Download and unpack. Where the system's package lists are empty or old, we fetch our own, without root."""
    deadline = time.monotonic() + DOWNLOAD_SECONDS
    (folder / "unpacked").mkdir(parents=True)
    (folder / "lists" / "partial").mkdir(parents=True)
    (folder / "cache" / "archives" / "partial").mkdir(parents=True)
    own_lists = ["-o", f"Dir::State::lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache",
                 "-o", "APT::Sandbox::User=", "-o", "Debug::NoLocking=1"]

    def run(*command: str) -> None:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL,
                       timeout=max(1.0, deadline - time.monotonic()), env={**os.environ, "LC_ALL": "C"})

    try:
        run("apt-get", "-qq", "download", *packages)
    except subprocess.CalledProcessError:
        run("apt-get", "-qq", *own_lists, "update")
        run("apt-get", "-qq", *own_lists, "download", *packages)
    for package in sorted(folder.glob("*.deb")):
        run("dpkg-deb", "--extract", str(package), "unpacked")


def _last_words(error: Exception) -> str:
    if isinstance(error, subprocess.TimeoutExpired):
        return f"not done after {DOWNLOAD_SECONDS:.0f} s"
    said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
    return said[-1].removeprefix("E: ") if said else type(error).__name__


def _prompts(sounds: Path, language: str) -> list[Path]:
    """The files of one language that hold sentences. G.722 has 8,000 bytes a second and no header."""
    return sorted(path for path in sounds.glob(f"{language}_*/**/*.g722")
                  if not path.name.startswith(NOT_SPEECH) and path.parent.name != "silence"
                  and path.stat().st_size > SHORTEST_PROMPT * 8000)


def _speak(prompts: Sequence[Path], rng: np.random.Generator, seconds: float,
           pauses: tuple[float, float] = PAUSES) -> np.ndarray:
    """Prompts in random order, each once before any comes twice, with pauses between them [T]."""
    n_samples = round(seconds * STFT.sample_rate)
    pieces: list[np.ndarray] = []
    while sum(map(len, pieces)) < n_samples:
        for index in rng.permutation(len(prompts)):
            pieces += [np.zeros(round(rng.uniform(*pauses) * STFT.sample_rate), np.float32), _decode(prompts[index])]
            if sum(map(len, pieces)) >= n_samples:
                break
    return np.concatenate(pieces)[:n_samples]


def _decode(path: Path) -> np.ndarray:
    """[T] at 16 kHz."""
    import av
    with av.open(str(path), format="g722") as container:
        frames = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    return np.concatenate(frames).astype(np.float32) / 2**15


def _scene(place: str, n_samples: int, crowd: Noise, rng: np.random.Generator) -> np.ndarray:
    """The noise of a place, at least a second of it."""
    seconds = max(n_samples / STFT.sample_rate, 1.0)
    kinds = {"kitchen": "rhythmic", "street": "modulated", "rain": "rain"}
    return foreign_noise(seconds, rng, kinds[place]) if place in kinds else crowd(seconds, rng)


def _active_rms(speech: np.ndarray) -> float:
    """RMS of the frames within 40 dB of the loudest."""
    n_frames = max(1, len(speech) // STFT.hop_length)
    power = np.array([np.mean(np.square(frame)) for frame in np.array_split(speech, n_frames)])
    return float(np.sqrt(power[power >= 1e-4 * power.max()].mean()))
