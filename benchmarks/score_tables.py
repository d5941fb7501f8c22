"""From the scores of clips to a page: means over a user's clips, over users with intervals, and who got worse.

Means hide people, so whatever is compared says how many users it made worse, and names the worst.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan, sqrt
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from pse_sdk.tables import format_table

Clip = Mapping[str, float]
UserMeans = dict[str, float]
"""Name of a user -> mean over this user's clips."""

CLEAN_SET = "clean"
DECIMALS = {"si_sdr_improvement": 2, "si_sdr": 2, "pesq": 3, "estoi": 3}
TITLES = {"si_sdr_improvement": "SI-SDRi dB", "si_sdr": "SI-SDR dB", "pesq": "PESQ", "estoi": "ESTOI"}


def metrics_of(set_name: str) -> tuple[str, str, str]:
    """What is reported of a set: nothing can be improved in the clean one, so there it is closeness to the input."""
    return ("si_sdr" if set_name == CLEAN_SET else "si_sdr_improvement", "pesq", "estoi")


@dataclass(frozen=True)
class Result:
    """One system on one user: the scores of every clip, and for a specialist how it was made."""

    user: str
    system: str
    sets: dict[str, list[dict[str, Any]]]
    """Name of a set -> its clips, each with the metrics by name."""
    n_parameters: int = 0
    digest: str = ""
    """Of the model file, where all users share it."""
    start: str = ""
    """The generalist that training started from, for specialists."""
    status: str = ""
    """`accepted`, `kept`, `insufficient_data` or `failed`; in the last three the start model was scored."""
    note: str = ""
    seconds: float = 0.0
    n_steps: int = 0
    held_out_gain_db: float = nan
    """What the user is told: the gain on held-out parts of the recordings."""


@dataclass(frozen=True)
class Mean:
    """Over users, with half the width of its 95 % interval (Student's t; NaN for a single user)."""

    value: float
    half_width: float
    n: int

    @classmethod
    def over(cls, values: Iterable[float]) -> "Mean":
        """NaN values are left out."""
        known = [value for value in values if not isnan(value)]
        if not known:
            return cls(nan, nan, 0)
        if len(known) == 1:
            return cls(known[0], nan, 1)
        spread = float(np.std(known, ddof=1)) / sqrt(len(known))
        return cls(float(np.mean(known)), float(student_t.ppf(0.975, len(known) - 1)) * spread, len(known))


@dataclass(frozen=True)
class Gain:
    """Of one system over another, user by user."""

    mean: Mean
    n_worse: int
    worst_user: str
    worst: float

    @classmethod
    def between(cls, values: UserMeans, reference: UserMeans) -> "Gain":
        """Users that both have. `worst` is the smallest difference, which may be a gain."""
        difference = {user: value - reference[user] for user, value in values.items() if user in reference}
        difference = {user: value for user, value in difference.items() if not isnan(value)}
        if not difference:
            return cls(Mean.over([]), 0, "", nan)
        worst = min(difference, key=lambda user: difference[user])
        return cls(Mean.over(difference.values()), sum(value < 0 for value in difference.values()), worst,
                   difference[worst])


def user_means(results: Sequence[Result], system: str, set_name: str, metric: str) -> UserMeans:
    """Means over clips, without those that have no such score (NaN)."""
    return {result.user: mean_over_clips(result.sets[set_name], metric)
            for result in results if result.system == system and set_name in result.sets}


def mean_over_clips(clips: Sequence[Clip], metric: str) -> float:
    known = [clip[metric] for clip in clips if not isnan(clip[metric])]
    return float(np.mean(known)) if known else nan


def summary(results: Sequence[Result]) -> dict[str, dict[str, dict[str, Mean]]]:
    """Set -> system -> metric -> mean over users."""
    return {set_name: {system: {metric: Mean.over(user_means(results, system, set_name, metric).values())
                                for metric in metrics_of(set_name)}
                       for system in systems_of(results)}
            for set_name in sets_of(results)}


def gains(results: Sequence[Result]) -> dict[str, dict[str, dict[str, Gain]]]:
    """Set -> specialist -> metric -> gain over the generalist that its training started from."""
    starts = {result.system: result.start for result in results if result.start}
    return {set_name: {system: {metric: Gain.between(user_means(results, system, set_name, metric),
                                                     user_means(results, start, set_name, metric))
                                for metric in metrics_of(set_name)}
                       for system, start in starts.items()}
            for set_name in sets_of(results)}


def systems_of(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(result.system for result in results))


def sets_of(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result.sets))


# Markdown.


def summary_page(results: Sequence[Result]) -> str:
    """What happened on average, to how many it did harm, and how the specialists were judged."""
    parts = []
    for set_name, systems in summary(results).items():
        metrics = metrics_of(set_name)
        cells = [["system", "parameters", *(TITLES[metric] for metric in metrics), "users"]]
        for system, means in systems.items():
            cells.append([system, _parameters(results, system), *(_mean(means[metric], metric) for metric in metrics),
                          str(max(mean.n for mean in means.values()))])
        parts.append(f"## {set_name}\n\n{format_table(cells)}")
    if any(result.start for result in results):
        parts.append(f"## Gain over the generalist that training started from\n\n{format_table(gain_cells(results))}")
        parts.append(f"## Verdicts\n\n{format_table(_verdicts(results))}")
    return "\n\n".join(parts)


