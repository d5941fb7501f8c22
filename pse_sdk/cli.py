"""`pse`: the package from a shell. Results go to standard output, progress and errors to standard error."""

import argparse
import contextlib
import itertools
import json
import math
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

from . import METHODS, OTHERS, Enhancer, Progress, PseError, __version__
from .arguments import as_number, check_target
from .audio_file import ENHANCED_SUFFIX, audio_files
from .config import SIZES
from .errors import AudioError, ModelFileError, SettingsError, printable
from .model_format import read_model, write_whole
from .quiet import quiet_libraries

DONE, KEPT, REFUSED, STOPPED = 0, 1, 2, 130
EXIT_CODES = (f"Exit codes: {DONE} done; {KEPT} personalize found nothing better than the model in use; {REFUSED} "
              f"something to mend, said in one line; {STOPPED} stopped by Ctrl-C or a signal.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code, see `EXIT_CODES`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in arguments         # known before the arguments are understood
    try:
        args = _parser().parse_args(arguments)
        for name in ("SIGTERM", "SIGHUP"):      # end as after Ctrl-C: nothing half-done stays behind
            if hasattr(signal, name) and threading.current_thread() is threading.main_thread():
                signal.signal(getattr(signal, name), _interrupt)
        return int(args.run(args))
    except PseError as error:
        return _refuse(str(error), as_json)
    except KeyboardInterrupt:
        print("pse: stopped", file=sys.stderr)
        return STOPPED
    except BrokenPipeError:     # who reads the results wants no more of them
        return DONE
    except OSError as error:
        told = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return _refuse(printable(told), as_json and error.filename != STANDARD_OUTPUT)


def _refuse(message: str, as_json: bool) -> int:
    if as_json:
        _say(json.dumps({"error": message}))
    else:
        print(f"pse: {message}", file=sys.stderr)
    return REFUSED


STANDARD_OUTPUT = "standard output"


def _say(*results: object, sep: str = "\n") -> None:
    """Print results.

    Raises:
        OSError: they cannot be written; its `filename` is `STANDARD_OUTPUT`.
    """
    try:
        print(*results, sep=sep, flush=True)
    except OSError as error:
        with contextlib.suppress(OSError):      # what waits to be written would fail once more when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OSError(error.errno, error.strerror, STANDARD_OUTPUT) from error


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, like everything else here."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="pse", description="Speech enhancement that learns its user, on this device.",
                     epilog=EXIT_CODES)
    parser.add_argument("--version", action="version", version=f"pse_sdk {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true", help="print the result for programs")
        sub.set_defaults(run=run)
        return sub

    def model(sub: argparse.ArgumentParser) -> None:
        group = sub.add_mutually_exclusive_group()
        group.add_argument("--model", type=Path, help="a model file, instead of a generalist")
        group.add_argument("--size", choices=SIZES, help="which generalist")

    def strength(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--strength", type=float, default=1.0, metavar="SHARE",
                         help="of the enhanced sound, 0 to 1; the rest is the sound as it came (%(default)s)")
        sub.add_argument("--max-reduction", type=float, default=math.inf, metavar="DB",
                         help="lower noise by so many dB at most; default: as far as the model does")

    sub = command("personalize", _personalize, "Train a specialist from your own recordings.")
    sub.add_argument("recordings", nargs="+", help="audio files or folders, noisy as they are")
    sub.add_argument("--out", type=Path, default=Path("personal.onnx"), help="the model file to write (%(default)s)")
    sub.add_argument("--size", choices=SIZES, help="default: small")
    sub.add_argument("--start", type=Path, metavar="MODEL", help="go on from this specialist, with new recordings")
    sub.add_argument("--method", choices=METHODS, default="auto")
    sub.add_argument("--budget", type=float, default=180, metavar="SECONDS", help="for everything (%(default)s)")
    sub.add_argument("--threads", type=int, help="of the training; default: one for each idle core, at most four")
    sub.add_argument("--nice", type=int, default=0, help="0 to 19: how readily it gives way to other programs")
    sub.add_argument("--clean", nargs="+", metavar="FILE", help="files or folders with seconds of the same voice "
                     "without noise; name the recordings before these")
    sub.add_argument("--noise", nargs="+", metavar="FILE", help="files or folders with noises to remove, beside those "
                     "made here")
    sub.add_argument("--others", choices=OTHERS, default="keep", help="other people's voices (%(default)s)")
    sub.add_argument("--voices", nargs="+", metavar="FILE", help="files or folders with other people talking, for "
                     "--others remove")
    sub.add_argument("--checkpoint", type=Path, metavar="FILE",
                     help="keep the state of training there; killed, the same command goes on")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--steps", type=int, help="of training, if the budget allows so many: to repeat an earlier run")

    sub = command("enhance", _enhance, "Enhance files and folders into WAV files.")
    sub.add_argument("inputs", nargs="+", help="audio files or folders")
    sub.add_argument("--out", type=Path, help="a folder, or a .wav for one file; default: NAME.enhanced.wav beside it")
    model(sub)
    strength(sub)

    sub = command("listen", _listen, "Hear the microphone enhanced, live. Space toggles before and after, q ends.")
    model(sub)
    strength(sub)
    sub.add_argument("--input", help="microphone: number or part of its name")
    sub.add_argument("--output", help="speaker: number or part of its name")
    sub.add_argument("--rate", type=int, help="sample rate in Hz; default: the device's")
    sub.add_argument("--seconds", type=float, help="stop after this long")
    sub.add_argument("--record", type=Path, metavar="FOLDER", help="keep microphone.wav and enhanced.wav there")

    sub = command("record", _record, "Record the microphone into a WAV file. Ctrl-C ends.")
    sub.add_argument("file", type=Path)
    sub.add_argument("--input", help="microphone: number or part of its name")
    sub.add_argument("--rate", type=int, help="sample rate in Hz; default: the device's")
    sub.add_argument("--seconds", type=float, help="stop after this long")

    command("devices", _devices, "List microphones and speakers.")

    sub = command("benchmark", _benchmark, "Measure what each model costs on this machine, side by side.")
    sub.add_argument("models", nargs="*", metavar="[NAME=]FILE", help="model files, beside the generalists")
    sub.add_argument("--peers", nargs="+", default=[], metavar=("FILE", "NAME"),
                     help="other people's denoisers: a Python file with make(name), and names")
    sub.add_argument("--quality", type=Path, metavar="JSON",
                     help="of benchmarks/personalization.py: scores of the models and peers that have a name there")
    sub.add_argument("--set", default="noise", help="which of its test sets (%(default)s)")
    sub.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots as well")
    sub.add_argument("--seconds", type=float, help="of audio at real time, for each model")
    sub.add_argument("--quick", action="store_true", help="seconds instead of minutes")

    sub = command("info", _info, "Say what a model file is.")
    sub.add_argument("file", type=Path, nargs="?", metavar="FILE", help="a model file, as --model")
    model(sub)
    return parser


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _enhancer(args: argparse.Namespace) -> Enhancer:
    return Enhancer(args.model) if args.model else Enhancer(size=args.size or "small")


