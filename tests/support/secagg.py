"""Secure aggregation in one process: honest parties with keys of their own, and a coordinator."""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from privacy.identity.keys import new_signing_key
from privacy.secagg import coordinator
from privacy.secagg.masks import Words
from privacy.secagg.parties import Attempt, PartyList, SignedKeys, Terms, party_list
from privacy.secagg.party import (
    Advertised,
    Agreed,
    Masked,
    Me,
    Revealed,
    Shared,
    SignedShares,
    advertise,
)


def attempt(number: int = 1, run: str = "run", plan: str = "ab" * 32) -> Attempt:
    return Attempt(run, plan, number, os.urandom(16).hex())


@dataclass
class Parties:
    """`n` sites with signing keys; every step of an attempt, one after another."""

    terms: Terms
    keys: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for i in range(self.terms.parties):
            self.keys[f"site-{i:03}"] = load_pem_private_key(new_signing_key(), None)

    @property
    def roster(self) -> dict[str, str]:
        return {n: k.public_key().public_bytes_raw().hex() for n, k in self.keys.items()}

    def me(self, name: str, which: Attempt) -> Me:
        return Me(self.terms, self.roster, which, name, self.keys[name].sign)

    def advertised(
        self, which: Attempt, without: Collection[str] = ()
    ) -> tuple[dict[str, Advertised], list[SignedKeys]]:
        states, keys = {}, []
        for name in self.keys:
            if name not in without:
                states[name], own = advertise(self.me(name, which))
                keys.append(own)
        return states, keys

    def shared(
        self, which: Attempt, without: Collection[str] = ()
    ) -> tuple[dict[str, Shared], PartyList, dict[str, SignedShares]]:
        first, keys = self.advertised(which, without)
        parties = party_list(keys, which, self.terms, self.roster)
        states, messages = {}, {}
        for name, state in first.items():
            states[name], messages[name] = state.share(keys)
            coordinator.check_shares(parties, self.roster, messages[name])
        return states, parties, messages

    def agreed(
        self, which: Attempt, without: Collection[str] = ()
    ) -> tuple[dict[str, Agreed], PartyList]:
        states, parties, messages = self.shared(which, without)
        return {n: s.agree(*delivered(messages, n)) for n, s in states.items()}, parties

    def masked(
        self, which: Attempt, updates: Mapping[str, Words], without: Collection[str] = ()
    ) -> tuple[dict[str, Masked], PartyList, dict[str, Words]]:
        states, parties = self.agreed(which, without)
        masked, replies = {}, {}
        for name, state in states.items():
            replies[name] = updates[name].copy()
            masked[name] = state.mask(replies[name])
        return masked, parties, replies

    def revealed(self, states: Mapping[str, Masked], survivors: Collection[str]) -> list[Revealed]:
        confirmed, signatures = {}, {}
        for name in survivors:
            confirmed[name], signatures[name] = states[name].confirm(survivors)
        return [state.unmask(signatures) for state in confirmed.values()]

    def total(
        self, updates: Mapping[str, Words], early: Collection[str], late: Collection[str]
    ) -> Words:
        """The sum where some drop out before the list is made, and some after they masked."""
        states, parties, replies = self.masked(attempt(), updates, early)
        survivors = [name for name in parties.names if name not in late]
        total = sum_of(replies, survivors)
        messages = self.revealed(states, survivors)
        liars = coordinator.unmask(total, parties, self.terms, survivors, messages)
        assert not liars
        return total


def delivered(
    messages: Mapping[str, SignedShares], to: str
) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """What the coordinator hands one party before it masks: all signatures, and its own shares."""
    agreements = {name: message.agreement for name, message in messages.items()}
    return agreements, {n: m.sealed[to] for n, m in messages.items() if n != to}


def sum_of(updates: Mapping[str, Words], names: Collection[str]) -> Words:
    total = np.zeros_like(next(iter(updates.values())))
    for name in names:
        total += updates[name]
    return total


def updates_for(parties: Parties, count: int, dtype: str = "<u4") -> dict[str, Words]:
    """Any words of the ring."""
    size = np.dtype(dtype).itemsize
    return {n: np.frombuffer(os.urandom(count * size), dtype=dtype) for n in parties.keys}
