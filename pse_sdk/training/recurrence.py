"""What `torch.nn.GRU` computes, trained in half its time on a processor.

torch records every operation of every frame and adds to the weights' gradients frame by frame, which costs more than
the arithmetic where layers are as narrow as here. Written out, the way back takes three operations a frame, and one
for all frames for each weight.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx


def gru(layer: nn.GRU, inputs: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """The hidden states [B, N, H] of a layer in one direction for inputs [B, N, I], and the last of them [B, H].

    Args:
        start: hidden state before the first frame, [B, H].
    """
    gates = nn.functional.linear(inputs.transpose(0, 1), layer.weight_ih_l0, layer.bias_ih_l0)     # type: ignore
    hidden = _Recurrence.apply(gates, layer.weight_hh_l0, layer.bias_hh_l0, start)
    return hidden.transpose(0, 1), hidden[-1]


class _Recurrence(torch.autograd.Function):
    """Hidden states h [N, B, H], one frame after the other.

        r, z = sigmoid(what the inputs [N, B, 3 H] say + weight h + bias)   reset and update gates
        n = tanh(what the inputs say + r * (weight h + bias))               the new state
        h' = n + z (h - n)

    Source: Cho et al., EMNLP 2014, in the form of `torch.nn.GRU`.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, inputs: Tensor, weight: Tensor, bias: Tensor, start: Tensor) -> Tensor:
        n_frames, batch, width = len(inputs), len(start), start.shape[1]
        gates, new = (part.clone(memory_format=torch.contiguous_format)     # both are written over
                      for part in inputs.tensor_split((2 * width,), 2))
        recalled = torch.empty_like(new)                # what the hidden state would give to the new one
        hidden = inputs.new_empty(n_frames + 1, batch, width)
        hidden[0] = now = start
        back = weight.t().contiguous()
        for i in range(n_frames):
            said = torch.addmm(bias, now, back)
            gate = gates[i].add_(said[:, :2 * width]).sigmoid_()
            recalled[i] = said[:, 2 * width:]
            new[i].addcmul_(gate[:, :width], recalled[i]).tanh_()
            now = torch.lerp(new[i], now, gate[:, width:], out=hidden[i + 1])
        ctx.save_for_backward(weight, hidden, gates, new, recalled)
        return hidden[1:]

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, ...]:     # type: ignore[override]
        weight, hidden, gates, new, recalled = ctx.saved_tensors    # type: ignore[attr-defined]
        n_frames, batch, width = gradient.shape
        reset, update = gates.chunk(2, 2)
        # a change of what goes into r, z and n (of the recalled, for n) changes h' by so much
        to_new = (1 - update) * (1 - new.square())
        effects = torch.stack([to_new * recalled * reset * (1 - reset), (hidden[:-1] - new) * update * (1 - update),
                               to_new * reset], 2)
        of_said = torch.empty_like(effects)
        of_hidden = torch.empty_like(new)
        now = torch.zeros_like(new[0])
        for i in reversed(range(n_frames)):
            torch.add(gradient[i], now, out=of_hidden[i])
            torch.mul(of_hidden[i].unsqueeze(1), effects[i], out=of_said[i])
            now = torch.addmm(of_hidden[i] * update[i], of_said[i].view(batch, -1), weight)
        rows = of_said.view(n_frames * batch, -1)
        of_inputs = torch.cat([of_said[:, :, :2].flatten(2), of_hidden * to_new], 2)
        return of_inputs, rows.t() @ hidden[:-1].flatten(0, 1), rows.sum(0), now
