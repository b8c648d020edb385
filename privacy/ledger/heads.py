"""The other side of a ledger: a chain of salted digests that a coordinator can follow but not read.

Each entry gives one leaf, HMAC-SHA256 of its digest under the ledger's secret salt; the head after
n entries folds the leaves. The coordinator keeps the last head it counter-signed, and a new one
must be reached from it: a cut tail, a restored copy or a rewritten chain cannot be, however long it
grew.
"""

import hashlib
import hmac
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

_HEX: Final = re.compile(r"[0-9a-f]{64}\Z")


class HeadError(ValueError):
    """A head that is none, or that does not extend what was counter-signed."""


def _check_hex(name: str, value: object) -> None:
    if not isinstance(value, str) or not _HEX.match(value):
        raise HeadError(f"{name}: expected 64 hexadecimal digits, got {value!r:.80}")


@dataclass(frozen=True, slots=True)
class Head:
    """Where a ledger stands: its number of entries and the fold of their leaves."""

    n: int
    digest: str

    def __post_init__(self) -> None:
        if isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 0:
            raise HeadError(f"n: expected a whole number >= 0, got {self.n!r}")
        _check_hex("digest", self.digest)

    def to_dict(self) -> dict[str, Any]:
        return {"n": self.n, "digest": self.digest}

    @classmethod
    def from_dict(cls, value: Any) -> "Head":
        """Read what `to_dict` wrote."""
        return cls(**_fields("head", value, {"n", "digest"}))


GENESIS: Final = Head(0, "0" * 64)
"""The head of every ledger before its first entry."""


def leaf(salt: bytes, digest: str) -> str:
    """What leaves the site of one entry: without the salt it tells nothing of the entry."""
    return hmac.new(salt, digest.encode("ascii"), hashlib.sha256).hexdigest()


def fold(head: Head, leaves: Iterable[str]) -> Head:
    """The head after `leaves`: each digest is SHA-256 of the one before and the leaf."""
    n, digest = head.n, head.digest
    for one in leaves:
        _check_hex("leaf", one)
        digest = hashlib.sha256(f"tacit head {digest} {one}".encode("ascii")).hexdigest()
        n += 1
    return Head(n, digest)


def extends(old: Head, leaves: Sequence[str], new: Head) -> bool:
    """Whether the ledger at `new` still holds everything it held at `old`, then `leaves`."""
    try:
        return fold(old, leaves) == new
    except HeadError:
        return False


def payload(site: str, head: Head) -> bytes:
    """The bytes that a coordinator signs when it accepts a site's head."""
    fields = {"what": "tacit counter-signed head", "v": 1, "site": site, **head.to_dict()}
    return json.dumps(fields, sort_keys=True).encode("ascii")


@dataclass(frozen=True, slots=True)
class Proof:
    """What a site sends about its ledger: the head, and how it is reached from `base`.

    `base` is the coordinator's last counter-signed head; or, marked `acknowledged`, the head at
    which the site's operator declared the break with it.
    """

    base: Head
    leaves: tuple[str, ...]
    head: Head
    acknowledged: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {
            "base": self.base.to_dict(),
            "leaves": list(self.leaves),
            "head": self.head.to_dict(),
            "acknowledged": self.acknowledged,
        }

    @classmethod
    def from_dict(cls, value: Any) -> "Proof":
        """Read what `to_dict` wrote; HeadError for anything else."""
        fields = _fields("proof", value, {"base", "leaves", "head", "acknowledged"})
        leaves, acknowledged = fields["leaves"], fields["acknowledged"]
        if not isinstance(leaves, list | tuple) or not isinstance(acknowledged, bool):
            raise HeadError("proof: expected a list of leaves and acknowledged true or false")
        for one in leaves:
            _check_hex("leaf", one)
        base, head = Head.from_dict(fields["base"]), Head.from_dict(fields["head"])
        return cls(base, tuple(leaves), head, acknowledged)


def accept(last: Head, proof: Proof, used: Collection[str] = ()) -> Head:
    """The head to counter-sign next, or HeadError: the coordinator's whole judgement.

    `last` is what it counter-signed last, `used` the digests of the bases that it once accepted as
    acknowledged: an acknowledgement serves once, so that a copy of the ledger cannot replay it.
    """
    if not extends(proof.base, proof.leaves, proof.head):
        raise HeadError(f"the {len(proof.leaves)} leaves do not lead to the head {proof.head.n}")
    if proof.base == last:
        return proof.head
    if not proof.acknowledged:
        raise HeadError(
            f"the ledger at {proof.head.n} entries is no extension of the counter-signed {last.n}"
        )
    if proof.base.digest in used:
        raise HeadError("this acknowledgement was used before: the ledger is an older copy")
    return proof.head


def _fields(name: str, value: Any, keys: set[str]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or set(value) != keys:
        raise HeadError(f"{name}: expected the keys {sorted(keys)}")
    return value
