"""Bugs planted in secure aggregation are found, by the check that is made for each of them."""

import hashlib
from dataclasses import replace

import pytest

from client import secure_round
from client.audit.audit import one_thread
from client.audit.secure.checks import (
    SECURE_CHECKS,
    masked_replies_are_uniform,
    secure_lies_are_refused,
    secure_sums_are_exact,
    secure_sums_have_their_noise,
)
from privacy.secagg import party
from privacy.secagg.party import Agreed, Confirmed, Masked, Revealed


@pytest.fixture(autouse=True)
def _threads():
    with one_thread():
        yield


@pytest.mark.parametrize("check", SECURE_CHECKS)
def test_sound_parties_pass(check):
    found = check("cpu")
    assert found.passed, found


def a_mask_used_twice(patch):
    """The masks of pairs come from names, not from the attempt's keys."""

    def always(parties, private, one, other):
        return hashlib.sha256("".join(sorted((one, other))).encode()).digest()

    patch.setattr(party, "pair_seed", always)


def a_missing_mask(patch):
    """No masks of pairs at all: they would cancel anyway."""

    def masked(self, words):
        party.add_mask(words, self.seed)
        return Masked(self.me, self.parties, self.pairs)

    patch.setattr(Agreed, "mask", masked)


def a_missing_own_mask(patch):
    real = Agreed.mask

    def masked(self, words):
        state = real(self, words)
        party.add_mask(words, self.seed, subtract=True)
        return state

    patch.setattr(Agreed, "mask", masked)


def a_share_too_many(patch):
    """Both secrets of the survivors are revealed."""
    real = Confirmed.unmask

    def unmasked(self, signatures):
        told = real(self, signatures)
        both = {name: self.pairs[name][33:] for name in told.seeds}
        return Revealed(told.site, told.seeds, {**told.keys, **both})

    patch.setattr(Confirmed, "unmask", unmasked)


def shares_of_a_lower_threshold(patch):
    real = party.split
    patch.setattr(party, "split", lambda secret, t, points: real(secret, t - 1, points))


def the_noise_share_of_n(patch):
    """A share of n where d may be missing: the sum without them has too little."""
    real = secure_round.ring_of

    def smaller(plan, numbers):
        ring = real(plan, numbers)
        terms = plan.terms
        return replace(ring, std=ring.std * (terms.shares / terms.parties) ** 0.5)

    patch.setattr(secure_round, "ring_of", smaller)


def one_pairs_sign_flipped(patch):
    real = Agreed.mask

    def masked(self, words):
        state = real(self, words)
        if self.me.site == "a":
            seed = party.pair_seed(self.parties, self.masking, "a", "c")
            party.add_mask(words, seed, subtract=True)
            party.add_mask(words, seed, subtract=True)
        return state

    patch.setattr(Agreed, "mask", masked)


def a_list_that_is_not_signed(patch):
    patch.setattr(party, "check_agreements", lambda parties, agreements, roster: None)


def keys_reused_over_rounds(patch):
    real = party.advertise
    fixed = {}

    def again(me, random=None):
        kept = fixed.setdefault(me.site, [hashlib.sha256(bytes([i])).digest() for i in range(3)])
        salt = me.site.encode()
        drawn = iter([hashlib.sha256(salt + one).digest() for one in kept])
        return real(me, lambda size: next(drawn))

    patch.setattr(secure_round, "advertise", again)


@pytest.mark.parametrize(
    ("plant", "check"),
    [
        (a_mask_used_twice, masked_replies_are_uniform),
        (a_missing_mask, masked_replies_are_uniform),
        (a_missing_own_mask, masked_replies_are_uniform),
        (a_share_too_many, secure_lies_are_refused),
        (shares_of_a_lower_threshold, secure_lies_are_refused),
        (the_noise_share_of_n, secure_sums_have_their_noise),
        (one_pairs_sign_flipped, secure_sums_are_exact),
        (a_list_that_is_not_signed, secure_lies_are_refused),
        (keys_reused_over_rounds, secure_lies_are_refused),
    ],
)
def test_a_planted_bug_is_found(plant, check, monkeypatch):
    plant(monkeypatch)
    assert not check("cpu").passed
