"""A lying coordinator, forged keys, replay, garbage: every honest party refuses, names whose."""

import os
from dataclasses import replace

import pytest

from privacy.secagg import coordinator, party
from privacy.secagg.coordinator import check_confirmation, check_revealed, check_shares
from privacy.secagg.parties import (
    KEYS,
    LIST,
    SHARES,
    SURVIVORS,
    Attempt,
    SecureAggregationError,
    SignedKeys,
    Terms,
    party_list,
)
from privacy.secagg.party import Masked, advertise
from tests.support.secagg import Parties, attempt, delivered, sum_of, updates_for

SIX = Terms(6, 1, 1)


@pytest.fixture(scope="module")
def six() -> Parties:
    return Parties(SIX)


def test_terms_that_protect_nobody_are_refused() -> None:
    assert [Terms(n, 0, 0).threshold for n in (3, 4, 5, 6, 7, 9, 10, 100)] == [
        *(3, 3, 4, 5, 5, 7, 7, 67)
    ]
    for n, dropouts, colluding, why in (
        (2, 0, 0, "parties must be >= 3"),
        (3, 1, 0, "dropouts must be >= 0 and <= 0"),
        (10, 4, 0, "dropouts must be >= 0 and <= 3"),
        (10, 0, 4, "colluding must be >= 0 and <= 3"),
        (3, 0, 2, "leave at least 2"),
    ):
        with pytest.raises(ValueError, match=why):
            Terms(n, dropouts, colluding)


def test_with_the_most_colluders_two_lists_of_survivors_never_both_have_their_signatures() -> None:
    for n in range(3, 200):
        t = Terms(n, 0, 0).threshold
        colluding = min(2 * t - n - 1, n - 2)
        honest = n - colluding
        assert 3 * t > 2 * n
        assert 2 * (t - colluding) > honest  # each list needs so many honest signatures


def refused_by_all(parties: Parties, which: Attempt, change: object) -> str:
    """The code with which every honest party refuses a list that `change` has altered."""
    states, keys = parties.advertised(which)
    listed = change(keys, which)  # type: ignore[operator]
    codes = set()
    for state in states.values():
        with pytest.raises(SecureAggregationError) as caught:
            state.share(listed)
        codes.add((caught.value.code, caught.value.site))
    assert len(codes) == 1
    code, named = codes.pop()
    assert named in ("", "site-002")
    return str(code)


def test_a_forged_key_is_refused_by_every_party_and_its_name_told(six: Parties) -> None:
    def forged(keys: list[SignedKeys], which: Attempt) -> list[SignedKeys]:
        _, other = advertise(six.me("site-002", which))
        return [replace(k, masking=other.masking) if k.site == "site-002" else k for k in keys]

    def played(keys: list[SignedKeys], which: Attempt) -> list[SignedKeys]:
        """The coordinator signs a party's keys with a signing key of its own."""
        pretender = Parties(Terms(6, 1, 1))
        _, other = advertise(replace(pretender.me("site-002", which)))
        return [other if k.site == "site-002" else k for k in keys]

    def replayed(keys: list[SignedKeys], which: Attempt) -> list[SignedKeys]:
        """Keys that the party signed in another attempt."""
        _, old = advertise(six.me("site-002", attempt()))
        return [old if k.site == "site-002" else k for k in keys]

    for change in (forged, played, replayed):
        assert refused_by_all(six, attempt(), change) == KEYS


def test_a_list_that_is_too_short_too_long_or_doubled_is_refused(six: Parties) -> None:
    stranger = Parties(Terms(7, 1, 1))

    def longer(keys: list[SignedKeys], which: Attempt) -> list[SignedKeys]:
        return [*keys, advertise(stranger.me("site-006", which))[1]]

    assert refused_by_all(six, attempt(), lambda keys, which: [*keys, keys[2]]) == LIST
    assert refused_by_all(six, attempt(), longer) == LIST
    states, keys = six.advertised(attempt())
    for left in (keys[:4], keys[:1], []):
        with pytest.raises(SecureAggregationError) as caught:
            states["site-000"].share(left)
        assert caught.value.code == LIST
    with pytest.raises(SecureAggregationError, match="this site's own keys"):
        states["site-000"].share(keys[1:])


