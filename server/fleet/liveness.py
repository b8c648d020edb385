"""Who is there: a site is away once it has been silent for long, or has hung up for a moment."""

import asyncio
import contextlib
import time
from typing import Final

_GONE_SECONDS: Final = 5.0
_SILENT_SECONDS: Final = 45.0


class Presence:
    """When each site was heard of last."""

    def __init__(self) -> None:
        self._seen: dict[str, float] = {}

    def seen(self, site: str) -> None:
        """A site made a request."""
        self._seen[site] = time.monotonic()

    def gone(self, site: str) -> None:
        """A site's last connection closed; it may be back in a moment."""
        self._seen[site] = time.monotonic() - _SILENT_SECONDS + _GONE_SECONDS

    def silent(self, site: str) -> float:
        """For how many seconds a site counts as away: 0 while it is there."""
        return max(0.0, time.monotonic() - self._seen.get(site, -1e9) - _SILENT_SECONDS)


class Bells:
    """One bell a site, which wakes its waiting poll; a poll of an earlier turn takes nothing."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._bells: dict[str, asyncio.Event] = {}
        self._turns: dict[str, int] = {}

    def of(self, site: str) -> asyncio.Event:
        """The site's bell."""
        return self._bells.setdefault(site, asyncio.Event())

    def turn(self, site: str) -> int:
        """Which turn it is."""
        return self._turns.get(site, 0)

    def next(self, site: str) -> None:
        """A new turn: what waits now waits in vain."""
        self._turns[site] = self.turn(site) + 1

    def ring(self, site: str) -> None:
        """Wake a site's waiting poll, from any thread."""
        bell = self._bells.get(site)
        if bell is not None and self.loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has just closed
                self.loop.call_soon_threadsafe(bell.set)

    def ring_all(self) -> None:
        """Wake every waiting poll."""
        for site in list(self._bells):
            self.ring(site)
