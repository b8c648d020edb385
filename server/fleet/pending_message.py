"""Messages to sites, each from the coordinator's push to its pull of the reply."""

import time
from collections import defaultdict
from dataclasses import dataclass, field

from flwr.app import Message


@dataclass(slots=True)
class PendingMessage:
    """A message that was sent to one site, and what has come of its reply.

    `limit` bounds the reply's bytes; `missing` are the object ids still to be uploaded; `size` is
    how many bytes came so far; `failure` says why there will be no reply.
    """

    message: Message  # without content
    node: int
    site: str
    objects: frozenset[str]
    limit: int
    reply: str | None = None
    missing: set[str] = field(default_factory=set)
    size: int = 0
    ready: bool = False
    failure: str = ""
    sessions: set[str] = field(default_factory=set)
    """Flower's uploads of its reply."""

    @property
    def expired(self) -> bool:
        """Whether the message's time to live is over."""
        meta = self.message.metadata
        return meta.created_at + meta.ttl <= time.time()


class PendingMessages:
    """The messages that wait, by number; those of a node, and those that are settled, are at hand.

    Settled is a message whose reply is complete or will not come.
    """

    def __init__(self) -> None:
        self._items: dict[str, PendingMessage] = {}
        self._of_node: defaultdict[int, dict[str, PendingMessage]] = defaultdict(dict)
        self.settled: dict[str, None] = {}
        """Their numbers, in the order in which they were settled."""

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, number: object) -> bool:
        return number in self._items

    def add(self, number: str, item: PendingMessage) -> None:
        """Put a message that was sent."""
        self._items[number] = self._of_node[item.node][number] = item

    def get(self, number: str) -> PendingMessage | None:
        """The message of that number, if it waits."""
        return self._items.get(number)

    def settle(self, number: str) -> None:
        """Its reply is complete, or will not come."""
        if number in self._items:
            self.settled[number] = None

    def pop(self, number: str) -> PendingMessage | None:
        """Take a message out."""
        self.settled.pop(number, None)
        item = self._items.pop(number, None)
        if item is not None:
            of_node = self._of_node[item.node]
            del of_node[number]
            if not of_node:
                del self._of_node[item.node]
        return item

    def items(self) -> list[tuple[str, PendingMessage]]:
        """All of them, by number."""
        return list(self._items.items())

    def of_node(self, node: int) -> list[tuple[str, PendingMessage]]:
        """Those of one node, by number."""
        return list(self._of_node[node].items()) if node in self._of_node else []
