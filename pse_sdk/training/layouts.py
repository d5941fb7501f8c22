"""Which files a corpus folder holds, of what kind, and whose: our manifest, and the public corpora as they unpack.

A layout is recognised by its folders, in the folder given or one below it under the corpus's usual name, so that both
`--data LibriSpeech` and `--data corpora` (with LibriSpeech/, musan/, ... in it) work.
"""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import SOUNDFILE_SUFFIXES
from ..errors import AudioError

KINDS = ("speech", "noise", "rir")
MANIFEST = "manifest.csv"


@dataclass(frozen=True)
class Clip:
    """One file.

    Attributes:
        folder, path: where it is; `path` is relative, with slashes, and the same wherever the corpus is unpacked.
        kind: one of `KINDS`.
        corpus: where it comes from.
        name: the speaker, the class of noise or the room; all files of one name are known to be alike.
    """

    folder: Path
    path: str
    kind: str
    corpus: str
    name: str

    @property
    def held_out_by(self) -> str:
        """The name whose hash decides between training and validation: of a speaker, a noise file or a room."""
        if self.kind == "noise":
            return self.path
        # the subsets of a corpus (librispeech_train_clean_5, librispeech_train_clean_100) share their speakers
        return f"{self.corpus.split('_')[0] if self.kind == 'speech' else self.corpus}/{self.name}"


def find_clips(folder: Path) -> dict[str, list[Clip]]:
    """The clips in a folder, sorted by path, for each corpus (or manifest) recognised there.

    Raises:
        AudioError: nothing is recognised, or what is there holds no audio.
    """
    if not folder.is_dir():
        raise AudioError(f"{folder} is no folder; expected one that holds a corpus")
    found = {}
    for layout in LAYOUTS:
        for root in (folder, *sorted(folder.glob(layout.usual_name))):
            if any(next(root.glob(mark), None) for mark in layout.marks):
                found[layout.name] = sorted(layout.clips(root), key=lambda clip: clip.path)
                break
    if (folder / MANIFEST).exists():        # it says all there is to say
        found = {MANIFEST: list(_manifest(folder))}
    if not found:
        known = "; ".join(f"{layout.name} ({', '.join(layout.marks)})" for layout in LAYOUTS)
        raise AudioError(f"{folder} has no layout that is known; expected a {MANIFEST}, or one of {known}")
    for name, clips in found.items():
        if not clips:
            raise AudioError(f"{folder} looks like {name} but holds no audio to train on; is it unpacked completely?")
    return found


def _manifest(root: Path) -> Iterator[Clip]:
    """Rows of the split `train`."""
    for row in _table(root / MANIFEST, ("path", "kind", "split", "corpus", "name")):
        if row["kind"] not in KINDS:
            raise AudioError(f"{root / MANIFEST}: {row['path']} is of kind {row['kind']!r}; expected one of "
                             f"{', '.join(KINDS)}")
        if row["split"] == "train":
            yield Clip(root, row["path"], row["kind"], row["corpus"], row["name"])


