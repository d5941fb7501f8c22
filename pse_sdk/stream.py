"""Enhancement of audio that never ends: chunks of any length in, enhanced samples out, memory of fixed size."""

import math
import time
from collections.abc import Generator
from math import ceil, gcd
from types import TracebackType

import numpy as np

from .arguments import as_number, as_whole_number
from .audio import MAX_CHANNELS, as_float32, check_sample_rate, replace_damage
from .errors import AudioError, SettingsError
from .onnx_denoiser import BoundSteps, OnnxDenoiser, State
from .rate_converter import RateConverter
from .top_gain import TopGain

FADE_SECONDS = 0.01     # from enhanced to untouched sound; other changes of strength take their share of it
LEAST_TIME = 1e-3       # seconds: no sound card asks for chunks that are shorter, so these cannot be late
# -300 dBFS: a chunk with less energy is silence. Some processors take five times as long for numbers so small
FAINTEST = 1e-15
_BLOCK = 4096           # samples converted at once: the rate converters need some hundred times as much memory

Hops = tuple[np.ndarray, State]
"""A hop of each channel [channels, hop_length], and the memory that goes with it."""

Enhancing = Generator[Hops, Hops | None, np.ndarray]
"""Work on a stream: it hands out hops, waits for them to come back enhanced, and returns the samples that are ready.

So whoever drives it may enhance the hops of many streams at once: see `together`.
"""


