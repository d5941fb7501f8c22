"""Can the guard be trusted? Candidates whose worth is known, the verdict on each, and how often it was right.

    python benchmarks/guard.py --users build/users --size tiny

The users are folders as for `benchmarks/personalization.py`. Each user's recordings are parted as
`Enhancer.personalize` parts them, and the guard judges on its part two kinds of candidates:

    null    the start model with noise in its weights, and the specialists of all other users
    own     the user's own specialist after some numbers of steps, at several shares of the way from the start

What a candidate is really worth is measured on the user's test clips, which neither training nor guard ever saw:
SI-SDR gain over the start in the set `noise`. Trained weights stay in the work folder; started again, a run goes on
from there. Needs pse_sdk[train].
"""

import argparse
import copy
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from user_scores import digest_of_package, read

from pse_sdk.config import SIZES, STFT
from pse_sdk.tables import environment, environment_line, format_table, write_results
from pse_sdk.training.guard import Score, gains_db
from pse_sdk.training.job import Job, NoSpecialist
from pse_sdk.training.material import Material, prepare
from pse_sdk.training.network import Denoiser
from pse_sdk.training.specialist import (
    RETREATS,
    interpolate,
    judge_retreating,
    load_generalist,
    network_before_training,
    train,
)

RESULTS = Path(__file__).resolve().parent / "results"
STEPS = (120, 400, 1000)            # of the user's own candidates
SHARES = (0.4, 1.0, 1.5)            # of the way from the start; beyond 1 it goes too far
NOISES = (0.02, 0.05, 0.1, 0.2)     # of the null candidates, against the size of each tensor's weights
N_DRAWS = 3
REAL_GAIN_DB = 0.5                  # what counts as a real improvement
NO_GAIN_DB = 0.0

NOTES = f"""\
"Null" candidates are not made for the user, yet some of them are better than the start for him: another user's
specialist has learnt from noises that may be like his. So each line says how many of the accepted ones are worse than
the start in truth. The truth is the mean SI-SDR gain over the user's test clips of the set `noise`; the guard sees
other recordings, other SNRs and the teacher's estimates instead of references.

A refused candidate is heard again at {', '.join(f"{share:g}" for share in RETREATS)} of the way from the start, as in
`Enhancer.personalize`. Lines part candidates by what they are worth themselves; what is accepted, and what that gains,
is said of what would be used.

Aims: at most 5 % of the null candidates accepted; of the own ones with a true gain of {REAL_GAIN_DB} dB or more, at
least 80 %.
"""


@dataclass(frozen=True)
class Decision:
    """The guard's verdict on one candidate, and the truth."""

    user: str
    kind: str           # "weights with noise", "another user's", "own"
    candidate: str
    share: float        # of the way from the start to it that the guard let pass; 1 where it let none pass
    accepted: bool
    failed: tuple[str, ...]
    held_out_gain_db: float
    """Of what would be used: the share of the candidate."""
    true_gain_db: float
    true_gain_used_db: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=Path, required=True)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("build/guard"))
    parser.add_argument("--out", type=Path, default=RESULTS / "guard", help="of .md and .json")
    args = parser.parse_args()
    folders = sorted(path for path in args.users.iterdir() if (path / "tests" / "noise").is_dir())
    if len(folders) < 2:
        parser.error(f"{args.users}: at least two users are needed, with recordings and tests/noise")
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)

    above = {**environment(), "size": args.size, "seed": args.seed}
    start = load_generalist(args.size)
    prepared = {folder.name: found for folder in folders
                if (found := material_of(folder, args.size, args.seed)) is not None}
    trained = {name: specialists(name, job, material, start, args) for name, (job, material) in prepared.items()}
    decisions = []
    for folder in folders:
        if folder.name in prepared:
            for decision in decide(folder, prepared[folder.name][1], start, trained, args.seed):
                decisions.append(decision)
                print(decision, flush=True)

    page = (f"# The guard\n\n{environment_line(above)}\n\n{len(decisions)} decisions on {len(prepared)} users, size "
            f"{args.size}\n\n{format_table(summary(decisions))}\n\n{format_table(by_check(decisions))}\n\n{NOTES}")
    write_results(page, {"environment": above, "decisions": [asdict(decision) for decision in decisions]},
                  args.out.with_suffix(".md"), args.out.with_suffix(".json"))
    print(f"\n{page}")


def material_of(folder: Path, size: str, seed: int) -> tuple[Job, Material] | None:
    recordings = [read(path) for path in sorted((folder / "recordings").glob("*.wav"))]
    job = Job(recordings, size=size, deadline=inf, budget_seconds=inf, seed=seed)
    try:
        return job, prepare(job, {})
    except NoSpecialist as reason:
        print(f"{folder.name}: left out, {reason}")
        return None