def _check_replaceable(path: Path) -> None:
    """Raises SettingsError where something lies at `path` that is no model file: a recording, for one."""
    if _holds_something(path):
        try:
            read_model(path)
        except ModelFileError as error:
            raise SettingsError(f"--out {path}: is there already, and no model file; choose another --out") from error


@quiet_libraries()
def _personalize(args: argparse.Namespace) -> int:
    check_target(args.out, "--out")
    if args.checkpoint is not None and args.checkpoint.absolute() == args.out.absolute():
        raise SettingsError(f"--checkpoint {args.checkpoint}: is --out as well; name another file")
    _check_replaceable(args.out)
    with _ProgressLine() as progress:
        enhancer = Enhancer.personalize(args.recordings, clean=args.clean, noise=args.noise, others=args.others,
                                        voices=args.voices, method=args.method, start=args.start,
                                        checkpoint=args.checkpoint, size=args.size,
                                        budget_seconds=args.budget, threads=args.threads, nice=args.nice,
                                        seed=args.seed, steps=args.steps, on_progress=progress)
    report = enhancer.report
    assert report is not None
    keep = not report.accepted and _holds_something(args.out)
    previous = None
    if not keep:
        try:
            previous = _set_aside(args.out)
            enhancer.save(args.out)
        except ModelFileError as error:
            if not report.accepted:
                raise
            raise ModelFileError(f"{error}; {_saved_elsewhere(enhancer)}") from error
    if args.json:
        _say(json.dumps({**report.values(), "model": str(args.out), "written": not keep,
                         "previous": str(previous) if previous else None}))
    else:
        out = printable(str(args.out))
        _say(report, f"{out} was left as it is." if keep else f"Model file: {out}")
        if previous:
            _say(f"The one that was there: {printable(str(previous))}")
    return DONE if report.accepted else KEPT


