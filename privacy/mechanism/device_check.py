"""Whether a device makes the noise, and draws the rows, that numpy and `exact` make of its bits."""

import hashlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

from privacy.mechanism import device, exact, gaussian, native
from privacy.mechanism.gaussian import Sums
from privacy.mechanism.noise import chacha20, threshold_of

_COUNT: Final = 40 * gaussian.PAIRS + 85
"""Numbers: angles of the last chunk begin in the middle of a block."""
_ROWS: Final = 1_000_003
_RATE: Final = 0.3 + 2.0**-17
"""Some 15 of the rows tie."""
_EDGE: Final = 1 << 38


def agrees(stream: device.DeviceStream) -> bool:
    """Whether a device gives numpy's numbers to the last bit, and names the same undecided ones.

    Some of these are compared with `exact`, and rows with `poisson`'s rule. The key is public and
    gives one radius that is extreme.
    """
    key = hashlib.sha256(device.COMPARED).digest()
    stream.start(key)
    for turn in range(1, 8):
        bits = chacha20(key, 0, gaussian.bits_for(_COUNT), turn=turn)
        cases = list(native.starts(bits, _COUNT))
        case = (turn - 1) % len(cases)  # the first again, beside other sums
        start, step = cases[case]
        more = None if turn <= len(cases) else start[::-1].astype(np.float32)
        right, room = start.copy(), (np.zeros(_COUNT, np.int64), np.zeros(_COUNT))
        opened = gaussian.add_noise(right, bits, 2.0, step, 3.0, *room, more)
        places, were = room[0][:opened], room[1][:opened]
        sums = stream.put(start.copy())
        beside = None if more is None else stream.put(more)
        stream.add_noise(sums, 2.0, step, 3.0, beside)
        positions, before = stream.opened()
        order = np.argsort(positions)
        pairs = ((right, stream.read(sums)), (places, positions[order]), (were, before[order]))
        if not all(np.array_equal(a, b) for a, b in pairs):
            return False
        # A grid as fine as the last has more steps than can be settled; the others a few each.
        some = np.append(places[:: max(1, opened // 16)], _extreme(bits, places))
        some = np.unique(some)[: 0 if case == 5 else None]
        at = np.searchsorted(places, some)
        stream.keep(some, were[at])
        stream.settle(sums, 2.0, step, 3.0)
        settle_as_device(right, key, turn, 2.0, step, 3.0, some, were[at])
        if not np.array_equal(right[some], stream.read(sums)[some]):
            return False
    drawn = np.flatnonzero(stream.read(stream.draw(_ROWS, *threshold_of(_RATE))))
    return np.array_equal(drawn, poisson_as_device(key, 8, _ROWS, _RATE)) and (not stream.failed())


def settle_as_device(
    sums: Sums,
    key: bytes,
    turn: int,
    std: float,
    step: float,
    over: float,
    undecided: NDArray[np.int64],
    before: NDArray[np.float64],
) -> None:
    """`exact.settle` with the bits that a device takes for a turn of its stream: to compare it."""
    for position, sum_before in zip(undecided.tolist(), before.tolist(), strict=True):
        at = position // device.CHUNK * device.CHUNK
        values = np.zeros(min(device.CHUNK, len(sums) - at), sums.dtype)
        bits = chacha20(key, 8 * at, gaussian.bits_for(len(values)), turn=turn)
        place = np.array([position - at])
        pair = at // 2 + gaussian.pair_of(position - at, len(values), bits)[0]
        purpose = device.MORE | pair >> 31 << 8
        more = chacha20(key, 128 * (pair & (1 << 31) - 1), 128, turn=turn, purpose=purpose)
        was = np.array([sum_before])
        exact.settle(values, bits, std, step, over, place, was, more.tobytes)
        sums[position] = values[place[0]]


def poisson_as_device(key: bytes, turn: int, n: int, rate: float) -> NDArray[np.int64]:
    """The rows that a device draws with a turn of a key's stream: to compare it."""
    threshold, rest = threshold_of(rate)
    words = chacha20(key, 0, 2 * n, turn=turn, purpose=device.ROWS).view(np.uint16)
    drawn = words < threshold
    for row in np.flatnonzero(words == threshold).tolist():
        block = chacha20(key, row // 8 * 64, 64, turn=turn, purpose=device.TIES).view(np.uint64)
        drawn[row] = int(block[row % 8]) < rest
    return np.flatnonzero(drawn)


def _extreme(bits: NDArray[np.uint8], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of these places those whose radius is extreme."""
    radii = [gaussian.pair_of(place, _COUNT, bits)[2] for place in places.tolist()]
    return places[[(radius + _EDGE) % 2**64 < 2 * _EDGE for radius in radii]]
