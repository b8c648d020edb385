"""A request before it is fetched: its objects by their level, and its one record of settings."""

from collections.abc import Mapping
from typing import Any, Final

from flwr.app import ConfigRecord

from privacy.message_objects import split

_CHUNK_LEVEL: Final = 4
"""Where chunks stand in a tree: below a message, its content, a record and an array."""


def levels(tree: Any) -> tuple[list[str], list[str]]:
    """The objects of a tree: the records, and below them the chunks of arrays."""
    level, records, chunks = [tree], dict[str, None](), dict[str, None]()
    depth = 0
    while level:
        (records if depth < _CHUNK_LEVEL else chunks).update((n.object_id, None) for n in level)
        level, depth = [child for node in level for child in node.children], depth + 1
    return list(records), [name for name in chunks if name not in records]


def fields(contents: Mapping[str, bytes]) -> Mapping[str, Any]:
    """The fields of a request, before its arrays are fetched: its one record of settings."""
    for content in contents.values():
        if split(content)[0] == "ConfigRecord":
            record = ConfigRecord.inflate(content)
            if "plan" in record:
                return record
    return {}
