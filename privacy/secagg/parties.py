"""Who takes part in one attempt at a round, under which terms, with which signed keys.

Everything that a site signs names the run, the plan's digest, the round and the attempt, so that
nothing signed for one can be used in another.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from privacy.files import canonical_json
from privacy.identity.keys import verify

FEWEST: Final = 3
"""Of two parties each learns the other's update from the sum."""
MOST: Final = 1000
_PREFIX: Final = b"tacit secure aggregation\0"
_ATTEMPT: Final = re.compile(r"[0-9a-f]{32}")

Roster = Mapping[str, str]
"""The verifying key (64 hexadecimal digits) of every party of the plan, by name."""
Sign = Callable[[bytes], bytes]
"""A site's Ed25519 signature of a payload."""


class SecureAggregationError(ValueError):
    """A message that an honest party refuses: `code` says why, `site` whose it is, where known."""

    def __init__(self, code: str, text: str, site: str = "") -> None:
        super().__init__(f"{site}: {text}" if site else text)
        self.code = code
        self.site = site


KEYS: Final = "bad-keys"
LIST: Final = "wrong-party-list"
SHARES: Final = "bad-shares"
SURVIVORS: Final = "wrong-survivors"
ORDER: Final = "out-of-order"


@dataclass(frozen=True, slots=True)
class Terms:
    """How many parties a plan has, and how many of them may drop out or collude.

    `threshold` shares rebuild a secret: more than two thirds of the parties, so that a coordinator
    cannot have two lists of survivors signed while at most `colluding` parties sign both (Bonawitz
    et al. 2017, Thm. 6.5). Noise is sized for `shares` honest parties in the sum.
    """

    parties: int
    dropouts: int
    colluding: int

    def __post_init__(self) -> None:
        n, t = self.parties, self.threshold
        if not FEWEST <= n <= MOST:
            raise ValueError(f"parties must be >= {FEWEST} and <= {MOST}, got {n}")
        if not 0 <= self.dropouts <= n - t:
            raise ValueError(
                f"dropouts must be >= 0 and <= {n - t} of {n} parties, of whom more than two "
                f"thirds must stay, got {self.dropouts}"
            )
        if not 0 <= self.colluding <= 2 * t - n - 1:
            raise ValueError(
                f"colluding must be >= 0 and <= {2 * t - n - 1} of {n} parties, got "
                f"{self.colluding}"
            )
        if self.shares < 2:
            raise ValueError(
                f"dropouts and colluding must leave at least 2 of {n} parties, got "
                f"{self.dropouts} and {self.colluding}"
            )

    @property
    def threshold(self) -> int:
        """How many shares rebuild a secret, and how many must sign a list of survivors."""
        return 2 * self.parties // 3 + 1

    @property
    def least(self) -> int:
        """The fewest parties of a sum: with fewer the noise would be less than was paid for."""
        return self.parties - self.dropouts

    @property
    def shares(self) -> int:
        """The honest parties whose noise a sum has at least: 1 / shares of the variance each."""
        return self.parties - self.dropouts - self.colluding


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at one round of one run under one plan; `number` is 32 random hexadecimal digits."""

    run: str
    plan: str
    round: int
    number: str

    def __post_init__(self) -> None:
        if not _ATTEMPT.fullmatch(self.number):
            raise ValueError(f"attempt must be 32 hexadecimal digits, got {self.number!r:.80}")

    def payload(self, what: str, *values: object) -> bytes:
        """The bytes that are signed, hashed or bound for one purpose in this attempt."""
        fixed = [what, self.run, self.plan, self.round, self.number]
        return _PREFIX + canonical_json([*fixed, *values]).encode()


@dataclass(frozen=True, slots=True)
class SignedKeys:
    """A party's fresh public keys, its commitment to the seed of its own mask, its signature.

    `encryption` and `masking` are X25519 keys, `commitment` a SHA-256.
    """

    site: str
    encryption: bytes
    masking: bytes
    commitment: bytes
    signature: bytes

    def payload(self, attempt: Attempt) -> bytes:
        """What the party signs."""
        return attempt.payload(
            "keys", self.site, self.encryption.hex(), self.masking.hex(), self.commitment.hex()
        )


def commit(attempt: Attempt, site: str, seed: bytes) -> bytes:
    """A party's commitment to its seed: it hides 256 random bits."""
    return hashlib.sha256(attempt.payload("seed", site, seed.hex())).digest()


@dataclass(frozen=True)
class PartyList:
    """The parties of one attempt in the order of their names, each with its signed keys."""

    attempt: Attempt
    keys: tuple[SignedKeys, ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(one.site for one in self.keys)

    @cached_property
    def digest(self) -> bytes:
        """What the parties sign before they mask, and what every share is bound to."""
        listed = [
            [one.site, one.encryption.hex(), one.masking.hex(), one.commitment.hex()]
            for one in self.keys
        ]
        return hashlib.sha256(self.attempt.payload("list", listed)).digest()

    def at(self, site: str) -> int:
        """A party's point in Shamir's scheme, from 1."""
        return self.names.index(site) + 1

    def of(self, site: str) -> SignedKeys:
        """A party's keys."""
        return self.keys[self.names.index(site)]

    @property
    def agreement(self) -> bytes:
        """What a party signs to say that this is the list that it knows."""
        return self.attempt.payload("agreement", self.digest.hex())

    def survival(self, survivors: Iterable[str]) -> bytes:
        """What a party signs to say that these have answered with masked updates."""
        return self.attempt.payload("survivors", self.digest.hex(), sorted(survivors))


def check_keys(keys: SignedKeys, attempt: Attempt, roster: Roster) -> None:
    """SecureAggregationError unless a party of the roster signed these keys for this attempt."""
    public = roster.get(keys.site)
    if public is None:
        raise SecureAggregationError(KEYS, "is no party of the plan", keys.site)
    if not verify(public, keys.payload(attempt), keys.signature):
        raise SecureAggregationError(
            KEYS, "its keys must be signed by its own signing key for this attempt", keys.site
        )


def party_list(
    keys: Iterable[SignedKeys], attempt: Attempt, terms: Terms, roster: Roster
) -> PartyList:
    """The list of parties, every signature checked, as many as the terms allow."""
    ordered = tuple(sorted(keys, key=lambda one: one.site))
    if len(roster) != terms.parties:
        raise SecureAggregationError(
            LIST, f"the plan must name {terms.parties} parties, got {len(roster)}"
        )
    if len({one.site for one in ordered}) != len(ordered):
        raise SecureAggregationError(LIST, "every party must be listed once")
    if not terms.least <= len(ordered) <= terms.parties:
        raise SecureAggregationError(
            LIST,
            f"{terms.least} to {terms.parties} parties must be listed, got {len(ordered)}",
        )
    for one in ordered:
        check_keys(one, attempt, roster)
    public = [key for one in ordered for key in (one.encryption, one.masking)]
    if len(set(public)) != len(public):
        raise SecureAggregationError(KEYS, "no key may be used twice")
    return PartyList(attempt, ordered)
