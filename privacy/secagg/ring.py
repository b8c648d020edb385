"""Clipped sums as elements of a ring: each site's share of the noise, on the public grid, exactly.

A site releases K = round((S + Z) / step), a whole number, with its share Z of the noise
(`privacy.mechanism.noise.privatise`). The sum of the K is taken modulo 2^32 or 2^64; it never wraps
around, since every site's K is bounded beforehand. docs/secure-aggregation.md proves that, and what
the sum's law differs from that of one Gaussian.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from privacy.mechanism import noise
from privacy.mechanism.sensitivity import noise_std
from privacy.secagg.masks import Words

Sums = Mapping[str, NDArray[np.float64]]
"""A site's clipped sums by the model's names."""

_LARGEST_NOISE: Final = 2**15
"""More steps than a share of the noise ever has: 10.2 deviations of less than 2^11 steps."""
_EXACT: Final = 2**52
"""Whole numbers up to here, and their neighbours, are exact in float64."""


class RingError(ValueError):
    """Sums that no ring holds."""


@dataclass(frozen=True, slots=True)
class Ring:
    """The ring of one plan: `std` is a site's share of the noise, `step` the grid's.

    Each of at most `parties` sites adds a whole number of at most `most` + 2^15 in magnitude.
    """

    bits: int
    std: float
    parties: int

    @property
    def step(self) -> float:
        """The public grid: a power of two, between 2^10 and 2^11 of them in a share's deviation."""
        return noise.grid(self.std)

    @property
    def most(self) -> int:
        """The most steps that a site's clipped sum has in a coordinate: more are clamped."""
        return _room(self.bits, self.parties)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype("<u4" if self.bits == 32 else "<u8")

    def share(self, sums: NDArray[Any]) -> Words:
        """A site's clipped sums with its share of the noise, as ring elements; draws the noise.

        Clamping a coordinate moves no two sums further apart.
        """
        wide = np.array(sums, dtype=np.float64, order="C").reshape(-1)
        bound = self.most * self.step
        np.clip(wide, -bound, bound, out=wide)
        noise.privatise(wide, self.std, over=self.step)
        whole = wide.astype(np.int64)
        words: Words = whole.astype(self.dtype)  # modulo the ring, in two's complement
        return words

    def zeros(self, count: int) -> Words:
        """The start of a sum."""
        return np.zeros(count, dtype=self.dtype)

    def read(self, content: bytes | memoryview, count: int) -> Words:
        """`count` ring elements from their bytes; RingError for any other number of bytes."""
        if len(content) != count * self.dtype.itemsize:
            raise RingError(
                f"expected {count * self.dtype.itemsize} bytes of {count} words, got {len(content)}"
            )
        words: Words = np.frombuffer(content, dtype=self.dtype)
        return words

    def value(self, words: Words) -> NDArray[np.float64]:
        """The sum that the ring elements stand for, in the units of the clipped sums."""
        signed = words.view(np.dtype("<i4" if self.bits == 32 else "<i8"))
        total: NDArray[np.float64] = signed.astype(np.float64) * self.step
        return total


def in_order(sums: Sums) -> NDArray[np.float64]:
    """All numbers in one vector, in the order of the names: the same at every party."""
    return np.concatenate([np.zeros(0), *(sums[name].reshape(-1) for name in sorted(sums))])


def by_name(
    vector: NDArray[np.float64], shapes: Mapping[str, Sequence[int]]
) -> dict[str, NDArray[np.float64]]:
    """What `in_order` joined, in arrays of these shapes."""
    parts: dict[str, NDArray[np.float64]] = {}
    at = 0
    for name in sorted(shapes):
        size = math.prod(shapes[name])
        parts[name] = vector[at : at + size].reshape(shapes[name])
        at += size
    return parts


def ring_for(
    *,
    sigma: float,
    clip: float,
    shares: int,
    parties: int,
    numbers: int,
    slack: float,
    largest: float,
) -> Ring:
    """The ring of sums of so many `numbers`, whose noise is sigma * clip with `shares` parties.

    `slack` is what rounding adds to the sensitivity of a site's sum, relative to `clip`; `largest`
    is how many contributions of norm `clip` a site's sum has in all likelihood at most. RingError
    where it would be clamped even in the ring 2^64.
    """
    std = noise_std(sigma, clip, numbers, slack) / math.sqrt(shares)
    steps = largest * clip / noise.grid(std)
    for bits in (32, 64):
        if steps <= _room(bits, parties):
            return Ring(bits, std, parties)
    raise RingError(f"a site's sum must stay below 2^52 steps of the grid, got {steps:.3g}")


def _room(bits: int, parties: int) -> int:
    """The most that each site's sum may have, so that no sum of all leaves the ring."""
    return int(min((2 ** (bits - 1) - 1) // parties - _LARGEST_NOISE, _EXACT))
