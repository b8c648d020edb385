"""Shamir's secret sharing (1979) over the integers modulo a prime above 2^256.

Any `threshold` shares give the secret; fewer are independent of it, whatever the secret is.
"""

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, islice
from typing import Final

PRIME: Final = 2**256 + 297
"""The least prime above 2^256: a secret of 32 bytes is one of its residues."""
SECRET_BYTES: Final = 32
SHARE_BYTES: Final = 33
_MOST_TRIES: Final = 500


class ShareError(ValueError):
    """Shares of which no secret can be made."""


def split(secret: bytes, threshold: int, points: Sequence[int]) -> list[bytes]:
    """A share of 32 secret bytes for each point; any `threshold` of them rebuild it."""
    if len(secret) != SECRET_BYTES:
        raise ShareError(f"secret must have {SECRET_BYTES} bytes, got {len(secret)}")
    if not 1 <= threshold <= len(points) or len(set(points)) != len(points) or min(points) < 1:
        raise ShareError("points must be different, >= 1 and at least as many as the threshold")
    free = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    coefficients = (int.from_bytes(secret, "big"), *free)
    return [evaluate(coefficients, x).to_bytes(SHARE_BYTES, "big") for x in points]


def evaluate(coefficients: Sequence[int], x: int, prime: int = PRIME) -> int:
    """The polynomial with these coefficients, the constant first, at x (Horner's rule)."""
    y = 0
    for coefficient in reversed(coefficients):
        y = (y * x + coefficient) % prime
    return y


def weights(points: Sequence[int], x: int = 0, prime: int = PRIME) -> list[int]:
    """Lagrange's weights: the polynomial through (points, y) is sum(weight * y) at x."""
    factors = []
    for i, a in enumerate(points):
        above = below = 1
        for j, b in enumerate(points):
            if i != j:
                above, below = above * (x - b) % prime, below * (a - b) % prime
        factors.append(above * pow(below, -1, prime) % prime)
    return factors


def interpolate(shares: Mapping[int, int], x: int = 0, prime: int = PRIME) -> int:
    """The value at x of the polynomial through the shares."""
    points = list(shares)
    at = weights(points, x, prime)
    return sum(w * shares[p] for w, p in zip(at, points, strict=True)) % prime


class Rebuilding:
    """Rebuilds many secrets from the same points; Lagrange's weights are computed once."""

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold
        self._weights: dict[tuple[int, ...], list[int]] = {}

    def rebuild(
        self, shares: Mapping[int, bytes], is_right: Callable[[bytes], bool]
    ) -> tuple[bytes, frozenset[int]]:
        """The secret that `is_right` accepts, and the points whose shares do not lie on it.

        Wrong shares are found by leaving them out, while there are more than `threshold`.
        ShareError where none fits: the dealer's shares, or too many holders', are wrong.
        """
        points = sorted(shares)
        if len(points) < self._threshold:
            raise ShareError(f"at least {self._threshold} shares are needed, got {len(points)}")
        values = {point: int.from_bytes(shares[point], "big") for point in points}
        for chosen in islice(self._choices(points), _MOST_TRIES):
            value = self._at_zero(chosen, values)
            if value < 2 ** (8 * SECRET_BYTES):
                secret = value.to_bytes(SECRET_BYTES, "big")
                if is_right(secret):
                    return secret, self._wrong(chosen, values)
        raise ShareError("no secret fits the shares")

    def _choices(self, points: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """The first points, then those that leave out one, then two."""
        tried: set[tuple[int, ...]] = set()
        for left_out in range(len(points) - self._threshold + 1):
            for without in combinations(points, left_out):
                chosen = tuple(p for p in points if p not in without)[: self._threshold]
                if chosen not in tried:
                    tried.add(chosen)
                    yield chosen

    def _at_zero(self, chosen: tuple[int, ...], values: Mapping[int, int]) -> int:
        if chosen not in self._weights:
            self._weights[chosen] = weights(chosen)
        at = self._weights[chosen]
        return sum(w * values[p] for w, p in zip(at, chosen, strict=True)) % PRIME

    def _wrong(self, chosen: tuple[int, ...], values: Mapping[int, int]) -> frozenset[int]:
        """Which of the other shares are not on the polynomial through the chosen ones."""
        if chosen == tuple(sorted(values))[: self._threshold]:
            return frozenset()  # the first try fits: the rest is not needed
        known = {point: values[point] for point in chosen}
        others = [point for point in values if point not in known]
        return frozenset(p for p in others if interpolate(known, p) != values[p])
