"""Any threshold of shares rebuilds the secret; fewer say nothing; wrong ones are found."""

import os
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.secagg.shares import (
    PRIME,
    Rebuilding,
    ShareError,
    evaluate,
    interpolate,
    split,
    weights,
)


def test_the_field_is_the_least_prime_above_256_bits() -> None:
    def is_prime(n: int) -> bool:  # Miller and Rabin, forty bases
        odd, twos = n - 1, 0
        while odd % 2 == 0:
            odd, twos = odd // 2, twos + 1
        for base in range(2, 42):
            x = pow(base, odd, n)
            if x in (1, n - 1):
                continue
            if all((x := x * x % n) != n - 1 for _ in range(twos - 1)):
                return False
        return True

    assert is_prime(PRIME)
    assert not any(is_prime(n) for n in range(2**256 + 1, PRIME))


def test_the_published_example_modulo_1613() -> None:
    """The worked example of the encyclopedia's article on Shamir's scheme: 1234, 166, 94."""
    shares = {x: evaluate((1234, 166, 94), x, 1613) for x in range(1, 7)}
    assert shares == {1: 1494, 2: 329, 3: 965, 4: 176, 5: 1188, 6: 775}
    for chosen in combinations(shares, 3):
        assert interpolate({x: shares[x] for x in chosen}, prime=1613) == 1234


def test_shamirs_own_setting_by_hand() -> None:
    """q(x) = 7 + 3x modulo 11: the line through (1, 10) and (2, 2) meets zero at 7."""
    assert [evaluate((7, 3), x, 11) for x in (1, 2)] == [10, 2]
    assert weights((1, 2), prime=11) == [2, 10]
    assert interpolate({1: 10, 2: 2}, prime=11) == 7


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(0, 6), st.binary(min_size=32, max_size=32))
def test_any_threshold_of_shares_rebuilds_the_secret(t: int, more: int, secret: bytes) -> None:
    points = list(range(1, t + more + 1))
    shares = dict(zip(points, split(secret, t, points), strict=True))
    chosen = {p: shares[p] for p in points[-t:]}
    assert Rebuilding(t).rebuild(chosen, lambda value: value == secret) == (secret, frozenset())


@given(st.integers(0, 2**256 - 1), st.integers(0, 2**256 - 1))
def test_fewer_shares_fit_every_secret(secret: int, other: int) -> None:
    """Two shares of threshold three lie on a polynomial with any constant term."""
    shares = split(secret.to_bytes(32, "big"), 3, [1, 2, 3])
    known = {p: int.from_bytes(s, "big") for p, s in zip((1, 2), shares, strict=False)}
    with_other = known | {0: other}
    third = interpolate(with_other, 3)
    assert interpolate({**known, 3: third}) == other


def test_a_wrong_share_is_found_while_there_are_more_than_enough() -> None:
    secret = os.urandom(32)
    shares = dict(zip(range(1, 10), split(secret, 6, range(1, 10)), strict=True))
    for liars in ({1}, {4, 6}, {1, 2, 3}):
        bad = shares | {p: os.urandom(32).rjust(33, b"\0") for p in liars}
        found, wrong = Rebuilding(6).rebuild(bad, lambda value: value == secret)
        assert found == secret
        assert wrong == liars
    with pytest.raises(ShareError, match="no secret fits"):
        Rebuilding(6).rebuild(shares | {1: bytes(33)}, lambda value: False)


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ShareError, match="32 bytes"):
        split(b"short", 2, [1, 2])
    for points in ([1], [1, 1, 2], [0, 1, 2]):
        with pytest.raises(ShareError, match="points"):
            split(bytes(32), 2, points)
    with pytest.raises(ShareError, match="at least 3 shares"):
        Rebuilding(3).rebuild({1: bytes(33)}, lambda value: True)
