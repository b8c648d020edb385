"""Files that are complete or absent, one spelling of JSON, and readers with bounds.

Whatever is written goes through `write_atomic`; whatever comes from outside through `read_json` or
`read_toml`, which bound size, depth, digits, length and count before anything uses a value.
"""

import fcntl
import json
import math
import os
import re
import secrets
import stat
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn, cast

PRIVATE: Final = 0o600
"""The mode of keys, and of what only the owner may read."""
_PUBLIC: Final = 0o644
_TEMPORARY: Final = re.compile(r"\.tacit-[0-9a-f]{32}\.tmp")
_TEMPORARY_OF_0_1: Final = re.compile(r"\..+\.[0-9]+\.(tmp|part)")

_TOML_TEXT: Final = re.compile(  # each alternative matches to its end or the text's: linear time
    r'''"""(?:\\.|[^\\])*?(?:"""|\Z)|\'{3}.*?(?:\'{3}|\Z)|"(?:\\.|[^"\\\n])*+"?|'[^'\n]*'?|#[^\n]*''',
    re.DOTALL,
)
_TOML_DIVIDER: Final = re.compile(r"[=,\[\]{}\n]")


class FileError(OSError):
    """A file that could not be written; what was there before stands."""

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(error.errno, error.strerror or str(error), str(path))

    def __str__(self) -> str:
        return f"{self.filename}: cannot be written ({self.strerror}); what was there before stands"


class DocumentError(ValueError):
    """JSON or TOML that cannot be read, or is beyond its limits: one line."""


def write_atomic(
    path: Path,
    content: bytes | Iterable[bytes | memoryview],
    *,
    mode: int | None = None,
    durable: bool = True,
) -> None:
    """Replace a file in one step: readers and a power cut see the old content or the new.

    `content` is the bytes or their parts in order. Without `mode` the file keeps the permissions it
    has (a new one gets 0644, less the umask). `durable=False` leaves out fsync alone: safe against
    a kill, not against a power cut. FileError where it cannot be written.
    """
    with open_atomic(path, mode=mode, durable=durable) as file:
        file.writelines([content] if isinstance(content, bytes) else content)


@contextmanager
def open_atomic(path: Path, *, mode: int | None = None, durable: bool = True) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when the block ends, and vanishes if it raises.

    The temporary file has a random name, is made anew (O_EXCL, O_NOFOLLOW) in the same folder, and
    is locked, so that `remove_stale` tells it from what a kill left. FileError where it cannot be
    written, by the block too.
    """
    with ExitStack() as stack:
        try:
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, folder)
            name, file = _temporary(folder, path.name, mode)
            stack.callback(_unlink, name, folder)
            stack.push(_closing(path, file))
        except OSError as error:
            raise FileError(path, error) from error
        with naming(path):
            yield file
        try:
            file.flush()
            if durable:
                os.fsync(file.fileno())
            os.rename(name, path.name, src_dir_fd=folder, dst_dir_fd=folder)
            if durable:
                os.fsync(folder)
        except OSError as error:
            raise FileError(path, error) from error


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Whatever the block cannot write is said of `path`: a failed write or fsync names no file.

    FileError; an error that names a file already passes as it is.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise FileError(path, error) from error


def make_durable(folder: Path) -> None:
    """Write a folder's own list of names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_stale(*folders: Path) -> int:
    """Remove the temporary files that killed processes left in these folders; how many.

    One that a living process is writing is locked, and stays.
    """
    removed = 0
    for folder in folders:
        with suppress(OSError):
            names = [entry.name for entry in os.scandir(folder)]
            for name in filter(_is_temporary, names):
                removed += _remove_unlocked(folder / name)
    return removed


def canonical_json(value: object) -> str:
    """The one spelling of a value: sorted keys, no blanks, ASCII; ValueError for NaN and infinity.

    What is hashed or signed is spelled so.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that a document may hold: bytes, nesting, digits of a number, characters, values."""

    size: int = 1 << 20
    depth: int = 16
    digits: int = 32
    length: int = 1 << 16
    count: int = 1 << 16


DEFAULT_LIMITS: Final = Limits()


def parse_json(
    content: bytes | str, limits: Limits = DEFAULT_LIMITS, *, nan_is_null: bool = False
) -> Any:
    """A JSON value within `limits`; DocumentError for anything else.

    NaN, infinity, numbers that overflow, a key twice and lone surrogates are refused; with
    `nan_is_null` numbers that are not finite are null, which old versions wrote into records.
    """
    text = _text(content, limits)

    def number(digits: str) -> int:
        if len(digits.lstrip("-")) > limits.digits:
            raise DocumentError(f"a number must have at most {limits.digits} digits")
        return int(digits)

    def real(digits: str) -> float | None:
        value = float(digits)
        if not math.isfinite(value) and nan_is_null:
            return None
        if len(digits) > 2 * limits.digits or not math.isfinite(value):
            raise DocumentError(f"a number must be finite, got {digits[:40]}")
        return value

    try:
        value = json.loads(
            text,
            parse_int=number,
            parse_float=real,
            parse_constant=_null if nan_is_null else _no_constant,
            object_pairs_hook=_object,
        )
    except RecursionError:
        raise DocumentError(f"must be nested at most {limits.depth} deep") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise DocumentError(f"must be JSON: {error.msg} at {where}") from None
    _check(value, limits)
    return value


