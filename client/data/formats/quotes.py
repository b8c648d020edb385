"""Where quotes open and close in a block of text, one bit a byte, as simdjson finds them.

Every quote flips whether what follows is inside of quotes, so that a prefix sum modulo 2 over the
quotes' bits says it for each byte (Langdale and Lemire, Parsing Gigabytes of JSON per Second, 2019,
section 3.1.1). Numpy does so for 64 bytes at once.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

SLICE: Final = 2**18
"""Bytes that are looked at at once: what a core's cache holds."""

Bits = NDArray[np.uint64]


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """The quoted parts of a block: the positions of their first and last quotes."""

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    def outside(self, at: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the ascending positions that no quotes enclose."""
        begun = np.searchsorted(self.starts, at, side="right")
        ended = np.searchsorted(self.ends, at, side="left")
        return np.asarray(at[begun == ended], np.int64)

    def before(self, end: int) -> "Spans":
        """Those that begin before a position."""
        mask = self.starts < end
        return Spans(self.starts[mask], self.ends[mask])


@dataclass(frozen=True, slots=True, eq=False)
class Quotes:
    """A text's bits: quotes that open and close, bytes `inside` (opening ones too), line breaks."""

    opening: Bits
    closing: Bits
    inside: Bits
    breaks: Bits

    @property
    def spans(self) -> Spans:
        """The quoted parts that are whole."""
        ends = _positions(self.closing & ~_sooner(self.opening))
        return Spans(_positions(self._starts)[: len(ends)], ends)

    @property
    def unclosed(self) -> int | None:
        """Where a quote opens that no other closes."""
        return _last(self._starts) if int(self.inside[-1]) >> 63 else None

    @property
    def _starts(self) -> Bits:
        return self.opening & ~_later(self.closing)

    def end(self) -> int:
        """The position after the last line break outside of quotes; 0 where there is none."""
        return _last(self.breaks & ~self.inside) + 1

    def lines(self, end: int) -> int:
        """How many line breaks there are before a position."""
        return _count(self.breaks, end)

    def lines_outside(self, end: int) -> int:
        """How many of them end a record, being outside of quotes."""
        return _count(self.breaks & ~self.inside, end)

    def multiline(self, end: int) -> bool:
        """Whether a line breaks inside of quotes before a position."""
        return _count(self.breaks & self.inside, end) > 0


def quotes(content: bytes, quote: str, delimiter: str) -> Quotes | None:
    """The quotes of a text, if all but doubled ones stand at an end of a value; else None."""
    count = -(-len(content) // 64)
    quote_bits, edges, breaks = (np.zeros(count, np.uint64) for _ in range(3))
    whole = np.frombuffer(content, np.uint8)
    returns = b"\r" in content
    for start in range(0, len(content), SLICE):
        part = whole[start : start + SLICE]
        words = slice(start // 64, start // 64 + -(-len(part) // 64))
        lines = part == 10
        _pack(part == ord(quote), quote_bits[words])
        _pack(lines, breaks[words])
        edge = lines | (part == ord(delimiter))
        if returns:
            edge |= part == 13
        _pack(edge, edges[words])
    if len(content) % 64:
        edges[-1] |= np.uint64((2**64 - 1) << len(content) % 64 & (2**64 - 1))
    inside = _running(quote_bits)
    opening, closing = quote_bits & inside, quote_bits & ~inside
    before = _later(edges | closing)
    before[:1] |= np.uint64(1)
    after = _sooner(edges | opening)
    after[-1:] |= np.uint64(1 << 63)
    if (opening & ~before).any() or (closing & ~after).any():
        return None
    return Quotes(opening, closing, inside, breaks)


def _pack(bits: NDArray[np.bool_], out: Bits) -> None:
    packed = np.packbits(bits, bitorder="little")
    out.view(np.uint8)[: len(packed)] = packed


def _running(bits: Bits) -> Bits:
    """At each bit, whether an odd number of bits are set up to it."""
    result = bits.copy()
    for shift in (1, 2, 4, 8, 16, 32):
        result ^= result << np.uint64(shift)
    odd = np.bitwise_xor.accumulate(result >> np.uint64(63))
    result[1:] ^= np.uint64(0) - odd[:-1]
    return result


def _later(bits: Bits) -> Bits:
    """The bits one position later."""
    moved = bits << np.uint64(1)
    moved[1:] |= bits[:-1] >> np.uint64(63)
    return moved


def _sooner(bits: Bits) -> Bits:
    """The bits one position sooner."""
    moved = bits >> np.uint64(1)
    moved[:-1] |= bits[1:] << np.uint64(63)
    return moved


def _positions(bits: Bits) -> NDArray[np.int64]:
    return np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))


def _count(bits: Bits, end: int) -> int:
    """How many bits are set before a position."""
    whole, more = divmod(end, 64)
    count = int(np.bitwise_count(bits[:whole]).sum())
    return count + (int(bits[whole]) & ((1 << more) - 1)).bit_count() if more else count


def _last(bits: Bits) -> int:
    """The position of the last bit, -1 where there is none."""
    words = np.flatnonzero(bits)
    return int(words[-1]) * 64 + int(bits[words[-1]]).bit_length() - 1 if len(words) else -1


def line_breaks(content: bytes) -> int:
    """How many line breaks a text has; `bytes.count` takes several times as long."""
    whole: NDArray[Any] = np.frombuffer(content, np.uint8)
    return sum(
        int(np.count_nonzero(whole[start : start + SLICE] == 10))
        for start in range(0, len(whole), SLICE)
    )
