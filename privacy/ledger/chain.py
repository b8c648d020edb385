"""An append-only file of JSON lines, each sealed by a digest of its bytes and of its predecessor.

What has been read once is verified once: a later look hashes what it knew and parses what is new. A
file that no longer supports what was read from it is refused, however sound it looks by itself.
"""

import fcntl
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Generic, NoReturn, TypeVar

VERSION: Final = 1
NEWEST: Final = 2
"""The versions of a line: 1 of 0.1.0 and of every log, 2 of spends since."""
ZERO: Final = "0" * 64
"""What the first line names as its predecessor."""
LONGEST_LINE: Final = 1 << 16
_CUT_DIGEST: Final = re.compile(rb'([0-9a-f]{0,63}|[0-9a-f]{64}"?)\Z')
_CHUNK: Final = 1 << 20
_SETTLED_NS: Final = 2_000_000_000

Row = TypeVar("Row")
Parse = Callable[[int, int, Mapping[str, Any], str, str], Row]
"""(version, n, body, prev, digest) -> row; raises ValueError `field: what is wrong`."""


class LedgerError(ValueError):
    """A ledger that is missing, not sound, or not writable: nothing may be done on its word."""

    def __init__(self, path: Path | str, message: str, *, line: int | None = None) -> None:
        self.path, self.line = str(path), line
        where = f"{path}: line {line}" if line is not None else f"{path}"
        super().__init__(f"{where}: {message}")


class LedgerMissing(LedgerError):
    """There is no file of that name."""


class LedgerNotWritten(LedgerError):
    """The disk did not take the next lines: full, or broken. What was there before still stands."""


def seal(n: int, body: Mapping[str, Any], prev: str, version: int = VERSION) -> tuple[bytes, str]:
    """The n-th line without its newline, and its digest: SHA-256 of all bytes before the digest."""
    fields = {"v": version, "n": n, **body, "prev": prev}
    text = json.dumps(fields, allow_nan=False)[:-1].encode("ascii")
    digest = hashlib.sha256(text).hexdigest()
    return text + f', "digest": "{digest}"}}'.encode("ascii"), digest


def unseal(raw: bytes, n: int, prev: str) -> tuple[int, Mapping[str, Any], str]:
    """Version, body and digest of the n-th line after `prev`; ValueError for anything else.

    Sealing again must give the same bytes, which refuses duplicate keys, blanks, other spellings of
    a number and NaN in one stroke.
    """
    try:
        fields = json.loads(raw.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected one JSON object in ASCII, got {raw[:40]!r}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"expected one JSON object, got {raw[:40]!r}")
    version = fields.get("v")
    if type(version) is not int or version not in (VERSION, NEWEST):
        raise ValueError(f"v must be {VERSION} or {NEWEST}, got {version!r:.80}")
    if fields.get("n") != n:
        raise ValueError(f"n must be {n}, got {fields.get('n')!r:.80}")
    if fields.get("prev") != prev:
        raise ValueError(f"prev must be {prev[:16]}..., the digest of the line before")
    body = {k: fields[k] for k in fields if k not in ("v", "n", "prev", "digest")}
    try:
        line, digest = seal(n, body, prev, version)
    except ValueError as error:
        raise ValueError(f"expected finite numbers only ({error})") from error
    if fields.get("digest") != digest:
        raise ValueError("digest: does not match the line's bytes")
    if line != raw:
        raise ValueError("must be the canonical spelling of its JSON")
    return version, body, digest