def test_a_site_that_shows_anothers_key_as_its_own_is_refused(six: Parties) -> None:
    which = attempt()
    _, keys = six.advertised(which)
    copied = replace(keys[1], masking=keys[0].masking)
    signed = replace(copied, signature=six.keys["site-001"].sign(copied.payload(which)))
    with pytest.raises(SecureAggregationError, match="no key may be used twice"):
        party_list([keys[0], signed, *keys[2:]], which, six.terms, six.roster)


def test_a_key_of_low_order_is_refused(six: Parties) -> None:
    which = attempt()
    states, keys = six.advertised(which)
    low = replace(keys[5], encryption=bytes(32))
    signed = replace(low, signature=six.keys["site-005"].sign(low.payload(which)))
    with pytest.raises(SecureAggregationError) as caught:
        states["site-000"].share([*keys[:5], signed])
    assert (caught.value.code, caught.value.site) == (KEYS, "site-005")


def test_two_sites_told_different_lists_both_refuse_to_mask(six: Parties) -> None:
    """The coordinator leaves out site-005 for one half: no list has everybody's signature."""
    which = attempt()
    states, keys = six.advertised(which)
    halves = {name: keys[:5] if i < 3 else keys for i, name in enumerate(states) if i != 5}
    shared = {name: states[name].share(listed) for name, listed in halves.items()}
    messages = {name: message for name, (_, message) in shared.items()}
    for name, (state, _) in shared.items():
        to = {n: m.sealed.get(name, b"") for n, m in messages.items() if n != name}
        with pytest.raises(SecureAggregationError) as caught:
            state.agree({n: m.agreement for n, m in messages.items()}, to)
        assert caught.value.code == LIST


def test_without_one_signature_or_share_nobody_masks(six: Parties) -> None:
    states, _, messages = six.shared(attempt())
    for name, state in states.items():
        agreements, sealed = delivered(messages, name)
        missing = next(other for other in states if other != name)
        with pytest.raises(SecureAggregationError) as caught:
            state.agree({n: s for n, s in agreements.items() if n != missing}, sealed)
        assert (caught.value.code, caught.value.site) == (LIST, missing)
        with pytest.raises(SecureAggregationError) as caught:
            state.agree(agreements, {n: s for n, s in sealed.items() if n != missing})
        assert caught.value.code == SHARES
        with pytest.raises(SecureAggregationError) as caught:
            state.agree(agreements, sealed | {missing: os.urandom(len(sealed[missing]))})
        assert (caught.value.code, caught.value.site) == (SHARES, missing)


def test_shares_of_one_party_are_not_taken_for_anothers(six: Parties) -> None:
    states, _, messages = six.shared(attempt())
    agreements, sealed = delivered(messages, "site-000")
    swapped = sealed | {"site-001": sealed["site-002"], "site-002": sealed["site-001"]}
    with pytest.raises(SecureAggregationError, match="cannot be decrypted"):
        states["site-000"].agree(agreements, swapped)


def masked(six: Parties) -> tuple[dict[str, Masked], list[str]]:
    states, parties, _ = six.masked(attempt(), updates_for(six, 8))
    return states, list(parties.names)


def test_a_dropout_that_did_not_happen_is_refused_by_the_site_itself(six: Parties) -> None:
    states, names = masked(six)
    claimed = [name for name in names if name != "site-003"]
    with pytest.raises(SecureAggregationError) as caught:
        states["site-003"].confirm(claimed)
    assert caught.value.code == SURVIVORS
    confirmed, signature = states["site-000"].confirm(claimed)
    with pytest.raises(SecureAggregationError):  # its one signature is not two thirds
        confirmed.unmask({"site-000": signature})


def test_more_dropouts_than_the_noise_covers_are_refused_by_all(six: Parties) -> None:
    states, names = masked(six)
    for bad in (names[:4], [*names[:5], names[0]], [*names[:5], "site-999"]):
        for name in names[:4]:
            with pytest.raises(SecureAggregationError) as caught:
                states[name].confirm(bad)
            assert caught.value.code == SURVIVORS


