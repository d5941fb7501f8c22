"""Personalize for a minute and a half, and show what it did to clips that were not in the recordings.

    python examples/demo.py                                 a sample user
    python examples/demo.py --recordings my_recordings      yourself: a file or a folder

Leaves in --out: index.html with before/after players, clips/*.wav, specialist.onnx and report.json.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile
from sample_user import Clip, sample_user

from pse_sdk import Enhancer, Progress, PseError, Report
from pse_sdk.benchmark import LatencyPlan, measure_latency
from pse_sdk.config import SIZES, STFT
from pse_sdk.errors import AudioError, MissingDependencyError, ModelFileError
from pse_sdk.metrics import extended_stoi, si_sdr_improvement
from pse_sdk.page import Row, Track, before_after_page
from pse_sdk.purification import FramePredictor
from pse_sdk.quiet import quiet_libraries
from pse_sdk.recordings import read_recordings
from pse_sdk.segments import PAUSE_PROBABILITY
from pse_sdk.stft import power_spectrogram
from pse_sdk.tables import environment, environment_line, format_table

N_CLIPS = 8
HELD_OUT_SECONDS, HELD_OUT_SHARE = 20.0, 0.25       # the end of each own recording
SHORTEST_CLIP_SECONDS = 2.0
LATENCY = LatencyPlan(n_steps=1000, seconds=0.5, n_fresh=1)
RECORDED = "recorded"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Personalize for a minute and a half, and show what it did.")
    parser.add_argument("--recordings", nargs="+", type=Path, help="audio files or folders; default: a sample user")
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="folder for the results (%(default)s)")
    parser.add_argument("--size", choices=SIZES, default="tiny", help="of the specialist (%(default)s)")
    parser.add_argument("--budget", type=float, default=90, metavar="SECONDS", help="to personalize (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    try:
        with quiet_libraries():     # what decoders say of damaged MP3s
            run(args.recordings, args.out, args.size, args.budget, args.seed)
    except PseError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except (OSError, soundfile.LibsndfileError) as error:
        print(f"demo: the results cannot be written ({error}); choose another --out", file=sys.stderr)
        return 2
    return 0


def run(own: Sequence[Path] | None, out: Path, size: str, budget_seconds: float, seed: int) -> None:
    (out / "clips").mkdir(parents=True, exist_ok=True)
    print("Preparing the user ...", flush=True)
    if own:
        recordings, clips = hold_out(own)
        description = "your own recordings; their ends were held out, and there is no clean reference for them"
    else:
        user = sample_user(out.parent / "sample-user", seed, n_clips=N_CLIPS)
        recordings, clips, description = list(user.recordings), list(user.clips), user.description
    said = [f"User: {description}.",
            f"Recordings: {len(recordings)}, {sum(map(len, recordings)) / STFT.sample_rate:.0f} s. "
            f"Clips: {len(clips)}, not in the recordings."]
    print("\n".join(said), flush=True)

    progress = ProgressLine()
    specialist = Enhancer.personalize([(samples, STFT.sample_rate) for samples in recordings], size=size,
                                      budget_seconds=budget_seconds, on_progress=progress, seed=seed)
    progress.end()
    report = specialist.report or Report("", "no report")
    print(report, flush=True)
    specialist.save(out / "specialist.onnx")
    (out / "report.json").write_text(report.to_json(), encoding="utf-8")

    models = generalists(size)
    name = f"specialist {size}" + ("" if report.accepted else " (the generalist was kept)")
    models[name] = specialist
    enhanced = {name: [model.enhance(clip.noisy, STFT.sample_rate) for clip in clips] for name, model in models.items()}
    cells = table(models, enhanced, clips)
    print(f"\n{format_table(cells)}\n\n{environment_line(environment())}")

    heard = (f"generalist {size}", name)
    rows = [page_row(clip, {name: enhanced[name][i] for name in heard}) for i, clip in enumerate(clips)]
    write_clips(out / "clips", rows)
    page = before_after_page("Before and after: a denoiser that learned one voice", rows, cells,
                             [*said, report.summary])
    (out / "index.html").write_text(page, encoding="utf-8")
    print(f"\nLeft in {out}: index.html (open it in a browser), clips/, specialist.onnx, report.json")


def hold_out(own: Sequence[Path]) -> tuple[list[np.ndarray], list[Clip]]:
    """From the user's files what to learn from and, from the ends of the longest, what to enhance.

    Raises:
        AudioError: no recording is long enough to keep a clip back.
    """
    learnt: list[np.ndarray] = []
    clips: list[Clip] = []
    for recording in sorted(read_recordings(list(own)), key=lambda recording: -recording.seconds):
        held_out = min(HELD_OUT_SECONDS, HELD_OUT_SHARE * recording.seconds)
        if held_out < SHORTEST_CLIP_SECONDS or len(clips) == N_CLIPS:
            learnt.append(recording.samples)
            continue
        start = len(recording.samples) - round(held_out * STFT.sample_rate)
        learnt.append(recording.samples[:start])
        clips.append(Clip(f"{len(clips) + 1}. {Path(recording.name).name}, the last {held_out:.0f} s",
                          recording.samples[start:]))
    if not clips:
        raise AudioError(f"no recording has {SHORTEST_CLIP_SECONDS / HELD_OUT_SHARE:.0f} s, so none can be held out; "
                         "record a minute or more of speech")
    return learnt, clips


def generalists(size: str) -> dict[str, Enhancer]:
    """The one that the specialist started from, and the largest that ships."""
    found = {}
    for name in dict.fromkeys([size, SIZES[-1]]):
        try:
            found[f"generalist {name}"] = Enhancer(size=name)
        except ModelFileError:      # not every installation ships every size
            if name == size:
                raise
    return found


def table(models: Mapping[str, Enhancer], enhanced: Mapping[str, Sequence[np.ndarray]], clips: Sequence[Clip]
          ) -> list[list[str]]:
    """One row a model. With a clean reference its scores, else what happened to pauses and to speech."""
    step_us = {row.name: row.step_us.p50 for row in measure_latency(models, LATENCY)}
    known = all(clip.clean is not None for clip in clips)
    measure = scores if known else level_changes
    head = ["model", "parameters", "step µs"] + (["SI-SDRi dB", "ESTOI"] if known else ["pauses dB", "speech dB"])
    untouched = [RECORDED, "-", "-", *measure([clip.noisy for clip in clips], clips)]
    rows = [[name, f"{model.n_parameters:,}", f"{step_us[name]:.0f}", *measure(enhanced[name], clips)]
            for name, model in models.items()]
    return [head, untouched, *rows]


def scores(outputs: Sequence[np.ndarray], clips: Sequence[Clip]) -> list[str]:
    """Mean SI-SDR improvement in dB and mean ESTOI, where its package is installed."""
    pairs = [(output, clip.noisy, clip.clean) for output, clip in zip(outputs, clips, strict=True)
             if clip.clean is not None]
    gain = np.mean([si_sdr_improvement(output, noisy, clean) for output, noisy, clean in pairs])
    try:
        estoi = f"{np.mean([extended_stoi(output, clean) for output, _, clean in pairs]):.3f}"
    except MissingDependencyError:
        estoi = "-"
    return [f"{gain:.2f}", estoi]


def level_changes(outputs: Sequence[np.ndarray], clips: Sequence[Clip]) -> list[str]:
    """By how many dB the level of pauses and of speech changed. Where they are, the SNR predictor says."""
    predictor = FramePredictor()
    speech = np.concatenate([predictor.analyse(clip.noisy).speech for clip in clips])
    before = np.concatenate([power_spectrogram(clip.noisy).sum(1) for clip in clips])
    after = np.concatenate([power_spectrogram(output).sum(1) for output in outputs])

    def change(frames: np.ndarray) -> str:
        if not frames.any():
            return "-"
        return f"{10 * np.log10((after[frames].mean() + 1e-12) / (before[frames].mean() + 1e-12)):.1f}"

    return [change(speech < PAUSE_PROBABILITY), change(speech > 0.5)]


def page_row(clip: Clip, enhanced: Mapping[str, np.ndarray]) -> Row:
    tracks = [Track(RECORDED, clip.noisy)]
    for name, output in enhanced.items():
        gain = "" if clip.clean is None else f"{si_sdr_improvement(output, clip.noisy, clip.clean):+.1f} dB SI-SDR"
        tracks.append(Track(name, output, gain))
    if clip.clean is not None:
        tracks.append(Track("clean", clip.clean, "reference"))
    return Row(clip.title, tracks, STFT.sample_rate)


def write_clips(folder: Path, rows: Sequence[Row]) -> None:
    """The tracks of every row as `1-recorded.wav` and so on, in place of those of an earlier run."""
    for earlier in folder.glob("[0-9]-*.wav"):
        earlier.unlink()
    for i, row in enumerate(rows, start=1):
        for track in row.tracks:
            name = f"{i}-{track.label.split(' (')[0].replace(' ', '-')}.wav"
            soundfile.write(folder / name, track.samples, row.sample_rate)


class ProgressLine:
    """One line that is written over; where nobody watches, a line for each stage."""

    def __init__(self) -> None:
        self._stage = ""
        self._started = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        if sys.stdout.isatty():
            bar = "=" * round(24 * progress.done)
            print(f"\r[{bar:24s}] {progress.done:4.0%}  {progress.message:50.50s}", end="", flush=True)
        elif progress.stage != self._stage:
            print(f"  {progress.stage}: {progress.message}", flush=True)
        self._stage = progress.stage

    def end(self) -> None:
        said = f"Personalized in {time.monotonic() - self._started:.0f} s."
        print(f"\r{said:80s}" if sys.stdout.isatty() else said, flush=True)


if __name__ == "__main__":
    sys.exit(main())
