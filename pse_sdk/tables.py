"""What benchmarks print and keep: a Markdown table, and above it the machine, the versions and the day."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from . import __version__


def format_table(cells: Sequence[Sequence[str]]) -> str:
    """Markdown of rows of cells, the head first; the first column to the left, the others to the right.

    >>> print(format_table([["model", "dB"], ["tiny", "4.1"]]))
    | model | dB |
    |---|---:|
    | tiny | 4.1 |
    """
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|---" + "|---:" * (len(cells[0]) - 1) + "|", *lines[1:]])


def environment() -> dict[str, Any]:
    """The machine, the versions and the day, without names or paths."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": onnxruntime.__version__,
        "pse_sdk": __version__,
        "date": date.today().isoformat(),
    }


def environment_line(values: Mapping[str, Any]) -> str:
    """`environment()`, and what a program adds to it, as one line above a table."""
    load = values.get("load_average")
    parts = [f"{values['cpu']}, {values['cores']} cores", values["system"]]
    parts += [f"load average {' '.join(map(str, load))}"] if load else []
    parts += [f"{key} {value}" for key, value in values.items()
              if key not in {"cpu", "cores", "system", "load_average", "date"}]
    return "; ".join([*parts, values["date"]])


def write_results(page: str, values: object, markdown: Path, figures: Path) -> None:
    """The page as Markdown and its figures as JSON, below folders that need not be there yet."""
    for path, text in [(markdown, page), (figures, json.dumps(values, indent=1) + "\n")]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