def test_two_lists_of_survivors_reveal_nothing(six: Parties) -> None:
    """Half is told that site-004 dropped out, half that site-005 did: nobody reveals a share."""
    states, names = masked(six)
    one, two = [n for n in names if n != "site-004"], [n for n in names if n != "site-005"]
    told = {name: one if name in ("site-000", "site-001", "site-005") else two for name in names}
    confirmed, signatures = {}, {}
    for name in names:
        confirmed[name], signatures[name] = states[name].confirm(told[name])
    for name, state in confirmed.items():
        with pytest.raises(SecureAggregationError) as caught:
            state.unmask({n: s for n, s in signatures.items() if n in told[name]})
        assert caught.value.code == SURVIVORS
        same = {n: s for n, s in signatures.items() if told[n] == told[name]}
        with pytest.raises(SecureAggregationError, match="at least 5 parties must sign"):
            state.unmask(same)


def test_signatures_of_another_attempt_do_not_count(six: Parties) -> None:
    states, names = masked(six)
    others, _ = masked(six)
    signatures = {name: others[name].confirm(names)[1] for name in names}
    confirmed, own = states["site-000"].confirm(names)
    with pytest.raises(SecureAggregationError, match="has not signed these survivors"):
        confirmed.unmask(signatures | {"site-000": own})


def test_no_party_ever_reveals_both_secrets_of_another(six: Parties) -> None:
    states, names = masked(six)
    survivors = names[:5]
    for message in six.revealed(states, survivors):
        assert set(message.seeds) == set(survivors)
        assert set(message.keys) == {"site-005"}


def test_a_site_that_sends_garbage_is_named_by_the_coordinator(six: Parties) -> None:
    _, parties, messages = six.shared(attempt())
    good, roster = messages["site-001"], six.roster
    short = dict.fromkeys(good.sealed, b"x")
    for bad in (
        replace(good, agreement=os.urandom(64)),
        replace(good, sealed={}),
        replace(good, sealed=short),
    ):
        with pytest.raises(SecureAggregationError) as caught:
            check_shares(parties, roster, bad)
        assert caught.value.site == "site-001"
    names = list(parties.names)
    with pytest.raises(SecureAggregationError) as caught:
        check_confirmation(parties, roster, names, "site-001", os.urandom(64))
    assert caught.value.site == "site-001"


def test_wrong_shares_are_named_and_the_sum_is_right_all_the_same(six: Parties) -> None:
    updates = updates_for(six, 50)
    states, parties, replies = six.masked(attempt(), updates)
    names = list(parties.names)
    messages = six.revealed(states, names)
    bad = replace(messages[2], seeds={n: os.urandom(33) for n in names})
    with pytest.raises(SecureAggregationError) as caught:
        check_revealed(parties, names, replace(bad, seeds={}))
    assert caught.value.site == "site-002"
    total = sum_of(replies, names)
    liars = coordinator.unmask(
        total, parties, six.terms, names, [bad if m is messages[2] else m for m in messages]
    )
    assert liars == {"site-002"}
    assert (total == sum_of(updates, names)).all()


def test_a_dealer_whose_shares_do_not_fit_is_named(
    six: Parties, monkeypatch: pytest.MonkeyPatch
) -> None:
    states, keys = six.advertised(attempt())
    which = next(iter(states.values())).me.attempt
    parties = party_list(keys, which, six.terms, six.roster)
    shared = {}
    for name, state in states.items():
        with monkeypatch.context() as patch:
            if name == "site-004":
                patch.setattr(party, "split", lambda s, t, points: [os.urandom(33) for _ in points])
            shared[name] = state.share(keys)
    messages = {name: message for name, (_, message) in shared.items()}
    after, replies = {}, {}
    for name, (sharing, _) in shared.items():
        replies[name] = updates_for(six, 4)[name].copy()
        after[name] = sharing.agree(*delivered(messages, name)).mask(replies[name])
    revealed = six.revealed(after, parties.names)
    with pytest.raises(SecureAggregationError) as caught:
        coordinator.unmask(
            sum_of(replies, parties.names), parties, six.terms, parties.names, revealed
        )
    assert caught.value.site == "site-004"
