"""A relay's book of heads leads from wherever its coordinator is to where each site is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.ledger.heads import GENESIS, Head, HeadError, accept, fold
from server.relay.relay_heads import proof_between

LEAVES = [f"{number:064x}" for number in range(40)]


def book(sizes: list[int]) -> list[dict[str, object]]:
    """Lines of so many leaves each, one after another."""
    lines, base, at = [], GENESIS, 0
    for size in sizes:
        own = LEAVES[at : at + size]
        head = fold(base, own)
        lines.append(
            {"base": base.to_dict(), "leaves": own, "acknowledged": False, **head.to_dict()}
        )
        base, at = head, at + size
    return lines


@given(st.lists(st.integers(0, 4), min_size=1, max_size=10), st.data())
def test_from_any_head_of_the_chain_a_proof_is_found_that_a_coordinator_accepts(
    sizes: list[int], data: st.DataObject
) -> None:
    lines, total = book(sizes), sum(sizes)
    end = fold(GENESIS, LEAVES[:total])
    start = fold(GENESIS, LEAVES[: data.draw(st.integers(0, total))])
    proof = proof_between(lines, start, end)
    assert accept(start, proof) == end
    assert len(proof.leaves) == total - start.n


def test_a_head_that_the_book_does_not_know_is_no_start() -> None:
    lines = book([2, 3])
    end = fold(GENESIS, LEAVES[:5])
    for start in (Head(2, "ab" * 32), Head(9, "cd" * 32)):
        with pytest.raises(HeadError):
            proof_between(lines, start, end)
    with pytest.raises(HeadError):
        proof_between(lines, GENESIS, Head(5, "ef" * 32))
    with pytest.raises(HeadError):
        proof_between([], GENESIS, end)


def test_after_an_acknowledged_break_the_proof_begins_at_it() -> None:
    copy = fold(GENESIS, LEAVES[10:11])
    new = fold(copy, LEAVES[11:12])
    broken = {"base": copy.to_dict(), "leaves": LEAVES[11:12], "acknowledged": True}
    after = {"base": new.to_dict(), "leaves": LEAVES[12:13], "acknowledged": False}
    lines = [*book([2]), broken | new.to_dict(), after]
    end = fold(new, LEAVES[12:13])
    proof = proof_between(lines, fold(GENESIS, LEAVES[:2]), end)
    assert proof.acknowledged and proof.base == copy
    assert accept(fold(GENESIS, LEAVES[:2]), proof) == end
    with pytest.raises(HeadError):
        accept(fold(GENESIS, LEAVES[:2]), proof, {copy.digest})
