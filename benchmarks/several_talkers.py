"""Are recordings of several talkers noticed, and those of one left alone?

    python benchmarks/several_talkers.py --users build/users

Each recording of each user (folders as for `benchmarks/personalization.py`; needs <user>/clean/NN.wav, the recordings'
speech without their noise) is judged as it is, with every second turn, 2 to 10 s, said by another user at the same
level, and with another user who talks all the time, as loud; each of these also with its noise as loud as its speech.
All recordings of a user are judged together as well, and together with one of another user. As in personalization, what
is heard is what the teacher takes for speech. Needs pse_sdk[train].
"""

import argparse
from dataclasses import asdict
from pathlib import Path

import numpy as np
from recordings_at_snrs import active_rms, at_snr
from user_scores import RATE, read, users_in

from pse_sdk.config import STFT
from pse_sdk.purification import FramePredictor
from pse_sdk.segments import Stretch
from pse_sdk.tables import environment, environment_line, format_table, write_results
from pse_sdk.talkers import FARTHEST_APART, MOST_OVERLAP, Pieces, SpeakerEmbedding, Talkers, pieces_of, talkers_in
from pse_sdk.training.teacher import Teacher

RESULTS = Path(__file__).resolve().parent / "results"
TURN_SECONDS = (2.0, 10.0)
LOUD_SNR_DB = 0.0
ALONE = "one talker"

NOTES = f"""\
Noticed: pieces of 3 s, parted in two groups, are more alike within the groups than across, by more than
{FARTHEST_APART:g} as a mean cosine; or the mean probability that two talk in a piece at once is above {MOST_OVERLAP:g}.
The limits were chosen on recordings like these.
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
    found = judged(users, np.random.default_rng(args.seed))
    rows = [["recordings", "number", "noticed", "apart, 5 %", "median", "95 %", "overlap, 5 %", "median", "95 %"]]
    rows += [[name, str(len(values)), str(sum(value.several for value in values)),
              *(f"{np.quantile([getattr(value, kind) for value in values], q):.2f}"
                for kind in ("apart", "overlap") for q in (0.05, 0.5, 0.95))] for name, values in found.items()]
    above = {**environment(), "seed": args.seed}
    page = f"# Several talkers\n\n{environment_line(above)}\n\n{format_table(rows)}\n\n{NOTES}"
    write_results(page, {"environment": above, "limits": [FARTHEST_APART, MOST_OVERLAP],
                         **{name: [asdict(value) for value in values] for name, values in found.items()}},
                  args.out.with_suffix(".md"), args.out.with_suffix(".json"))
    print(page)


def judged(users: list[list[tuple[np.ndarray, np.ndarray]]], rng: np.random.Generator) -> dict[str, list[Talkers]]:
    """What is heard in recordings of each kind, made of those of each user and their speech [T] without its noise."""
    embedding, predictor, teacher = SpeakerEmbedding(), FramePredictor(), Teacher()

    def pieces(samples: np.ndarray) -> Pieces:
        whole = samples[:len(samples) // STFT.hop_length * STFT.hop_length].astype(np.float32)
        return pieces_of(Stretch(whole, predictor.analyse(whole), teacher.estimate(whole)), embedding)

    heard: dict[str, list[list[Pieces]]] = {}       # by kind, user by user
    for i, recordings in enumerate(users):
        for k, (noisy, speech) in enumerate(recordings):
            other = users[(i + rng.integers(1, len(users))) % len(users)]
            second = as_loud(other[k % len(other)][1], speech)
            noise, louder = noisy - speech, at_snr(noisy, speech, LOUD_SNR_DB) - speech
            for name, talkers in ((ALONE, speech), ("two in turn", in_turns(speech, second, rng)),
                                  ("two at once", speech + second)):
                for words, mixture in ((name, talkers + noise), (f"{name}, {LOUD_SNR_DB:g} dB", talkers + louder)):
                    heard.setdefault(words, [[] for _ in users])[i].append(pieces(mixture))
    alone = heard[ALONE]
    return {**{words: [talkers_in([one]) for some in by_user for one in some] for words, by_user in heard.items()},
            "all of a user": [talkers_in(some) for some in alone],
            "all of a user but one, and one of another": [
                talkers_in([*some[:-1], other[-1]]) for some in alone for other in alone if some is not other]}


def as_loud(second: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The second's speech, as long and as loud as the first's [T]."""
    return np.resize(second * active_rms(first) / active_rms(second), len(first))


def in_turns(first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The first's speech [T] with every second turn from the second's."""
    mixed = first.copy()
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
