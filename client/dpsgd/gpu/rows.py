"""The rows that steps draw, on the device from the first bit on: no index goes over the host.

The host learns how many rows each step has, for its shapes: one wait for many steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from client.dpsgd.gpu.stream import CudaStream
from privacy.mechanism import noise

_AHEAD: Final = 1 << 26
"""Rows of all steps that are drawn together, a byte each."""


@dataclass(frozen=True, slots=True, eq=False)
class Padded:
    """The rows of steps, `at` [steps, capacity]; those that are `real` were drawn.

    The others repeat row 0, and must count for nothing.
    """

    at: Tensor
    real: Tensor


def batches_on(stream: CudaStream, n: int, rate: float, steps: int) -> Iterator[Tensor]:
    """`noise.batches` on the device: the rows that each step draws, sorted."""
    for count in _parts(n, steps):
        drawn, sizes = _drawn(stream, n, rate, count)
        yield from torch.split(drawn.remainder_(max(n, 1)), sizes)


def padded_on(stream: CudaStream, n: int, rate: float, steps: int) -> Iterator[Padded]:
    """The same rows for steps of one shape: as many places as the largest of some steps needs.

    At least 2, and a multiple of 8. `n` must not be 0.
    """
    for count in _parts(n, steps):
        drawn, sizes = _drawn(stream, n, rate, count)
        capacity = -(-max(2, *sizes) // 8) * 8
        on = drawn.device
        step_of = drawn.div(n, rounding_mode="floor")
        starts = torch.searchsorted(drawn, n * torch.arange(count, device=on))
        place = torch.arange(len(drawn), device=on) - starts[step_of]
        at = torch.zeros(count, capacity, dtype=torch.int64, device=on)
        real = torch.zeros(count, capacity, dtype=torch.bool, device=on)
        at.index_put_((step_of, place), drawn.remainder(n))
        real.index_put_((step_of, place), torch.ones((), dtype=torch.bool, device=on))
        yield Padded(at, real)


def _parts(n: int, steps: int) -> Iterator[int]:
    ahead = max(1, _AHEAD // max(n, 1))
    for first in range(0, steps, ahead):
        yield min(ahead, steps - first)


def _drawn(stream: CudaStream, n: int, rate: float, steps: int) -> tuple[Tensor, list[int]]:
    """The rows of all steps, counted on from step to step, and how many each step has."""
    drawn: Tensor = noise.drawn_on(stream, n * steps, rate).nonzero().flatten()
    ends = torch.searchsorted(drawn, n * torch.arange(1, steps + 1, device=drawn.device))
    sizes = ends.diff(prepend=ends.new_zeros(1)).tolist()  # nonzero waited already
    return drawn, sizes
