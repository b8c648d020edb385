"""Opacus' recurrent networks in one pass over time, while their gradients by example are taken.

Opacus calls the two matrices of a cell at every time. Here a layer's inputs are multiplied at once,
and each matrix is recorded once, with its inputs and output gradients of all times.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from opacus.layers.dp_rnn import DPGRUCell, DPLSTMCell, DPRNNBase, DPRNNCell
from torch import Tensor
from torch.nn.utils.parametrize import is_parametrized

States = tuple[list[Tensor], list[Tensor]]
"""The hidden and the cell's states before every time and after the last; of LSTM alone both."""
Pass = Callable[[Any, Sequence[Tensor], Sequence[Tensor], Tensor, Tensor | None], States]
"""(cell, input products by time, hidden biases by time, first states) -> all states."""


def suits(module: DPRNNBase, cell: Any, *, packed: bool) -> bool:
    """Whether a layer can be run in one pass: no packing, no dropout, cells as Opacus made them."""
    plain = type(cell) in _PASSES and not is_parametrized(cell.ih) and not is_parametrized(cell.hh)
    return plain and not packed and not module.dropout


def run(
    cell: Any,
    x: Tensor,
    h: Tensor,
    c: Tensor | None,
    record: Callable[[Any, Tensor, Tensor], None],
    *,
    backwards: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What Opacus' `forward_layer` gives of x [T, B, D]: outputs [T, B, H] and the last states.

    `record(module, a, out)` is told what a module that was not called has made: `out` [B, T, n], of
    which the gradient is asked for, of a [B, T, m].
    """
    if backwards:
        x = x.flip(0)
    inputs = cell.ih(x.transpose(0, 1))
    bias = cell.hh.bias
    if type(cell) is DPGRUCell:  # whose hidden products are multiplied before they are added
        hidden = inputs.new_zeros(inputs.shape) if bias is None else bias.expand_as(inputs).clone()
        hidden.requires_grad_()
        products = hidden.unbind(1)
    else:
        hidden, products = inputs, ()
        inputs = inputs if bias is None else inputs + bias
    if c is not None and inputs.dtype == h.dtype == c.dtype:
        every, c = _Lstm.apply(  # type: ignore[no-untyped-call]
            inputs.transpose(0, 1), cell.hh.weight, h, c
        )
        record(cell.hh, every[:-1].transpose(0, 1), hidden)
        return every[1:].flip(0) if backwards else every[1:], every[-1], c
    states, cells = _PASSES[type(cell)](cell, inputs.unbind(1), products, h, c)
    record(cell.hh, torch.stack(states[:-1], 1), hidden)
    out = torch.stack(states[:0:-1] if backwards else states[1:])
    return out, states[-1], cells[-1] if cells else None


class _Lstm(torch.autograd.Function):
    """`_lstm` with its gradients by hand: what needs no earlier time is computed for all at once.

    From x [T, B, 4 H], weight [4 H, H], h and c [B, H]: all h [T + 1, B, H] and the last c. The
    weight has no gradient here.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        times, rows, width = len(x), *h.shape
        gates, hs = h.new_empty(times, rows, 4 * width), h.new_empty(times + 1, rows, width)
        cs, bent = torch.empty_like(hs), h.new_empty(times, rows, width)
        hs[0], cs[0] = h, c
        both, g_of = gates[..., : 2 * width].unbind(), gates[..., 2 * width : 3 * width].unbind()
        i_of, f_of, o_of = (gates[..., at * width : (at + 1) * width].unbind() for at in (0, 1, 3))
        states, cells, across = hs.unbind(), cs.unbind(), weight.t()
        gate_of, x_of, bent_of = gates.unbind(), x.unbind(), bent.unbind()
        for t in range(times):
            torch.addmm(x_of[t], states[t], across, out=gate_of[t])
            both[t].sigmoid_()
            g_of[t].tanh_()
            o_of[t].sigmoid_()
            after = torch.mul(f_of[t], cells[t], out=cells[t + 1]).addcmul_(i_of[t], g_of[t])
            torch.mul(torch.tanh(after, out=bent_of[t]), o_of[t], out=states[t + 1])
        ctx.save_for_backward(weight, gates, cs, bent)
        return hs, cs[-1].clone()

    @staticmethod
    def backward(ctx: Any, every: Tensor, last: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
        weight, gates, cs, bent = ctx.saved_tensors
        i, f, g, o = gates.chunk(4, 2)
        # what a change of the cell, or of the output, becomes before each gate's bend
        by_cell = torch.cat([g * i * (1 - i), cs[:-1] * f * (1 - f), i * (1 - g * g)], 2)
        by_cell = by_cell.unflatten(2, (3, -1)).unbind()
        by_output, into = (bent * o * (1 - o)).unbind(), (o * (1 - bent * bent)).unbind()
        x = torch.empty_like(gates)
        cell_gates, output_gate = x.unflatten(2, (4, -1)).split((3, 1), 2)
        cell_of, output_of, x_of = cell_gates.unbind(), output_gate.squeeze(2).unbind(), x.unbind()
        forgets, given = f.unbind(), every.unbind()
        c, h = last, given[-1]
        for t in range(len(x) - 1, -1, -1):
            c = torch.addcmul(c, h, into[t])
            torch.mul(h, by_output[t], out=output_of[t])
            torch.mul(c[:, None], by_cell[t], out=cell_of[t])
            h, c = torch.addmm(given[t], x_of[t], weight), c * forgets[t]
        return x, None, h, c


def _lstm(cell: Any, inputs: Sequence[Tensor], _: Sequence[Tensor], h: Tensor, c: Any) -> States:
    weight, hs, cs = cell.hh.weight.t(), [h], [c]
    for x in inputs:
        i, f, g, o = torch.addmm(x, h, weight).chunk(4, 1)
        c = torch.addcmul(f.sigmoid() * c, i.sigmoid(), g.tanh())
        h = o.sigmoid() * c.tanh()
        hs.append(h)
        cs.append(c)
    return hs, cs


def _gru(
    cell: Any, inputs: Sequence[Tensor], hidden: Sequence[Tensor], h: Tensor, _: Tensor | None
) -> States:
    weight, width, hs = cell.hh.weight.t(), cell.hidden_size, [h]
    for x, bias in zip(inputs, hidden, strict=True):
        product = torch.addmm(bias, h, weight)
        r, z = (x[:, : 2 * width] + product[:, : 2 * width]).sigmoid().chunk(2, 1)
        n = torch.addcmul(x[:, 2 * width :], r, product[:, 2 * width :]).tanh()
        h = n + z * (h - n)
        hs.append(h)
    return hs, []


def _rnn(
    cell: Any, inputs: Sequence[Tensor], _: Sequence[Tensor], h: Tensor, __: Tensor | None
) -> States:
    weight, hs = cell.hh.weight.t(), [h]
    bend = torch.tanh if cell.nonlinearity == "tanh" else torch.relu
    for x in inputs:
        h = bend(torch.addmm(x, h, weight))
        hs.append(h)
    return hs, []


_PASSES: Final[Mapping[type, Pass]] = {DPLSTMCell: _lstm, DPGRUCell: _gru, DPRNNCell: _rnn}
