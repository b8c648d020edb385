"""The heads of a relay's sites: counter-signed in its own book, and proved to its coordinator.

The coordinator may know an older head than the relay, which was killed, say, between the two. The
relay's book then leads from the one to the other.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from privacy.ledger.heads import Head, HeadError, Proof, fold
from server.registry.heads import HeadBook
from server.relay.message import PROOFS_MAX
from server.rounds.messages import Answer

_LEAF_BYTES: Final = 72
_PROOF_BYTES: Final = 512


class RelayHeads:
    """A relay's book of heads for one round.

    `known` are the heads that the coordinator knows; `proofs` those of this round, by site and
    round, each of which goes on from there. Where they would take too many bytes, the remaining
    sites' turn comes in the next round.
    """

    def __init__(self, book: HeadBook, known: Mapping[str, Head]) -> None:
        self._book, self._known, self._size = book, dict(known), 0
        self.proofs: dict[tuple[str, int], dict[str, Any]] = {}

    def last(self, site: str) -> Mapping[str, Any]:
        """The last head that this relay counter-signed."""
        return self._book.last(site)

    def check(self, answers: Iterable[Answer]) -> None:
        """HeadError unless this relay's book would take them all."""
        self._book.check(answers)

    def flush(self) -> None:
        """Put them on disk, before the coordinator is told of them."""
        self._book.flush()

    def accept(self, site: str, number: int, answer: Answer) -> None:
        """Counter-sign the answer's head, and keep its proof for the coordinator; HeadError."""
        proof = Proof.from_dict(answer.proof)
        self._book.accept(site, number, answer)
        start = self._known.get(site)
        if start is None:
            raise HeadError(f"{site}: the coordinator has not asked for it")
        if proof.base != start:
            proof = proof_between(self._book.lines(site), start, proof.head)
        size = self._size + _PROOF_BYTES + _LEAF_BYTES * len(proof.leaves)
        if size > PROOFS_MAX:
            raise HeadError(f"{site}: heads of more than {PROOFS_MAX} bytes in one round")
        self._size, self._known[site] = size, proof.head
        self.proofs[site, number] = proof.to_dict()


def proof_between(lines: Iterable[Mapping[str, Any]], start: Head, end: Head) -> Proof:
    """How a book's lines lead from one head to another, the last; HeadError where they do not.

    Where the site's owner acknowledged a break since, the proof begins there.
    """
    if start == end:
        return Proof(start, (), end)
    leaves: tuple[str, ...] = ()
    for line in reversed(list(lines)):
        base, own = Head.from_dict(line["base"]), tuple(line["leaves"])
        place = start.n - base.n
        if 0 <= place <= len(own) and fold(base, own[:place]) == start:
            return _checked(Proof(start, own[place:] + leaves, end))
        leaves = own + leaves
        if line["acknowledged"]:
            return _checked(Proof(base, leaves, end, acknowledged=True))
    raise HeadError(f"the book does not lead from {start.n} entries to {end.n}")


def _checked(proof: Proof) -> Proof:
    if fold(proof.base, proof.leaves) != proof.head:
        raise HeadError("the book does not lead to this head")
    return proof
