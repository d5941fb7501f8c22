"""What no denoiser may do: harm clean speech at any level, or noisy speech out of a room or a telephone.

    python benchmarks/robustness.py --users build/users
    python benchmarks/robustness.py --users build/users --teacher --peers peers.py dtln gtcrn --clips 2

Users have the form that `personalization.py` describes. Clean speech is taken at three levels; rooms and the telephone
are put upon the noisy and the clean test clips alike, so that what is asked for is the speech as it was recorded.
Needs pse_sdk[bench]; for the teacher pse_sdk[train].
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from user_scores import NOISY, RATE, TEACHER, System, other_system, our_system, plain, read, users_in

from pse_sdk import Enhancer
from pse_sdk.audio import dbfs, resample
from pse_sdk.benchmark import installed_generalists
from pse_sdk.errors import PseError
from pse_sdk.metrics import extended_stoi, pesq_wide_band
from pse_sdk.tables import environment, environment_line, format_table, write_results

RESULTS = Path(__file__).resolve().parent / "results"
LEVELS_DBFS = (-45.0, -26.0, -6.0)
STRETCH = RATE // 10        # 100 ms
SPEECH_DB = 30.0            # stretches this far below the loudest one are no speech
LOWERED_DB = 6.0
FAINTEST_SHARE = 0.1        # of the stretches of a clip, as loud as the noise that was recorded with the speech
ABOVE_NOISE_DB = 6.0        # stretches less than that above it may be that noise alone
ROOM_SECONDS = 0.6          # reverberation time: until sound has faded by 60 dB
ROOM_DB = 0.0               # energy of the direct sound over that of the room
TELEPHONE_RATE = 8_000

NOTES = f"""\
Means over users, in brackets the user who fares worst. **Clean speech**: `clean` clips scaled to a level (RMS, as
floats that may exceed full scale). PESQ against the input; *lowered*: share of the 100 ms stretches (within
{SPEECH_DB:.0f} dB of the loudest) that lose more than {LOWERED_DB:.0f} dB, and the most that any of them loses; in
brackets the same of those that are {ABOVE_NOISE_DB:.0f} dB or more above the faintest tenth of their clip: the rest may
be noise, which clean recordings have too (one user's is 28 dB below the loudest speech, and heard before it begins).

**Noisy speech**: clips of the set `noise`, ESTOI of the output less that of the input, and for how many users that is
negative. *Room*: speech with a fading noise of {ROOM_SECONDS} s reverberation time, as loud as the direct sound; what
is asked for is the reverberant speech. *Telephone*: speech and noise that went through {TELEPHONE_RATE // 1000} kHz.
"""


@dataclass(frozen=True)
class Row:
    """One system in one condition on one user; None where the condition does not ask for it."""

    user: str
    system: str
    condition: str
    pesq: float | None = None
    n_stretches: int = 0
    n_lowered: int = 0
    most_lowered_db: float | None = None
    n_standing_out: int = 0         # of the stretches, those that are louder than the recording's own noise
    n_standing_out_lowered: int = 0
    most_standing_out_lowered_db: float | None = None
    estoi_gain: float | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=Path, required=True, help="folder of users")
    parser.add_argument("--model", nargs="+", default=[], metavar="NAME=FILE",
                        help="model files besides the generalists")
    parser.add_argument("--teacher", action="store_true", help="test the teacher as well")
    parser.add_argument("--peers", nargs="+", default=[], metavar=("FILE", "NAME"), help="other people's denoisers")
    parser.add_argument("--clips", type=int, default=4, help="of each set and user")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "robustness", help="of .md and .json")
    args = parser.parse_args()
    users = users_in(args.users, None)
    if not users:
        parser.error(f"no users in {args.users}: expected <user>/tests")
    try:
        models = {f"generalist {size}": str(path) for size, path in installed_generalists().items()}
        models |= dict(text.split("=", 1) for text in args.model)
        systems = {name: our_system(Enhancer(path)) for name, path in models.items()}
        if args.teacher:
            systems[TEACHER] = other_system(TEACHER, None)
        for peer in args.peers[1:]:
            systems[f"peer {peer}"] = other_system(peer, Path(args.peers[0]))
        rows = []
        for name, system in {NOISY: other_system("", None), **systems}.items():
            rows += [row for user in users for row in tested(user, name, system, args.clips, args.seed)]
            print(f"{name}: done", flush=True)
    except (PseError, ValueError) as error:
        parser.exit(2, f"{error}\n")
    above = {**environment(), "seed": args.seed}
    table = format_table(cells(rows))
    page = (f"# Robustness\n\n{environment_line(above)}\n\n{len(users)} users, {args.clips} clips of each\n\n{table}\n"
            f"\n{NOTES}")
    write_results(page, plain({"environment": above, "rows": [asdict(row) for row in rows]}),
                  args.out.with_suffix(".md"), args.out.with_suffix(".json"))
    print(f"\n{table}\n\nwritten: {args.out.with_suffix('.md')}, {args.out.with_suffix('.json')}")


def tested(user: Path, name: str, system: System, n_clips: int, seed: int) -> Iterator[Row]:
    clean = [read(path) for path in sorted((user / "tests" / "clean").glob("*.clean.wav"))[:n_clips]]
    for level in LEVELS_DBFS:
        row = Row(user.name, name, f"clean, {level:g} dBFS")
        yield clean_row(row, system, [at_level(clip, level) for clip in clean])
    noisy_files = sorted((user / "tests" / "noise").glob("*.noisy.wav"))[:n_clips]
    pairs = [(read(path), read(path.with_name(path.name.replace(".noisy.", ".clean.")))) for path in noisy_files]
    yield noisy_row(Row(user.name, name, "room"), system, [in_room(*pair, seed) for pair in pairs])
    yield noisy_row(Row(user.name, name, "telephone"), system, [(telephone(noisy), telephone(clean))
                                                                for noisy, clean in pairs])


def clean_row(row: Row, system: System, clips: list[np.ndarray]) -> Row:
    pairs = [(system.enhance(clip), clip) for clip in clips]
    losses_db, standing_out = (np.concatenate(found) for found in zip(*(lost_db(*pair) for pair in pairs), strict=True))
    of_speech_db = losses_db[standing_out]
    pesq = float(np.nanmean([pesq_wide_band(enhanced, clip) for enhanced, clip in pairs]))
    return Row(row.user, row.system, row.condition, pesq,
               len(losses_db), int((losses_db > LOWERED_DB).sum()), float(losses_db.max()),
               len(of_speech_db), int((of_speech_db > LOWERED_DB).sum()), float(max(of_speech_db, default=0.0)))


def noisy_row(row: Row, system: System, pairs: list[tuple[np.ndarray, np.ndarray]]) -> Row:
    gains = [extended_stoi(system.enhance(noisy), clean) - extended_stoi(noisy, clean) for noisy, clean in pairs]
    return Row(row.user, row.system, row.condition, estoi_gain=float(np.nanmean(gains)))


def lost_db(enhanced: np.ndarray, clean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """By how much each 100 ms of speech got quieter, in dB, and which of them stand out of the clip's own noise."""
    n = len(clean) // STRETCH * STRETCH
    power, left = (np.square(samples[:n], dtype=np.float64).reshape(-1, STRETCH).mean(1)
                   for samples in (clean, enhanced))
    speech = power > power.max() * 10 ** (-SPEECH_DB / 10)
    noise = np.quantile(power, FAINTEST_SHARE)
    return (10 * np.log10(power[speech] / (left[speech] + 1e-12 * power.max())),
            power[speech] > noise * 10 ** (ABOVE_NOISE_DB / 10))


def at_level(samples: np.ndarray, level_dbfs: float) -> np.ndarray:
    return (samples * 10 ** ((level_dbfs - dbfs(samples)) / 20)).astype(np.float32)


def in_room(noisy: np.ndarray, clean: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Both, with the speech in a room of fading noise; the other noise stays as it was."""
    time = np.arange(round(ROOM_SECONDS * RATE)) / RATE
    room = np.random.default_rng(seed).standard_normal(len(time)) * 10 ** (-3 * time / ROOM_SECONDS)
    room[: RATE // 200] = 0     # the first 5 ms are the direct sound's
    room *= 10 ** (-ROOM_DB / 20) / np.sqrt(np.square(room).sum())
    room[0] = 1
    n_fft = 1 << (len(clean) + len(room) - 1).bit_length()
    reverberant = np.fft.irfft(np.fft.rfft(clean, n_fft) * np.fft.rfft(room, n_fft), n_fft)[:len(clean)]
    return (noisy - clean + reverberant).astype(np.float32), reverberant.astype(np.float32)


def telephone(samples: np.ndarray) -> np.ndarray:
    there = resample(samples, RATE, TELEPHONE_RATE)
    return np.resize(resample(there, TELEPHONE_RATE, RATE), len(samples)).astype(np.float32)


def cells(rows: list[Row]) -> list[list[str]]:
    head = ["system"]
    for level in LEVELS_DBFS:
        head += [f"clean, {level:g} dBFS: PESQ", "lowered", "most"]
    head += ["room: ESTOI", "worse", "telephone: ESTOI", "worse"]
    return [head, *([system, *system_cells([row for row in rows if row.system == system])]
                    for system in dict.fromkeys(row.system for row in rows))]


def system_cells(rows: list[Row]) -> Iterator[str]:
    def of(condition: str, value: Callable[[Row], float | None]) -> np.ndarray:
        return np.array([value(row) for row in rows if row.condition == condition], float)

    for level in LEVELS_DBFS:
        condition = f"clean, {level:g} dBFS"
        pesq = of(condition, lambda row: row.pesq)
        n, n_lowered = (of(condition, value).sum() for value in (lambda r: r.n_stretches, lambda r: r.n_lowered))
        n_out, n_out_lowered = (of(condition, value).sum() for value in (
            lambda r: r.n_standing_out, lambda r: r.n_standing_out_lowered))
        most, most_out = (of(condition, value).max() for value in (
            lambda r: r.most_lowered_db, lambda r: r.most_standing_out_lowered_db))
        yield f"{pesq.mean():.3f} ({pesq.min():.2f})"
        yield f"{n_lowered / n:.1%} ({n_out_lowered / n_out:.1%})"
        yield f"{most:.1f} dB ({most_out:.1f} dB)"
    for condition in ("room", "telephone"):
        gain = of(condition, lambda row: row.estoi_gain)
        yield f"{gain.mean():+.3f} ({gain.min():+.3f})"
        yield f"{(gain < -0.0005).sum()} of {len(gain)}"


if __name__ == "__main__":
    main()
