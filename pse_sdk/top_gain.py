"""What lies above the model's band follows the model's gain at the top of it.

A model at 16 kHz says nothing of sound above 8 kHz. Speech and noise there come and go with the speech and noise just
below, so a stream at a higher rate lowers that part as the model lowers the top of what it hears, hop by hop:

    output = up(enhanced - gain * noisy) + gain * input

`up` is the conversion from the model's rate. Where it is flat this is up(enhanced), above it gain * input, and between
the two it fades from one to the other: if the model changes nothing, the output is the input. The gain is drawn inside
`up`, so that one conversion does for both: it moves slowly against the 3 ms that `up` looks at.
"""

import numpy as np

LOWEST_SHARE = 0.625    # of the highest frequency that the rate converters leave flat: 4.1 kHz of 6.6 kHz
SMOOTHING = 0.5         # share of the gain before in the next one: it follows within about two hops
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
        chosen = (bins >= LOWEST_SHARE * pass_hz) & (bins <= pass_hz)
        spectra = np.fft.rfft(np.eye(hop_length) * np.hanning(hop_length), axis=1)[:, chosen]
        self._transform = np.concatenate([spectra.real, spectra.imag], axis=1).astype(np.float32).T.copy()
        self.reset()

    def reset(self) -> None:
        """Forget everything: the gain is one until sound says otherwise."""
        self._gains = [np.ones(self._channels, np.float32)]
        self._n_forgotten = 0       # gains that came before the first one kept

    def follow(self, noisy: np.ndarray, enhanced: np.ndarray) -> np.ndarray:
        """The gain through the next hop.

        Shape: `noisy`, `enhanced` and the result are [hop_length, channels], aligned with each other.
        """
        before, energy, left = self._gains[-1], self._energy(noisy), self._energy(enhanced)
        heard = energy > _LEAST_ENERGY
        goal = np.where(heard, np.sqrt(np.minimum(left, energy) / np.where(heard, energy, 1)), before)
        after = (SMOOTHING * before + (1 - SMOOTHING) * goal).astype(np.float32)
        self._gains.append(after)
        share = np.arange(1, self._length + 1, dtype=np.float32)[:, None] / self._length
        return np.asarray(before + share * (after - before))

    def at(self, time: np.ndarray) -> np.ndarray:
        """The gain at rising times [n], in samples of the model, as [n, channels]. Earlier times are forgotten."""
        knots = self._length * (self._n_forgotten + np.arange(len(self._gains))) - 1
        gains = np.array(self._gains)
        out = np.stack([np.interp(time, knots, gains[:, i]) for i in range(self._channels)], axis=1)
        if len(time):
            n_old = max(0, int(np.searchsorted(knots, time[-1])) - 1)
            del self._gains[:n_old]
            self._n_forgotten += n_old
        return out.astype(np.float32)

    def _energy(self, hop: np.ndarray) -> np.ndarray:
        """Of the top of the band, [channels]."""
        return np.asarray(np.square(self._transform @ hop).sum(0))
