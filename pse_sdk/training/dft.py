"""The transform of a frame inside a graph: two small matrix products with a multiplication between them.

With n = 16 n1 + n2 and k = k1 + 32 k2 a 512-point DFT splits in two (Cooley and Tukey, 1965):

    X[k1 + 32 k2] = sum_n2  e^(-2 pi j n2 k2 / 16)  e^(-2 pi j n2 k1 / 512)  sum_n1  e^(-2 pi j n1 k1 / 32)  x[n]
                            SECOND                  TWIDDLE                          FIRST

Real input makes k1 > 16 the mirror image of k1 < 16, so 17 of the 32 are enough. Of the bins that come out, those past
the middle are conjugated, and the k2 have such an order that the bins stand in 16 blocks of 17, which run upwards and
downwards by turns:

    BIN_AT      0 1 ... 16 | 32 31 ... 16 | 32 33 ... 48 | 64 63 ... 48 | ...

A spectrum in this order is called folded: [2, 272] (real, imaginary), the multiples of 16 between the ends twice. The
lowest bins come first and nothing has to be moved. The inverse is the transpose, scaled.

Between the two products stand 17 rows, one for each k1; the second product wants them as columns. The runtime makes a
`Transpose` one with the product that follows, so that costs nothing.
"""

import numpy as np

from ..config import STFT
from .nodes import Nodes

_N1, _N2 = 32, 16
N_BLOCKS, BLOCK = _N2, _N1 // 2 + 1
N_FOLDED = N_BLOCKS * BLOCK
assert _N1 * _N2 == STFT.n_fft

_k1, _block = np.arange(BLOCK), np.arange(N_BLOCKS)[:, None]
_downwards = _block % 2 == 1

BIN_AT = (BLOCK - 1) * _block + np.where(_downwards, BLOCK - 1 - _k1, _k1)
BIN_AT = BIN_AT.ravel()
"""[272] the bin at each place."""

SHARE = 1.0 / np.bincount(BIN_AT)[BIN_AT]
"""[272] one half where a bin stands twice: sums with these weights count every bin once."""

# The product of u = p + jq with the twiddle c + js, without a complex number: rows p, q, p, q times c, s, s, c are
# pc, qs, ps, qc, and SECOND knows that pc - qs is the real part and ps + qc the imaginary one.
_first = np.exp(-2j * np.pi * np.outer(np.arange(_N1), _k1) / _N1)
_FIRST = np.stack([_first.real, _first.imag, _first.real, _first.imag], axis=2).reshape(_N1, -1)     # [32, 17 * 4]
_twiddle = np.exp(-2j * np.pi * np.outer(_k1, np.arange(_N2)) / STFT.n_fft)
_TWIDDLE = np.concatenate([_twiddle.real, _twiddle.imag, _twiddle.imag, _twiddle.real], axis=1)     # [17, 4 * 16]
_k2 = np.where(_downwards, _N2 - (_block + 1) // 2, _block // 2)
_second = np.exp(-2j * np.pi * _k2 * np.arange(_N2) / _N2)                                      # [16, 16]
_of_v = np.concatenate([_second, -_second, 1j * _second, 1j * _second], axis=1)
_SECOND = np.concatenate([_of_v.real, _of_v.imag * np.where(_downwards, -1, 1)])                # [32, 4 * 16]
# the inverse counts a bin twice where it stands for its mirror image too; in the outermost k1 both are there
_INVERSE_TWIDDLE = _TWIDDLE * np.where((_k1 == 0) | (_k1 == BLOCK - 1), 1, 2)[:, None] / STFT.n_fft


def n_low_blocks(n_bins: int) -> int:
    """How many blocks from the start hold the lowest `n_bins` bins wherever they stand."""
    return min(N_BLOCKS, 1 + (n_bins - 1) // (BLOCK - 1))


class FoldedDft:
    """Adds transforms of B frames to a graph; the two directions share their constants."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._first = nodes.constant(_FIRST)

    def spectrum(self, frame: str) -> str:
        """Shape: `frame` has B * 512 samples in any shape; the result is [B, 2, 272]."""
        nodes = self._nodes
        inner = nodes("MatMul", nodes("Transpose", self._first, perm=[1, 0]), nodes.reshape(frame, -1, _N1, _N2))
        inner = nodes("Mul", nodes.reshape(inner, -1, BLOCK, 4 * _N2), nodes.constant(_TWIDDLE))
        return nodes.reshape(nodes("MatMul", nodes.constant(_SECOND), self._transposed(inner)), -1, 2, N_FOLDED)

    def frame(self, rows: str, mix: np.ndarray) -> str:
        """The 512 samples [B, 32, 16] of each folded spectrum that `mix` @ `rows` has as its blocks.

        Shape: `rows` [B, R, 17], `mix` [32, R]: the 16 blocks of the real part, then those of the imaginary one.
        """
        nodes = self._nodes
        inner = nodes("MatMul", self._transposed(rows), nodes.constant(mix.T @ _SECOND))
        inner = nodes("Mul", inner, nodes.constant(_INVERSE_TWIDDLE))
        return nodes("MatMul", self._first, nodes.reshape(inner, -1, 4 * BLOCK, _N2))

    def _transposed(self, matrices: str) -> str:
        return self._nodes("Transpose", matrices, perm=[0, 2, 1])