def gain_cells(results: Sequence[Result]) -> list[list[str]]:
    """Every specialist in every set: by how much it is better, and for how many worse."""
    by_set = gains(results)
    cells = [["specialist", "set", *(title for metric in ("SI-SDR dB", "PESQ", "ESTOI")
                                     for title in (metric, "worse", "worst user"))]]
    for system in systems_of(results):
        for set_name, systems_gains in by_set.items():
            if system in systems_gains:
                cells.append([system, set_name, *(text for metric, gain in systems_gains[system].items()
                                                  for text in _gain(gain, metric))])
    return cells


def users_page(results: Sequence[Result]) -> str:
    """Every user: how each specialist came out, then the scores of every system."""
    parts = []
    for system in systems_of(results):
        if any(result.start for result in results if result.system == system):
            parts.append(f"## Users: {system}, gain over its start\n\n{format_table(_user_gains(results, system))}")
    for set_name in sets_of(results):
        metrics = metrics_of(set_name)
        users = list(dict.fromkeys(result.user for result in results if set_name in result.sets))
        values = {system: [user_means(results, system, set_name, metric) for metric in metrics]
                  for system in systems_of(results)}
        cells = [["user", *values]]
        cells += [[user, *(" / ".join(_number(by_user.get(user, nan), metric)
                                      for by_user, metric in zip(columns, metrics, strict=True))
                           for columns in values.values())] for user in users]
        parts.append(f"## Users: {set_name} ({' / '.join(TITLES[metric] for metric in metrics)})\n\n"
                     f"{format_table(cells)}")
    return "\n\n".join(parts)


def snr_page(results: Sequence[Result]) -> str:
    """Every system by the SNR of the test clips, in the sets that tell it: means over the clips of all users."""
    parts = []
    for set_name in sets_of(results):
        clips = {system: [clip for result in results if result.system == system
                          for clip in result.sets.get(set_name, ()) if not isnan(clip.get("snr_db", nan))]
                 for system in systems_of(results)}
        snrs_db = sorted({clip["snr_db"] for some in clips.values() for clip in some})
        if not snrs_db:
            continue
        metrics = metrics_of(set_name)
        cells = [["system", *(f"{snr_db:g} dB" for snr_db in snrs_db)]]
        for system, some in clips.items():
            at = [[clip for clip in some if clip["snr_db"] == snr_db] for snr_db in snrs_db]
            cells.append([system, *(" / ".join(_number(mean_over_clips(found, metric), metric) for metric in metrics)
                                    for found in at)])
        parts.append(f"## By SNR: {set_name} ({' / '.join(TITLES[metric] for metric in metrics)})\n\n"
                     f"{format_table(cells)}")
    return "\n\n".join(parts)


def _user_gains(results: Sequence[Result], system: str) -> list[list[str]]:
    own = [result for result in results if result.system == system]
    columns = [(set_name, metric, user_means(results, system, set_name, metric),
                user_means(results, own[0].start, set_name, metric))
               for set_name in sets_of(own) for metric in metrics_of(set_name)]
    cells = [["user", "verdict", "seconds", "steps", "held-out gain dB",
              *(f"{set_name} {TITLES[metric].removesuffix(' dB').removesuffix('i')}"
                for set_name, metric, _, _ in columns)]]
    for result in own:
        row = [result.user, result.status, f"{result.seconds:.0f}", str(result.n_steps),
               _number(result.held_out_gain_db, "si_sdr", signed=True)]
        for _, metric, values, reference in columns:
            gain = values.get(result.user, nan) - reference.get(result.user, nan)
            text = _number(gain, metric, signed=True)
            row.append(f"**{text}**" if gain < 0 else text)
        cells.append(row)
    return cells


def _verdicts(results: Sequence[Result]) -> list[list[str]]:
    statuses = ["accepted", "kept", "insufficient_data", "failed"]
    cells = [["specialist", *statuses, "seconds, mean", "longest", "steps, mean"]]
    for system in systems_of(results):
        own = [result for result in results if result.system == system and result.start]
        if own:
            seconds = [result.seconds for result in own]
            cells.append([system, *(str(sum(result.status == status for result in own)) for status in statuses),
                          f"{np.mean(seconds):.0f}", f"{max(seconds):.0f}",
                          f"{np.mean([result.n_steps for result in own]):.0f}"])
    return cells


def _parameters(results: Sequence[Result], system: str) -> str:
    n_parameters = max(result.n_parameters for result in results if result.system == system)
    return f"{n_parameters:,}" if n_parameters else "-"


def _number(value: float, metric: str, signed: bool = False) -> str:
    return "-" if isnan(value) else f"{value:{'+' if signed else ''}.{DECIMALS[metric]}f}"


def _mean(mean: Mean, metric: str, signed: bool = False) -> str:
    width = "" if isnan(mean.half_width) else f" ± {_number(mean.half_width, metric)}"
    return _number(mean.value, metric, signed) + width


def _gain(gain: Gain, metric: str) -> tuple[str, str, str]:
    return (_mean(gain.mean, metric, signed=True), f"{gain.n_worse} of {gain.mean.n}",
            f"{gain.worst_user} {_number(gain.worst, metric, signed=True)}")