def specialists(user: str, job: Job, material: Material, start: Denoiser, args: argparse.Namespace
                ) -> dict[int, Denoiser]:
    """The user's own, by number of steps."""
    found, package = {}, digest_of_package(args.size)
    for steps in STEPS:
        path = args.work / f"{user}-{args.size}-{package}-{steps}-{args.seed}.safetensors"
        network = copy.deepcopy(start)
        if path.exists():
            network.load_state_dict(load_file(path))
        else:
            began = time.monotonic()
            torch.manual_seed(args.seed)
            first = network_before_training(job, material, start)
            untouched = replace(material, mixtures=copy.deepcopy(material.mixtures))
            score = Score(start, material.validation)
            network = train(replace(job, steps=steps), untouched, score, first, {}).network
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            save_file(network.state_dict(), partial)
            partial.replace(path)
            print(f"{user}: {steps} steps in {time.monotonic() - began:.0f} s", flush=True)
        found[steps] = network.eval()
    return found


def decide(folder: Path, material: Material, start: Denoiser, trained: dict[str, dict[int, Denoiser]],
           seed: int) -> Iterator[Decision]:
    clips = test_clips(folder)
    for kind, name, candidate in candidates(folder.name, start, trained, seed):
        judged = judge_retreating(candidate, start, material.guard, seed)
        failed = tuple(check.name for check in judged.checks if not check.passed)
        truth = true_gain_db(candidate, start, clips)
        used = truth if judged.share == 1 else true_gain_db(judged.network, start, clips)
        yield Decision(folder.name, kind, name, judged.share, judged.accepted, failed, round(judged.gain_db, 3),
                       round(truth, 3), round(used, 3))


def true_gain_db(network: Denoiser, start: Denoiser, clips: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    return float(torch.cat([gains_db(network, start, noisy, clean) for noisy, clean in clips]).mean())


def candidates(user: str, start: Denoiser, trained: dict[str, dict[int, Denoiser]],
               seed: int) -> Iterator[tuple[str, str, Denoiser]]:
    """Kind, description and network of each."""
    generator = torch.Generator().manual_seed(seed)
    for size in NOISES:
        for draw in range(N_DRAWS):
            network = copy.deepcopy(start)
            with torch.no_grad():
                for value in network.parameters():
                    value += size * value.std(correction=0) * torch.randn(value.shape, generator=generator)
            yield "weights with noise", f"{size}, {draw}", network
    for other, networks in trained.items():
        if other != user:
            yield "another user's", other, networks[STEPS[-1]]
    for steps, network in trained[user].items():
        for share in SHARES:
            yield "own", f"{steps} steps, {share}", interpolate(start, network, share)


def test_clips(folder: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Noisy and clean [1, T], in whole hops."""
    def whole(path: Path) -> torch.Tensor:
        samples = read(path)
        return torch.from_numpy(np.pad(samples, (0, -len(samples) % STFT.hop_length)))[None]

    return [(whole(path), whole(path.with_name(path.name.replace(".noisy.", ".clean."))))
            for path in sorted((folder / "tests" / "noise").glob("*.noisy.wav"))]


def summary(decisions: list[Decision]) -> list[list[str]]:
    """Rows of cells: a line for each kind of candidate, the own ones by what they are worth."""
    def line(name: str, chosen: list[Decision]) -> list[str]:
        accepted = [decision for decision in chosen if decision.accepted]
        worse = sum(decision.true_gain_used_db < NO_GAIN_DB for decision in accepted)
        share = f"{len(accepted) / len(chosen):.0%}" if chosen else "-"
        gain = f"{np.mean([d.true_gain_used_db for d in accepted]):+.2f}" if accepted else "-"
        return [name, str(len(chosen)), str(len(accepted)), share, str(worse), gain]

    def kind(name: str, low: float = -np.inf, high: float = np.inf) -> list[Decision]:
        return [d for d in decisions if d.kind == name and low <= d.true_gain_db < high]

    nulls = kind("weights with noise") + kind("another user's")
    return [["candidates", "decisions", "accepted", "share", "of these worse in truth", "their true gain, mean dB"],
            line("null: the start with noise in its weights", kind("weights with noise")),
            line("null: another user's specialist", kind("another user's")),
            line("null, all that are no better than the start", [d for d in nulls if d.true_gain_db <= NO_GAIN_DB]),
            line("own, no gain", kind("own", high=NO_GAIN_DB)),
            line(f"own, up to {REAL_GAIN_DB} dB", kind("own", NO_GAIN_DB, REAL_GAIN_DB)),
            line(f"own, {REAL_GAIN_DB} dB and more", kind("own", REAL_GAIN_DB)),
            line("all", decisions)]


def by_check(decisions: list[Decision]) -> list[list[str]]:
    """Rows of cells: what each check refused, and what of that was refused by no other."""
    def counts(name: str, chosen: list[Decision]) -> list[str]:
        return [str(sum(name in d.failed for d in chosen)), str(sum(d.failed == (name,) for d in chosen))]

    names = dict.fromkeys(name for decision in decisions for name in decision.failed)
    good = [d for d in decisions if d.true_gain_db >= REAL_GAIN_DB]
    return [["check", "refused", "alone", f"refused of {len(good)} with a true gain of {REAL_GAIN_DB} dB", "alone"],
            *([name, *counts(name, decisions), *counts(name, good)] for name in names)]


if __name__ == "__main__":
    main()
