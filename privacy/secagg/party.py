"""A site in one attempt at a round (Bonawitz et al. 2017, the active adversary's variant).

Each state has one method, which checks what came from the coordinator and gives the next state and
a message. A state is used once: what it has signed or revealed cannot be taken back.

1. `advertise`: fresh keys, signed.
2. `Advertised.share`: every key on the list is checked; the list is signed; the keys' and the own
   mask's secrets leave as encrypted shares.
3. `Shared.agree`: every party has signed this very list; `Agreed.mask`: the masked update.
4. `Masked.confirm`: the survivors are signed, which are enough for the noise.
5. `Confirmed.unmask`: more than two thirds have signed the same survivors; of each party one of two
   secrets' share is revealed, never both.
"""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from privacy.identity.keys import verify
from privacy.secagg.masks import (
    TAG_BYTES,
    Words,
    add_mask,
    agreed_key,
    decrypt,
    encrypt,
    public_of,
)
from privacy.secagg.parties import (
    KEYS,
    LIST,
    SHARES,
    SURVIVORS,
    Attempt,
    PartyList,
    Roster,
    SecureAggregationError,
    Sign,
    SignedKeys,
    Terms,
    commit,
    party_list,
)
from privacy.secagg.shares import SHARE_BYTES, split

SEALED_BYTES = 2 * SHARE_BYTES + TAG_BYTES
"""A pair of encrypted shares."""


@dataclass(frozen=True, slots=True)
class SignedShares:
    """A party's agreement to the list, and for every other party two encrypted shares."""

    site: str
    agreement: bytes
    sealed: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Revealed:
    """A party's shares: of the survivors' own masks, and of the masking keys of who dropped out."""

    site: str
    seeds: Mapping[str, bytes]
    keys: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Me:
    """One party: the terms, everybody's verifying key, the attempt, its own name and signature."""

    terms: Terms
    roster: Roster
    attempt: Attempt
    site: str
    sign: Sign


def advertise(
    me: Me, random: Callable[[int], bytes] = os.urandom
) -> tuple["Advertised", SignedKeys]:
    """Fresh keys for this attempt; `random` gives so many bytes that nobody can know."""
    encryption, masking, seed = random(32), random(32), random(32)
    commitment = commit(me.attempt, me.site, seed)
    unsigned = SignedKeys(me.site, public_of(encryption), public_of(masking), commitment, b"")
    signature = me.sign(unsigned.payload(me.attempt))
    signed = SignedKeys(me.site, unsigned.encryption, unsigned.masking, commitment, signature)
    return Advertised(me, encryption, masking, seed, signed), signed


@dataclass(frozen=True, slots=True)
class Advertised:
    """Keys are out; the list of parties is awaited."""

    me: Me
    encryption: bytes
    masking: bytes
    seed: bytes
    keys: SignedKeys

    def share(self, listed: Sequence[SignedKeys]) -> tuple["Shared", SignedShares]:
        """Check the whole list, sign it, and share both secrets among its parties."""
        me = self.me
        parties = party_list(listed, me.attempt, me.terms, me.roster)
        if me.site not in parties.names or parties.of(me.site) != self.keys:
            raise SecureAggregationError(LIST, "the list must hold this site's own keys")
        points = [parties.at(name) for name in parties.names]
        threshold = me.terms.threshold
        seeds, keys = split(self.seed, threshold, points), split(self.masking, threshold, points)
        pairs = {n: a + b for n, a, b in zip(parties.names, seeds, keys, strict=True)}
        sealed = {
            name: encrypt(
                _channel(parties, self.encryption, me.site, name), pairs[name], parties.digest
            )
            for name in parties.names
            if name != me.site
        }
        agreement = me.sign(parties.agreement)
        following = Shared(me, self.encryption, self.masking, self.seed, parties, pairs[me.site])
        return following, SignedShares(me.site, agreement, sealed)


@dataclass(frozen=True, slots=True)
class Shared:
    """The list is signed; everybody else's signature and shares are awaited."""

    me: Me
    encryption: bytes
    masking: bytes
    seed: bytes
    parties: PartyList
    own_pair: bytes

    def agree(self, agreements: Mapping[str, bytes], sealed: Mapping[str, bytes]) -> "Agreed":
        """Every party of the list has signed it, and has sent this one its shares.

        Nothing was paid yet: where a party is missing, the coordinator begins anew without it.
        """
        me, parties = self.me, self.parties
        others = [name for name in parties.names if name != me.site]
        check_agreements(parties, agreements, me.roster)
        if set(sealed) != set(others):
            raise SecureAggregationError(SHARES, "every other party's shares must be here")
        pairs = {me.site: self.own_pair}
        for name in others:
            key = _channel(parties, self.encryption, name, me.site)
            pair = decrypt(key, sealed[name], parties.digest)
            if pair is None or len(pair) != 2 * SHARE_BYTES:
                raise SecureAggregationError(SHARES, "its shares cannot be decrypted", name)
            pairs[name] = pair
        return Agreed(me, self.masking, self.seed, parties, pairs)


