"""Flower's messages as they travel: objects named by their hashes, counted before they are joined.

An object is `kind children size`, a zero byte, and its body. A tree may name one object often: an
array of one chunk a million times is a few bytes on the wire, so nothing is joined uncounted. The
coordinator and the sites read each other's messages by these functions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from privacy.files import DocumentError, Limits, parse_json

OBJECTS_MAX: Final = 2048
"""The most objects of one message: chunks have some 5 MB each."""
RECORDS_MAX: Final = 8 * 1024 * 1024
"""The most bytes of a message that are not chunks of arrays."""
WHOLE_MAX: Final = 128 * 1024
"""The most bytes of objects that travel in one body with their message."""
_ARRAY: Final = Limits(size=128 * 1024, depth=4, digits=20, length=64, count=8 * OBJECTS_MAX)
_CHUNK: Final = "ArrayChunk"


class MalformedMessage(ValueError):
    """Objects that make no message, or one that is too large."""


@dataclass(frozen=True, slots=True)
class WireArray:
    """An array's parts as they came: whoever knows Flower makes its Array of them."""

    dtype: str
    shape: tuple[int, ...]
    stype: str
    data: bytes


def gather(root: str, get: Callable[[str], bytes | None]) -> dict[str, bytes]:
    """Every object under `root`, once; MalformedMessage where one is missing or too many are."""
    objects: dict[str, bytes] = {}
    waiting, records = [root], 0
    while waiting:
        name = waiting.pop()
        if name in objects:
            continue
        content = get(name)
        if not content:
            raise MalformedMessage("an object is missing")
        if len(objects) >= OBJECTS_MAX:
            raise MalformedMessage(f"more than {OBJECTS_MAX} objects")
        kind, children, _ = split(content)
        records += len(content) if kind != _CHUNK else 0
        if records > RECORDS_MAX or len(children) > OBJECTS_MAX:
            raise MalformedMessage(f"more than {RECORDS_MAX} bytes of records")
        objects[name] = content
        waiting += children
    return objects


def decode_arrays(objects: dict[str, bytes], limit: int) -> dict[str, WireArray]:
    """The arrays among the objects, joined, at most `limit` bytes; takes their chunks out."""
    total = 0
    arrays: dict[str, WireArray] = {}
    for name, content in objects.items():
        kind, children, body = split(content)
        if kind != "Array":
            continue
        about = _about(bytes(body))
        chunks = [split(objects[child])[2] for child in children]
        indices = about["arraychunk_ids"]
        if not isinstance(indices, list) or not all(type(i) is int for i in indices):
            raise MalformedMessage("an array without a list of chunks")
        if any(not 0 <= index < len(chunks) for index in indices):
            raise MalformedMessage("an array of chunks that it does not have")
        total += sum(len(chunks[index]) for index in indices)
        if total > limit:
            raise MalformedMessage(f"more than {limit} bytes")
        lengths = about["shape"]
        if not isinstance(lengths, list) or not all(type(n) is int for n in lengths):
            raise MalformedMessage("an array without a shape")
        data = b"".join(chunks[index] for index in indices)
        arrays[name] = WireArray(str(about["dtype"]), tuple(lengths), str(about["stype"]), data)
    for name in [n for n, content in objects.items() if split(content)[0] == _CHUNK]:
        del objects[name]
    return arrays


def split(content: bytes) -> tuple[str, list[str], memoryview]:
    """An object's kind, the names of its children, and its body."""
    end = content.find(b"\0")
    if end < 0:
        raise MalformedMessage("an object without a head")
    try:
        kind, children, size = content[:end].decode("ascii").split(" ")
        length = int(size)
    except ValueError:
        raise MalformedMessage("an object with a malformed head") from None
    body = memoryview(content)[end + 1 :]
    if len(body) != length:
        raise MalformedMessage("an object of another size than its head says")
    return kind, children.split(",") if children else [], body


def whole(head: bytes, objects: Mapping[str, bytes]) -> bytes:
    """A message's head and its objects as one body: each part behind its length."""
    parts = [head]
    for name, content in objects.items():
        parts += [name.encode("ascii"), content]
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def from_whole(body: bytes) -> tuple[bytes, dict[str, bytes]]:
    """The head and the objects by name of a body that `whole` made; MalformedMessage."""
    parts, at = list[bytes](), 0
    while at < len(body):
        end = at + 4 + int.from_bytes(body[at : at + 4], "big")
        if end > len(body) or len(parts) > 2 * OBJECTS_MAX:
            raise MalformedMessage("a body of another form")
        parts.append(body[at + 4 : end])
        at = end
    names = parts[1::2]
    if len(parts) != 2 * len(names) + 1 or not all(name.isascii() for name in names):
        raise MalformedMessage("a body of another form")
    return parts[0], dict(zip((name.decode() for name in names), parts[2::2], strict=True))


def _about(body: bytes) -> dict[str, object]:
    try:
        about = parse_json(body, _ARRAY)
    except DocumentError:
        raise MalformedMessage("an array with a malformed description") from None
    if not isinstance(about, dict) or not {"arraychunk_ids", "shape", "dtype", "stype"} <= set(
        about
    ):
        raise MalformedMessage("an array without a description")
    return about
