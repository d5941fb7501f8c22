"""The transform of a frame as matrix products that any ONNX runtime has, a sixth as large as one full product.

With n = 32 n1 + n2 and k = k1 + 16 k2 a 512-point DFT splits in two (Cooley and Tukey, 1965):

    X[k1 + 16 k2] = sum_n2  e^(-2 pi j n2 (k1 + 16 k2) / 512)  *  sum_n1  e^(-2 pi j n1 k1 / 16)  x[32 n1 + n2]

The twiddle factors are inside the second sum's matrices, one per k1. Real input makes k1 > 8 the mirror image of
k1 < 8, so 9 of the 16 matrices are enough; bins past the middle are conjugated there. The inverse is the transpose,
scaled.
"""

import numpy as np
import torch
from torch import Tensor, nn

_N1, _N2 = 16, 32
_N = _N1 * _N2
_K1 = _N1 // 2 + 1


class RealDft(nn.Module):
    """Spectra of 512-sample frames and back. `forward` is `torch.fft.rfft`, `inverse` is `torch.fft.irfft`."""

    first: Tensor
    second: Tensor
    first_inverse: Tensor
    second_inverse: Tensor
    place: Tensor
    bin_at: Tensor

    def __init__(self) -> None:
        super().__init__()
        k1, n1 = np.arange(_K1), np.arange(_N1)
        first = np.exp(-2j * np.pi * np.outer(k1, n1) / _N1)
        bins = (k1[:, None] + _N1 * np.arange(_N2))             # k of every output of the second stage
        second = np.exp(-2j * np.pi * np.arange(_N2)[None, :, None] * bins[:, None, :] / _N)
        mirrored = bins > _N // 2
        # real matrices of the complex products: (re, im) of n2 -> (re, im) of k2
        second = np.concatenate([
            np.concatenate([second.real, second.imag], axis=2),
            np.concatenate([-second.imag, second.real], axis=2)], axis=1)
        sign = np.concatenate([np.ones(bins.shape), np.where(mirrored, -1.0, 1.0)], axis=1)[:, None, :]
        second = second * sign
        folded = np.where(mirrored, _N - bins, bins).ravel()
        place = np.array([int(np.flatnonzero(folded == k)[0]) for k in range(_N // 2 + 1)])
        # the inverse counts every bin once: twice for bins that stand for their mirror image too
        weight = np.zeros(folded.shape)
        weight[place] = np.where(np.isin(np.arange(_N // 2 + 1), (0, _N // 2)), 1.0, 2.0) / _N
        weight = np.concatenate([weight.reshape(bins.shape)] * 2, axis=1)[:, :, None]
        for name, value in (
            ("first", np.concatenate([first.real, first.imag], axis=1).reshape(2 * _K1, _N1)),
            ("second", second), ("second_inverse", np.swapaxes(second, 1, 2) * weight),
        ):
            self.register_buffer(name, torch.tensor(np.ascontiguousarray(value), dtype=torch.float32))
        self.register_buffer("first_inverse", self.first.T.contiguous())
        self.register_buffer("place", torch.tensor(place))
        self.register_buffer("bin_at", torch.tensor(folded))

    def forward(self, frame: Tensor) -> Tensor:
        """Shape: `frame` [1, 512], result [2, 257] (real, imaginary)."""
        inner = self.first @ frame.view(_N1, _N2)
        outer = inner.view(_K1, 1, 2 * _N2) @ self.second
        return outer.view(_K1, 2, _N2).transpose(0, 1).reshape(2, _K1 * _N2)[:, self.place]

    def inverse(self, spectrum: Tensor) -> Tensor:
        """Shape: `spectrum` [2, 257], result [1, 512]."""
        outer = spectrum[:, self.bin_at].view(2, _K1, _N2).transpose(0, 1).reshape(_K1, 1, 2 * _N2)
        inner = outer @ self.second_inverse
        return (self.first_inverse @ inner.view(2 * _K1, _N2)).view(1, _N)