@dataclass(frozen=True, slots=True)
class Agreed:
    """All parties know the same list: an update may leave under its masks."""

    me: Me
    masking: bytes
    seed: bytes
    parties: PartyList
    pairs: Mapping[str, bytes]

    def mask(self, words: Words) -> "Masked":
        """Mask the update in place: uniform to whoever lacks one honest party's key or seed."""
        add_mask(words, self.seed)
        for name in self.parties.names:
            if name != self.me.site:
                seed = pair_seed(self.parties, self.masking, self.me.site, name)
                add_mask(words, seed, subtract=name < self.me.site)
        return Masked(self.me, self.parties, self.pairs)


@dataclass(frozen=True, slots=True)
class Masked:
    """The masked update is out; the list of survivors is awaited."""

    me: Me
    parties: PartyList
    pairs: Mapping[str, bytes]

    def confirm(self, survivors: Collection[str]) -> tuple["Confirmed", bytes]:
        """Sign the survivors, among whom this party must be, and enough for the noise paid."""
        check_survivors(self.parties, self.me.terms, survivors)
        if self.me.site not in survivors:
            raise SecureAggregationError(SURVIVORS, "this site has answered and is not listed")
        signature = self.me.sign(self.parties.survival(survivors))
        return Confirmed(self.me, self.parties, self.pairs, tuple(sorted(survivors))), signature


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The survivors are signed; others' signatures of the same survivors are awaited."""

    me: Me
    parties: PartyList
    pairs: Mapping[str, bytes]
    survivors: tuple[str, ...]

    def unmask(self, signatures: Mapping[str, bytes]) -> Revealed:
        """Reveal one share of each party; the attempt is over for this site."""
        check_survival(self.parties, self.me.terms, self.me.roster, self.survivors, signatures)
        gone = [name for name in self.parties.names if name not in self.survivors]
        return Revealed(
            self.me.site,
            {name: self.pairs[name][:SHARE_BYTES] for name in self.survivors},
            {name: self.pairs[name][SHARE_BYTES:] for name in gone},
        )


def pair_seed(parties: PartyList, private: bytes, one: str, other: str) -> bytes:
    """The seed of the mask that two parties share, from the masking key of `one`."""
    names = sorted((one, other))
    info = parties.attempt.payload("mask", parties.digest.hex(), *names)
    return _agreed(private, parties.of(other).masking, info, other)


def check_agreements(parties: PartyList, agreements: Mapping[str, bytes], roster: Roster) -> None:
    """SecureAggregationError unless every party has signed the list."""
    for name in parties.names:
        signature = agreements.get(name)
        if signature is None:
            raise SecureAggregationError(LIST, "has not signed the list of parties", name)
        if not verify(roster[name], parties.agreement, signature):
            raise SecureAggregationError(LIST, "has signed another list of parties", name)
    if len(agreements) != len(parties.names):
        raise SecureAggregationError(LIST, "only parties of the list may sign it")


def check_survivors(parties: PartyList, terms: Terms, survivors: Collection[str]) -> None:
    """SecureAggregationError unless they are parties, each once, and as many as the noise needs."""
    if len(set(survivors)) != len(survivors) or not set(survivors) <= set(parties.names):
        raise SecureAggregationError(SURVIVORS, "survivors must be different parties of the list")
    if len(survivors) < terms.least:
        raise SecureAggregationError(
            SURVIVORS, f"at least {terms.least} parties must survive, got {len(survivors)}"
        )


def check_survival(
    parties: PartyList,
    terms: Terms,
    roster: Roster,
    survivors: Sequence[str],
    signatures: Mapping[str, bytes],
) -> None:
    """SecureAggregationError unless more than two thirds have signed these very survivors."""
    payload = parties.survival(survivors)
    for name, signature in signatures.items():
        if name not in survivors or not verify(roster[name], payload, signature):
            raise SecureAggregationError(SURVIVORS, "has not signed these survivors", name)
    if len(signatures) < terms.threshold:
        raise SecureAggregationError(
            SURVIVORS,
            f"at least {terms.threshold} parties must sign the survivors, got {len(signatures)}",
        )


def _channel(parties: PartyList, private: bytes, sender: str, receiver: str) -> bytes:
    """The key of the one message from sender to receiver; `private` is either's."""
    info = parties.attempt.payload("shares", parties.digest.hex(), sender, receiver)
    for name in (sender, receiver):
        if parties.of(name).encryption != public_of(private):
            return _agreed(private, parties.of(name).encryption, info, name)
    raise SecureAggregationError(KEYS, "a party cannot write to itself")


def _agreed(private: bytes, public: bytes, info: bytes, whose: str) -> bytes:
    try:
        return agreed_key(private, public, info)
    except ValueError:  # a point of low order
        raise SecureAggregationError(KEYS, "its key is no key for an agreement", whose) from None
