"""Fixed filters for small grey images: how much edge of which direction lies where.

Strokes and outlines tell more than brightness (Dalal & Triggs, CVPR 2005), and under differential
privacy fixed features beat learnt ones (Tramer & Boneh, ICLR 2021). Natural images carry most of
their energy at low spatial frequencies; raising the others by a fixed power evens the features out,
so that few noisy steps suffice. Nothing here depends on any data set.
"""

import math
from functools import cache
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

DIRECTIONS: Final = 8
CELLS: Final = 7
PATCHES: Final = 14
WIDTH: Final = (DIRECTIONS + 1) * CELLS**2 + PATCHES**2
"""Features of one image."""

POWER: Final = 1.5
NORM: Final = 3.0
"""The length of an image's edge features; its brightness features are half as long."""


def oriented(images: Tensor) -> Tensor:
    """Images [n, 28, 28] in 0..1 to features [n, WIDTH]; each image by itself."""
    grey = images[:, None]
    framed = functional.pad(grey, (1, 1, 1, 1))
    across = framed[:, :, 1:-1, 2:] - framed[:, :, 1:-1, :-2]
    down = framed[:, :, 2:, 1:-1] - framed[:, :, :-2, 1:-1]
    strength = (across**2 + down**2 + 1e-8).sqrt()
    angle = torch.atan2(down, across)
    edges = torch.cat(
        [
            strength * torch.cos(angle - 2 * math.pi * k / DIRECTIONS).clamp(min=0) ** 3
            for k in range(DIRECTIONS)
        ],
        dim=1,
    )
    pooled = functional.avg_pool2d(functional.pad(edges, (2, 2, 2, 2)), 8, 4).sqrt()
    mean = pooled.mean(1, keepdim=True)
    directed = _evened(torch.cat([pooled - mean, mean], dim=1))
    bright = _evened(functional.avg_pool2d(functional.pad(grey, (1, 1, 1, 1)), 4, 2))
    return torch.cat([_length(directed, NORM), _length(bright, NORM / 2)], dim=1)


def _evened(maps: Tensor) -> Tensor:
    """The cosine transform of maps [n, c, s, s], higher frequencies raised."""
    cosine, gain = _basis(maps.shape[-1])
    evened: Tensor = (cosine @ maps @ cosine.T) * gain
    return evened


def _length(maps: Tensor, norm: float) -> Tensor:
    """Maps as one vector an image, of length `norm` (shorter only where there is nothing)."""
    flat = maps.flatten(1)
    lengths: Tensor = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
    return norm * flat / (lengths + 1e-3)


@cache
def _basis(size: int) -> tuple[Tensor, Tensor]:
    """The orthonormal cosine transform (DCT-II) of `size` points, and a gain per frequency."""
    k = torch.arange(size)
    cosine = torch.cos(math.pi * k[:, None] * (2 * k[None] + 1) / (2 * size))
    cosine *= math.sqrt(2 / size)
    cosine[0] /= math.sqrt(2)
    return cosine, (1.0 + k[:, None] + k[None]) ** POWER
