"""What `torch.nn.GRU` computes, trained in half its time on a processor.

torch records every operation of every frame and adds to the weights' gradients frame by frame, which costs more than
the arithmetic where layers are as narrow as here. Written out, the way back takes three operations a frame, and one
for all frames for each weight.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx


def gru(layer: nn.GRU, inputs: Tensor, start: Tensor, said: Tensor | None = None,
        direction: str = "") -> tuple[Tensor, Tensor]:
    """The hidden states [B, N, H] of a layer in one direction for inputs [B, N, I], and the last of them [B, H].

    Args:
        start: hidden state before the first frame, [B, H].
        said: to the gates, beside what the inputs say, [B, N, 3 H].
        direction: how the layer's names of its weights end, after the number.
    """
    into, of_state = ((getattr(layer, f"weight_{kind}_l0{direction}"), getattr(layer, f"bias_{kind}_l0{direction}"))
                      for kind in ("ih", "hh"))
    gates = nn.functional.linear(inputs.transpose(0, 1), *into)
    if said is not None:
        gates = gates + said.transpose(0, 1)
    hidden = _Recurrence.apply(gates, *of_state, start)
    return hidden.transpose(0, 1), hidden[-1]


def gru_both_ways(layer: nn.GRU, inputs: Tensor) -> Tensor:
    """The hidden states [B, N, 2 H] of a layer in both directions for whole inputs [B, N, I]."""
    start = inputs.new_zeros(len(inputs), layer.hidden_size)
    ahead, _ = gru(layer, inputs, start)
    back, _ = gru(layer, inputs.flip(1), start, direction="_reverse")
    return torch.cat([ahead, back.flip(1)], 2)


def _together(parts: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """Their slices along the first axis, those of one frame together: cut all at once, for one cut costs as much as
    the arithmetic on what it cuts."""
    return list(zip(*(part.unbind() for part in parts), strict=True))


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
        said = torch.empty_like(inputs, memory_format=torch.contiguous_format)  # of the state, to all three
        said_to_gates, recalled = said.tensor_split((2 * width,), 2)
        reset, update = gates.chunk(2, 2)
        hidden = inputs.new_empty(n_frames + 1, batch, width)
        hidden[0] = now = start
        back = weight.t().contiguous()
        frames = (said, said_to_gates, recalled, gates, reset, update, new, hidden[1:])
        for say, to_gates, recall, gate, r, z, n, after in _together(frames):
            torch.addmm(bias, now, back, out=say)
            gate.add_(to_gates).sigmoid_()
            n.addcmul_(r, recall).tanh_()
            now = torch.lerp(n, now, z, out=after)
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
        of_hidden = gradient.clone(memory_format=torch.contiguous_format)
        now = torch.zeros_like(new[0])
        frames = (of_hidden, of_hidden.unsqueeze(2), effects, of_said, of_said.flatten(2), update)
        for change, to_each, effect, change_of_said, as_row, z in reversed(_together(frames)):
            change.add_(now)
            torch.mul(to_each, effect, out=change_of_said)
            now = torch.addmm(change * z, as_row, weight)
        rows = of_said.view(n_frames * batch, -1)
        of_inputs = torch.cat([of_said[:, :, :2].flatten(2), of_hidden * to_new], 2)
        return of_inputs, rows.t() @ hidden[:-1].flatten(0, 1), rows.sum(0), now
