"""What live audio needs of a stream, without a model."""

import contextlib

import numpy as np


class Delay:
    """The contract of a stream: a delay, and nothing else."""

    delay_samples = 384

    def __init__(self):
        self.bypass, self.strength, self.max_reduction_db = False, 1.0, np.inf
        self.reset()

    def process(self, chunk):
        joined = np.concatenate([self._rest, chunk])
        self._rest = joined[len(chunk):]
        return joined[:len(chunk)]

    def flush(self):
        return self._rest

    def reset(self):
        self._rest = np.zeros(self.delay_samples, np.float32)

    def stream(self, sample_rate, channels=1):
        return contextlib.nullcontext(self)