def parse_toml(content: bytes | str, limits: Limits = DEFAULT_LIMITS) -> dict[str, Any]:
    """A TOML table within `limits`; DocumentError for anything else."""
    text = _text(content, limits)
    if _most_dots(text) > limits.depth:  # tomllib takes quadratic time for a key of many parts
        raise DocumentError(f"must be nested at most {limits.depth} deep")
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise DocumentError(f"must be nested at most {limits.depth} deep") from None
    except (ValueError, OverflowError) as error:  # of a date, or of a number's digits, too
        raise DocumentError(f"must be TOML: {error}") from None
    _check(table, limits)
    return table


def read_json(path: Path, limits: Limits = DEFAULT_LIMITS) -> Any:
    """`parse_json` of a file; OSError where it cannot be read, DocumentError names it."""
    return _parsed(path, limits, parse_json)


def read_toml(path: Path, limits: Limits = DEFAULT_LIMITS) -> dict[str, Any]:
    """`parse_toml` of a file; OSError where it cannot be read, DocumentError names it."""
    return cast(dict[str, Any], _parsed(path, limits, parse_toml))


def read_bounded(path: Path, size: int) -> bytes:
    """A regular file's bytes; DocumentError where it is none or has more than `size` bytes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DocumentError(f"{path}: must be a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(size + 1)
    finally:
        os.close(descriptor)
    if len(content) > size:
        raise DocumentError(f"{path}: must have at most {size} bytes")
    return content


def _parsed(path: Path, limits: Limits, parse: Any) -> Any:
    try:
        return parse(read_bounded(path, limits.size), limits)
    except DocumentError as error:
        text = str(error)
        raise DocumentError(text if text.startswith(f"{path}: ") else f"{path}: {text}") from None


def _temporary(folder: int, name: str, mode: int | None) -> tuple[str, BinaryIO]:
    """A new locked file in the folder, with the mode of the file that it will replace."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    bits = _PUBLIC if mode is None else mode
    while True:
        temporary = f".tacit-{secrets.token_hex(16)}.tmp"
        descriptor = os.open(temporary, flags, bits, dir_fd=folder)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink == 0:  # `remove_stale` came between: another name
                os.close(descriptor)
                continue
            if mode is None:
                _keep_mode(descriptor, name, folder)
            return temporary, os.fdopen(descriptor, "wb")
        except OSError:
            os.close(descriptor)
            _unlink(temporary, folder)
            raise


def _closing(path: Path, file: BinaryIO) -> Callable[..., None]:
    """Close a file; after a failure what its buffer still holds is no second one."""

    def close(kind: object, *_: object) -> None:
        try:
            file.close()
        except OSError as error:
            if kind is None:
                raise FileError(path, error) from error

    return close


def _keep_mode(descriptor: int, name: str, folder: int) -> None:
    with suppress(FileNotFoundError):
        before = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISREG(before.st_mode):
            os.fchmod(descriptor, stat.S_IMODE(before.st_mode))


def _unlink(name: str, folder: int) -> None:
    with suppress(OSError):
        os.unlink(name, dir_fd=folder)


def _is_temporary(name: str) -> bool:
    return bool(_TEMPORARY.fullmatch(name) or _TEMPORARY_OF_0_1.fullmatch(name))


def _remove_unlocked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _text(content: bytes | str, limits: Limits) -> str:
    if len(content) > limits.size:
        raise DocumentError(f"must have at most {limits.size} bytes, got {len(content)}")
    if isinstance(content, str):
        return content
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DocumentError(f"must be UTF-8, got a wrong byte at {error.start}") from None


def _most_dots(text: str) -> int:
    """The most dots of any key or number, outside of texts and comments."""
    bare = _TOML_TEXT.sub("_", text)
    return max(part.count(".") for part in _TOML_DIVIDER.split(bare))


def _null(name: str) -> None:
    """What a number that is not finite becomes."""


def _no_constant(name: str) -> NoReturn:
    raise DocumentError(f"a number must be finite, got {name}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DocumentError(f"a key must occur once, got {twice[:80]!r} twice")
    return value


def _check(document: Any, limits: Limits) -> None:
    """Depth, count, lengths and finite numbers of a value that was read, without recursion."""
    count, level, depth = 0, [document], 0
    while level:
        depth += 1
        if depth > limits.depth + 1:
            raise DocumentError(f"must be nested at most {limits.depth} deep")
        count += len(level)
        if count > limits.count:
            raise DocumentError(f"must hold at most {limits.count} values")
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                for key, inner in value.items():
                    _check_text(key, limits)
                    if isinstance(inner, float) and not math.isfinite(inner):
                        raise DocumentError(f"{key} must be finite, got {inner}")
                below.extend(value.values())
            elif isinstance(value, list):
                below.extend(value)
            elif isinstance(value, str):
                _check_text(value, limits)
            elif isinstance(value, float) and not math.isfinite(value):
                raise DocumentError(f"a number must be finite, got {value}")
            elif isinstance(value, int) and abs(value) >= 10**limits.digits:
                raise DocumentError(f"a number must have at most {limits.digits} digits")
        level = below


def _check_text(text: str, limits: Limits) -> None:
    if len(text) > limits.length:
        raise DocumentError(f"a text must have at most {limits.length} characters")
    if not text.isascii() and any(0xD800 <= ord(c) < 0xE000 for c in text):
        raise DocumentError("a text must be Unicode, got half a surrogate pair")
