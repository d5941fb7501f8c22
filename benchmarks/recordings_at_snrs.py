"""The same recordings, noisier or cleaner, for `benchmarks/study.py`.

    python benchmarks/recordings_at_snrs.py --users build/users --snrs 0 5 10 20

takes the noise of every recording (<user>/recordings/NN.wav less the same speech without noise, <user>/clean/NN.wav)
and adds it to the speech again, at each of the given SNRs in dB (of the RMS of the speech's active frames to that of
the noise), at the level of the recording: <user>/recordings-5dB/NN.wav and so on.
"""

import argparse
from pathlib import Path

import numpy as np
import soundfile
from user_scores import RATE, read, users_in

LOUDEST = 0.99


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=Path, required=True, help="folder of users")
    parser.add_argument("--only", nargs="+", help="names of users, else all")
    parser.add_argument("--snrs", nargs="+", type=float, required=True, help="in dB, -30 to 60")
    args = parser.parse_args()
    users = users_in(args.users, args.only)
    if not users or not all(-30 <= snr_db <= 60 for snr_db in args.snrs):
        parser.error("expected SNRs of -30 to 60 dB" if users else f"no such users in {args.users}")
    for user in users:
        pairs = [(path, user / "clean" / path.name) for path in sorted((user / "recordings").glob("*.wav"))]
        if not pairs or not all(clean.exists() for _, clean in pairs):
            print(f"{user.name}: left out, no clean/NN.wav for each recordings/NN.wav")
            continue
        for snr_db in args.snrs:
            folder = user / f"recordings-{snr_db:g}dB"
            folder.mkdir(exist_ok=True)
            for path, clean in pairs:
                soundfile.write(folder / path.name, at_snr(read(path), read(clean), snr_db), RATE, subtype="FLOAT")


def at_snr(noisy: np.ndarray, speech: np.ndarray, snr_db: float) -> np.ndarray:
    """Speech [T] and what `noisy` [T] adds to it, at that SNR and as loud as `noisy`, if that does not clip."""
    noise = noisy - speech
    mixture = speech + noise * (active_rms(speech) / _rms(noise) * 10 ** (-snr_db / 20))
    gain = min(_rms(noisy) / _rms(mixture), LOUDEST / float(np.abs(mixture).max() + 1e-12))
    return (mixture * gain).astype(np.float32)


def active_rms(speech: np.ndarray) -> float:
    """Over the frames of 25 ms within 30 dB of the loudest."""
    power = np.square(speech[:len(speech) // 400 * 400]).reshape(-1, 400).mean(1)
    return float(np.sqrt(power[power > power.max() * 1e-3].mean() + 1e-12))


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples)) + 1e-12))


if __name__ == "__main__":
    main()
