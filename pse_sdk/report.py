"""What personalization did, in numbers and in words."""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

Status = str
ACCEPTED, KEPT, INSUFFICIENT_DATA = "accepted", "kept", "insufficient_data"


@dataclass(frozen=True)
class Check:
    """One test of the guard: what was measured, against what, on held-out parts of the recordings."""

    name: str
    passed: bool
    value: float
    limit: float
    meaning: str


@dataclass(frozen=True)
class Report:
    """The verdict on a personalization and the figures behind it. It holds no audio and no file names."""

    status: Status
    """`accepted`: the specialist is in use. `kept`: the start model stays. `insufficient_data`: nothing was trained."""
    summary: str
    """The verdict in one or two sentences."""
    method: str = ""
    size: str = ""
    others: str = "keep"
    seconds_recorded: float = 0.0
    """Of noisy recordings that were looked at: of hours, minutes."""
    seconds_of_speech: float = 0.0
    """That can be used, in these and in clean ones."""
    seconds_of_clean: float = 0.0
    seconds_of_noise: float = 0.0
    """Harvested from the user's own pauses."""
    snr_db: float | None = None
    """Median SNR of the recordings' speech as the predictor hears it; None without speech."""
    n_steps: int = 0
    seconds_spent: float = 0.0
    """By this call."""
    seconds_training: float = 0.0
    """For all steps, those before a checkpoint included."""
    gain_db: float = 0.0
    """Mean SI-SDR gain over the start model on held-out mixtures of the user's own recordings."""
    mix: float = 0.0
    """How far the weights went from the start (0) to the trained specialist (1)."""
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()
    """What the recordings are like. They are numbered as they were given, those of a folder in the order of their
    names; of long ones, pieces are used."""
    advice: tuple[str, ...] = ()
    """What the user could do next."""

    @property
    def accepted(self) -> bool:
        return self.status == ACCEPTED

    def values(self) -> dict[str, Any]:
        """For JSON, where what is no number (of a model that broke) becomes null."""
        def finite(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: finite(one) for name, one in value.items()}
            if isinstance(value, (list, tuple)):
                return [finite(one) for one in value]
            return None if isinstance(value, float) and not math.isfinite(value) else value

        return {name: finite(value) for name, value in asdict(self).items()}

    def to_json(self) -> str:
        return json.dumps(self.values(), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Report":
        values: dict[str, Any] = json.loads(text)
        values["checks"] = tuple(Check(**{**check, "value": math.nan if check["value"] is None else check["value"]})
                                 for check in values["checks"])
        if values["gain_db"] is None:
            values["gain_db"] = math.nan
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **lists})

    def __str__(self) -> str:
        lines = [self.summary]
        lines += [f"  {'pass' if c.passed else 'FAIL'}  {c.meaning}: {c.value:.3g} (limit {c.limit:g})"
                  for c in self.checks]
        lines += [f"  note: {note}" for note in self.notes]
        lines += [f"  next: {advice}" for advice in self.advice]
        return "\n".join(lines)
