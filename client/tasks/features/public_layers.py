"""First layers that hold nothing learnt: a row's numbers brought to a public length or form.

A clipped gradient of a linear layer is as long as its input: rows of one length use the clip alike,
and the noise that reaches a prediction does not grow with the number of features. Random features
(Rahimi & Recht 2007) give a linear layer the freedom of a kernel machine at that same price.
"""

import math
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

SMALLEST: Final = 1e-3
"""The length below which a row stays short."""


class RowNorm(nn.Module):
    """Each row [.., D] scaled to `length`; rows shorter than 0.001 stay short."""

    def __init__(self, length: float) -> None:
        super().__init__()
        self.length = length

    def forward(self, x: Tensor) -> Tensor:
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=SMALLEST)
        out: Tensor = x * (self.length / size)
        return out


class RandomFeatures(nn.Module):
    """cos and sin of random projections, [.., D] to [.., count], every row of length `length`.

    Their products approach the Gaussian kernel exp(-(scale |x - x'|)^2 / 2), less what it is
    between rows of these lengths in any directions: each cosine is centred at its mean over all
    directions of x. Rows that lie close would otherwise spend most of the clip on a constant, which
    the bias learns anyway. The projections are the same everywhere: drawn by NumPy from a constant
    seed, they are neither trained nor sent.
    """

    projection: Tensor
    spread: Tensor

    def __init__(self, inputs: int, count: int, scale: float, length: float) -> None:
        super().__init__()
        half = count // 2
        draw = np.random.Generator(np.random.PCG64(20071203))
        values = draw.standard_normal((half, inputs)) * scale
        projection = torch.from_numpy(values.astype(np.float32))
        self.register_buffer("projection", projection, persistent=False)
        # variance of a projection over all directions of a row of length 1; it is nearly Gaussian
        self.register_buffer("spread", (projection**2).sum(1) / inputs, persistent=False)
        self.scaled = RowNorm(length)

    def forward(self, x: Tensor) -> Tensor:
        z = nn.functional.linear(x, self.projection)
        mean = torch.exp(-0.5 * self.spread * (x * x).sum(-1, keepdim=True))
        out: Tensor = self.scaled(torch.cat([torch.cos(z) - mean, torch.sin(z)], dim=-1))
        return out


def first_layers(
    inputs: int, norm: float, random: int, scale: float
) -> tuple[list[nn.Module], int]:
    """The first layers of a schema's model, and how many numbers they give a row.

    `norm` 0 without `random` is none. `scale` 0 is the usual one, 8 over the root of the inputs:
    rows whose columns all lie anywhere in -1..1 are then far apart.
    """
    if random:
        width = scale or 8 / math.sqrt(inputs)
        return [RandomFeatures(inputs, random, width, norm or 2.0)], 2 * (random // 2)
    return ([RowNorm(norm)] if norm else []), inputs