class EnhancementStream:
    """One stream of one or several channels through a denoiser. Make it with `Enhancer.stream`.

    All that `process` and `flush` return, joined, has `delay_samples` more samples than went in: the stream's output
    lags its input by exactly that, for every rate and every chunking. NaN, Inf and what is too large to be sound are
    replaced by zero and counted. A call that is interrupted (Ctrl-C) leaves a stream that is reset.

    `strength`, `max_reduction_db` and `bypass` may be set at any time and from any thread, and fade without a click;
    `process` belongs to one thread at a time.

    Args:
        strength, max_reduction_db: see the properties.
        full_band: keep the sound that the model's rate has no room for, lowered as the model lowers the top of its
            band. Without it nothing comes out above 7 to 8 kHz.
    """

    def __init__(self, denoiser: OnnxDenoiser, sample_rate: int, channels: int = 1, *, strength: float = 1.0,
                 max_reduction_db: float = math.inf, full_band: bool = True) -> None:
        self.sample_rate = check_sample_rate(sample_rate)
        self.channels = channels = as_whole_number(channels, "channels", 1, MAX_CHANNELS)
        self.strength, self.max_reduction_db = strength, max_reduction_db
        self.bypass = False
        """Pass the sound through untouched, with the same delay. Fades over 10 ms."""
        self._denoiser = denoiser
        info = denoiser.info
        self.delay_samples = ceil(info.delay * self.sample_rate / info.sample_rate)
        """Samples, at the stream's rate, by which the output lags the input."""
        self._to_model: RateConverter | None = None
        self._from_model: RateConverter | None = None
        if self.sample_rate != info.sample_rate:
            self._to_model = RateConverter(self.sample_rate, info.sample_rate, channels)
            # output sample n stands for model time (n - delay_samples) * rates + the model's own delay
            offset = info.delay * self.sample_rate - self.delay_samples * info.sample_rate
            self._from_model = RateConverter(info.sample_rate, self.sample_rate, channels,
                                             offset // gcd(self.sample_rate, info.sample_rate))
        self._top_gain: TopGain | None = None
        if full_band and self._to_model is not None:
            self._top_gain = TopGain(self._to_model.pass_hz, info.sample_rate, info.hop_length, channels)
        self._closed = False
        self.reset()

    @property
    def strength(self) -> float:
        """Share of the enhanced sound in the output, 0 to 1; the rest is the input, delayed to match.

        Raises:
            SettingsError: set to something else.
        """
        return self._strength

    @strength.setter
    def strength(self, strength: float) -> None:
        self._strength = as_number(strength, "strength", 0, 1)

    @property
    def max_reduction_db(self) -> float:
        """By how many dB noise is lowered at most, 0 to infinity: so much of the input stays in the output.

        Raises:
            SettingsError: set to something else.
        """
        return self._max_reduction_db

    @max_reduction_db.setter
    def max_reduction_db(self, max_reduction_db: float) -> None:
        self._max_reduction_db = as_number(max_reduction_db, "max_reduction_db", 0)
        self._most_wetness = 1 - float(10 ** (-self._max_reduction_db / 20))

    @property
    def latency_seconds(self) -> float:
        """From a sound at the input to the same sound at the output: the delay, and the wait for a whole hop."""
        info = self._denoiser.info
        waiting = info.hop_length / info.sample_rate
        if self._to_model is not None and self._from_model is not None:
            waiting += self._to_model.lookahead / self.sample_rate + self._from_model.lookahead / info.sample_rate
        return self.delay_samples / self.sample_rate + waiting

    def reset(self) -> None:
        """Forget all sound. Afterwards the stream is as good as a new one with the same settings, bit for bit."""
        self._check_open()
        self._steps = BoundSteps(self._denoiser, self.channels)
        self._state = self._denoiser.initial_state(self.channels)
        # at the model's rate: what it enhances just now and has heard already, then what waits for a whole hop
        self._heard = np.zeros((self.channels, self._denoiser.info.delay), np.float32)
        # at another rate: what is not out yet
        self._dry = np.zeros((self.channels, self.delay_samples), np.float32)
        self._wetness = self._wanted_wetness()
        self._n_in = self._n_out = 0
        self.n_replaced = 0
        """Samples that were replaced since the start or the last `reset`."""
        self.n_late = 0
        """Chunks since then that took longer to enhance than to hear: where they come live, the sound may break up."""
        parts: list[RateConverter | TopGain | None] = [self._to_model, self._from_model, self._top_gain]
        for part in parts:
            if part is not None:
                part.reset()

    def process(self, chunk: np.ndarray) -> np.ndarray:
        """Enhance the next samples and return as many as are ready: none, or more than came, as hops fill up.

        Args:
            chunk: floats where 1.0 is full scale, or integers, as `Enhancer.enhance` takes them.

        Shape: `chunk` [T] or [T, channels], T may be 0 and change from call to call; the result has the same layout.
        It is float32 whatever came, and may exceed 1.0 a little: whoever wants integers says how to round and clip,
        e.g. `np.clip(np.rint(out * 32768), -32768, 32767).astype(np.int16)`.

        Raises:
            AudioError: a number of channels other than the stream's, or no samples at all.
            SettingsError: the stream is closed.
        """
        began = time.perf_counter()
        samples = self._checked(chunk)
        out = self._finished(self._enhancing(samples))
        self._count_if_late(len(samples), began)
        return out

    def flush(self) -> np.ndarray:
        """The rest of the output, as if silence followed, in the layout [T] for mono and [T, channels] else.

        The stream is reset afterwards, but for its counters.

        Raises:
            SettingsError: the stream is closed.
        """
        self._check_open()
        remaining = self._n_in + self.delay_samples - self._n_out
        pieces = []
        while remaining > 0:
            silence = np.zeros((self.channels, max(256, self.sample_rate // 20)), np.float32)
            piece = self._finished(self._advance(silence))[:, :remaining]
            pieces.append(piece)
            remaining -= piece.shape[1]
        counters = self.n_replaced, self.n_late
        self.reset()
        self.n_replaced, self.n_late = counters
        out = np.concatenate([np.zeros((self.channels, 0), np.float32), *pieces], axis=1)
        return out[0] if self.channels == 1 else np.ascontiguousarray(out.T)

    def close(self) -> None:
        """Forget everything, and refuse whatever comes later. To have the rest of the output, call `flush` before."""
        if not self._closed:
            self.reset()
            self._closed = True

    def __enter__(self) -> "EnhancementStream":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.close()

    # The steps of `process`, which `process_together` does with many streams.

    def _checked(self, chunk: np.ndarray) -> np.ndarray:
        """The samples of a chunk that `process` would take, [T] or [T, channels]; raises what it would raise."""
        self._check_open()
        samples = as_float32(chunk)
        channels = 1 if samples.ndim == 1 else samples.shape[1]
        if channels != self.channels:
            raise AudioError(f"the stream has {self.channels} channels, got samples of shape {np.shape(chunk)}; "
                             f"open it with channels={channels}")
        return samples

    def _enhancing(self, samples: np.ndarray) -> Enhancing:
        """What `process` returns, but for the hops, which somebody else enhances."""
        samples, n_replaced = replace_damage(samples)
        self.n_replaced += n_replaced
        if np.vdot(samples, samples) < FAINTEST**2:
            samples = np.zeros_like(samples)
        mono = samples.ndim == 1
        planes = samples[None] if mono else samples.T       # [channels, T], as all of the stream works
        if len(samples) <= _BLOCK:
            out = yield from self._advance(planes)
        else:
            pieces = []
            for i in range(0, len(samples), _BLOCK):
                pieces.append((yield from self._advance(planes[:, i:i + _BLOCK])))
            out = np.concatenate(pieces, axis=1)
        return out[0] if mono else np.ascontiguousarray(out.T)

    def _count_if_late(self, n_samples: int, began: float) -> None:
        if n_samples and time.perf_counter() - began > max(n_samples / self.sample_rate, LEAST_TIME):
            self.n_late += 1

    def _finished(self, work: Enhancing) -> np.ndarray:
        """What the work returns, done alone."""
        enhanced: Hops | None = None
        try:
            while True:
                enhanced = self._steps.step(*work.send(enhanced))
        except StopIteration as end:
            return np.asarray(end.value)
        except BaseException:       # Ctrl-C: some of the sound is lost, and what follows would come at the wrong time
            self.reset()
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise SettingsError("this stream is closed; open another one with Enhancer.stream")

    def _advance(self, samples: np.ndarray) -> Enhancing:
        """Shape: [channels, T], as the result."""
        if not self._n_in:      # nothing has been heard that a change could be heard against
            self._wetness = self._wanted_wetness()
        self._n_in += samples.shape[1]
        if self._to_model is not None:
            self._dry = np.concatenate([self._dry, samples], axis=1)
            samples = self._to_model.process(samples)
        self._heard = np.concatenate([self._heard, samples], axis=1)
        length, delay = self._denoiser.info.hop_length, self._denoiser.info.delay
        n_ready = (self._heard.shape[1] - delay) // length * length
        hops = []
        for start in range(delay, n_ready + delay, length):
            hop = np.ascontiguousarray(self._heard[:, start:start + length])
            reply = yield hop, self._state
            assert reply is not None
            enhanced, self._state = reply
            hops.append(enhanced)
        # what the model was given and what it made of it, aligned
        dry, self._heard = self._heard[:, :n_ready], self._heard[:, n_ready:].copy()
        wet = hops[0] if len(hops) == 1 else np.concatenate([dry[:, :0], *hops], axis=1)
        if self._from_model is not None:
            dry, wet = self._at_own_rate(self._from_model, dry, wet)
        self._n_out += wet.shape[1]
        return self._blend(wet, dry)

    def _at_own_rate(self, from_model: RateConverter, noisy: np.ndarray,
                     enhanced: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The input and the output that are ready at the stream's rate, from the next hops at the model's."""
        top_gain = self._top_gain
        if top_gain is not None:
            for i in range(0, enhanced.shape[1], self._denoiser.info.hop_length):
                hop = slice(i, i + self._denoiser.info.hop_length)
                enhanced[:, hop] -= noisy[:, hop] * top_gain.follow(noisy[:, hop], enhanced[:, hop])
        wet = from_model.process(enhanced)
        n_ready = wet.shape[1]
        dry, self._dry = self._dry[:, :n_ready], self._dry[:, n_ready:].copy()
        if top_gain is not None and n_ready:
            wet += dry * top_gain.at(from_model.input_times(self._n_out, n_ready))
        return dry, wet

    def _wanted_wetness(self) -> float:
        # at least so much of the input remains, whatever the model takes away
        return 0.0 if self.bypass else self._strength * self._most_wetness

    def _blend(self, wet: np.ndarray, dry: np.ndarray) -> np.ndarray:
        """`wet` and `dry` in their shares, and a straight fade after a change of these."""
        begin, end = self._wetness, self._wanted_wetness()
        if begin == end or not wet.size:
            return wet if end == 1 else wet * np.float32(end) + dry * np.float32(1 - end)
        steps = np.arange(1, wet.shape[1] + 1) / (FADE_SECONDS * self.sample_rate)
        ramp = np.minimum(begin + steps, end) if begin < end else np.maximum(begin - steps, end)
        self._wetness = float(ramp[-1])
        share = ramp.astype(np.float32)
        return np.asarray(wet * share + dry * (1 - share))
