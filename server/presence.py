"""Who is there: a site is away once it has been silent for long, or has hung up for a moment."""

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
