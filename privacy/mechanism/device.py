"""Noise for sums that lie on a GPU, made there: the same law, and the same proof, as on a CPU.

The device expands the call's key by ChaCha20 (RFC 8439) and gives the words to the very operations
of `noise.c`. It names the few numbers that rounding could have moved; these are settled here, as
they are for sums on the host.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from privacy.mechanism import exact, gaussian

FUNCTION: Final = "add_noise_on_device"
"""The kernel: sums, wide, n, key, std, step, over, {positions, before, count, room}."""
GROUP: Final = 16
"""Numbers that a thread makes."""
MOST: Final = 1 << 34
"""Numbers of one call: ChaCha20 counts 2^32 blocks, of eight numbers each."""
CHUNK: Final = 2 * gaussian.PAIRS
COMPARED: Final = b"device noise 8122"
"""What the public key is made of by which a device is compared; it gives an extreme radius."""


class DeviceSums(Protocol):
    """Flat sums, float32 or float64, where they lie."""

    def __len__(self) -> int: ...

    def add_noise(
        self, key: bytes, std: float, step: float, over: float
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """`gaussian.add_noise` in place, with the bits of `key`'s ChaCha20 stream.

        Returns the positions of the numbers that are not decided, and what they were, in steps.
        """
        ...

    def put(self, positions: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Write numbers, rounded to the sums' own type."""
        ...

    def divide(self, over: float) -> None:
        """Divide all sums in place."""
        ...

    def read(self) -> gaussian.Sums:
        """A copy on the host."""
        ...


def source() -> str:
    """What a device's compiler is given; it must neither contract nor reorder operations."""
    here = Path(__file__)
    return here.with_name("noise.c").read_text() + here.with_name("noise.cu").read_text()


def threads(count: int) -> int:
    """How many threads make `count` numbers."""
    return -(-count // CHUNK) * (CHUNK // GROUP)


def settle(
    sums: DeviceSums,
    undecided: NDArray[np.int64],
    before: NDArray[np.float64],
    parameters: tuple[float, float, float],
    bits_at: Callable[[int, int], NDArray[np.uint8]],
    more: Callable[[], bytes],
) -> None:
    """Put the right numbers in the places that are `undecided`, chunk by chunk.

    `parameters` are std, step and over; `bits_at(first, count)` gives so many bytes of the call's
    stream again; `more` is that of `exact.settle`.
    """
    order = np.argsort(undecided)
    undecided, before = undecided[order], before[order]
    for chunk in np.unique(undecided // CHUNK).tolist():
        first = chunk * CHUNK
        some = slice(*np.searchsorted(undecided, (first, first + CHUNK)))
        values = np.zeros(min(CHUNK, len(sums) - first))
        bits = bits_at(8 * first, gaussian.bits_for(len(values)))
        places = undecided[some] - first
        exact.settle(values, bits, *parameters, places, before[some], more)
        sums.put(undecided[some], values[places])
