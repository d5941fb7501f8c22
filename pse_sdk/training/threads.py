"""How many threads make a step quickest: found by trying, for it depends on what else the machine does meanwhile.

The threads of a step wait for each other. With two of them on two cores a step takes three quarters of the time of one,
and beside another busy program almost four times as long.
"""

from collections import deque
from statistics import median

import torch

N_REMEMBERED, N_TRIED = 8, 4    # steps
QUICKER = 0.9                   # than before, by so much at least, or nothing changes
HOPELESS, SLOWED = 2.0, 1.5     # times as long as before: a trial ends; it is time for one
FIRST_TRIAL, LAST_TRIAL = 8, 320    # steps after the one before: twice as many each time that nothing changed


class QuickestThreads:
    """Told how long each step took, it sets torch's number of threads for the next one: half of what it was or twice as
    many are tried now and then, at once where steps have slowed down.

    Args:
        most: never more than these.
    """

    def __init__(self, most: int) -> None:
        self._most, self._chosen = most, torch.get_num_threads()
        self._took: deque[float] = deque(maxlen=N_REMEMBERED)     # seconds of the last steps with those chosen
        self._usual = float("inf")      # seconds of a step, when it was last chosen
        self._wait = self._left = FIRST_TRIAL
        self._to_try: list[int] = []
        self._tried: dict[int, list[float]] = {}

    def took(self, seconds: float) -> None:
        """What a step took, with as many threads as torch has now."""
        if self._to_try:
            self._on_trial(seconds)
            return
        self._took.append(seconds)
        self._left -= 1
        full = len(self._took) == N_REMEMBERED
        if full and (self._left <= 0 or median(self._took) > SLOWED * self._usual):
            self._to_try = [n for n in (self._chosen // 2, self._chosen * 2) if 1 <= n <= self._most]
            self._tried = {n: [] for n in self._to_try}
            self._next()

    def settle(self) -> None:
        """No trial any more: torch has the number that was quickest."""
        self._to_try = []
        torch.set_num_threads(self._chosen)

    def _on_trial(self, seconds: float) -> None:
        steps = self._tried[self._to_try[0]]
        steps.append(seconds)
        if len(steps) == N_TRIED or min(steps) > HOPELESS * median(self._took):
            self._to_try.pop(0)
            self._next()

    def _next(self) -> None:
        """The next number to try; when all were tried, the quickest."""
        if self._to_try:
            torch.set_num_threads(self._to_try[0])
            return
        usual = median(self._took)
        quickest = min(self._tried, key=lambda n: median(self._tried[n]), default=self._chosen)
        changes = bool(self._tried) and median(self._tried[quickest]) < QUICKER * usual
        if changes:
            self._chosen, usual = quickest, median(self._tried[quickest])
            self._took.clear()
        torch.set_num_threads(self._chosen)
        self._usual, self._wait = usual, FIRST_TRIAL if changes else min(2 * self._wait, LAST_TRIAL)
        self._left = self._wait
