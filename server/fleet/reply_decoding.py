"""A reply as Flower sends it, a tree of objects named by their hashes, counted before it unfolds.

An object is `kind children size`, a zero byte, and its body. A tree may name one object often: an
array of one chunk a million times is a few bytes on the wire, so nothing is joined uncounted.
"""

import json
from collections.abc import Callable

from flwr.app import Array


class MalformedReply(ValueError):
    """Objects that make no reply, or one that is too large."""


def gather(root: str, get: Callable[[str], bytes | None]) -> dict[str, bytes]:
    """Every object under `root`, once; MalformedReply where one is missing."""
    found: dict[str, bytes] = {}
    waiting = [root]
    while waiting:
        name = waiting.pop()
        if name not in found:
            content = get(name)
            if not content:
                raise MalformedReply("an object is missing")
            found[name] = content
            waiting += _split(content)[1]
    return found


def decode_arrays(objects: dict[str, bytes], limit: int) -> dict[str, Array]:
    """The arrays among the objects, joined, at most `limit` bytes; takes their chunks out."""
    total = 0
    arrays: dict[str, Array] = {}
    for name, content in objects.items():
        kind, children, body = _split(content)
        if kind != "Array":
            continue
        said = json.loads(bytes(body))
        parts = [_split(objects[children[index]])[2] for index in said["arraychunk_ids"]]
        total += sum(map(len, parts))
        if total > limit:
            raise MalformedReply(f"more than {limit} bytes")
        shape = tuple(int(length) for length in said["shape"])
        arrays[name] = Array(str(said["dtype"]), shape, str(said["stype"]), b"".join(parts))
    for name in [n for n, content in objects.items() if _split(content)[0] == "ArrayChunk"]:
        del objects[name]
    return arrays


def _split(content: bytes) -> tuple[str, list[str], memoryview]:
    end = content.find(b"\0")
    if end < 0:
        raise MalformedReply("an object without a head")
    kind, children, size = content[:end].decode("ascii").split(" ")
    body = memoryview(content)[end + 1 :]
    if len(body) != int(size):
        raise MalformedReply("an object of another size than it says")
    return kind, children.split(",") if children else [], body
