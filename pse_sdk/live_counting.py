"""The arithmetic of live sound, without a device: how much never came, how much waits, how loud it is.

A device's own flags stay silent when a callback is slow, so nothing rests on them: samples are counted against the wall
clock, and so is every sample of silence put in or sound left out.
"""

import math
from collections import deque

import numpy as np

STARTING_SECONDS = 3.0          # after opening, in which a device may take its time
FLOOR_DBFS = -120.0
NO_SIGNAL = "the microphone sends nothing but zeros: is it muted, or has this program no permission to use it?"


class SampleClock:
    """Finds samples that never came, by the wall clock.

    How far the samples lag behind the clock jitters from callback to callback, but its minimum over a second stands
    still within a fraction of a millisecond. When that minimum steps up, sound was lost; a clock that is off by some
    100 ppm moves it by far less than a step.
    """

    WINDOW_SECONDS = 1.0
    STEP_SECONDS = 0.008        # less than a block: what is lost is lost in blocks

    def __init__(self, sample_rate: int) -> None:
        self._rate = sample_rate
        self.missing_samples = 0
        self.restart()

    def restart(self) -> None:
        """The device was opened anew; the time it was gone is not counted."""
        self._origin: float | None = None
        self._n_samples = self._window = 0
        self.late_seconds = 0.0         # of the last samples, compared with the most punctual ones of the window before
        self._before = self._least = math.inf

    def add(self, n_samples: int, now: float) -> None:
        """`n_samples` changed hands at the time `now`, in seconds of any steady clock."""
        if self._origin is None:
            self._origin = now
        self._n_samples += n_samples
        elapsed = now - self._origin
        window = int(elapsed / self.WINDOW_SECONDS)
        if window > self._window:
            step = self._least - self._before
            # a device that starts finds its pace first; what was counted too early may still come
            if elapsed > STARTING_SECONDS + self.WINDOW_SECONDS and abs(step) > self.STEP_SECONDS:
                self.missing_samples = max(0, self.missing_samples + round(step * self._rate))
            self._before, self._least, self._window = self._least, math.inf, window
        lag = elapsed - self._n_samples / self._rate
        self._least = min(self._least, lag)
        self.late_seconds = max(0.0, lag - self._before) if elapsed > STARTING_SECONDS else 0.0


class OutputQueue:
    """Samples that wait for the loudspeaker. One thread appends, another fills blocks from it; neither ever waits.

    At the start, and again whenever it ran empty, the queue plays silence until `target` samples are waiting, so that
    one late block makes one gap and not many. If more than `limit` wait, it drops the oldest down to `target`.
    """

    def __init__(self, target: int, limit: int) -> None:
        self.target, self.limit = target, limit
        self.gaps = self.gap_samples = self.dropped_samples = 0
        self.position = 0           # index of the next sample to play, of all that were ever appended
        self._appended = 0
        self._pieces: deque[np.ndarray] = deque()
        self._offset = 0            # of the next sample in the first piece
        self._filling, self._started = True, False

    def __len__(self) -> int:
        return self._appended - self.position

    def append(self, samples: np.ndarray) -> None:
        if len(samples):
            self._pieces.append(samples)
            self._appended += len(samples)

    def fill(self, block: np.ndarray) -> None:
        """Put the next samples into `block` [T]; silence where there are none."""
        waiting = len(self)
        if waiting > self.limit:
            self.dropped_samples += self._take(waiting - self.target, None)
        if self._filling and len(self) >= self.target:
            self._filling, self._started = False, True
        n = 0 if self._filling else self._take(len(block), block)
        block[n:] = 0
        if n < len(block) and self._started:        # silence before the first sample is no gap
            self.gaps += not self._filling
            self.gap_samples += len(block) - n
            self._filling = True

    def _take(self, n_wanted: int, block: np.ndarray | None) -> int:
        """Move on by up to `n_wanted` samples, copying them to `block` if there is one; how many it were."""
        done = 0
        while done < n_wanted and self._pieces:
            piece = self._pieces[0][self._offset:self._offset + n_wanted - done]
            if block is not None:
                block[done:done + len(piece)] = piece
            done += len(piece)
            self._offset += len(piece)
            if self._offset == len(self._pieces[0]):
                self._pieces.popleft()
                self._offset = 0
        self.position += done
        return done


class DriftControl:
    """Keeps a queue near its target when the two devices' clocks differ, by at most one sample per block.

    It starts when the queue's mean is half the target off and ends when it is back: some 60 samples a second, while
    clocks that differ by 200 ppm need 10.
    """

    SMOOTHING = 0.01        # of the mean, per block

    def __init__(self, target: int) -> None:
        self._target = self._mean = float(target)
        self._correcting = 0
        self.adjusted_samples = 0
        self.balance = 0        # samples put in less samples left out

    def adjust(self, samples: np.ndarray, waiting: int) -> np.ndarray:
        """`samples` [T], or T - 1 or T + 1 of the same shape of sound; `waiting` samples are in the queue."""
        self._mean += (waiting - self._mean) * self.SMOOTHING
        excess = self._mean - self._target
        if abs(excess) > self._target / 2:
            self._correcting = -1 if excess > 0 else 1
        elif self._correcting * excess >= 0:
            self._correcting = 0
        if not self._correcting or len(samples) < 64:
            return samples
        self.adjusted_samples += 1
        self.balance += self._correcting
        n = len(samples)
        places = np.linspace(0, n - 1, n + self._correcting)
        adjusted: np.ndarray = np.interp(places, np.arange(n), samples).astype(np.float32)
        return adjusted


class Level:
    """Mean power of the last third of a second, and whether anything but zeros ever comes."""

    def __init__(self, sample_rate: int) -> None:
        self._rate = sample_rate
        self._power = 0.0
        self._zeros = 0

    def add(self, samples: np.ndarray) -> None:
        if not len(samples):
            return
        keep = math.exp(-len(samples) / (0.3 * self._rate))
        power = float(np.mean(np.square(samples), dtype=np.float64))
        self._power = keep * self._power + (1 - keep) * power
        self._zeros = 0 if power or np.any(samples) else self._zeros + len(samples)

    @property
    def dbfs(self) -> float:
        return max(FLOOR_DBFS, 10 * math.log10(self._power + 1e-30))

    @property
    def all_zero(self) -> bool:
        """Nothing but exact zeros for a second: a muted or forbidden microphone, for even a quiet room makes noise."""
        return self._zeros >= self._rate
