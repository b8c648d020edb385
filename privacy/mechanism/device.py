"""Noise for sums that lie on a GPU, and rows drawn there: the same laws and proofs as on a CPU.

A device expands a key by ChaCha20 (RFC 8439) and gives the words to the very operations of
`noise.c`. The few numbers that rounding could have moved are settled there as well. Nothing waits
for the device, and key and position of the stream lie in its memory: what was recorded once, as a
CUDA graph, gets new bits whenever it is run.
"""

from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from privacy.mechanism import gaussian
from privacy.mechanism.gaussian import Sums

KERNELS: Final = (
    *("begin_turn", "end_turn", "add_noise_to_sums", "settle_undecided", "draw_rows"),
    "erase_rows",
)
"""What `source` defines for a device to launch."""
MOST: Final = 1 << 34
"""Numbers, or rows, of one turn: no block of its stream is then used twice."""
CHUNK: Final = 2 * gaussian.PAIRS
NOISE, MORE, ROWS, TIES = range(4)
"""What the bits of a turn are for, in the last word of ChaCha20's nonce."""
COMPARED: Final = b"device stream 5305"
"""What the public key is made of by which a device is compared; it gives an extreme radius."""
_SOURCES: Final = ("noise.c", "noise.cu", "exact.cu", "kernels.cu")
_GROUP: Final = 16


class DeviceStream(Protocol):
    """A key's ChaCha20 stream in a device's memory, cut into turns: one for each use.

    What is asked for is done in order, and nothing but `read`, `opened` and `failed` waits for it.
    """

    def start(self, key: bytes) -> None:
        """Take a key that nothing else has, and begin before its first turn."""
        ...

    def add_noise(
        self, sums: Any, std: float, step: float, over: float, more: Any | None = None
    ) -> None:
        """`gaussian.add_noise` in place with the next turn's bits, undecided numbers left.

        `more` as there: float32 beside float32 sums.
        """
        ...

    def settle(self, sums: Any, std: float, step: float, over: float) -> None:
        """`exact.settle` for the numbers that `add_noise` left undecided; ends the turn."""
        ...

    def draw(self, rows: int, threshold: int, rest: int) -> Any:
        """Which rows the next turn draws, as `noise.poisson` does: a byte each, on the device."""
        ...

    def size(self, sums: Any) -> int:
        """How many numbers sums have."""
        ...

    def divide(self, sums: Any, over: float, more: Any | None = None) -> None:
        """Divide all sums, `more` added to them as doubles before, in place."""
        ...

    def put(self, values: Sums) -> Any:
        """The sums on the device."""
        ...

    def read(self, values: Any) -> NDArray[Any]:
        """A copy on the host."""
        ...

    def opened(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Where the undecided numbers of the last turn are, and what they were, in steps."""
        ...

    def keep(self, positions: NDArray[np.int64], before: NDArray[np.float64]) -> None:
        """Leave these alone undecided, before `settle`: for a comparison."""
        ...

    def failed(self) -> bool:
        """Whether a number was undecided for which there was no room, or no turn was begun."""
        ...


def source() -> str:
    """What a device's compiler is given; it must neither contract nor reorder operations."""
    here = Path(__file__)
    return "".join(here.with_name(name).read_text() for name in _SOURCES)


def room(count: int) -> int:
    """Undecided numbers for which there is room among so many: one in 20 million is expected."""
    return count // 10_000 + 1024


def threads(count: int) -> int:
    """How many threads make `count` numbers."""
    return -(-count // CHUNK) * (CHUNK // _GROUP)