class Chain(Generic[Row]):
    """The verified content of one file, brought up to date by `refresh`, extended by `append`."""

    def __init__(self, path: Path, parse: Parse[Row], version: int = VERSION) -> None:
        self.path, self.version = path, version
        self.rows: list[Row] = []
        self.head = ZERO
        self.torn = (
            b""  # an incomplete last line: what a crash leaves of a write that never returned
        )
        self._parse = parse
        self._size = 0  # bytes verified; they hash to _hash
        self._hash = hashlib.sha256()
        self._open_end = False  # the last verified line is complete but for its newline
        self._stamp: tuple[int, ...] | None = None

    @property
    def incomplete(self) -> str | None:
        """What is wrong with the tail, or None."""
        if not self.torn:
            return None
        return f"incomplete tail of {len(self.torn)} bytes (the next spend drops it)"

    def refresh(self, fd: int) -> None:
        """Verify what the file holds beyond what is known; LedgerError where it is not sound."""
        info = os.fstat(fd)
        if self._stamp is not None and self._stamp == _stamp(info):
            return
        self._stamp = None
        if not self._still_supported(fd):
            raise LedgerError(self.path, "has lost or changed lines that were read from it before")
        self._read(fd)
        if time.time_ns() - info.st_mtime_ns > _SETTLED_NS:
            self._stamp = _stamp(info)

    def append(self, fd: int, bodies: Sequence[Mapping[str, Any]], *, durable: bool) -> None:
        """Write the next lines in one write, after a `refresh` under the same lock."""
        parts, n, prev = [b"\n"] if self._open_end else [], len(self.rows), self.head
        for body in bodies:
            n += 1
            line, prev = seal(n, body, prev, self.version)
            parts += [line, b"\n"]
        data = b"".join(parts)
        try:
            if self.torn:
                os.ftruncate(fd, self._size)
                self.torn = b""
            written = os.write(fd, data)
            if written != len(data):
                raise OSError(f"only {written} of {len(data)} bytes fit")
        except OSError as error:
            self._stamp = None
            with suppress(OSError):  # what then stays is a torn tail, and counts as one
                os.ftruncate(fd, self._size)
            raise LedgerNotWritten(self.path, f"could not be written: {error}") from error
        mark = time.time_ns()
        try:
            # A modification time finer than the kernel's clock tick: any later write shows.
            os.utime(fd, ns=(mark, mark))
        except PermissionError:
            mark = -1
        if durable:
            try:
                os.fsync(fd)
            except OSError as error:
                self._stamp = None
                raise LedgerNotWritten(self.path, f"could not be made durable: {error}") from error
        info = os.fstat(fd)
        self._take(data)
        self._stamp = _stamp(info) if info.st_mtime_ns == mark else None

    def _still_supported(self, fd: int) -> bool:
        digest, offset = hashlib.sha256(), 0
        while offset < self._size:
            chunk = os.pread(fd, min(_CHUNK, self._size - offset), offset)
            if not chunk:
                return False
            digest.update(chunk)
            offset += len(chunk)
        return digest.digest() == self._hash.digest()

    def _read(self, fd: int) -> None:
        self.torn, tail, offset = b"", b"", self._size
        while chunk := os.pread(fd, _CHUNK, offset):
            offset += len(chunk)
            complete, newline, rest = (tail + chunk).rpartition(b"\n")
            self._take(complete + newline)
            tail = rest
            if len(tail) > LONGEST_LINE:
                self._fail(f"expected a line of at most {LONGEST_LINE} bytes")
        if not tail:
            return
        if self._open_end:
            self._fail("expected a newline after the digest", line=len(self.rows))
        try:
            self._take_line(tail)
        except LedgerError:
            if not _could_be_torn(tail):
                raise
            self.torn = tail
        else:
            self._hash.update(tail)
            self._size += len(tail)
            self._open_end = True

    def _take(self, data: bytes) -> None:
        """Verify whole lines, and count their bytes as known one line at a time."""
        start = 0
        while start < len(data):
            end = data.index(b"\n", start)
            line = data[start:end]
            if self._open_end and line:
                self._fail("expected a newline after the digest", line=len(self.rows))
            if not self._open_end:
                self._take_line(line)
            self._open_end = False
            self._hash.update(data[start : end + 1])
            self._size += end + 1 - start
            start = end + 1

    def _take_line(self, raw: bytes) -> None:
        n = len(self.rows) + 1
        try:
            version, body, digest = unseal(raw, n, self.head)
            row = self._parse(version, n, body, self.head, digest)
        except ValueError as error:
            self._fail(str(error))
        self.rows.append(row)
        self.head = digest

    def _fail(self, message: str, line: int | None = None) -> NoReturn:
        raise LedgerError(self.path, message, line=line or len(self.rows) + 1)


def _could_be_torn(tail: bytes) -> bool:
    """Whether a cut write may have left these bytes; a changed whole line must not pass for it."""
    if not tail.startswith(b"{") or not all(0x20 <= byte < 0x7F for byte in tail):
        return False
    _, begun, digest = tail.rpartition(b'"digest": "')
    return bool(_CUT_DIGEST.match(digest)) if begun else not tail.endswith(b'"}')


def _stamp(info: os.stat_result) -> tuple[int, ...]:
    return (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


@contextmanager
def locked(path: Path, *, write: bool) -> Iterator[int]:
    """A descriptor of the file under its lock: exclusive to write, shared to read."""
    flags = os.O_RDWR | os.O_APPEND if write else os.O_RDONLY
    try:
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise LedgerMissing(path, "no such file") from error
    except (OSError, ValueError) as error:
        raise LedgerError(path, f"cannot be opened: {error}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise LedgerError(path, "expected a regular file")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX if write else fcntl.LOCK_SH)
        except OSError as error:
            raise LedgerError(path, f"cannot be locked: {error}") from error
        yield fd
    finally:
        os.close(fd)


def create_file(path: Path, *, durable: bool) -> None:
    """Make an empty file, readable by its owner alone, that was not there before."""
    try:
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LedgerError(path, f"cannot be created: {error.strerror}") from error
    try:
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)
    if durable:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