def _table(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """The rows of a CSV file with a line of titles."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            missing = set(columns) - set(rows.fieldnames or ())
            if missing:
                raise AudioError(f"{path} has no column {', '.join(sorted(missing))}; expected {', '.join(columns)}")
            for row in rows:
                yield {name: row[name] or "" for name in columns}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AudioError(f"{path} cannot be read as a table in UTF-8: {error}") from error


def _librispeech(root: Path) -> Iterator[Clip]:
    """The training subsets; where there are none, whichever there are."""
    for subset in sorted(root.glob("train-*")) or sorted(root.iterdir()):
        for path in _audio(root, f"{subset.name}/*/*/*"):
            yield Clip(root, path, "speech", "librispeech", path.split("/")[1])


def _vctk(root: Path) -> Iterator[Clip]:
    """One of the two microphones."""
    folder = "wav48_silence_trimmed" if (root / "wav48_silence_trimmed").is_dir() else "wav48"
    for path in _audio(root, f"{folder}/*/*"):
        if not Path(path).stem.endswith("_mic2"):
            yield Clip(root, path, "speech", "vctk", path.split("/")[1])


def _dns(root: Path) -> Iterator[Clip]:
    """A speaker is the reader in the file's name, else everybody in its folder."""
    for path in _audio(root, "clean_fullband/**/*"):
        reader = re.search(r"reader_\d+", path)
        yield Clip(root, path, "speech", "dns", reader.group() if reader else path.rsplit("/", 1)[0])
    for path in _audio(root, "noise_fullband/**/*"):
        yield Clip(root, path, "noise", "dns", path)
    for path in _audio(root, "impulse_responses/**/*"):
        if "noise" not in Path(path).stem:
            yield Clip(root, path, "rir", "dns", _room(path))


def _musan(root: Path) -> Iterator[Clip]:
    """Music only without singing, where the annotations tell."""
    singing = set()
    for annotations in root.glob("music/*/ANNOTATIONS"):
        rows = [line.split() for line in annotations.read_text("utf-8").splitlines()]
        singing |= {row[0] for row in rows if len(row) > 2 and row[2] == "Y"}
    for path in _audio(root, "speech/**/*"):
        yield Clip(root, path, "speech", "musan", Path(path).stem)
    for path in [*_audio(root, "noise/**/*"), *_audio(root, "music/**/*")]:
        if Path(path).stem not in singing:
            yield Clip(root, path, "noise", "musan", path)


def _demand(root: Path) -> Iterator[Clip]:
    """One of the sixteen microphones. A place that was unpacked at two rates counts once."""
    places = {re.sub(r"_\d+k$", "", path.split("/")[0]): path for path in _audio(root, "*/ch01.*")}
    for place, path in places.items():
        yield Clip(root, path, "noise", "demand", place)


def _fsd50k(root: Path) -> Iterator[Clip]:
    """The development set without human voices, where the labels tell; a class is the first label."""
    labels: dict[str, list[str]] = {}
    ground_truth = root / "FSD50K.ground_truth" / "dev.csv"
    if ground_truth.exists():
        labels = {row["fname"]: row["labels"].split(",") for row in _table(ground_truth, ("fname", "labels"))}
    for path in _audio(root, "FSD50K.dev_audio/*"):
        of_clip = labels.get(Path(path).stem, [path])
        if "Human_voice" not in of_clip:    # the labels name every ancestor of what was heard
            yield Clip(root, path, "noise", "fsd50k", of_clip[0])


def _rirs_noises(root: Path) -> Iterator[Clip]:
    for path in _audio(root, "simulated_rirs/**/*"):
        yield Clip(root, path, "rir", "rirs_noises", _room(path))
    for path in [*_audio(root, "real_rirs_isotropic_noises/*"), *_audio(root, "pointsource_noises/*")]:
        kind = "noise" if "noise" in Path(path).stem or path.startswith("pointsource") else "rir"
        yield Clip(root, path, kind, "rirs_noises", path if kind == "noise" else _room(path))


def _room(path: str) -> str:
    """A folder of its own for simulated rooms; database, type and room begin the names of measured responses."""
    parent, stem = Path(path).parent.as_posix(), Path(path).stem
    return parent if re.search(r"Room\d+$", parent) else "_".join(stem.split("_")[:4])


def _audio(root: Path, pattern: str) -> list[str]:
    """Relative paths with slashes, sorted."""
    return sorted(path.relative_to(root).as_posix() for path in root.glob(pattern)
                  if path.suffix.lower() in SOUNDFILE_SUFFIXES)


@dataclass(frozen=True)
class Layout:
    """`usual_name` is a pattern of the folder that a corpus unpacks to, `marks` of paths in it: it has one at least."""

    name: str
    usual_name: str
    marks: tuple[str, ...]
    clips: Callable[[Path], Iterator[Clip]]


LAYOUTS = (
    Layout("LibriSpeech", "LibriSpeech", ("*/[0-9]*/[0-9]*/*-*-*.flac",), _librispeech),
    Layout("VCTK", "VCTK*", ("wav48_silence_trimmed", "wav48"), _vctk),
    Layout("DNS challenge", "datasets_fullband", ("clean_fullband", "noise_fullband", "impulse_responses"), _dns),
    Layout("MUSAN", "musan", ("speech/librivox", "speech/us-gov", "noise/free-sound", "noise/sound-bible", "music/fma",
                              "music/jamendo"), _musan),
    Layout("DEMAND", "DEMAND*", ("*/ch01.*",), _demand),
    Layout("FSD50K", "FSD50K", ("FSD50K.dev_audio",), _fsd50k),
    Layout("RIRS_NOISES", "RIRS_NOISES", ("simulated_rirs", "real_rirs_isotropic_noises"), _rirs_noises),
)
