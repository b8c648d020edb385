"""One message to one site, from push to pull, as the coordinator follows it."""

import time
from dataclasses import dataclass, field

from flwr.app import Message


@dataclass(slots=True)
class Letter:
    """One message to one site, from push to pull."""

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