def _holds_something(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _set_aside(path: Path) -> Path | None:
    """A copy of the model file at `path`, which is to be replaced: nobody compared it with the new one.

    Those that were set aside before stay.
    """
    if not _holds_something(path):
        return None
    numbers = itertools.chain([""], itertools.count(2))
    names = (path.with_name(f"{path.stem}.previous{number}{path.suffix}") for number in numbers)
    previous = next(name for name in names if not os.path.lexists(name))
    write_whole(previous, read_model(path))
    return previous


def _saved_elsewhere(enhancer: Enhancer) -> str:
    """Where a specialist is now that could not be written where it should go, in words."""
    try:
        path = Path(tempfile.mkdtemp(prefix="pse-model-"), "specialist.onnx")
        enhancer.save(path)
    except (OSError, ModelFileError) as error:
        return f"nor elsewhere ({error})"
    return f"the specialist is {path}"


@quiet_libraries()
def _enhance(args: argparse.Namespace) -> int:
    enhancer = _enhancer(args)
    sources = [path for item in args.inputs for path in audio_files(item)]
    one_file = args.out is not None and args.out.suffix.lower() == ".wav"
    if one_file and len(sources) != 1:
        raise SettingsError(f"{len(sources)} inputs and one output file {args.out}; give a folder as --out")
    if args.out is not None and not one_file:
        try:
            args.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AudioError(f"{args.out}: cannot be made a folder ({error.strerror}); choose another --out") from error
    targets: dict[Path, Path] = {}
    for source in sources:
        if args.out is None:
            target = source.with_name(source.stem + ENHANCED_SUFFIX)
        else:
            target = args.out if one_file else args.out / f"{source.stem}.wav"
        if target in targets:
            raise SettingsError(f"two inputs would both become {target}; enhance them into different folders")
        if target.exists() and source.exists() and target.samefile(source):
            raise SettingsError(f"{source} would overwrite itself; choose another --out")
        targets[target] = source
    rows: list[dict[str, Any]] = []
    failed = False
    for target, source in targets.items():
        started = time.perf_counter()
        try:
            result = enhancer.enhance_file(source, target, strength=args.strength,
                                           max_reduction_db=args.max_reduction)
        except PseError as error:       # one bad file does not keep the others from being enhanced
            if len(targets) == 1:
                raise
            failed = True
            rows.append({"source": str(source), "error": str(error)})
            print(f"pse: {error}", file=sys.stderr)
            continue
        spent = time.perf_counter() - started
        rows.append({"source": str(source), "target": str(target), "seconds": round(result.seconds, 2),
                     "seconds_spent": round(spent, 2), "notes": result.notes})
        if not args.json:
            _say(printable(f"{target}  {result.seconds:.1f} s of audio in {spent:.1f} s"), *result.notes,
                 sep="\n  note: ")
    if args.json:
        _say(json.dumps(rows))
    return REFUSED if failed else DONE


def _listen(args: argparse.Namespace) -> int:
    from .live import Control
    from .live_screen import run_listen
    control = Control(args.strength, args.max_reduction)
    status = run_listen(_enhancer(args), control=control, input_device=args.input, output_device=args.output,
                        sample_rate=args.rate, seconds=args.seconds, record=args.record)
    if args.json:
        _say(json.dumps(asdict(status)))
    return DONE


def _record(args: argparse.Namespace) -> int:
    from .record import record
    status = record(args.file, device=args.input, seconds=args.seconds, sample_rate=args.rate)
    _say(json.dumps(asdict(status)) if args.json else printable(f"{args.file}  {status.seconds:.1f} s"))
    return DONE


def _devices(args: argparse.Namespace) -> int:
    from .devices import devices
    found = devices()
    if args.json:
        _say(json.dumps([asdict(device) for device in found]))
        return DONE
    if not found:
        print("this machine has no sound devices", file=sys.stderr)
    for device in found:
        roles = [f"{n} in" for n in [device.n_inputs] if n] + [f"{n} out" for n in [device.n_outputs] if n]
        default = " (default)" if device.is_default_input or device.is_default_output else ""
        _say(f"{device.index:3d}  {device.name}  [{device.host_api}]  {', '.join(roles)}{default}")
    return DONE


@quiet_libraries()
def _benchmark(args: argparse.Namespace) -> int:
    from .benchmark import QUICK, LatencyPlan, installed_generalists, measure_latency
    from .benchmark_page import comparison_page
    from .benchmark_report import Comparison, read_quality
    from .tables import environment
    if len(args.peers) == 1:
        raise SettingsError("--peers needs a Python file and at least one name")
    if args.html:
        check_target(args.html, "--html")
    plan = QUICK if args.quick else LatencyPlan()
    if args.seconds is not None:
        plan = replace(plan, seconds=as_number(args.seconds, "--seconds", 0.1, 3600))
    quality = read_quality(args.quality, args.set) if args.quality else None
    models = {f"generalist {size}": path for size, path in installed_generalists().items()}
    for given in args.models:
        name, _, path = given.rpartition("=")
        name = name or Path(path).stem
        if name in models:
            raise SettingsError(f"two models are called {name!r}; name one of them: NAME={path}")
        models[name] = Path(path)
    above = environment()       # before measuring makes its own load
    rows = measure_latency(models, plan, lambda words: print(f"{words} ...", file=sys.stderr),
                           [(args.peers[0], name) for name in args.peers[1:]])
    if quality and quality.missing(rows):
        print(f"pse: {quality.missing(rows)}", file=sys.stderr)
    comparison = Comparison(above, plan, rows, quality)
    if args.html:
        args.html.write_text(comparison_page("Denoisers side by side", comparison), "utf-8")
    _say(json.dumps(comparison.values()) if args.json else comparison.markdown())
    return DONE


def _info(args: argparse.Namespace) -> int:
    if args.file is not None and (args.model or args.size):
        raise SettingsError(f"{args.file} and another model; name one of them")
    args.model = args.model or args.file
    enhancer = _enhancer(args)
    facts = {**asdict(enhancer.info), "digest": enhancer.digest}
    if args.json:
        _say(json.dumps(facts))
    else:
        _say(*(f"{name:17s} {value}" for name, value in facts.items() if value not in ("", {})))
    return DONE


class _ProgressLine:
    """A bar on standard error while it is a terminal; nothing otherwise. What comes after it has a line of its own."""

    def __enter__(self) -> "_ProgressLine":
        self._begun = False
        return self

    def __exit__(self, *_: object) -> None:
        if self._begun:
            print(file=sys.stderr)

    def __call__(self, progress: Progress) -> None:
        if not sys.stderr.isatty():
            return
        self._begun = True
        bar = "#" * round(30 * progress.done)
        line = f"[{bar:30s}] {progress.message}, {progress.seconds_left:.0f} s left"
        print(f"\r{line:78.78s}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
