"""The coordinator of one attempt: it checks what parties send, and takes the masks off their sum.

It learns the sum of the survivors' updates. What a party did wrong is found here where it can be,
and named; a wrong update inside its masks cannot be.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence

from privacy.identity.keys import verify
from privacy.secagg.masks import Words, add_mask, public_of
from privacy.secagg.parties import (
    LIST,
    SHARES,
    SURVIVORS,
    PartyList,
    Roster,
    SecureAggregationError,
    Terms,
    commit,
)
from privacy.secagg.party import SEALED_BYTES, Revealed, SignedShares, pair_seed
from privacy.secagg.shares import SHARE_BYTES, Rebuilding, ShareError


def check_shares(parties: PartyList, roster: Roster, message: SignedShares) -> None:
    """SecureAggregationError unless a party signed the list, and wrote to every other party."""
    site = message.site
    if not verify(roster[site], parties.agreement, message.agreement):
        raise SecureAggregationError(LIST, "has signed another list of parties", site)
    if set(message.sealed) != set(parties.names) - {site}:
        raise SecureAggregationError(SHARES, "must write to every other party", site)
    if any(len(sealed) != SEALED_BYTES for sealed in message.sealed.values()):
        raise SecureAggregationError(SHARES, "its shares have another length", site)


def check_confirmation(
    parties: PartyList, roster: Roster, survivors: Collection[str], site: str, signature: bytes
) -> None:
    """SecureAggregationError unless a party signed these survivors."""
    if not verify(roster[site], parties.survival(survivors), signature):
        raise SecureAggregationError(SURVIVORS, "has not signed these survivors", site)


def check_revealed(parties: PartyList, survivors: Collection[str], message: Revealed) -> None:
    """SecureAggregationError unless a party revealed exactly the shares that it was asked for."""
    gone = set(parties.names) - set(survivors)
    shares = (*message.seeds.values(), *message.keys.values())
    if set(message.seeds) != set(survivors) or set(message.keys) != gone:
        raise SecureAggregationError(SHARES, "must reveal one share of each party", message.site)
    if any(len(share) != SHARE_BYTES for share in shares):
        raise SecureAggregationError(SHARES, "its shares have another length", message.site)


def unmask(
    total: Words,
    parties: PartyList,
    terms: Terms,
    survivors: Sequence[str],
    messages: Collection[Revealed],
) -> frozenset[str]:
    """Take all masks off the survivors' sum, in place; who revealed wrong shares, though it worked.

    Each secret is held to what its owner signed: the commitment to its seed, or its public key.
    SecureAggregationError names whose secret cannot be rebuilt: that party's own shares are wrong,
    or too many of the others'.
    """
    rebuilding, liars = Rebuilding(terms.threshold), set[str]()

    def secret(name: str, shares: Mapping[str, bytes], key: bool) -> bytes:
        signed = parties.of(name)

        def is_right(value: bytes) -> bool:
            if key:
                return public_of(value) == signed.masking
            return commit(parties.attempt, name, value) == signed.commitment

        points = {parties.at(holder): share for holder, share in shares.items()}
        try:
            value, wrong = rebuilding.rebuild(points, is_right)
        except ShareError as error:
            raise SecureAggregationError(SHARES, str(error), name) from None
        liars.update(parties.names[point - 1] for point in wrong)
        return value

    ordered = sorted(messages, key=lambda one: one.site)
    seeds = [
        secret(name, {one.site: one.seeds[name] for one in ordered}, key=False)
        for name in survivors
    ]
    keys = {
        name: secret(name, {one.site: one.keys[name] for one in ordered}, key=True)
        for name in parties.names
        if name not in survivors
    }
    for seed in seeds:
        add_mask(total, seed, subtract=True)
    for gone, private in keys.items():
        for name in survivors:
            # What the survivor added, or subtracted where its own name comes later, comes off.
            add_mask(total, pair_seed(parties, private, gone, name), subtract=name < gone)
    return frozenset(liars)


def fingerprint(parties: PartyList) -> str:
    """The list's digest, short, for logs."""
    return hashlib.sha256(parties.digest).hexdigest()[:16]
