"""What lies above the model's band follows the model's gain at the top of it.

A model at 16 kHz says nothing of sound above 8 kHz. Speech and noise there come and go with the speech and noise just
below, so a stream at a higher rate lowers that part as the model lowers the top of what it hears, hop by hop:

    output = up(enhanced - gain * noisy) + gain * input

`up` is the conversion from the model's rate. Where it is flat this is up(enhanced), above it gain * input, and between
the two it fades from one to the other: if the model changes nothing, the output is the input. The gain is drawn inside
`up`, so that one conversion does for both: it moves slowly against the 3 ms that `up` looks at.
"""

import math

import numpy as np

LOWEST_SHARE = 0.625    # of the highest frequency that the rate converters leave flat: 4.1 kHz of 6.6 kHz
_LEAST_ENERGY = 1e-12   # of a hop: the top of it is below -130 dBFS, and says nothing


class TopGain:
    """Gains in [0, 1], one for each hop and channel, and straight lines between them.

    Args:
        pass_hz: highest frequency that model and stream share undamaged.
        sample_rate, hop_length: of the model.
    """

    def __init__(self, pass_hz: float, sample_rate: int, hop_length: int, channels: int) -> None:
        self._length, self._channels = hop_length, channels
        bins = np.fft.rfftfreq(hop_length, 1 / sample_rate)
        chosen = np.flatnonzero((bins >= LOWEST_SHARE * pass_hz) & (bins <= pass_hz))[::2]     # the window is wider
        spectra = np.fft.rfft(np.eye(hop_length) * np.hanning(hop_length), axis=1)[:, chosen]
        self._transform = np.concatenate([spectra.real, spectra.imag], axis=1).astype(np.float32)
        share = np.arange(1, hop_length + 1, dtype=np.float32) / hop_length
        self._shares = np.stack([1 - share, share])     # of the gain before and after, along a hop
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next sound sets the gain at once."""
        self._gains = [[1.0] * self._channels]
        self._known = [False] * self._channels      # whether the last gain is of sound, not of silence
        self._n_forgotten = 0       # gains that came before the first one kept

    def follow(self, noisy: np.ndarray, enhanced: np.ndarray) -> np.ndarray:
        """The gain through the next hop.

        In each hop it goes half of the way to the model's: up to it in amplitude, as speech begins, and down to it in
        decibels, so that it comes down to -30 dB as soon as to -3. After silence it is there at once.

        Shape: `noisy`, `enhanced` and the result are [channels, hop_length], aligned with each other.
        """
        before, after = self._gains[-1], []
        tops = np.concatenate([noisy, enhanced]) @ self._transform
        energies = np.einsum("ij,ij->i", tops, tops).tolist()
        for i, (energy, left) in enumerate(zip(energies, energies[self._channels:], strict=False)):
            heard = energy > _LEAST_ENERGY
            goal = math.sqrt(min(left, energy) / energy) if heard else before[i]
            if heard and not self._known[i]:
                before[i] = goal
            self._known[i] = heard
            after.append((before[i] + goal) / 2 if goal > before[i] else math.sqrt(before[i] * goal))
        self._gains.append(after)
        return np.asarray(np.array([before, after], np.float32).T @ self._shares)

    def at(self, time: np.ndarray) -> np.ndarray:
        """The gain at rising times [n], in samples of the model, as [channels, n]. Earlier times are forgotten."""
        knots = [self._length * i - 1 for i in range(self._n_forgotten, self._n_forgotten + len(self._gains))]
        out = np.empty((self._channels, len(time)), np.float32)
        for i in range(self._channels):
            out[i] = np.interp(time, knots, [gains[i] for gains in self._gains])
        if len(time):
            n_old = max(0, min(int(time[-1] + 1) // self._length - self._n_forgotten, len(self._gains) - 1))
            del self._gains[:n_old]
            self._n_forgotten += n_old
        return out
