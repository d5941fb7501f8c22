"""Sample-rate conversion for live audio: a windowed sinc, 1.5 to 2 ms to each side, any block length, exact timing.

soxr answers 48 kHz -> 16 kHz after 37 ms (it is for files); this answers after 1.5 ms, with aliases 70 dB down and a
pass band that ends at 6.6 kHz instead of 7.3 kHz. Output sample k stands for input time (k * step + offset) / n_phases,
in whole numbers, so that nothing drifts however long a stream runs.

The phases repeat after `n_phases` outputs, so a block of them is one product of a stretch of input with a matrix that
holds the taps of each output where its input lies.
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
BLOCK = 16              # outputs, or more, that one row of a product makes
LARGEST_BLOCK = 2**18   # taps of a block, zeros included; what needs more (11,025 to 16,000 Hz) goes tap by tap


class RateConverter:
    """Converts [channels, T] chunk by chunk.

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

        n_periods = ceil(BLOCK / self.n_phases)
        self._block, self._block_step = n_periods * self.n_phases, n_periods * self.step    # outputs, inputs
        n_inputs = 2 * self.half_length + self._block_step
        self._matrix: np.ndarray | None = None
        self._padding = np.zeros((channels, n_inputs), np.float32)
        if n_inputs * self._block <= LARGEST_BLOCK:
            self._matrix = np.zeros((n_inputs, self._block), np.float32)
            position = np.arange(self._block) * self.step + offset % self.n_phases
            rows = position[:, None] // self.n_phases + np.arange(2 * self.half_length)
            self._matrix[rows, np.arange(self._block)[:, None]] = self._taps_at(position % self.n_phases)
        else:
            self._block, self._block_step, self._padding = 1, 0, self._padding[:, :0]
        self._times: np.ndarray = np.zeros(0)
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next sample is the first."""
        # zeros stand for the time before the first sample, as far back as the first output looks
        before = self.half_length - min(0, self.offset // self.n_phases)
        self._buffer = np.zeros((self._channels, before), np.float32)
        self._start = -before       # input time of the buffer's first sample
        self._next = 0              # index of the next output sample

    @property
    def lookahead(self) -> int:
        """Input samples that must have come after the one that an output sample stands for."""
        return self.half_length

    def input_times(self, index: int, count: int) -> np.ndarray:
        """Input samples since the first one at which `count` outputs from `index` on stand, fractions included."""
        if len(self._times) < count:
            self._times = np.arange(count) * (self.step / self.n_phases)
        return np.asarray(self._times[:count] + (index * self.step + self.offset) / self.n_phases)

    def process(self, chunk: np.ndarray) -> np.ndarray:
        """Shape: `chunk` [channels, T], result [channels, as many samples as are ready]."""
        n_buffered = self._buffer.shape[1] + chunk.shape[1]
        end = self._start + n_buffered
        # output k needs input up to floor(position / n_phases) + half_length
        limit = (end - self.half_length) * self.n_phases - self.offset     # positions below it are ready
        count = max(0, -(-limit // self.step) - self._next)
        # inputs that are not there yet are multiplied by zero, or make outputs that are dropped
        padded = np.concatenate([self._buffer, chunk, self._padding], axis=1)
        if not count:
            out = np.zeros((self._channels, 0), np.float32)
        elif self._matrix is None:
            out = self._one_by_one(padded, count)
        else:
            out = self._in_blocks(padded, self._matrix, count)
        self._next += count
        first_kept = max(0, min(self._first_input(self._next // self._block * self._block) - self._start, n_buffered))
        self._buffer = padded[:, first_kept:n_buffered].copy()
        self._start += first_kept
        return out

    def _first_input(self, index: int) -> int:
        """Time of the first input sample that the output sample `index` needs."""
        return (index * self.step + self.offset) // self.n_phases - self.half_length + 1

    def _in_blocks(self, padded: np.ndarray, matrix: np.ndarray, count: int) -> np.ndarray:
        """The next `count` outputs, from whole blocks: what these begin and end with beyond is dropped."""
        first, n_done = divmod(self._next, self._block)
        n_blocks = ceil((n_done + count) / self._block)
        begin, size = self._first_input(first * self._block) - self._start, padded.itemsize
        stretches = np.ndarray((self._channels, n_blocks, len(matrix)), np.float32, padded, begin * size,
                               (padded.shape[1] * size, self._block_step * size, size))
        out = np.ascontiguousarray(stretches) @ matrix
        return np.asarray(out.reshape(self._channels, -1)[:, n_done:n_done + count])

    def _one_by_one(self, buffer: np.ndarray, count: int) -> np.ndarray:
        position = (self._next + np.arange(count)) * self.step + self.offset
        first = position // self.n_phases - self._start - self.half_length + 1
        windows = np.lib.stride_tricks.sliding_window_view(buffer, 2 * self.half_length, axis=1)
        out: np.ndarray = np.einsum("cnt,nt->cn", windows[:, first], self._taps_at(position % self.n_phases))
        return out

    def _taps_at(self, phase: np.ndarray) -> np.ndarray:
        """Taps [n, 2 * half_length] for phases [n] from 0 to n_phases - 1."""
        row, rest = np.divmod(phase * self._n_rows, self.n_phases)
        if self._n_rows == self.n_phases:
            return np.asarray(self._taps[row])
        share = (rest / self.n_phases).astype(np.float32)[:, None]
        return np.asarray(self._taps[row] + share * (self._taps[row + 1] - self._taps[row]))
