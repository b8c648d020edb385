"""The masks cancel: the sum of the survivors is exact in the ring, whoever drops out and when."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.secagg.masks import add_mask
from privacy.secagg.parties import FEWEST, Terms
from tests.support.secagg import Parties, attempt, sum_of, updates_for


def test_masks_are_the_keystream_and_come_off_again() -> None:
    seed, words = os.urandom(32), np.arange(200_000, dtype="<u4")
    before = words.copy()
    add_mask(words, seed)
    assert (words != before).mean() > 0.9999
    again = before.copy()
    add_mask(again, seed)
    assert (again == words).all()
    add_mask(words, seed, subtract=True)
    assert (words == before).all()


def test_a_mask_is_aes_256_in_counter_mode() -> None:
    """NIST SP 800-38A, F.5.5 has this key; its block of a zero counter by FIPS 197's cipher."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    block = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()
    blocks = b"".join(block.update(i.to_bytes(16, "big")) for i in range(4))
    words = np.zeros(16, dtype="<u4")
    add_mask(words, key)
    assert words.tobytes() == blocks


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_sums_are_exact_for_every_allowed_dropout(data: st.DataObject) -> None:
    n = data.draw(st.integers(FEWEST, 9))
    most = n - (2 * n // 3 + 1)
    dropouts = data.draw(st.integers(0, min(most, n - 2)))
    parties = Parties(Terms(n, dropouts, 0))
    gone = data.draw(st.lists(st.sampled_from(list(parties.keys)), max_size=dropouts, unique=True))
    early = gone[: data.draw(st.integers(0, len(gone)))]
    late = [name for name in gone if name not in early]
    updates = updates_for(parties, 33, data.draw(st.sampled_from(("<u4", "<u8"))))
    survivors = [name for name in updates if name not in gone]
    assert (parties.total(updates, early, late) == sum_of(updates, survivors)).all()


@pytest.mark.slow
@pytest.mark.parametrize(("n", "early", "late"), [(30, 4, 5), (100, 16, 16)])
def test_sums_are_exact_for_many_parties(n: int, early: int, late: int) -> None:
    parties = Parties(Terms(n, early + late, 0))
    names, updates = list(parties.keys), updates_for(parties, 1000)
    total = parties.total(updates, names[:early], names[-late:])
    assert (total == sum_of(updates, names[early:-late])).all()


def test_nothing_of_an_attempt_serves_another() -> None:
    """Fresh keys each time: the same update leaves under masks that have nothing in common."""
    parties = Parties(Terms(4, 0, 1))
    updates = {name: np.zeros(20_000, dtype="<u4") for name in parties.keys}
    _, first, one = parties.masked(attempt(), updates)
    _, second, other = parties.masked(attempt(), updates)
    keys = [k for p in (first, second) for o in p.keys for k in (o.encryption, o.masking)]
    assert len(set(keys)) == len(keys)
    assert ((one["site-000"] - other["site-000"]) == 0).sum() < 20
