"""One message to one site, from the coordinator's push to its pull of the reply."""

import time
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

    @property
    def expired(self) -> bool:
        """Whether the message's time to live is over."""
        meta = self.message.metadata
        return meta.created_at + meta.ttl <= time.time()
