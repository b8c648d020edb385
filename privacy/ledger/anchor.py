"""A ledger's anchor, `PATH.anchor`: where it stood before its last spend, and what that spend was.

It is written before the entries are. A ledger that a crash or a cut left without exactly that last
spend is completed from it; one that lacks anything else is refused. Two pages are written in turn,
so that a torn write leaves the other. It is not fsynced: after a power cut it may be older than the
ledger, which is no loss, since a ledger may be longer than its anchor knows.
"""

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from privacy.files import DocumentError, Limits, parse_json
from privacy.ledger.chain import ZERO, Chain, LedgerNotWritten, create_file

_PAGE: Final = 4096
_DIGITS: Final = 64
_LIMITS: Final = Limits(size=_PAGE, depth=6)


class Sealed(Protocol):
    """An entry, of which only its digest counts here."""

    @property
    def digest(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Anchor:
    """`n` entries ended in `head` when the entries `pending` were about to be written."""

    n: int = 0
    head: str = ZERO
    pending: tuple[Mapping[str, Any], ...] = ()
    turn: int = 0


def anchor_path(path: Path) -> Path:
    """The anchor of a ledger."""
    return path.with_name(path.name + ".anchor")


def create(path: Path, *, durable: bool) -> None:
    """Make a ledger's anchor file; it must not be there."""
    create_file(anchor_path(path), durable=durable)


def read(path: Path) -> Anchor | None:
    """The latest sound page of a ledger's anchor; None where there is none."""
    try:
        descriptor = os.open(anchor_path(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        pages = [os.pread(descriptor, _PAGE, turn * _PAGE) for turn in (0, 1)]
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return max(filter(None, map(_parse, pages)), key=lambda one: one.turn, default=None)


def write(
    path: Path, chain: Chain[Any], pending: Sequence[Mapping[str, Any]], *, again: bool = False
) -> None:
    """Anchor the chain as it stands, with what is about to be appended to it.

    Entries that do not fit a page are left out: a ledger without them is then taken as it is.
    `again` writes over the last page, to take back what was pending.
    """
    last = read(path)
    turn = 0 if last is None else last.turn + (2 if again else 1)
    anchor = Anchor(len(chain.rows), chain.head, tuple(pending), turn)
    page = _page(anchor)
    if page is None:
        page = _page(Anchor(anchor.n, anchor.head, (), turn))
    try:
        descriptor = os.open(anchor_path(path), os.O_WRONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if page is None or os.pwrite(descriptor, page, (turn % 2) * _PAGE) != _PAGE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)
    except OSError as error:
        message = f"could not be written: {error.strerror}"
        raise LedgerNotWritten(anchor_path(path), message) from error


def lost(anchor: Anchor | None, path: Path, entries: Sequence[Sealed]) -> str | None:
    """What the anchor remembers and the ledger of these entries lost, or None."""
    if anchor is None:
        return (
            f"its anchor {anchor_path(path).name} is missing or damaged: the ledger may be an "
            "older copy (move all three files together)"
        )
    seen = entries[anchor.n - 1].digest if 0 < anchor.n <= len(entries) else ZERO
    if anchor.n > len(entries) or seen != anchor.head:
        return (
            f"holds {len(entries)} entries, but {anchor_path(path).name} saw {anchor.n} ending in "
            f"{anchor.head[:16]}: an older copy, a cut tail or another ledger's anchor"
        )
    return None


def _page(anchor: Anchor) -> bytes | None:
    """The text, then blanks, then the digest of both: a short write is no page. None: too long."""
    value = {
        "v": 1,
        "turn": anchor.turn,
        "n": anchor.n,
        "head": anchor.head,
        "pending": [dict(body) for body in anchor.pending],
    }
    text = json.dumps(value, allow_nan=False).encode("ascii")  # in the order of a ledger's line
    text = text.ljust(_PAGE - _DIGITS)
    if len(text) > _PAGE - _DIGITS:
        return None
    return text + hashlib.sha256(text).hexdigest().encode("ascii")


def _parse(page: bytes) -> Anchor | None:
    text, digest = page[:-_DIGITS], page[-_DIGITS:]
    if hashlib.sha256(text).hexdigest().encode("ascii") != digest:
        return None
    try:
        value = parse_json(text, _LIMITS)
    except DocumentError:
        return None
    if value["v"] != 1:
        return None
    return Anchor(value["n"], value["head"], tuple(value["pending"]), value["turn"])
