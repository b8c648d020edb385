"""Who did what: an append-only chain of lines, `audit.jsonl`, at a coordinator and at each site.

A line is written before the act that it names, so that nothing happens unrecorded; an act that then
fails gets a second line. Each line is sealed with the one before, and `audit.head` remembers the
last: a line that is changed, moved or removed, the last ones too, is found by `read`. Whoever may
write both files can still write another history: keep backups, or send the lines elsewhere.
"""

import json
import os
import pwd
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from privacy.files import PRIVATE, DocumentError, read_json, write_atomic
from privacy.ledger.chain import (
    Chain,
    LedgerError,
    LedgerMissing,
    LedgerNotWritten,
    create_file,
    locked,
)
from privacy.printable import printable

FILE: Final = "audit.jsonl"
HEAD: Final = "audit.head"
_LONGEST: Final = 500


@dataclass(frozen=True, slots=True)
class Act:
    """One act: when (UTC, ISO 8601), by which user of the system, what, on what, and why.

    `fingerprint` is the SHA-256, of a key or of a file, that tells the object from others of its
    name.
    """

    time: str
    user: str
    command: str
    object: str = ""
    fingerprint: str = ""
    reason: str = ""

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def record(
    folder: Path, command: str, object: str = "", *, fingerprint: str = "", reason: str = ""
) -> None:
    """Append one act to a folder's trail, on the disk before it returns; LedgerError."""
    path = folder / FILE
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        with suppress(LedgerError):  # another process made it just now
            create_file(path, durable=True)
    texts = (object, fingerprint, reason)
    time = datetime.now(UTC).isoformat(timespec="seconds")
    act = Act(time, user(), command, *(printable(text, _LONGEST) for text in texts))
    chain = _chain(path)
    with locked(path, write=True) as fd:
        chain.refresh(fd)
        _check_head(folder, chain)
        chain.append(fd, [act.to_dict()], durable=True)
        head = json.dumps({"v": 1, "n": len(chain.rows), "digest": chain.head}).encode()
        try:
            write_atomic(folder / HEAD, head, mode=PRIVATE)
        except OSError as error:
            raise LedgerNotWritten(folder / HEAD, str(error)) from error


@contextmanager
def recorded(
    folder: Path, command: str, object: str = "", *, fingerprint: str = "", reason: str = ""
) -> Iterator[None]:
    """Record an act, then do it; one that raises is recorded as failed."""
    record(folder, command, object, fingerprint=fingerprint, reason=reason)
    try:
        yield
    except BaseException as error:
        record(folder, command, object, reason=f"failed: {type(error).__name__}")
        raise


def read(folder: Path) -> tuple[Act, ...]:
    """The whole trail, verified; LedgerError where a line was changed or removed."""
    path = folder / FILE
    if not path.exists() and not (folder / HEAD).exists():
        return ()
    chain = _chain(path)
    try:
        with locked(path, write=False) as fd:
            chain.refresh(fd)
            _check_head(folder, chain)
    except LedgerMissing:
        raise LedgerError(path, f"is missing, but {HEAD} remembers it") from None
    return tuple(chain.rows)


def user() -> str:
    """Who runs this process: the user's name, and who became it by sudo."""
    number = os.getuid()
    try:
        name = pwd.getpwuid(number).pw_name
    except KeyError:  # in a container
        name = str(number)
    before = os.environ.get("SUDO_USER", "")
    return printable(f"{before} as {name}" if before and before != name else name)


class _Trail(Chain[Act]):
    """The chain of acts, with the digest of every line."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, self._act)
        self.digests: list[str] = []

    def _act(self, version: int, n: int, body: Mapping[str, Any], prev: str, digest: str) -> Act:
        names = [item.name for item in fields(Act)]
        if list(body) != names or not all(isinstance(value, str) for value in body.values()):
            raise ValueError(f"must have the texts {', '.join(names)}")
        self.digests.append(digest)
        return Act(**body)


def _chain(path: Path) -> _Trail:
    return _Trail(path)


def _check_head(folder: Path, chain: _Trail) -> None:
    """What `audit.head` remembers must stand in the trail; it may be one line behind a kill."""
    if not chain.rows and not (folder / HEAD).exists():
        return
    try:
        head = read_json(folder / HEAD)
        number, digest = int(head["n"]), str(head["digest"])
    except (OSError, DocumentError, KeyError, TypeError, ValueError):
        if len(chain.rows) <= 1:  # a kill before the first head was written
            return
        raise LedgerError(chain.path, f"{HEAD} is missing or damaged: lines may be lost") from None
    if not 0 < number <= len(chain.rows) or chain.digests[number - 1] != digest:
        raise LedgerError(
            chain.path, f"{HEAD} remembers {number} lines, the file has {len(chain.rows)} others"
        )
