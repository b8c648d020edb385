"""Which sites are connected, and the polls that wait for messages to them."""

import asyncio
import contextlib
import time
from typing import Final

_CLOSED_SECONDS: Final = 5.0
_SILENT_SECONDS: Final = 45.0


class Liveness:
    """When each site made its last request.

    A site is away after 45 s of silence, or 5 s after its last connection closed.
    """

    def __init__(self) -> None:
        self._seen: dict[str, float] = {}
        self._heard: dict[str, float] = {}

    def seen(self, site: str) -> None:
        """A site made a request."""
        self._seen[site] = self._heard[site] = time.monotonic()

    def closed(self, site: str) -> None:
        """A site's last connection closed; it may reconnect in a moment."""
        self._seen[site] = time.monotonic() - _SILENT_SECONDS + _CLOSED_SECONDS

    def since(self, site: str) -> float | None:
        """Seconds since the site's last request; None before the first."""
        seen = self._heard.get(site)
        return None if seen is None else time.monotonic() - seen

    def silent(self, site: str) -> float:
        """For how many seconds a site counts as away; 0 while it is connected."""
        return max(0.0, time.monotonic() - self._seen.get(site, -1e9) - _SILENT_SECONDS)


class PollWaiters:
    """One asyncio event per site, which wakes its waiting poll.

    A site's generation counts its connections: a poll of an earlier generation takes no message.
    """

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._events: dict[str, asyncio.Event] = {}
        self._generations: dict[str, int] = {}

    def event_of(self, site: str) -> asyncio.Event:
        """The event that wakes the site's poll."""
        return self._events.setdefault(site, asyncio.Event())

    def generation(self, site: str) -> int:
        """The site's generation."""
        return self._generations.get(site, 0)

    def invalidate(self, site: str) -> None:
        """Start a new generation: polls that wait now return without a message."""
        self._generations[site] = self.generation(site) + 1

    def notify(self, site: str) -> None:
        """Wake a site's waiting poll, from any thread."""
        event = self._events.get(site)
        if event is not None and self.loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has just closed
                self.loop.call_soon_threadsafe(event.set)

    def notify_all(self) -> None:
        """Wake every waiting poll."""
        for site in list(self._events):
            self.notify(site)
