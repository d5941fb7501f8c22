"""Are recordings of several talkers noticed, and those of one left alone?

    python benchmarks/several_talkers.py --users build/users

For each recording of each user (folders as for `benchmarks/personalization.py`; needs <user>/clean/NN.wav, the
recordings' speech without their noise) three are judged: as it is; with its noise as loud as its speech; and with every
second turn, 2 to 10 s, said by another user at the same level, in the same noise. Needs pse_sdk[train].
"""

import argparse
from pathlib import Path

import numpy as np
from recordings_at_snrs import active_rms, at_snr
from user_scores import RATE, read, users_in

from pse_sdk.config import STFT
from pse_sdk.purification import FramePredictor
from pse_sdk.segments import Stretch
from pse_sdk.tables import environment, environment_line, format_table, write_results
from pse_sdk.talkers import FARTHEST_APART, SpeakerEmbedding, voices_apart

RESULTS = Path(__file__).resolve().parent / "results"
TURN_SECONDS = (2.0, 10.0)
ONE, NOISY, TWO = "one talker", "one talker, 0 dB", "two in turn"

NOTES = f"""\
Noticed: pieces of 3 s, parted in two groups, are more alike within the groups than across, by more than
{FARTHEST_APART:g} as a mean cosine. The limit was chosen on these recordings and on those of 14 readers who were kept
for validation.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "several_talkers", help="of .md and .json")
    args = parser.parse_args()
    users = [[(read(path), read(user / "clean" / path.name)) for path in sorted((user / "recordings").glob("*.wav"))]
             for user in users_in(args.users, None) if (user / "clean").is_dir()]
    if len(users) < 2:
        parser.exit(2, f"{args.users}: expected two users or more with recordings/ and clean/\n")
    rng = np.random.default_rng(args.seed)
    embedding, predictor = SpeakerEmbedding(), FramePredictor()

    def apart(samples: np.ndarray) -> float:
        whole = samples[:len(samples) // STFT.hop_length * STFT.hop_length].astype(np.float32)
        return voices_apart(Stretch(whole, predictor.analyse(whole)), embedding)

    found: dict[str, list[float]] = {ONE: [], NOISY: [], TWO: []}
    for i, recordings in enumerate(users):
        for k, (noisy, speech) in enumerate(recordings):
            other = users[(i + rng.integers(1, len(users))) % len(users)]
            both = in_turns(speech, other[k % len(other)][1], rng)
            found[ONE].append(apart(noisy))
            found[NOISY].append(apart(at_snr(noisy, speech, 0.0)))
            found[TWO].append(apart(both + noisy - speech))
    rows = [["recordings", "number", "noticed", "apart, 5 %", "median", "95 %"]]
    rows += [[name, str(len(values)), str(sum(value > FARTHEST_APART for value in values)),
              *(f"{np.quantile(values, q):.2f}" for q in (0.05, 0.5, 0.95))] for name, values in found.items()]
    above = {**environment(), "seed": args.seed}
    page = f"# Several talkers\n\n{environment_line(above)}\n\n{format_table(rows)}\n\n{NOTES}"
    write_results(page, {"environment": above, "limit": FARTHEST_APART, "apart": found},
                  args.out.with_suffix(".md"), args.out.with_suffix(".json"))
    print(page)


def in_turns(first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Speech [T] with every second turn from the other's, as loud."""
    mixed = first.copy()
    second = np.resize(second * active_rms(first) / active_rms(second), len(first))
    start = 0
    for turn in range(len(first)):
        stop = start + int(rng.uniform(*TURN_SECONDS) * RATE)
        if turn % 2:
            mixed[start:stop] = second[start:stop]
        if stop >= len(first):
            break
        start = stop
    return mixed


if __name__ == "__main__":
    main()
