"""Enhancement of audio that never ends: chunks of any length in, enhanced samples out, memory of fixed size."""

from math import ceil, gcd
from types import TracebackType

import numpy as np

from .arguments import as_whole_number
from .audio import MAX_CHANNELS, as_float32, check_sample_rate, replace_damage
from .errors import AudioError, SettingsError
from .onnx_denoiser import OnnxDenoiser
from .rate_converter import RateConverter

FADE_SECONDS = 0.01     # of the switch between enhanced and untouched sound
_BLOCK = 4096           # samples converted at once: the rate converters need some hundred times as much memory


class EnhancementStream:
    """One stream of one or several channels through a denoiser. Make it with `Enhancer.stream`.

    All that `process` and `flush` return, joined, has `delay_samples` more samples than went in: the stream's output
    lags its input by exactly that, for every rate and every chunking. NaN, Inf and what is too large to be sound are
    replaced by zero and counted.

    One thread at a time may call `process`; `bypass` may be set from any thread.
    """

    def __init__(self, denoiser: OnnxDenoiser, sample_rate: int, channels: int = 1) -> None:
        self.sample_rate = check_sample_rate(sample_rate)
        self.channels = channels = as_whole_number(channels, "channels", 1, MAX_CHANNELS)
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
        self._closed = False
        self.reset()

    @property
    def latency_seconds(self) -> float:
        """From a sound at the input to the same sound at the output: the delay, and the wait for a whole hop."""
        info = self._denoiser.info
        waiting = info.hop_length / info.sample_rate
        if self._to_model is not None and self._from_model is not None:
            waiting += self._to_model.lookahead / self.sample_rate + self._from_model.lookahead / info.sample_rate
        return self.delay_samples / self.sample_rate + waiting

    def reset(self) -> None:
        """Forget everything. Afterwards the stream is as good as new, bit for bit."""
        self._check_open()
        self._states = [self._denoiser.initial_state() for _ in range(self.channels)]
        self._hop = np.zeros((0, self.channels), np.float32)
        self._dry = np.zeros((self.delay_samples, self.channels), np.float32)
        self._wetness = 0.0 if self.bypass else 1.0
        self._n_in = self._n_out = 0
        self.n_replaced = 0
        """Samples that were replaced since the start, or since `reset` or `flush`."""
        for converter in (self._to_model, self._from_model):
            if converter is not None:
                converter.reset()

    def process(self, chunk: np.ndarray) -> np.ndarray:
        """Enhance the next samples and return as many as are ready: none, or more than came, as hops fill up.

        Shape: `chunk` [T] or [T, channels], T may be 0 and change from call to call; the result has the same layout,
        float32.

        Raises:
            AudioError: a number of channels other than the stream's.
            SettingsError: the stream is closed.
        """
        self._check_open()
        samples = as_float32(chunk)
        mono = samples.ndim == 1
        samples = samples[:, None] if mono else samples
        if samples.shape[1] != self.channels:
            raise AudioError(f"the stream has {self.channels} channels, got samples of shape {np.shape(chunk)}; "
                             f"open it with channels={samples.shape[1]}")
        samples, n_replaced = replace_damage(samples)
        self.n_replaced += n_replaced
        out = np.concatenate([self._advance(samples[i:i + _BLOCK]) for i in range(0, max(len(samples), 1), _BLOCK)])
        return out[:, 0] if mono else out

    def flush(self) -> np.ndarray:
        """The rest of the output, as if silence followed, in the layout [T] for mono and [T, channels] else.

        The stream is reset afterwards.

        Raises:
            SettingsError: the stream is closed.
        """
        self._check_open()
        remaining = self._n_in + self.delay_samples - self._n_out
        pieces = []
        while remaining > 0:
            piece = self._advance(np.zeros((max(256, self.sample_rate // 20), self.channels), np.float32))[:remaining]
            pieces.append(piece)
            remaining -= len(piece)
        n_replaced = self.n_replaced
        self.reset()
        self.n_replaced = n_replaced
        out = np.concatenate(pieces) if pieces else np.zeros((0, self.channels), np.float32)
        return out[:, 0] if self.channels == 1 else out

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

    def _check_open(self) -> None:
        if self._closed:
            raise SettingsError("this stream is closed; open another one with Enhancer.stream")

    def _advance(self, samples: np.ndarray) -> np.ndarray:
        self._n_in += len(samples)
        self._dry = np.concatenate([self._dry, samples])
        converted = samples if self._to_model is None else self._to_model.process(samples)
        wet = self._denoise(converted)
        if self._from_model is not None:
            wet = self._from_model.process(wet)
        self._n_out += len(wet)
        dry, self._dry = self._dry[:len(wet)], self._dry[len(wet):].copy()
        return self._blend(wet, dry)

    def _denoise(self, samples: np.ndarray) -> np.ndarray:
        self._hop = np.concatenate([self._hop, samples])
        length = self._denoiser.info.hop_length
        n_hops = len(self._hop) // length
        out = np.empty((n_hops * length, self.channels), np.float32)
        for i in range(n_hops):
            place = slice(i * length, (i + 1) * length)
            for channel in range(self.channels):
                hop = np.ascontiguousarray(self._hop[place, channel])[None]
                enhanced, self._states[channel] = self._denoiser.step(hop, self._states[channel])
                out[place, channel] = enhanced[0]
        self._hop = self._hop[n_hops * length:].copy()
        return out

    def _blend(self, wet: np.ndarray, dry: np.ndarray) -> np.ndarray:
        """`wet`, or `dry` while bypassed, and a straight fade between the two after a switch."""
        goal = 0.0 if self.bypass else 1.0
        if self._wetness == goal or not len(wet):
            return wet if goal else dry.copy()
        step = 1.0 / (FADE_SECONDS * self.sample_rate)
        ramp = self._wetness + np.sign(goal - self._wetness) * step * np.arange(1, len(wet) + 1)
        ramp = np.clip(ramp, 0.0, 1.0)
        self._wetness = float(ramp[-1])
        share = ramp[:, None].astype(np.float32)
        return np.asarray(wet * share + dry * (1 - share))
