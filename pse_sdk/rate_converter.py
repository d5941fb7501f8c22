"""Sample-rate conversion for live audio: a windowed sinc, 1.5 to 2 ms to each side, any block length, exact timing.

soxr answers 48 kHz -> 16 kHz after 37 ms (it is for files); this answers after 1.5 ms, with aliases 70 dB down and a
pass band that ends at 6.6 kHz instead of 7.3 kHz. Output sample k stands for input time (k * step + offset) / n_phases,
in whole numbers, so that nothing drifts however long a stream runs.
"""

from math import ceil, gcd

import numpy as np

HALF_LENGTH = 24        # taps to each side, at the lower of the two rates
LEAST_HALF_LENGTH = 16  # where 24 would take longer than LONGEST_SECONDS; from 8 kHz on 16 do not
LONGEST_SECONDS = 0.002
KAISER_BETA = 6.8       # stop band about -70 dB
STOP = 1.015            # where it begins, over the lower Nyquist frequency
SLOPE_TAPS = 2.28       # half of the way there from the flat band, over the same frequency, times the taps to each side
MAX_PHASES = 1024       # rows of taps; rates that need more (44,101 Hz) interpolate between two, 120 dB off


class RateConverter:
    """Converts [T, channels] chunk by chunk.

    Args:
        from_rate, to_rate: in Hz.
        offset: input time of output sample 0, in input samples times `n_phases`; negative times read zeros.
    """

    def __init__(self, from_rate: int, to_rate: int, channels: int, offset: int = 0) -> None:
        common = gcd(from_rate, to_rate)
        self.n_phases, self.step, self.offset = to_rate // common, from_rate // common, offset
        self._channels = channels
        slower, lower = min(1.0, to_rate / from_rate), min(from_rate, to_rate)
        n_taps = min(HALF_LENGTH, max(LEAST_HALF_LENGTH, int(LONGEST_SECONDS * lower)))
        self.pass_hz = (STOP - 2 * SLOPE_TAPS / n_taps) * lower / 2
        """Up to here the converter is flat."""
        self.half_length = ceil(n_taps / slower)
        self._n_rows = min(self.n_phases, MAX_PHASES)
        time = (np.arange(-self.half_length + 1, self.half_length + 1)[None, :]
                - np.arange(self._n_rows + 1)[:, None] / self._n_rows)
        cutoff = (STOP - SLOPE_TAPS / n_taps) * slower
        window = np.i0(KAISER_BETA * np.sqrt(np.clip(1 - (time / self.half_length) ** 2, 0, 1))) / np.i0(KAISER_BETA)
        taps = cutoff * np.sinc(cutoff * time) * window
        self._taps = (taps / taps.sum(1, keepdims=True)).astype(np.float32)
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next sample is the first."""
        # zeros stand for the time before the first sample, as far back as the first output looks
        before = self.half_length - min(0, self.offset // self.n_phases)
        self._buffer = np.zeros((before, self._channels), np.float32)
        self._start = -before       # input time of the buffer's first sample
        self._next = 0              # index of the next output sample

    @property
    def lookahead(self) -> int:
        """Input samples that must have come after the one that an output sample stands for."""
        return self.half_length

    def input_time(self, index: np.ndarray) -> np.ndarray:
        """Input samples since the first one at which the output samples `index` stand, fractions included."""
        return np.asarray((index * self.step + self.offset) / self.n_phases)

    def process(self, chunk: np.ndarray) -> np.ndarray:
        """Shape: `chunk` [T, channels], result [as many samples as are ready, channels]."""
        self._buffer = np.concatenate([self._buffer, chunk])
        end = self._start + len(self._buffer)
        # output k needs input up to floor(position / n_phases) + half_length
        limit = (end - self.half_length) * self.n_phases - self.offset     # positions below it are ready
        count = max(0, -(-limit // self.step) - self._next)
        if count:
            position = (self._next + np.arange(count)) * self.step + self.offset
            first = position // self.n_phases - self._start - self.half_length + 1
            windows = np.lib.stride_tricks.sliding_window_view(self._buffer, 2 * self.half_length, axis=0)
            out = np.einsum("nct,nt->nc", windows[first], self._taps_at(position % self.n_phases))
        else:
            out = np.zeros((0, self._channels), np.float32)
        self._next += count
        keep = min((self._next * self.step + self.offset) // self.n_phases - self.half_length + 1, end)
        if keep > self._start:
            self._buffer, self._start = self._buffer[keep - self._start:].copy(), keep
        return np.asarray(out, np.float32)

    def _taps_at(self, phase: np.ndarray) -> np.ndarray:
        """Taps [n, 2 * half_length] for phases [n] from 0 to n_phases - 1."""
        row, rest = np.divmod(phase * self._n_rows, self.n_phases)
        if self._n_rows == self.n_phases:
            return np.asarray(self._taps[row])
        share = (rest / self.n_phases).astype(np.float32)[:, None]
        return np.asarray(self._taps[row] + share * (self._taps[row + 1] - self._taps[row]))
