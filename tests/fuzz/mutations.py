"""Changes of bytes and of JSON values that readers tend to stumble over."""

import copy
import json
import random
from typing import Any

STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1e308, 5e-324, 10**400, -(10**30), "", "\x00", "\ud800", "x" * 5000,
    [], {}, [[]], {"a": {}}, "1e999", "../../x", 1e200, 2**63, "\x1b[2J", float("nan"),
    float("inf"), "\u202e", "=1+1", "a\nb", 0.5, 1, 64, "record",
)  # fmt: skip
_BYTES = (
    b"\x00", b"\xff" * 8, b"1" * 400, b"e999", b"[", b"{", b"\n", b'"', b"\xed\xa0\x80", b"nan",
    b"-", b"9" * 5000, b"[" * 2000, b"\r\n", b" ", b"a.b." * 500, b"'''", b"\\u0000", b",,",
)  # fmt: skip


def mutated_value(value: Any, source: random.Random) -> Any:
    """A JSON value with one to three changes."""
    value = copy.deepcopy(value)
    for _ in range(source.randint(1, 3)):
        path: list[tuple[Any, Any]] = []
        current = value
        while isinstance(current, dict | list) and current and source.random() < 0.85:
            keys = list(current) if isinstance(current, dict) else range(len(current))
            key = source.choice(keys)
            path.append((current, key))
            current = current[key]
        if not path:
            return copy.deepcopy(source.choice(STRANGE))
        container, key = path[-1]
        choice = source.random()
        if choice < 0.6:
            container[key] = copy.deepcopy(source.choice(STRANGE))
        elif choice < 0.75:
            container.pop(key)
        elif isinstance(container, dict):
            name = source.choice(["__class__", "v", "x", "\x00", "site", ""])
            container[name] = copy.deepcopy(source.choice(STRANGE))
        else:
            container.append(copy.deepcopy(source.choice(STRANGE)))
    return value


def mutated_bytes(content: bytes, source: random.Random) -> bytes:
    """Bytes with a few changed, cut out, put in, repeated, or cut off."""
    changed = bytearray(content)
    for _ in range(source.choice([1, 1, 2, 4, 16])):
        choice = source.random()
        place = source.randrange(len(changed) + 1)
        if choice < 0.35 and changed:
            edge = [0, 255, 10, 34, 92, 123, source.randrange(256)]
            changed[min(place, len(changed) - 1)] = source.choice(edge)
        elif choice < 0.5:
            del changed[place : place + source.choice([1, 2, 8, 64])]
        elif choice < 0.65:
            changed[place:place] = source.choice(_BYTES)
        elif choice < 0.75:
            changed = changed[:place]
        elif changed:
            start = source.randrange(len(changed))
            part = changed[start : start + source.choice([4, 32, 200])]
            changed[place:place] = part
    return bytes(changed)


def mutated_json(content: bytes, source: random.Random) -> bytes:
    """The text of a JSON value: changed as a value, or as bytes, or nested without end."""
    if source.random() < 0.3:
        return mutated_bytes(content, source)
    text = json.dumps(mutated_value(json.loads(content), source))
    if source.random() < 0.02:
        depth = source.choice([500, 5000, 100_000])
        text = text.replace("1", "[" * depth + "]" * depth, 1)
    return text.encode("utf-8", "surrogatepass")
