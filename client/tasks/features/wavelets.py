"""Two levels of wavelets for small grey pictures: what is there, and how it is arranged.

The scattering transform of Bruna & Mallat (2013) with Morlet wavelets of two scales and eight
directions, as Tramer & Boneh (ICLR 2021) put it before a linear layer: fixed public features beat
learnt ones under differential privacy. Each picture by itself; the channels of each group are
brought to mean 0 and spread 1 at every picture (Wu & He 2018).
"""

import math
from functools import cache
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

SIDE: Final = 28
_PAD: Final = 2
_GRID: Final = SIDE + 2 * _PAD
DIRECTIONS: Final = 8
CHANNELS: Final = 1 + 2 * DIRECTIONS + DIRECTIONS**2
CELLS: Final = 7
WIDTH: Final = CHANNELS * CELLS**2
"""Features of one picture."""
GROUPS: Final = 27
_FIRST: Final = 3
"""Where the first of the cells, four pixels apart, lies on the padded grid."""


def scattered(pictures: Tensor) -> Tensor:
    """Pictures [n, 28, 28] in 0..1 to maps [n, CHANNELS, CELLS, CELLS]."""
    framed = functional.pad(pictures[:, None], (_PAD,) * 4, mode="reflect")
    waves, low = _filters()
    seen = torch.fft.fft2(framed)
    fine, broad = (torch.fft.ifft2(seen * waves[j]).abs() for j in (0, 1))  # [n, DIRECTIONS, ..]
    fine_seen = torch.fft.fft2(fine)
    maps = [_smoothed(seen, low), _smoothed(fine_seen, low), _smoothed(torch.fft.fft2(broad), low)]
    for direction in range(DIRECTIONS):
        again = torch.fft.ifft2(fine_seen[:, direction : direction + 1] * waves[1]).abs()
        maps.append(_smoothed(torch.fft.fft2(again), low))
    return torch.cat(maps, 1)


def features(pictures: Tensor) -> Tensor:
    """Pictures [n, 28, 28] in 0..1 to features [n, WIDTH], of each group with mean 0, spread 1."""
    normed = functional.group_norm(scattered(pictures), GROUPS)
    return normed.flatten(1)


def _smoothed(seen: Tensor, low: Tensor) -> Tensor:
    """A map's local means, four pixels apart [n, c, CELLS, CELLS]."""
    smooth = torch.fft.ifft2(seen * low).real
    at = slice(_FIRST, _FIRST + 4 * (CELLS - 1) + 1, 4)
    return smooth[..., at, at]


@cache
def _filters() -> tuple[Tensor, Tensor]:
    """In Fourier space: the wavelets [2, DIRECTIONS, grid, grid], and the low pass [grid, grid]."""
    place = (torch.arange(_GRID, dtype=torch.float64) + _GRID // 2) % _GRID - _GRID // 2
    down, across = place[:, None], place[None]
    waves = torch.empty((2, DIRECTIONS, _GRID, _GRID), dtype=torch.complex128)
    for scale in (0, 1):
        width, pitch = 0.8 * 2**scale, 3 * math.pi / 4 / 2**scale
        for k in range(DIRECTIONS):
            angle = math.pi * k / DIRECTIONS
            along = across * math.cos(angle) + down * math.sin(angle)
            beside = down * math.cos(angle) - across * math.sin(angle)
            slant = 4 / DIRECTIONS
            bell = torch.exp(-(along**2 + (slant * beside) ** 2) / (2 * width**2))
            wave = bell * torch.exp(1j * pitch * along)
            wave = wave - bell * (wave.sum() / bell.sum())  # no response to what is even
            waves[scale, k] = torch.fft.fft2(wave * slant / (2 * math.pi * width**2))
    width = 0.8 * 2
    low = torch.exp(-(down**2 + across**2) / (2 * width**2))
    return waves.to(torch.complex64), torch.fft.fft2(low / low.sum()).real.float()
