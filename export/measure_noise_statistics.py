"""Measure real noises for `pse_sdk.noise`, and say how far the generated ones are from them.

    python export/measure_noise_statistics.py --data noises --output pse_sdk/noise_statistics.json
    python export/measure_noise_statistics.py --data noises --compare 400

`--data` is a folder of recordings at 16 kHz, searched through. The recordings of one folder are a class, and every
class counts the same.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
import soundfile  # type: ignore[import-untyped]

from pse_sdk.config import STFT
from pse_sdk.errors import SettingsError
from pse_sdk.noise import foreign_noise
from pse_sdk.noise_statistics import BandStatistics, band_statistics

SWINGS = ("slow_shared_db", "slow_own_db", "fast_shared_db", "fast_own_db")
EXCERPT_SECONDS = 10.0
N_COMPONENTS = 5
RANKS = np.linspace(0, 1, 11)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of noises")
    parser.add_argument("--output", type=Path, help="JSON file to write; without it the numbers are printed")
    parser.add_argument("--compare", type=int, metavar="N", help="compare with N generated noises; write nothing")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    real, weights = measure(arguments.data)
    if arguments.compare:
        print(comparison(real, weights, generate(arguments.compare, arguments.seed)))
        return
    text = to_json(summary(real, weights))
    if arguments.output:
        arguments.output.write_text(text, "utf-8")
    else:
        print(text)


def measure(folder: Path) -> tuple[list[BandStatistics], np.ndarray]:
    """Statistics of all excerpts, and the weight of each; the weights of a class add up to the same."""
    statistics, classes = [], []
    for path in sorted(p for p in folder.rglob("*") if p.suffix[1:].upper() in soundfile.available_formats()
                       or p.suffix == ".opus"):
        samples, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
        if sample_rate != STFT.sample_rate:
            raise SystemExit(f"{path} has {sample_rate} Hz, expected {STFT.sample_rate}; convert it first")
        n_excerpts = max(1, round(len(samples) / sample_rate / EXCERPT_SECONDS))
        for excerpt in np.array_split(samples.mean(axis=1), n_excerpts):
            try:
                statistics.append(band_statistics(excerpt))
            except SettingsError:       # too short, or silent
                continue
            classes.append(path.parent)
    if not statistics:
        raise SystemExit(f"no recordings of 2 s or more in {folder}")
    sizes = Counter(classes)
    weights = np.array([1 / sizes[name] for name in classes])
    return statistics, weights / weights.sum()


def summary(real: list[BandStatistics], weights: np.ndarray) -> dict[str, list[float] | list[list[float]] | float]:
    spectra = np.stack([statistics.spectrum_db for statistics in real])
    mean = weights @ spectra
    deviations = spectra - mean
    variances, directions = np.linalg.eigh((deviations * weights[:, None]).T @ deviations)
    components = directions[:, ::-1].T[:N_COMPONENTS] * np.sqrt(variances[::-1][:N_COMPONENTS, None])
    rng = np.random.default_rng(0)
    white = band_statistics(rng.standard_normal(60 * STFT.sample_rate))
    return {
        "mean_db": rounded(mean),
        "components_db": [rounded(component) for component in components],
        "residual_db": round(float(np.sqrt(variances[:-N_COMPONENTS].sum() / len(mean))), 2),
        **{name: rounded(quantiles(np.sqrt(np.maximum(0, values(real, name)**2 - getattr(white, name)**2)), weights))
           for name in SWINGS},
    }


def generate(n: int, seed: int) -> list[BandStatistics]:
    rng = np.random.default_rng(seed)
    return [band_statistics(foreign_noise(EXCERPT_SECONDS, rng)) for _ in range(n)]


def comparison(real: list[BandStatistics], weights: np.ndarray, made: list[BandStatistics]) -> str:
    """A Markdown table: distance of the mean and of the deviation of spectra, and quantiles of the swings."""
    even = np.full(len(made), 1 / len(made))
    spectra = [np.stack([s.spectrum_db for s in group]) for group in (real, made)]
    means = [w @ s for w, s in zip((weights, even), spectra, strict=True)]
    deviations = [np.sqrt(w @ (s - m)**2) for w, s, m in zip((weights, even), spectra, means, strict=True)]
    lines = [f"mean spectrum: {rms(means[1] - means[0]):.1f} dB apart (RMS over bands)",
             f"its deviation: {rms(deviations[1] - deviations[0]):.1f} dB apart", "",
             "| swing | real 10, 50, 90 % | generated 10, 50, 90 % | mean distance of quantiles |", "|---|---|---|---|"]
    for name in SWINGS:
        pair = [quantiles(values(group, name), w, np.linspace(0.01, 0.99, 99))
                for group, w in ((real, weights), (made, even))]
        shown = [", ".join(f"{q[i]:.1f}" for i in (9, 49, 89)) for q in pair]
        lines.append(f"| {name} | {shown[0]} | {shown[1]} | {np.abs(pair[0] - pair[1]).mean():.2f} dB |")
    return "\n".join(lines)


def values(statistics: list[BandStatistics], name: str) -> np.ndarray:
    return np.array([getattr(s, name) for s in statistics])


def quantiles(numbers: np.ndarray, weights: np.ndarray, ranks: np.ndarray = RANKS) -> np.ndarray:
    order = np.argsort(numbers)
    return np.asarray(np.interp(ranks, np.cumsum(weights[order]) - weights[order] / 2, numbers[order]))


def rms(differences: np.ndarray) -> float:
    return float(np.sqrt(np.mean(differences**2)))


def rounded(numbers: np.ndarray) -> list[float]:
    return [round(float(number), 2) for number in numbers]


def to_json(numbers: dict[str, list[float] | list[list[float]] | float]) -> str:
    """One line an entry, so that a change is readable."""
    return "{\n" + ",\n".join(f'  "{name}": {json.dumps(value)}' for name, value in numbers.items()) + "\n}\n"


if __name__ == "__main__":
    main()
