"""Every message is read back as it was written, and anything else is refused with one line."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.secagg import messages
from privacy.secagg.messages import MessageError
from privacy.secagg.parties import Terms
from tests.support.secagg import Parties, attempt, updates_for


def test_every_message_survives_its_text() -> None:
    parties = Parties(Terms(3, 0, 1))
    _, keys = parties.advertised(attempt())
    assert messages.read_list(messages.list_text(keys)) == tuple(keys)
    assert messages.read_keys(messages.keys_text(keys[0])) == keys[0]
    _, _, shares = parties.shared(attempt())
    for message in shares.values():
        assert messages.read_shares(messages.shares_text(message)) == message
    states, listed, _ = parties.masked(attempt(), updates_for(parties, 3))
    for revealed in parties.revealed(states, listed.names):
        assert messages.read_revealed(messages.revealed_text(revealed)) == revealed
    assert messages.read_names(messages.names_text(listed.names)) == listed.names
    signatures = {name: bytes(64) for name in listed.names}
    assert messages.read_signatures(messages.map_text(signatures)) == signatures


READERS = [
    messages.read_keys,
    messages.read_list,
    messages.read_shares,
    messages.read_revealed,
    messages.read_names,
    messages.read_signatures,
    messages.read_signature,
]
LEAF = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4)
NAMES = st.sampled_from(("site", "seeds", "keys", "sealed", "masking", "x"))
JSON = LEAF | st.lists(LEAF, max_size=3) | st.dictionaries(NAMES, LEAF, max_size=4)


@settings(max_examples=60)
@given(JSON)
def test_anything_else_is_refused(value: object) -> None:
    for reader in READERS:
        for text in (json.dumps(value), value):
            try:
                reader(text)  # type: ignore[operator]
            except MessageError as error:
                assert "\n" not in str(error)
            else:
                assert isinstance(value, list) or value in ({}, "[]", "{}")


def test_messages_beyond_their_bounds_are_refused() -> None:
    with pytest.raises(MessageError, match="within bounds"):
        messages.read_names("[" + '"a",' * 600_000 + '"a"]')
    with pytest.raises(MessageError, match="at most 1000 names"):
        messages.read_names(json.dumps(["a"] * 1001))
    with pytest.raises(MessageError, match="printable"):
        messages.read_names(json.dumps(["a\x1b[2J"]))
    with pytest.raises(MessageError, match="64 bytes"):
        messages.read_signatures(json.dumps({"a": "zz" * 64}))
