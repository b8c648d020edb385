"""Two levels of wavelets for small grey pictures: what is there, and how it is arranged.

The scattering transform of Bruna & Mallat (2013) with Morlet wavelets of two scales and eight
directions, as Tramer & Boneh (ICLR 2021) put it before a linear layer: fixed public features beat
learnt ones under differential privacy. Each picture by itself; every group of three maps is brought
to mean 0 and spread 1 at every picture (Wu & He 2018), so all pictures are about equally long, and
far longer than a clip of 0.1: each gradient then counts as much as any other.
"""

import math
from functools import cache
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

DIRECTIONS: Final = 8
MAPS: Final = 1 + 2 * DIRECTIONS + DIRECTIONS**2
CELLS: Final = 7
WIDTH: Final = MAPS * CELLS**2
"""Features of one picture of 28 x 28."""
GROUPS: Final = 27
_REACH: Final = (3, 6)
"""How far the wavelets of each scale reach, in pixels: beyond, they are below 0.001."""
_BLUR: Final = 1.6
_CHUNK: Final = 100


def features(pictures: Tensor) -> Tensor:
    """Pictures [n, 28, 28] in 0..1 to features [n, WIDTH], of each group with mean 0, spread 1."""
    if not len(pictures):
        return pictures.new_zeros((0, WIDTH))
    parts = (scattered(some) for some in pictures.split(_CHUNK))
    return torch.cat([functional.group_norm(maps, GROUPS).flatten(1) for maps in parts])


def scattered(pictures: Tensor) -> Tensor:
    """Pictures [n, 28, 28] to maps [n, MAPS, CELLS, CELLS] of local means.

    Of the picture, of its waves of both scales, and of the broad waves in its fine ones.
    """
    grey = pictures[:, None]
    fine, broad = _waves(grey, 0, 1), _waves(grey, 1, 2)
    again = _waves(fine.flatten(0, 1)[:, None], 1, 2).unflatten(0, (len(pictures), DIRECTIONS))
    maps = [_local(grey, 1), _local(fine, 1), _local(broad, 2), _local(again.flatten(1, 2), 2)]
    return torch.cat(maps, 1)


def _waves(maps: Tensor, scale: int, stride: int) -> Tensor:
    """The strength of waves of a scale in each direction, [n, DIRECTIONS, ..] of maps [n, 1, ..].

    Strengths have a floor, so that they have a gradient everywhere.
    """
    reach = _REACH[scale]
    framed = functional.pad(maps, (reach,) * 4, mode="reflect")
    both = functional.conv2d(framed, _wavelets(scale), stride=stride)
    even, odd = both.split(DIRECTIONS, 1)
    strength: Tensor = (even.square() + odd.square() + 1e-12).sqrt()
    return strength


def _local(maps: Tensor, step: int) -> Tensor:
    """Local means [n, c, CELLS, CELLS] of maps whose points are `step` pixels apart."""
    count, channels = maps.shape[:2]
    blur = _blur(step)
    framed = functional.pad(maps.flatten(0, 1)[:, None], (len(blur[0, 0]) // 2,) * 4, "reflect")
    means = functional.conv2d(framed, blur, stride=4 // step)
    return means.view(count, channels, CELLS, CELLS)


@cache
def _wavelets(scale: int) -> Tensor:
    """The even and the odd halves of Morlet wavelets, [2 * DIRECTIONS, 1, side, side]."""
    reach, width, pitch = _REACH[scale], 0.8 * 2**scale, 3 * math.pi / 4 / 2**scale
    place = torch.arange(-reach, reach + 1, dtype=torch.float64)
    down, across = place[:, None], place[None]
    slant = 4 / DIRECTIONS
    waves = []
    for k in range(DIRECTIONS):
        angle = math.pi * k / DIRECTIONS
        along = across * math.cos(angle) + down * math.sin(angle)
        beside = down * math.cos(angle) - across * math.sin(angle)
        bell = torch.exp(-(along**2 + (slant * beside) ** 2) / (2 * width**2))
        wave = bell * torch.exp(1j * pitch * along)
        wave = wave - bell * (wave.sum() / bell.sum())  # no response to what is even
        waves.append(wave * slant / (2 * math.pi * width**2))
    stack = torch.stack(waves)
    return torch.cat([stack.real, stack.imag])[:, None].float()


@cache
def _blur(step: int) -> Tensor:
    """A bell that sums to one, over points `step` pixels apart, [1, 1, side, side]."""
    place = torch.arange(-6, 7, step, dtype=torch.float64)
    bell = torch.exp(-(place[:, None] ** 2 + place[None] ** 2) / (2 * _BLUR**2))
    return (bell / bell.sum())[None, None].float()
