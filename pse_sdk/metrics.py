"""How good enhanced speech is, measured against the clean speech inside the noisy recording.

SI-SDR is a formula and needs numpy only. PESQ and ESTOI, which model the ear and the understanding, come with
`pip install 'pse_sdk[bench]'`. Everything here takes 16 kHz mono samples [T]; estimates come before targets.
"""

import importlib
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from .config import STFT
from .errors import AudioError, MissingDependencyError

SI_SDR_LIMIT_DB = 100.0     # stands for infinity, so that one perfect clip does not swallow a mean


def si_sdr(estimate: np.ndarray, target: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB: energy along the target over energy of all the rest.

    The means are removed first. The result is within +-`SI_SDR_LIMIT_DB`: the upper end for an estimate that is the
    target up to scale, the lower end for a silent one. NaN where the target is silent: there is nothing to be like.

    Source: Le Roux et al., ICASSP 2019, eq. 3-5.

    Raises:
        AudioError: the two are not mono, not of one length, or empty.

    >>> si_sdr(np.array([3.0, -3.0, 1.0, -1.0]), np.array([1.0, -1.0, 0.0, 0.0]))   # energies 18 and 2
    9.542425094393248
    """
    estimate, target = _pair(estimate, target)
    if _is_silent(target):
        return float("nan")
    if _is_silent(estimate):
        return -SI_SDR_LIMIT_DB
    estimate = estimate - estimate.mean()
    target = target - target.mean()
    along_target = (estimate @ target) / (target @ target) * target
    rest = estimate - along_target
    with np.errstate(divide="ignore"):
        ratio_db = 10 * np.log10(along_target @ along_target) - 10 * np.log10(rest @ rest)
    return float(np.clip(ratio_db, -SI_SDR_LIMIT_DB, SI_SDR_LIMIT_DB))


def si_sdr_improvement(estimate: np.ndarray, noisy: np.ndarray, target: np.ndarray) -> float:
    """By how many dB the estimate's SI-SDR exceeds that of the noisy input."""
    return si_sdr(estimate, target) - si_sdr(noisy, target)


def pesq_wide_band(estimate: np.ndarray, target: np.ndarray) -> float:
    """Predicted quality, from 1 (bad; also for a silent estimate) to 4.64 (as the target).

    NaN where PESQ finds no utterance in the target, or less than a quarter of a second.

    Source: ITU-T P.862.2.

    Raises:
        AudioError: the two are not mono, not of one length, or empty.
        MissingDependencyError: the package `pesq` is not installed.
    """
    pesq = _package("pesq", "PESQ")
    estimate, target = _pair(estimate, target)
    if _is_silent(target):
        return float("nan")
    if _is_silent(estimate):    # pesq fails here; left out of a mean, silence would flatter a model
        return 1.0
    try:
        return float(pesq.pesq(STFT.sample_rate, target, estimate, "wb"))
    except pesq.PesqError:
        return float("nan")


def extended_stoi(estimate: np.ndarray, target: np.ndarray) -> float:
    """Predicted intelligibility, up to 1 (as the target). NaN with less than 0.4 s of speech in the target.

    Source: Jensen and Taal, IEEE/ACM TASLP 24(11), 2016.

    Raises:
        AudioError: the two are not mono, not of one length, or empty.
        MissingDependencyError: the package `pystoi` is not installed.
    """
    pystoi = _package("pystoi", "ESTOI")
    estimate, target = _pair(estimate, target)
    if _is_silent(target) or len(target) < STFT.sample_rate // 10:      # pystoi fails on less than a few frames
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(pystoi.stoi(target, estimate, STFT.sample_rate, extended=True))
        except RuntimeWarning:  # pystoi's way to say that too few frames hold speech
            return float("nan")


@dataclass(frozen=True)
class Scores:
    """What enhancement did to one clip, or the mean over several."""

    si_sdr_improvement: float
    """In dB over the noisy input."""
    pesq: float
    estoi: float


def score(estimate: np.ndarray, noisy: np.ndarray, target: np.ndarray) -> Scores:
    """All three measures of one enhanced clip. Raises as they do."""
    return Scores(si_sdr_improvement(estimate, noisy, target), pesq_wide_band(estimate, target),
                  extended_stoi(estimate, target))


def _pair(estimate: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64, since float32 sums lose the last tens of dB."""
    estimate, target = np.asarray(estimate, np.float64), np.asarray(target, np.float64)
    if estimate.shape != target.shape or estimate.ndim != 1 or not len(target):
        raise AudioError(f"expected two mono clips [T] of one length, got shapes {estimate.shape} and {target.shape}; "
                         "cut them to the same samples first")
    return estimate, target


def _is_silent(samples: np.ndarray) -> bool:
    return bool(np.all(samples == samples[0]))


def _package(name: str, measure: str) -> Any:
    """The module of an optional package."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"{measure} needs the package {error.name}: pip install 'pse_sdk[bench]'"
                                     ) from error
